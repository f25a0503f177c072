//! Checks for which there is no ready-made tool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::run::{Ran, cargo, output, program, root, run, works};
use crate::test::EXAMPLES;

/// Every feature of every published crate compiles alone, with all others, and none, without a
/// warning. So does every example with the features that it asks for.
///
/// Clippy rather than `check`: its `-D warnings` reaches only our code, so dependencies are
/// compiled once for all rounds.
pub(crate) fn features() -> anyhow::Result<()> {
    for (package, features) in published()? {
        let mut rounds = vec![vec!["--no-default-features".to_owned()]];
        for feature in &features {
            rounds.push(vec!["--no-default-features".into(), "--features".into(), feature.clone()]);
        }
        if !features.is_empty() {
            rounds.push(vec!["--all-features".into()]);
        }
        for round in rounds {
            let mut command = cargo(["clippy", "--quiet", "--package", &package]);
            run(command.args(round).args(["--", "--deny", "warnings"]))?;
        }
    }
    for (example, _) in EXAMPLES {
        run(&mut cargo(["clippy", "--quiet", "--package", example, "--", "--deny", "warnings"]))?;
    }
    Ok(())
}

/// Dependencies that a package must not have, with these features.
const ABSENT: [(&str, &[&str], &[&str]); 3] = [
    // The core has no runtime, no protocol and no middleware.
    (
        "buttress-core",
        &["--all-features"],
        &["tokio", "tower", "tower-service", "tower-layer", "http", "http-body", "hyper"],
    ),
    // The layers serve any protocol. The features `tonic` and `axum`, off by default, are there for
    // impls that the orphan rule allows nowhere else.
    ("buttress", &[], &["http", "http-body", "hyper", "axum", "tonic", "reqwest"]),
    // A user of one of these does not compile the others.
    ("buttress-http", &["--no-default-features"], &["hyper", "axum", "axum-core", "tonic", "reqwest"]),
];

pub(crate) fn dependencies() -> anyhow::Result<()> {
    for (package, features, absent) in ABSENT {
        let mut command =
            cargo(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
        let tree = output(command.args(features))?;
        let found: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        ensure!(found.contains(&package), "cargo tree does not show {package}:\n{tree}");
        for name in absent {
            ensure!(
                !found.contains(name),
                "{package} depends on {name}, which it must not; `cargo tree -e normal -p {package} -i {name}` shows how"
            );
        }
        println!("{package}: none of {}", absent.join(", "));
    }
    Ok(())
}

/// Marks of unfinished code and of tests that are switched off. Each is in two parts, so that this
/// file does not contain it.
const UNFINISHED: [&str; 4] =
    [concat!("to", "do!("), concat!("unim", "plemented!("), concat!("#[ig", "nore"), concat!("db", "g!(")];

pub(crate) fn sources() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for_each_source(&mut |path, text| {
        for (number, line) in text.lines().enumerate() {
            if UNFINISHED.iter().any(|part| line.contains(part)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    })?;
    ensure!(found.is_empty(), "unfinished:\n{}", found.join("\n"));
    Ok(())
}

/// Every Rust file of the workspace, with its text.
fn for_each_source(look: &mut impl FnMut(&Path, &str)) -> anyhow::Result<()> {
    for dir in ["benches", "crates", "examples", "fuzz", "tests", "xtask"] {
        if root().join(dir).is_dir() {
            walk(&root().join(dir), look)?;
        }
    }
    Ok(())
}

fn walk(dir: &Path, look: &mut impl FnMut(&Path, &str)) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, look)?;
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            look(&path, &text);
        }
    }
    Ok(())
}

/// The width of comments in columns. Code may be as wide as rustfmt makes it.
const COMMENT_WIDTH: usize = 100;

/// No comment is wider than [`COMMENT_WIDTH`] columns, apart from tables, code and links.
pub(crate) fn width() -> anyhow::Result<()> {
    let mut wide = Vec::new();
    for_each_source(&mut |path, text| {
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                in_code = false;
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            if comment.starts_with("```") {
                in_code = !in_code;
            } else if !in_code && !may_be_wide(comment) && line.chars().count() > COMMENT_WIDTH {
                wide.push(format!("{}:{}: {} columns", path.display(), number + 1, line.chars().count()));
            }
        }
    })?;
    ensure!(wide.is_empty(), "comments wider than {COMMENT_WIDTH} columns:\n{}", wide.join("\n"));
    Ok(())
}

