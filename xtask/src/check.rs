//! Checks that no ready-made tool does the way we want it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::run::{cargo, output, root, run};

/// Every feature of every published crate compiles alone, with all others, and none, without a
/// warning.
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
    Ok(())
}

/// Who must not know of whom. Cargo keeps these true; here is where they are asked for.
const ABSENT: [(&str, &[&str], &[&str]); 3] = [
    // The core is pure: no runtime, no protocol, no middleware.
    (
        "buttress-core",
        &["--all-features"],
        &["tokio", "tower", "tower-service", "tower-layer", "http", "http-body", "hyper"],
    ),
    // The layers serve any protocol. (Feature `tonic` is one conversion that the orphan rule keeps
    // there, off by default.)
    ("buttress", &[], &["http", "http-body", "hyper", "axum", "tonic", "reqwest"]),
    // Who uses one of these does not pay for the others.
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

/// Nothing is left for later and no test is switched off. In two parts, or this file would find
/// itself.
const UNFINISHED: [&str; 4] =
    [concat!("to", "do!("), concat!("unim", "plemented!("), concat!("#[ig", "nore"), concat!("db", "g!(")];

pub(crate) fn sources() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for dir in ["benches", "crates", "examples", "fuzz", "tests", "xtask"] {
        if root().join(dir).is_dir() {
            search(&root().join(dir), &mut found)?;
        }
    }
    ensure!(found.is_empty(), "unfinished:\n{}", found.join("\n"));
    Ok(())
}

fn search(dir: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                search(&path, found)?;
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            for (number, line) in text.lines().enumerate() {
                if UNFINISHED.iter().any(|part| line.contains(part)) {
                    found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    Ok(())
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
