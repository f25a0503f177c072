use std::process::Command;

use mesh::mesh::Name;

use crate::support::Shop;

/// `mesh probe`, as a container's health check runs it.
async fn says_yes(listen: String, more: &'static [&'static str]) -> bool {
    let probe = move || {
        Command::new(env!("CARGO_BIN_EXE_mesh")).arg("probe").args(more).env("MESH_LISTEN", listen).output().unwrap()
    };
    tokio::task::spawn_blocking(probe).await.unwrap().status.success()
}

#[tokio::test]
async fn a_health_check_without_curl_tells_ready_from_not() {
    let shop = Shop::open().await;
    let port = shop.mesh.addr(Name::Payment).port();
    // As a container is told: all addresses.
    let listen = format!("0.0.0.0:{port}");
    assert!(says_yes(listen.clone(), &[]).await);
    shop.mesh.health(Name::Payment).drain();
    assert!(!says_yes(listen.clone(), &[]).await);
    assert!(says_yes(listen.clone(), &["--path", "/livez"]).await, "it is ending, not dead");
    shop.close().await;
    assert!(!says_yes(listen, &["--path", "/livez"]).await);
}
