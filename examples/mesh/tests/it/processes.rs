use std::process::{Command, Stdio};

use mesh::db::{EVENTS, Server};
use mesh::mesh::Name;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Running, server, until};

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

#[test]
fn a_database_that_cannot_be_reached_is_named_once_and_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    // The port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://shop:secret@127.0.0.1:{port}");
    let output = mesh()
        .args(["legacy", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--postgres", &url])
        .env("MESH_DATA_DIR", dir.path())
        .env("RUST_LOG", "off")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let place = format!("the legacy service: cannot open mesh_legacy and mesh_events at 127.0.0.1:{port}: ");
    assert!(!output.status.success() && said.contains(&place), "{said}");
    assert_eq!(said.to_lowercase().matches("connection refused").count(), 1, "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_directory_has_one_mesh_or_services_that_run_alone() {
    let serves = |running: &Running| running.lines().iter().any(|line| line["message"] == "serving");
    let refused = async |dir: &TempDir, args: &[&str]| {
        let child = mesh().args(args).env("MESH_DATA_DIR", dir.path()).output().unwrap();
        assert!(!child.status.success(), "{args:?}");
        String::from_utf8_lossy(&child.stderr).into_owned()
    };
    let up = ["up", "--port", "0", "--admin-port", "0", "--drain-delay", "0"];
    let alone = |service| [service, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

    let dir = tempfile::tempdir().unwrap();
    let mut first = Running::start(&dir, &up);
    let mut lines = BufReader::new(first.child.stdout.take().unwrap()).lines();
    lines.next_line().await.unwrap().expect("a line with the shop's address");
    let said = refused(&dir, &up).await;
    assert!(said.contains("data-dir: ") && said.contains("is used by another mesh"), "{said}");
    assert!(refused(&dir, &alone("legacy")).await.contains("is used by a whole mesh"));
    drop(first);

    let dir = tempfile::tempdir().unwrap();
    let services = ["shipping", "notification"].map(|service| Running::start(&dir, &alone(service)));
    until("both share the event log", async || services.iter().all(serves)).await;
    assert!(refused(&dir, &up).await.contains("or by services that run alone"));
}
