use buttress::context;
use buttress::policy::{CallContext, Criticality, Policy};

use super::*;

fn gateway() -> Admission {
    Admission::new(Name::Gateway, 1).unwrap()
}

#[test]
fn places_limit_and_rejections_are_told_apart() {
    let admission = Admission::new(Name::Order, 1).unwrap();
    let bulkhead = admission.lane(Lane::Rest).unwrap();
    bulkhead.set_limit(2);
    let held = [bulkhead.admit("a"), bulkhead.admit("b")];
    assert!(held.iter().all(Result::is_ok));
    for _ in 0..3 {
        assert!(bulkhead.admit("c").is_err());
    }
    bulkhead.set_limit(5);
    let shown = json!({ "name": "order", "in_flight": 2, "waiting": 0, "limit": 5, "rejected": 3 });
    assert_eq!(admission.describe_lanes()[0], shown);
}

#[test]
fn payment_and_inventory_find_their_limits_and_never_refuse_one_gateway_and_one_order_service() {
    for name in [Name::Payment, Name::Inventory] {
        let admission = Admission::new(name, 1).unwrap();
        assert_eq!((admission.bulkheads().count(), admission.limits().count()), (0, 2));
        let [rest, reads] = [0, 1].map(|at| admission.limits().nth(at).unwrap().clone());
        let held: Vec<_> = (0..READS + ORDER_VIEWS + READS).map(|_| reads.admit("a read")).collect();
        assert!(held.iter().all(Result::is_ok));
        let shown = &admission.describe_lanes()[1];
        assert_eq!((&shown["in_flight"], &shown["bounds"]), (&json!(26), &json!([26, 400])));
        assert_eq!((rest.limit(), rest.bounds()), (12, (12, 200)));
        assert_eq!(shown["name"], format!("{}, reads", name.as_str()));
    }
}

/// Sends a hundred requests of each class in each tenth of a second, and returns how many of them
/// were shed in the end.
async fn shed_while_crowded(admission: &Admission) -> [u64; 4] {
    let shed = admission.shedding().unwrap();
    let classes = Criticality::ALL;
    for _ in 0..20 {
        tokio::time::advance(Duration::from_millis(100)).await;
        // The least important first: the first step knows only what came before it.
        for class in classes.into_iter().rev() {
            let call = CallContext::default().with_priority(class.into());
            context::with(call, async {
                for _ in 0..100 {
                    drop(shed.admit("a request"));
                }
            })
            .await;
        }
    }
    classes.map(|class| shed.shed(class))
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_reads_is_shed_before_orders() {
    let admission = gateway();
    let catalogue = admission.lane(Lane::Catalogue).unwrap();
    // All places, and more than nine tenths of the queue.
    let held: Vec<_> = (0..READS).map(|_| catalogue.admit("a read").unwrap()).collect();
    let queued: Vec<_> = (0..READS_QUEUED).map(|_| catalogue.acquire_or_queue(READS_QUEUED)).collect();
    let [orders, views, _, reads] = shed_while_crowded(&admission).await;
    assert!(reads > 500 && orders * 100 < reads, "{reads} reads, {views} views, {orders} orders");
    let shown = admission.describe_shed().unwrap();
    assert!(shown["share"].as_f64() > Some(0.5) && shown["levels"]["crowd"].as_f64() >= Some(1.0), "{shown}");
    assert_eq!((&shown["shed"]["sheddable"], &shown["shed"]["critical_plus"]), (&json!(reads), &json!(orders)));
    drop((held, queued));
}

#[tokio::test(start_paused = true)]
async fn orders_that_fill_their_lane_do_not_make_the_gateway_shed_reads() {
    let admission = gateway();
    let orders = admission.lane(Lane::Rest).unwrap();
    let held: Vec<_> = (0..REST).map(|_| orders.admit("an order").unwrap()).collect();
    assert_eq!(shed_while_crowded(&admission).await, [0; 4]);
    drop(held);
}
