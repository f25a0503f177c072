//! Tasks of this repository, as `cargo xtask COMMAND`.

mod browser;
mod check;
mod debian;
mod deny;
mod fuzz;
mod mutants;
mod postgres;
mod run;
mod rust_version;
mod setup;
mod soak;
mod test;

use std::fmt;
use std::process::ExitCode;

use crate::run::{cargo, run};

const USAGE: &str = "\
usage: cargo xtask test [--list] [STEP...]     set up, then check everything; or only the named steps
       cargo xtask bench [--quick] [--runs N] [--json FILE] [--page FILE]... [FILTER...]
                                               cost per call, ours and the peers'
       cargo xtask trips [--json FILE]         when circuit breakers trip, simulated: ours and the peers'
       cargo xtask overload [--docs FOLDER] [--scenario NAME] [--seeds N]
                                               adaptive limits under overload, simulated: ours and the peers'
       cargo xtask tiers [--docs FOLDER] [--seed N]
                                               retries over tiers and recovery, simulated: ours and the peers'
       cargo xtask fuzz [--seconds N] [TARGET...]
                                               what input from strangers does, found by libFuzzer
       cargo xtask mutants [PACKAGE...]        bugs that no test catches, by cargo-mutants; takes hours
       cargo xtask soak [--minutes N] [--seed N] [--stack sqlite|postgres] [--kafka mock] [TROUBLE...]
                                               the example mesh under one trouble after another";

/// A command line that makes no sense.
#[derive(Debug)]
struct Misuse(String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.split_first() {
        Some((&"test", rest)) => test::main(rest),
        Some((&"bench", rest)) => {
            run(cargo(["run", "--quiet", "--release", "--package", "buttress-bench", "--"]).args(rest))
        }
        Some((&"trips", rest)) => {
            let trips = ["run", "--quiet", "--release", "--package", "buttress-bench", "--features", "virtual-clock"];
            run(cargo(trips).args(["--bin", "trips", "--"]).args(rest))
        }
        Some((&"tiers", rest)) => {
            let tiers = ["run", "--quiet", "--release", "--package", "buttress-bench", "--features", "virtual-clock"];
            run(cargo(tiers).args(["--bin", "tiers", "--"]).args(rest))
        }
        Some((&"overload", rest)) => {
            let overload = ["run", "--quiet", "--release", "--package", "buttress-bench", "--bin", "overload", "--"];
            run(cargo(overload).args(rest))
        }
        Some((&"fuzz", rest)) => fuzz::main(rest),
        Some((&"mutants", rest)) => mutants::main(rest),
        Some((&"soak", rest)) => soak::main(rest),
        Some((&("--help" | "-h" | "help"), _)) => {
            println!("{USAGE}");
            Ok(())
        }
        Some((command, _)) => Err(Misuse(format!("no command is called {command}\n{USAGE}")).into()),
        None => Err(Misuse(USAGE.into()).into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            // As clap and most programs say that the command line was wrong.
            if error.is::<Misuse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
