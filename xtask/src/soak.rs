//! `cargo xtask soak`: builds the example mesh and runs `mesh soak`, with what it needs.
//!
//! On Linux it runs in a mount namespace of its own, so that the small disk that is filled
//! disappears with it, however it ends. With `--stack postgres` a throw-away server is started,
//! which the soak stops and starts.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::postgres::Controlled;
use crate::run::{cargo, program, run, target, works};
use crate::{Misuse, debian};

/// Tries to enter a mount namespace: as root, or as root of a user namespace.
const NAMESPACES: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];

enum Stack {
    Sqlite,
    Postgres,
}

/// `mesh soak` parses everything but `--stack`.
fn stack<'a>(args: &[&'a str]) -> Result<(Stack, Vec<&'a str>), Misuse> {
    let Some(at) = args.iter().position(|arg| *arg == "--stack" || arg.starts_with("--stack=")) else {
        return Ok((Stack::Sqlite, args.to_vec()));
    };
    let mut rest = args.to_vec();
    let flag = rest.remove(at);
    let value = match flag.split_once('=') {
        Some((_, value)) => value,
        None if at < rest.len() => rest.remove(at),
        None => "",
    };
    let stack = match value {
        "sqlite" => Stack::Sqlite,
        "postgres" => Stack::Postgres,
        other => return Err(Misuse(format!("--stack must be sqlite or postgres, not {other:?}"))),
    };
    Ok((stack, rest))
}

pub(crate) fn main(args: &[&str]) -> anyhow::Result<()> {
    let (stack, rest) = stack(args)?;
    let faketime = || {
        let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        libraries.into_iter().any(|dir| dir.path().join("faketime/libfaketimeMT.so.1").is_file())
    };
    debian::install("libfaketime", &["faketime"], &[], faketime)?;
    run(&mut cargo(["build", "--release", "--package", "mesh", "--features", "kafka"]))?;
    let mut soak = namespaced(&target().join("release/mesh"));
    soak.arg("soak");
    let server = match stack {
        Stack::Sqlite => None,
        Stack::Postgres => Some(Controlled::start()?),
    };
    if let Some(server) = &server {
        soak.env("MESH_POSTGRES", server.url());
        soak.args(["--postgres-stop", &server.stop_command(), "--postgres-start", &server.start_command()]);
    }
    // The server is stopped when it is dropped, after the soak.
    run(soak.args(rest))
}

fn namespaced(mesh: &Path) -> Command {
    let entered = |flags: &&[&str]| works(Command::new("unshare").args(*flags).arg("true").stdin(Stdio::null()));
    match NAMESPACES.into_iter().find(entered) {
        Some(flags) => {
            let mut unshare = program("unshare");
            unshare.args(flags).arg(mesh);
            unshare
        }
        None => program(&mesh.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_taken_out_of_the_arguments_and_the_rest_is_passed_on() {
        let rest = |args: &[&'static str]| stack(args).map(|(stack, rest)| (matches!(stack, Stack::Postgres), rest));
        assert_eq!(rest(&["--minutes", "1", "frozen"]).unwrap(), (false, vec!["--minutes", "1", "frozen"]));
        assert_eq!(rest(&["--stack", "postgres", "killed"]).unwrap(), (true, vec!["killed"]));
        assert_eq!(rest(&["killed", "--stack=sqlite"]).unwrap(), (false, vec!["killed"]));
        for wrong in [&["--stack"][..], &["--stack", "oracle"]] {
            assert!(rest(wrong).unwrap_err().to_string().contains("sqlite or postgres"));
        }
    }
}