/// A row of a table, and a link that cannot be broken.
fn may_be_wide(comment: &str) -> bool {
    comment.starts_with('|') || (comment.contains("://") && comment.split(' ').count() <= 3)
}

/// The minimum share of public items with an example in the crates of the layers, in percent.
const LEAST_EXAMPLES: f64 = 60.0;

/// Counts the public items with an example in the crates of the layers.
pub(crate) fn examples_in_docs() -> anyhow::Result<()> {
    for package in ["buttress-core", "buttress", "buttress-http"] {
        let mut command = cargo(["rustdoc", "--quiet", "--package", package, "--all-features", "--"]);
        command.args(["-Z", "unstable-options", "--show-coverage", "--output-format", "json"]);
        // Counting is unstable, and this variable allows unstable flags in a stable rustdoc.
        let counts: Value = serde_json::from_str(&output(command.env("RUSTC_BOOTSTRAP", "1"))?)?;
        let files = counts.as_object().context("rustdoc's coverage is not what it was: no map of files")?;
        let sum = |what: &str| files.values().filter_map(|file| file[what].as_u64()).sum::<u64>();
        let (with, total) = (sum("with_examples"), sum("total_examples"));
        ensure!(total > 0, "rustdoc counts no item of {package} that could have an example");
        let share = 100.0 * with as f64 / total as f64;
        println!("{package}: {with} of {total} public items have an example, {share:.0} %");
        ensure!(
            share >= LEAST_EXAMPLES,
            "{package} has examples on {share:.0} % of its items; {LEAST_EXAMPLES} % is the least"
        );
    }
    Ok(())
}

/// Removes the sources that an earlier `cargo package` unpacked. Cargo keeps them in its home by
/// name and version, and takes them again for packages of the same version that have changed since.
fn forget_packaged() -> anyhow::Result<()> {
    let home = env::home_dir().map(|home| home.join(".cargo"));
    let Some(home) = env::var_os("CARGO_HOME").map(PathBuf::from).or(home) else { return Ok(()) };
    let Ok(registries) = fs::read_dir(home.join("registry/src")) else { return Ok(()) };
    for registry in registries {
        let registry = registry?;
        // The one of `cargo package` has no host before the hyphen.
        if registry.file_name().to_string_lossy().starts_with('-') {
            for package in published()?.keys() {
                let unpacked = registry.path().join(format!("{package}-{}", env!("CARGO_PKG_VERSION")));
                if unpacked.is_dir() {
                    fs::remove_dir_all(unpacked)?;
                }
            }
        }
    }
    Ok(())
}

/// The crates of the layers can be packaged, and each package builds by itself.
pub(crate) fn package() -> anyhow::Result<()> {
    forget_packaged()?;
    let mut command = cargo(["package", "--quiet", "--allow-dirty"]);
    // A package is built outside of the workspace and its profile, and is not debugged.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    run(command.args(published()?.keys().flat_map(|package| ["--package", package])))
}

/// The public API against that of the last release. Before the first one there is nothing to
/// compare with.
pub(crate) fn semver() -> anyhow::Result<Ran> {
    let tags = output(program("git").args(["tag", "--list", "v*", "--sort", "-version:refname"]))?;
    let Some(release) = tags.lines().next() else {
        return Ok(Ran::Nothing("no release is tagged whose API could be compared"));
    };
    if !works(&mut cargo(["semver-checks", "--version"])) {
        let what =
            "no API was compared: cargo-semver-checks is not installed (`cargo install cargo-semver-checks --locked`)";
        return Ok(Ran::Without(what.into()));
    }
    let mut command = cargo(["semver-checks", "--baseline-rev", release]);
    run(command.args(published()?.keys().flat_map(|package| ["--package", package])))?;
    Ok(Ran::All)
}

/// The packages that are published, with their features.
fn published() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let metadata: Value =
        serde_json::from_str(&output(&mut cargo(["metadata", "--no-deps", "--format-version", "1"]))?)?;
    let Some(packages) = metadata["packages"].as_array() else {
        bail!("cargo metadata lists no packages");
    };
    // `publish = false` arrives as an empty list of registries.
    let published = packages.iter().filter(|package| package["publish"].is_null());
    let published: BTreeMap<_, _> = published
        .filter_map(|package| {
            let features = package["features"].as_object()?.keys();
            let features = features.filter(|name| *name != "default").cloned().collect();
            Some((package["name"].as_str()?.to_owned(), features))
        })
        .collect();
    ensure!(!published.is_empty(), "cargo metadata lists no published package");
    Ok(published)
}
