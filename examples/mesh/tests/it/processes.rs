use std::process::{Command, Stdio};

use serde_json::Value;

/// The program itself, as somebody at a terminal runs it.
fn mesh() -> Command {
    let mut mesh = Command::new(env!("CARGO_BIN_EXE_mesh"));
    mesh.stdin(Stdio::null());
    mesh
}

#[test]
fn processes_that_are_killed_leave_the_books_right() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = mesh()
        .args(["demo", "--processes", "--kills", "7", "--orders", "40", "--rate", "20", "--seed", "7", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{seen}\n{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["books"]["right"], true);
    assert_eq!(report["clean_stop"], true, "{seen}");
    assert_eq!(report["kills"].as_array().unwrap().len(), 7);
    assert_eq!(report["customers"]["lost"], 0, "everybody learned how it ended\n{seen}");
}

#[test]
fn what_cannot_work_is_said_before_anything_starts() {
    let refused = |args: &[&str]| {
        let output = mesh().args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&["order", "--payment", "nowhere"]).contains("--payment"));
    assert!(refused(&["order", "--postgres", "mysql://localhost"]).contains("postgres: must be a URL"));
    assert!(refused(&["demo", "--postgres", "postgres://x", "--database-prefix", "a-b"]).contains("database-prefix:"));
    assert!(refused(&["demo", "--kills", "3"]).contains("--processes"));
    if cfg!(not(feature = "kafka")) {
        assert!(refused(&["demo", "--kafka", "localhost:9092"]).contains("--features kafka"));
        assert!(refused(&["demo", "--processes", "--kafka", "mock"]).contains("--features kafka"));
    }
}
