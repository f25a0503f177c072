//! `cargo xtask fuzz`: runs the targets of `tests/hostile` under libFuzzer, which looks for input
//! that reaches new code. Not part of CI, which runs the same targets on their corpus and on random
//! changes of it.
//!
//! It needs a C++ compiler, and no nightly toolchain: without sanitizers, which find faults of
//! unsafe code, coverage is all that a fuzzer wants of the compiler.

use std::fs;
use std::time::Duration;

use anyhow::Context;

use crate::Misuse;
use crate::run::{cargo, output, program, root, run, target};

const TARGETS: [&str; 4] = ["request", "response", "event", "priority"];

/// What `cargo fuzz` passes too.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// The longest input, in bytes.
const LONGEST: u32 = 4_096;

struct Plan {
    each: Duration,
    targets: Vec<&'static str>,
}

fn plan(args: &[&str]) -> Result<Plan, Misuse> {
    let mut plan = Plan { each: Duration::from_secs(60), targets: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if *arg == "--seconds" {
            let seconds = args.next().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
            let seconds = seconds.ok_or_else(|| Misuse("--seconds needs a whole number above 0".into()))?;
            plan.each = Duration::from_secs(seconds);
            continue;
        }
        let known = TARGETS.into_iter().find(|target| target == arg);
        plan.targets.push(known.ok_or_else(|| Misuse(format!("{arg} is none of {}", TARGETS.join(", "))))?);
    }
    if plan.targets.is_empty() {
        plan.targets = TARGETS.to_vec();
    }
    Ok(plan)
}

pub(crate) fn main(args: &[&str]) -> anyhow::Result<()> {
    let Plan { each, targets } = plan(args)?;
    let built = target().join("fuzz");
    let mut build = cargo(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"]);
    // With a target named, cargo compiles build scripts and macros without these flags.
    let version = output(program("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    run(build.arg(&built).args(["--target", host]).env("RUSTFLAGS", COVERAGE))?;
    for target in targets {
        let found = root().join("fuzz/corpus").join(target);
        let artifacts = root().join("fuzz/artifacts").join(target);
        fs::create_dir_all(&found)?;
        fs::create_dir_all(&artifacts)?;
        let binary = built.join(host).join("release").join(target);
        let mut fuzz = program(&binary.to_string_lossy());
        // New input goes into the first folder.
        fuzz.arg(&found).arg(root().join("tests/hostile/corpus").join(target));
        fuzz.arg(format!("-max_total_time={}", each.as_secs())).arg(format!("-max_len={LONGEST}"));
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        run(fuzz.args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_seconds_are_read_and_mistakes_named() {
        let plan_of =
            |args: &[&str]| plan(args).map(|plan| (plan.each.as_secs(), plan.targets)).map_err(|Misuse(text)| text);
        assert_eq!(plan_of(&[]), Ok((60, TARGETS.to_vec())));
        assert_eq!(plan_of(&["event", "--seconds", "5"]), Ok((5, vec!["event"])));
        for wrong in [&["--seconds"][..], &["--seconds", "0"], &["--seconds", "x"], &["cookie"]] {
            assert!(plan_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_target_has_a_binary_and_a_corpus() {
        for target in TARGETS {
            assert!(root().join("fuzz/src/bin").join(format!("{target}.rs")).is_file());
            assert!(root().join("tests/hostile/corpus").join(target).is_dir());
        }
    }
}
