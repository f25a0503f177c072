//! `cargo xtask test`: all checks that a change must pass. CI runs this and nothing else.
//!
//! A step that fails does not stop the next ones, so that one run shows all failures, and that
//! without network those steps run that need none. The tests come last, so that the last lines are
//! the test runner's summary.

use std::env;
use std::process::Stdio;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::run::{Ran, cargo, in_ci, output, program, run, target, works};
use crate::setup::setup;
use crate::{Misuse, browser, check, deny, postgres, rust_version};

struct Step {
    name: &'static str,
    /// What to do when it fails.
    advice: &'static str,
    run: fn() -> anyhow::Result<Ran>,
}

/// The mesh builds librdkafka only with the first feature, because that takes a minute, and some
/// simulations of the benches exist only with the second one. All steps that
/// compile the workspace have both: another set of features compiles most of it a second time.
const FEATURES: [&str; 2] = ["--features", "mesh/kafka,buttress-bench/virtual-clock"];

const STEPS: &[Step] = &[
    Step { name: "setup", advice: "Steps that need this fail too: repair it first.", run: || all(setup()) },
    Step {
        name: "fmt",
        advice: "`cargo fmt --all` repairs it.",
        run: || all(run(&mut cargo(["fmt", "--all", "--check"]))),
    },
    Step { name: "sources", advice: "Finish it, or take it out.", run: || all(check::sources()) },
    Step { name: "width", advice: "Wrap the comments.", run: || all(check::width()) },
    Step {
        name: "dependencies",
        advice: "Move the code to the crate that may know of it, or put the dependency behind a feature.",
        run: || all(check::dependencies()),
    },
    Step {
        name: "deny",
        advice: "See deny.toml: take another dependency, or argue there for this one.",
        run: || all(deny::check()),
    },
    Step {
        name: "clippy",
        advice: "`cargo clippy --workspace --all-targets` shows it alone; an exception is an `expect` with a reason.",
        run: || {
            all(run(cargo(["clippy", "--workspace", "--all-targets"])
                .args(FEATURES)
                .args(["--", "--deny", "warnings"])))
        },
    },
    Step {
        name: "features",
        advice: "The last command above fails by itself: some code needs a feature that its `cfg` does not name.",
        run: || all(check::features()),
    },
    Step {
        name: "rust-version",
        advice: "Declare a higher `rust-version` in the crate's Cargo.toml, or take the code or the dependency out.",
        run: rust_version::check,
    },
    Step {
        name: "package",
        advice: "`cargo package --list -p PACKAGE` shows what is in it; a file from outside of the package is missing there.",
        run: || all(check::package()),
    },
    Step {
        name: "semver",
        advice: "A change that breaks users needs a new minor version before 1.0, and a line in CHANGELOG.md.",
        run: check::semver,
    },
    Step {
        name: "loom",
        advice: "An interleaving breaks an invariant. LOOM_LOG=trace LOOM_LOCATION=1 with the command above shows which.",
        run: || all(loom()),
    },
    Step {
        name: "doc",
        advice: "The last command above shows it alone; mostly a link that leads nowhere.",
        run: || all(doc().and_then(|()| check::examples_in_docs())),
    },
    Step {
        name: "doctest",
        advice: "An example in the documentation does not do what it says.",
        run: || all(run(cargo(["test", "--workspace", "--doc"]).args(FEATURES))),
    },
    Step {
        name: "examples",
        advice: "What the example shows did not happen: run the last command above alone.",
        run: || all(examples()),
    },
    Step { name: "tests", advice: "", run: || all(tests()) },
];

fn all(result: anyhow::Result<()>) -> anyhow::Result<Ran> {
    result.map(|()| Ran::All)
}

/// The examples, and the arguments with which they end by themselves.
pub(crate) const EXAMPLES: [(&str, &[&str]); 5] = [
    ("axum-server", &[]),
    ("tonic-client", &[]),
    ("hyper-client", &[]),
    ("reqwest-client", &[]),
    ("mesh", &["demo", "--orders", "60"]),
];

