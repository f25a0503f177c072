use mesh::bus::Bus;
use mesh::demo::{Options, run};

#[tokio::test]
async fn a_demo_with_few_orders_ends_with_right_books() {
    let options =
        Options { orders: 16, seed: 7, rate: 50.0, data_dir: None, databases: None, bus: Bus::Log, progress: false };
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
