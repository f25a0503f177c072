use mesh::demo::{Options, run};

#[tokio::test]
async fn a_demo_with_few_orders_ends_with_right_books() {
    let options =
        Options { orders: 16, seed: 7, rate: 50.0, data_dir: None, databases: None, kafka: None, progress: false };
    let report = run(options).await.unwrap();
    assert!(report.books.right, "{report}");
    assert!(report.clean_stop, "{report}");
    assert_eq!(report.phases.len(), 8);
    assert_eq!(report.phases.iter().map(|phase| phase.orders).sum::<usize>(), 16);
    for phase in &report.phases {
        assert_eq!(
            phase.confirmed + phase.cancelled + phase.refused + phase.pending + phase.lost,
            phase.orders,
            "{report}"
        );
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["books"]["right"], true);
}

#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_over_a_mock_cluster_ends_with_right_books() {
    let kafka = Some("mock".to_owned());
    let report =
        run(Options { orders: 16, seed: 7, rate: 50.0, data_dir: None, databases: None, kafka, progress: false })
            .await
            .unwrap();
    assert!(report.books.right && report.clean_stop, "{report}");
}