#[derive(Clone, Copy, Eq, PartialEq)]
enum Verdict {
    Passed,
    /// Passed, but not all of it was checked.
    Partly,
    /// There was nothing to check.
    Nothing,
    Failed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Partly => "partly",
            Self::Nothing => "-",
            Self::Failed => "FAILED",
        }
    }
}

const USAGE: &str = "\
usage: cargo xtask test              all steps
       cargo xtask test STEP...      only these steps, in the order of the list
       cargo xtask test --list       their names";

pub(crate) fn main(args: &[&str]) -> anyhow::Result<()> {
    match args {
        ["--list"] => {
            STEPS.iter().for_each(|step| println!("{}", step.name));
            return Ok(());
        }
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    if let Some(unknown) = args.iter().find(|arg| STEPS.iter().all(|step| step.name != **arg)) {
        return Err(Misuse(format!("no step is called {unknown}\n{USAGE}")).into());
    }
    let chosen = STEPS.iter().filter(|step| args.is_empty() || args.contains(&step.name));

    let mut done = Vec::new();
    for step in chosen {
        if step.name == "tests" {
            recap(&done);
        }
        println!("\n=== {} {}", step.name, "=".repeat(100 - step.name.len()));
        let (verdict, took) = timed(step);
        done.push((step.name, verdict, took));
    }
    let failed: Vec<&str> =
        done.iter().filter(|(_, verdict, _)| *verdict == Verdict::Failed).map(|(name, ..)| *name).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn timed(step: &Step) -> (Verdict, Duration) {
    #[expect(clippy::disallowed_methods, reason = "tells a person how long a step took")]
    let start = Instant::now();
    let result = (step.run)();
    let took = start.elapsed();
    let verdict = match result {
        // Nothing may follow the test runner's own summary.
        Ok(Ran::All) if step.name == "tests" => Verdict::Passed,
        Ok(Ran::All) => {
            println!("ok, {:.1} s", took.as_secs_f64());
            Verdict::Passed
        }
        Ok(Ran::Without(what)) if in_ci() => {
            println!("FAILED: {what}, and in CI nothing may be left out");
            Verdict::Failed
        }
        Ok(Ran::Without(what)) => {
            println!("SKIPPED in part or whole: {what}");
            Verdict::Partly
        }
        Ok(Ran::Nothing(why)) => {
            println!("NOTHING CHECKED: {why}");
            Verdict::Nothing
        }
        Err(error) => {
            println!("FAILED: {error:#}\n{}", step.advice);
            Verdict::Failed
        }
    };
    (verdict, took)
}

fn recap(done: &[(&str, Verdict, Duration)]) {
    if done.is_empty() {
        return;
    }
    println!("\n=== so far {}", "=".repeat(93));
    for (name, verdict, took) in done {
        println!("{:6}  {name:14} {:6.1} s", verdict.word(), took.as_secs_f64());
    }
}

/// In a target directory of its own: its flags would rebuild everything else.
fn loom() -> anyhow::Result<()> {
    let target = target().join("loom");
    run(cargo(["test", "--package", "buttress-core", "--release", "--lib", "loom_models"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", target))
}

/// The private items of the mesh are documented too, because it is an example to read.
fn doc() -> anyhow::Result<()> {
    let doc = |args: &[&str]| run(cargo(["doc", "--no-deps"]).args(args).env("RUSTDOCFLAGS", "-D warnings"));
    // With all features, as docs.rs shows them.
    doc(&["--workspace", "--exclude", "mesh", "--all-features"])?;
    doc(&["--package", "mesh", "--all-features", "--document-private-items"])
}

/// The examples end by themselves, and fail if what they show did not happen.
///
/// They are built together with the tests, whose features they then have. By itself each would
/// compile all of its dependencies again; that it has the features that it needs is for the step
/// `features` to check.
fn examples() -> anyhow::Result<()> {
    let mut build = cargo(["build", "--workspace", "--tests"]);
    run(build.args(EXAMPLES.iter().flat_map(|(name, _)| ["--bin", name])).args(FEATURES))?;
    for (name, args) in EXAMPLES {
        run(program(&target().join("debug").join(name).to_string_lossy()).args(args))?;
    }
    Ok(())
}

/// What some tests need and a machine may lack.
struct Need {
    what: &'static str,
    /// The environment variable in which the tests expect it.
    variable: &'static str,
    /// The part of their names by which these tests are selected, here and in .config/nextest.toml.
    part: &'static str,
    /// Whether `setup` installs it, so that CI has no reason to lack it.
    installed: bool,
}

const NEEDS: [Need; 4] = [
    Need { what: "PostgreSQL", variable: postgres::VARIABLE, part: "on_postgres", installed: true },
    Need { what: "Chromium", variable: browser::VARIABLE, part: "in_chromium", installed: true },
    Need { what: "a Kafka broker", variable: "BUTTRESS_TEST_KAFKA", part: "on_kafka_broker", installed: false },
    Need {
        what: "a Kafka broker of their own",
        variable: "BUTTRESS_TEST_KAFKA_COMMAND",
        part: "on_kafka_command",
        installed: false,
    },
];

/// The targets with tests, of which nextest takes the same.
const TESTS: [&str; 5] = ["test", "--workspace", "--lib", "--bins", "--tests"];

/// On SQLite, on Kafka's mock cluster, in Chromium, and on a PostgreSQL that is started for them.
/// Tests whose needs are not met are named and not run.
fn tests() -> anyhow::Result<()> {
    let nextest = works(&mut cargo(["nextest", "--version"]));
    let mut tests = cargo(if nextest { &["nextest", "run", "--workspace"][..] } else { &TESTS }.iter().copied());
    browser::offer(tests.arg("--no-fail-fast").args(FEATURES));
    let _server = postgres::serve(&mut tests)?;
    let is_offered = |variable: &str| {
        env::var_os(variable).is_some() || tests.get_envs().any(|(name, value)| name == variable && value.is_some())
    };
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !is_offered(need.variable)).collect();
    tell_left_out(&missing)?;
    // Two for each core, because many tests wait, most of all for Kafka's mock cluster.
    let threads = (2 * available_parallelism()?.get()).to_string();
    if nextest {
        // The default leaves out all tests that need something.
        tests.args(["--test-threads", &threads, "--ignore-default-filter"]);
        let left_out: Vec<_> = missing.iter().map(|need| format!("test({})", need.part)).collect();
        if !left_out.is_empty() {
            tests.args(["-E", &format!("not ({})", left_out.join(" | "))]);
        }
    } else {
        println!("cargo-nextest is not installed; cargo's own runner does the same, slower and without time limits");
        tests.args(["--", "--test-threads", &threads]).args(missing.iter().flat_map(|need| ["--skip", need.part]));
    }
    run(&mut tests)?;
    let lacking: Vec<&str> = missing.iter().filter(|need| need.installed).map(|need| need.what).collect();
    ensure!(lacking.is_empty() || !in_ci(), "CI must test with {}", lacking.join(" and "));
    Ok(())
}

/// Prints the names of the tests that the next run leaves out, and their number.
fn tell_left_out(missing: &[&Need]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut list = cargo(TESTS);
    list.args(FEATURES).args(["--quiet", "--", "--list", "--format", "terse"]);
    let listed = output(list.args(missing.iter().map(|need| need.part)).stderr(Stdio::inherit()))?;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for Need { what, variable, part, .. } in missing {
        let left: Vec<&str> = names.iter().copied().filter(|name| name.contains(part)).collect();
        ensure!(!left.is_empty(), "no test has {part} in its name");
        println!("left out: {} tests that need {what}, which {variable} does not name", left.len());
        left.iter().for_each(|name| println!("    {name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_leaves_out_by_default_what_needs_something() {
        let config = include_str!("../../.config/nextest.toml");
        let filter = config.lines().find(|line| line.starts_with("default-filter")).unwrap();
        let parts: Vec<_> = NEEDS.iter().map(|need| format!("test({})", need.part)).collect();
        assert_eq!(filter, format!("default-filter = \"not ({})\"", parts.join(" | ")));
    }
}
