use std::process::Command;

use mesh::mesh::Name;

use crate::support::Shop;

/// Runs `mesh probe` as a container's health check does.
async fn succeeds(listen: String, more: &'static [&'static str]) -> bool {
    let probe = move || {
        Command::new(env!("CARGO_BIN_EXE_mesh")).arg("probe").args(more).env("MESH_LISTEN", listen).output().unwrap()
    };
    tokio::task::spawn_blocking(probe).await.unwrap().status.success()
}

#[tokio::test]
async fn a_health_check_without_curl_tells_ready_from_not() {
    let shop = Shop::open().await;
    let port = shop.mesh.addr(Name::Payment).port();
    // The address that a container passes: all interfaces.
    let listen = format!("0.0.0.0:{port}");
    assert!(succeeds(listen.clone(), &[]).await);
    shop.mesh.health(Name::Payment).drain();
    assert!(!succeeds(listen.clone(), &[]).await);
    assert!(succeeds(listen.clone(), &["--path", "/livez"]).await, "draining, but alive");
    shop.close().await;
    assert!(!succeeds(listen, &["--path", "/livez"]).await);
}
