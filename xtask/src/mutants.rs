//! `cargo xtask mutants`: changes one operator or return value at a time and runs the tests, with
//! cargo-mutants. Not part of CI, because each mutant costs a build.
//!
//! docs/mutants.md explains the mutants that survive.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use crate::run::{cargo, output, run, target, works};

/// The mutants of one package, and the tests that should catch them.
struct Target {
    package: &'static str,
    /// Globs of the sources to change. Code around a database, a broker or a process is left out:
    /// its tests take too long for each mutant.
    files: &'static [&'static str],
    /// Packages whose tests run.
    tests: &'static [&'static str],
    /// The test targets that are built and run. The first package must have each of them:
    /// cargo-mutants runs its tests alone before it changes anything.
    targets: &'static [&'static str],
    /// Arguments of the tests.
    args: &'static [&'static str],
}

/// Code of tests. cargo-mutants leaves out what is under `#[cfg(test)]`, but not what has a further
/// condition, such as `#[cfg(all(test, not(loom)))]`.
const TEST_FILES: [&str; 3] = ["**/tests.rs", "**/tests/**", "**/loom_models.rs"];
const TEST_FUNCTIONS: &str = r"\b(tests|testing|loom_models)::";

const TARGETS: &[Target] = &[
    Target {
        package: "buttress-core",
        files: &["crates/buttress-core/src/**/*.rs"],
        tests: &["buttress-core"],
        // The skipped tests simulate hours of traffic, for seconds each.
        targets: &["--lib", "--test=conformance"],
        args: &["--skip=random_errors", "--skip=an_outage_trips_it"],
    },
    Target {
        package: "buttress",
        files: &["crates/buttress/src/**/*.rs"],
        tests: &["buttress"],
        targets: &["--lib", "--test=it"],
        args: &[],
    },
    Target {
        package: "buttress-http",
        files: &["crates/buttress-http/src/**/*.rs"],
        // The tests of composed stacks also enable the features.
        tests: &["buttress-http", "buttress-stack-tests"],
        targets: &["--lib", "--test=it"],
        args: &[],
    },
    Target {
        package: "buttress-durable",
        files: &[
            "crates/buttress-durable/src/bus/log/*.rs",
            "crates/buttress-durable/src/event/*.rs",
            "crates/buttress-durable/src/outbox/*.rs",
            "crates/buttress-durable/src/saga/{machine,rules,state,step}.rs",
        ],
        tests: &["buttress-durable"],
        targets: &["--lib", "--test=it"],
        args: &["--skip=kafka", "--skip=kill::"],
    },
    Target {
        package: "mesh",
        files: &[
            "examples/mesh/src/{customers,events,faults,problem}.rs",
            "examples/mesh/src/demo/{books,checks,facts}.rs",
            "examples/mesh/src/load/{latency,outcome,schedule,search,tally}.rs",
            "examples/mesh/src/order/{domain,place,saga}.rs",
        ],
        tests: &["mesh"],
        targets: &["--lib", "--bins", "--test=it"],
        // One at a time: its services time each other out after fractions of a second.
        args: &["--skip=processes", "--skip=in_chromium", "--test-threads=1"],
    },
];

pub(crate) fn main(packages: &[&str]) -> anyhow::Result<()> {
    if let Some(unknown) = packages.iter().find(|name| TARGETS.iter().all(|target| target.package != **name)) {
        let known: Vec<_> = TARGETS.iter().map(|target| target.package).collect();
        bail!("no files are chosen for {unknown}, only for {}", known.join(", "));
    }
    if !works(&mut cargo(["mutants", "--version"])) {
        println!("cargo-mutants is not installed; installing it");
        run(&mut cargo(["install", "cargo-mutants", "--locked"]))?;
    }
    TARGETS.iter().filter(|target| packages.is_empty() || packages.contains(&target.package)).try_for_each(mutate)
}

fn mutate(chosen: &Target) -> anyhow::Result<()> {
    let Target { package, tests, targets, args, .. } = chosen;
    let count = output(mutants(chosen).arg("--list"))?.lines().count();
    let out = target().join("mutants").join(package);
    fs::create_dir_all(&out)?;
    println!("\n{package}: {count} mutants, each with a build and a run of the tests of {}", tests.join(" and "));
    println!("Survivors are added to {}", out.join("mutants.out/missed.txt").display());
    #[expect(clippy::disallowed_methods, reason = "tells a person how long a run took")]
    let start = Instant::now();
    let mut command = mutants(chosen);
    command.args(["--test-package", &tests.join(","), "--jobs=1", "--output"]).arg(&out);
    // The time that the tests may take is a multiple of what the first package's take. Those of
    // composed stacks take longer.
    command.arg("--minimum-test-timeout=60");
    // For the builds too, which would link all test binaries otherwise.
    command.args(targets.iter().flat_map(|target| ["--cargo-arg", target]));
    command.arg("--").arg("--").args(*args);
    let code = command.status().context("cannot start cargo-mutants")?.code();
    println!("{package}: {} minutes", start.elapsed().as_secs() / 60);
    // 0: all were caught. 2: some survived. 3: tests of some did not end.
    ensure!(matches!(code, Some(0 | 2 | 3)), "cargo-mutants did not finish");
    Ok(())
}

fn mutants(Target { package, files, .. }: &Target) -> Command {
    let mut command = cargo(["mutants", "--package", package, "--exclude-re", TEST_FUNCTIONS]);
    command.args(files.iter().flat_map(|file| ["--file", file]));
    command.args(TEST_FILES.iter().flat_map(|file| ["--exclude", file]));
    command
}
