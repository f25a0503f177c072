//! Checks the `rust-version` that each crate declares.
//!
//! Cargo shows it to users and picks their dependencies by it, but checks nothing until an older
//! compiler is used. This checks that no dependency needs a newer one, with every feature, and that
//! the published crates compile with the compiler that they declare, if rustup can install it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::run::{Ran, cargo, output, program, run, works};

type Version = (u64, u64, u64);

/// A package of the dependency graph.
struct Package<'a> {
    name: &'a str,
    rust_version: Option<&'a str>,
    published: bool,
    /// What it needs to be built: no dependencies of tests.
    needs: Vec<&'a str>,
}

pub(crate) fn check() -> anyhow::Result<Ran> {
    let metadata = output(&mut cargo(["metadata", "--format-version", "1", "--all-features"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = read(&metadata)?;
    let members: Vec<&str> = array(&metadata["workspace_members"])?.iter().filter_map(Value::as_str).collect();
    ensure!(!members.is_empty(), "cargo metadata lists no members of the workspace");

    let mut broken = Vec::new();
    let mut published = BTreeMap::<Version, Vec<&str>>::new();
    for member in members {
        let package = packages.get(member).context("a member is not among the packages")?;
        let Some(declared) = package.rust_version else {
            broken.push(format!("{} declares no rust-version", package.name));
            continue;
        };
        let declared = parse(declared)?;
        broken.extend(asks_for_more(&packages, member, declared)?.map(|(dependency, version)| {
            format!("{} declares {}, but {dependency} needs {version}", package.name, show(declared))
        }));
        if package.published {
            published.entry(declared).or_default().push(package.name);
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    println!("no dependency needs more than its users declare");
    compile(&published)
}

/// The dependency with the highest `rust-version`, if that is above `declared`.
fn asks_for_more<'a>(
    packages: &BTreeMap<&'a str, Package<'a>>,
    member: &'a str,
    declared: Version,
) -> anyhow::Result<Option<(&'a str, &'a str)>> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![member]);
    let mut worst = None;
    let mut highest = declared;
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = packages.get(id).with_context(|| format!("{id} is not among the packages"))?;
        if let Some(version) = package.rust_version
            && parse(version)? > highest
        {
            highest = parse(version)?;
            worst = Some((package.name, version));
        }
        open.extend(&package.needs);
    }
    Ok(worst)
}

/// Compiles with the declared compilers that rustup has or can install.
fn compile(published: &BTreeMap<Version, Vec<&str>>) -> anyhow::Result<Ran> {
    let rustc = output(program("rustc").arg("-vV"))?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let mut missing = Vec::new();
    for (version, packages) in published {
        let toolchain = show(*version);
        if !has(&toolchain) {
            missing.push(toolchain);
            continue;
        }
        let mut command = program("rustup");
        command.args(["run", &toolchain, "cargo", "check", "--quiet", "--locked", "--all-features"]);
        command.args(without_c(host).iter().flat_map(|config| ["--config", config]));
        run(command.args(packages.iter().flat_map(|package| ["--package", package])))?;
    }
    if missing.is_empty() {
        return Ok(Ran::All);
    }
    let missing = missing.join(" and ");
    Ok(Ran::Without(format!("nothing was compiled with Rust {missing}, which rustup neither has nor can install")))
}

/// Settings with which librdkafka is not built and SQLite not optimized: a check links nothing, and
/// each toolchain would build both again.
fn without_c(host: &str) -> [String; 2] {
    [format!("target.{host}.rdkafka.rustc-link-lib=[]"), "profile.dev.package.libsqlite3-sys.opt-level=0".into()]
}

fn has(toolchain: &str) -> bool {
    let runs = || works(program("rustup").args(["run", toolchain, "cargo", "--version"]));
    runs() || works(program("rustup").args(["toolchain", "install", toolchain, "--profile", "minimal"])) && runs()
}

fn read(metadata: &Value) -> anyhow::Result<BTreeMap<&str, Package<'_>>> {
    let mut packages = BTreeMap::new();
    for package in array(&metadata["packages"])? {
        let (Some(id), Some(name)) = (package["id"].as_str(), package["name"].as_str()) else {
            bail!("cargo metadata has a package without a name");
        };
        // `publish = false` arrives as an empty list of registries.
        let published = package["publish"].is_null() && package["source"].is_null();
        let rust_version = package["rust_version"].as_str();
        packages.insert(id, Package { name, rust_version, published, needs: Vec::new() });
    }
    for node in array(&metadata["resolve"]["nodes"])? {
        let needed = array(&node["deps"])?.iter().filter(|dependency| {
            let kinds = dependency["dep_kinds"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev" && is_for_us(&kind["target"])))
        });
        let needed = needed.filter_map(|dependency| dependency["pkg"].as_str()).collect();
        if let Some(package) = node["id"].as_str().and_then(|id| packages.get_mut(id)) {
            package.needs = needed;
        }
    }
    Ok(packages)
}

/// Whether a target is neither the model checker's nor WebAssembly.
fn is_for_us(target: &Value) -> bool {
    target.as_str().is_none_or(|target| !target.contains("loom") && !target.contains("wasm"))
}

fn array(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value.as_array().context("cargo metadata is not what it was: a list is missing")
}

fn parse(version: &str) -> anyhow::Result<Version> {
    let mut parts = version.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).with_context(|| format!("{version} is no version"));
    Ok((next()?, next()?, next()?))
}

fn show((major, minor, patch): Version) -> String {
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph<'a>(versions: &[(&'a str, Option<&'a str>, &[&'a str])]) -> BTreeMap<&'a str, Package<'a>> {
        let package = |(name, rust_version, needs): &(&'a str, Option<&'a str>, &[&'a str])| {
            (*name, Package { name, rust_version: *rust_version, published: true, needs: needs.to_vec() })
        };
        versions.iter().map(package).collect()
    }

    #[test]
    fn a_dependency_of_a_dependency_that_needs_more_is_named() {
        let packages = graph(&[
            ("ours", Some("1.85"), &["web", "time"]),
            ("web", None, &["grpc"]),
            ("time", Some("1.86"), &[]),
            ("grpc", Some("1.88.1"), &["web"]),
        ]);
        let more = |declared| asks_for_more(&packages, "ours", declared).unwrap();
        assert_eq!(more((1, 85, 0)), Some(("grpc", "1.88.1")));
        assert_eq!(more((1, 88, 0)), Some(("grpc", "1.88.1")));
        assert_eq!(more((1, 88, 1)), None);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(parse("1.100").unwrap() > parse("1.95.1").unwrap());
        assert!(parse("1.x").is_err());
    }
}
