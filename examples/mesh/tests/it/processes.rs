use std::process::{Command, Stdio};

use mesh::db::{EVENTS, Server};
use mesh::mesh::Name;
use serde_json::Value;

use crate::support::server;

/// The compiled program.
fn mesh() -> Command {
    let mut mesh = Command::new(env!("CARGO_BIN_EXE_mesh"));
    mesh.stdin(Stdio::null());
    mesh
}

/// Runs the demo with seven kills, one per service.
fn kill_processes(more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = mesh()
        .args(["demo", "--processes", "--kills", "7", "--orders", "40", "--rate", "20", "--seed", "7", "--json"])
        .arg(&json)
        .args(more)
        .output()
        .unwrap();
    let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{seen}\n{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["books"]["right"], true);
    assert_eq!(report["clean_stop"], true, "{seen}");
    assert_eq!(report["kills"].as_array().unwrap().len(), 7);
    assert_eq!(report["customers"]["lost"], 0, "every customer got a final answer\n{seen}");
}

#[test]
fn processes_that_are_killed_leave_the_books_right() {
    kill_processes(&[]);
}

#[cfg(feature = "kafka")]
#[test]
fn processes_that_are_killed_leave_the_books_right_over_kafka() {
    kill_processes(&["--kafka", "mock"]);
}

#[tokio::test]
async fn processes_that_are_killed_leave_the_books_right_on_postgres() {
    let Some(url) = server() else { return };
    let prefix = "t_processes_";
    let clean = async || {
        let server = Server::new(&url, prefix).unwrap();
        for name in Name::ALL.map(Name::as_str).into_iter().chain([EVENTS]) {
            server.drop_database(name).await.unwrap();
        }
    };
    clean().await;
    let more = url.clone();
    tokio::task::spawn_blocking(move || kill_processes(&["--postgres", &more, "--database-prefix", prefix]))
        .await
        .unwrap();
    clean().await;
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
