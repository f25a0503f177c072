//! The command line of xtask, as a shell sees it.

use std::process::{Command, Output};

fn xtask(args: &[&str]) -> (Output, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

#[test]
fn help_is_printed_on_request() {
    for (args, has) in [(&["--help"][..], "xtask bench"), (&["help"], "xtask bench"), (&["test", "--help"], "STEP")] {
        let (output, out, err) = xtask(args);
        assert!(output.status.success() && out.contains(has) && err.is_empty(), "{args:?}: {out}{err}");
    }
}

#[test]
fn a_wrong_command_line_is_an_error_that_shows_the_usage() {
    for (args, has) in [
        (&[][..], "usage"),
        (&["tset"], "no command is called tset\nusage"),
        (&["test", "fmt", "typo"], "no step is called typo\nusage"),
    ] {
        let (output, out, err) = xtask(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(out.is_empty() && err.contains(has), "{args:?}: {out}{err}");
    }
}

#[test]
fn a_step_that_is_listed_can_be_run() {
    let (output, out, err) = xtask(&["test", "--list"]);
    assert!(output.status.success() && out.lines().any(|step| step == "sources"), "{out}{err}");
    let (output, out, err) = xtask(&["test", "sources"]);
    assert!(output.status.success() && out.contains("ok,"), "{out}{err}");
}
