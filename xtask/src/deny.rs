//! Licences, duplicates and sources of the dependencies, by the policy in deny.toml.
//!
//! `cargo deny check bans licenses sources` reads the same file. Building it takes minutes, which
//! CI does not have, and a check that runs on some machines only is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{bail, ensure};
use serde_json::Value;

use crate::run::{cargo, output, root};

/// A package as `cargo tree` shows it.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    licence: &'a str,
    /// Where it comes from: nothing for crates.io.
    origin: &'a str,
}

pub(crate) fn check() -> anyhow::Result<()> {
    let policy: Value = toml::from_str(&fs::read_to_string(root().join("deny.toml"))?)?;
    let mut tree = cargo(["tree", "--workspace", "--all-features", "--target", "all", "--edges", "all"]);
    for excluded in names(&policy["graph"]["exclude"], None) {
        tree.args(["--exclude", excluded]);
    }
    let tree = output(tree.args(["--prefix", "none", "--format", "{p}|{l}"]))?;
    let packages = parse(&tree)?;
    println!("{} packages", packages.len());
    let mut broken = broken(&packages, &policy);
    for denied in array(&policy["bans"]["deny"]) {
        let (name, wrappers) = (text(&denied["name"]), names(&denied["wrappers"], None));
        if !wrappers.is_empty() && packages.iter().any(|package| package.name == name) {
            broken.extend(unwrapped(&dependents(name)?, name, &wrappers));
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Returns the packages that depend on `name` directly.
fn dependents(name: &str) -> anyhow::Result<String> {
    let mut tree = cargo(["tree", "--workspace", "--all-features", "--target", "all", "--edges", "normal,build"]);
    output(tree.args(["--invert", name, "--depth", "1", "--prefix", "none", "--format", "{p}"]))
}

/// What depends on a denied package, other than its wrappers. The first line is the package itself.
fn unwrapped(tree: &str, name: &str, wrappers: &BTreeSet<&str>) -> Vec<String> {
    let dependents = tree.lines().skip(1).filter_map(|line| line.split_once(" v")).map(|(dependent, _)| dependent);
    let others = dependents.filter(|dependent| !wrappers.contains(dependent));
    others.map(|dependent| format!("{name} is banned, except for {wrappers:?}, and {dependent} needs it")).collect()
}

/// Reads lines such as `serde v1.0.229 (proc-macro)|MIT OR Apache-2.0 (*)`, and skips the features
/// among them.
fn parse(tree: &str) -> anyhow::Result<BTreeSet<Package<'_>>> {
    let mut packages = BTreeSet::new();
    for line in tree.lines().filter_map(|line| line.split_once('|')) {
        let (package, licence) = (line.0, line.1.trim_end_matches(" (*)"));
        let mut parts = package.splitn(3, ' ');
        let (name, version, origin) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let (Some(name), Some(version)) = (name, version.and_then(|version| version.strip_prefix('v'))) else {
            bail!("cargo tree is not what it was: {package}");
        };
        let origin = origin.trim_start_matches("(proc-macro)").trim();
        packages.insert(Package { name, version, licence, origin });
    }
    ensure!(!packages.is_empty(), "cargo tree shows no package");
    Ok(packages)
}

/// What violates the policy, a line each.
fn broken(packages: &BTreeSet<Package<'_>>, policy: &Value) -> Vec<String> {
    let allowed = names(&policy["licenses"]["allow"], None);
    let banned = array(&policy["bans"]["deny"]).filter(|denied| array(&denied["wrappers"]).next().is_none());
    let denied: BTreeSet<&str> = banned.map(|denied| text(&denied["name"])).collect();
    let skipped = names(&policy["bans"]["skip"], Some("crate"));
    let (mut broken, mut versions) = (Vec::new(), BTreeMap::<&str, Vec<&str>>::new());
    for Package { name, version, licence, origin } in packages {
        versions.entry(name).or_default().push(version);
        if !is_allowed(licence, &allowed) {
            broken.push(format!("{name} {version}: the licence {licence:?} is not allowed"));
        }
        if denied.contains(name) {
            broken.push(format!("{name} {version} is banned"));
        }
        // Our own packages have a path.
        if !origin.is_empty() && !origin.starts_with("(/") {
            broken.push(format!("{name} {version} comes from {origin}, and not from crates.io"));
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    let several = versions.iter().filter(|(name, _)| !skipped.contains(*name));
    broken.extend(several.map(|(name, versions)| format!("{name} is there {} times: {versions:?}", versions.len())));
    let needless = skipped.iter().filter(|name| !versions.contains_key(*name));
    broken.extend(needless.map(|name| format!("{name} is there once: take it out of `skip`")));
    broken
}

/// Whether an SPDX expression is met by allowed licences alone.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    // Before SPDX expressions, crates.io took a slash for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words, allowed);
        return words.next_if_eq(&")").is_some() && met;
    }
    let licence = words.next().unwrap_or_default();
    match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
        Some(exception) => allowed.contains(&*format!("{licence} WITH {exception}")),
        None => allowed.contains(licence),
    }
}

/// The strings of a list, or of a field of its entries.
fn names<'a>(list: &'a Value, field: Option<&str>) -> BTreeSet<&'a str> {
    array(list).map(|entry| text(field.map_or(entry, |field| &entry[field]))).collect()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_part_that_a_licence_requires_must_be_allowed() {
        let allowed = BTreeSet::from(["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]);
        let met = |expression| is_allowed(expression, &allowed);
        assert!(met("MIT") && met("GPL-3.0 OR MIT") && met("MIT/Apache-2.0") && met("MIT AND Zlib"));
        assert!(met("(GPL-3.0 OR MIT) AND Zlib") && met("GPL-3.0 AND Zlib OR MIT"));
        assert!(met("Apache-2.0 WITH LLVM-exception OR GPL-3.0"));
        assert!(!met("") && !met("GPL-3.0") && !met("MIT AND GPL-3.0") && !met("Apache-2.0"));
        assert!(!met("MIT AND (GPL-3.0 OR BSD)") && !met("(MIT") && !met("MIT Zlib") && !met("MIT WITH a"));
    }

    #[test]
    fn each_violation_is_named() {
        let policy = json!({
            "licenses": { "allow": ["MIT"] },
            "bans": { "deny": [{ "name": "tls" }], "skip": [{ "crate": "rand" }, { "crate": "syn" }] },
        });
        let tree = "ours v0.1.0 (/work)|GPL-3.0\na feature \"default\"\na v1.0.0|MIT\nsyn v1.0.0|MIT (*)\n\
                    syn v2.0.0 (proc-macro)|MIT\ntls v1.0.0|MIT\na v2.0.0 (https://example.com#1)|MIT\na v1.0.0|MIT (*)";
        assert_eq!(
            broken(&parse(tree).unwrap(), &policy),
            [
                "a 2.0.0 comes from (https://example.com#1), and not from crates.io",
                "ours 0.1.0: the licence \"GPL-3.0\" is not allowed",
                "tls 1.0.0 is banned",
                "a is there 2 times: [\"1.0.0\", \"2.0.0\"]",
                "rand is there once: take it out of `skip`",
            ]
        );
        assert!(parse("").is_err());
    }

    #[test]
    fn a_banned_package_may_be_wrapped() {
        let policy = json!({
            "licenses": { "allow": ["MIT"] },
            "bans": { "deny": [{ "name": "tls", "wrappers": ["kafka"] }], "skip": [] },
        });
        assert_eq!(broken(&parse("tls v1.0.0|MIT").unwrap(), &policy), Vec::<String>::new());
        let wrappers = BTreeSet::from(["kafka"]);
        assert_eq!(unwrapped("tls v1.0.0\nkafka v2.0.0", "tls", &wrappers), Vec::<String>::new());
        let others = unwrapped("tls v1.0.0\nkafka v2.0.0\nhttp v1.0.0", "tls", &wrappers);
        assert_eq!(others, ["tls is banned, except for {\"kafka\"}, and http needs it"]);
    }
}
