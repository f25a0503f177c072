use super::*;
use crate::report::Value;
use crate::testing::reported;
use crate::{ManualClock, Outcome, Permit, Progress};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

type Shed = LoadShed<ManualClock>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A monitor whose level a test sets, in percent.
#[derive(Clone, Debug, Default)]
struct Dial(Arc<AtomicU32>);

impl Dial {
    fn set(&self, percent: u32) {
        self.0.store(percent, Ordering::Relaxed);
    }
}

impl Monitor for Dial {
    fn name(&self) -> &'static str {
        "dial"
    }

    fn level(&self) -> f64 {
        f64::from(self.0.load(Ordering::Relaxed)) / 100.0
    }
}

fn builder() -> (ManualClock, Dial, Builder<ManualClock>) {
    let (clock, dial) = (ManualClock::new(), Dial::default());
    let builder = Shed::builder("test").clock(clock.clone()).seed(7).monitor(dial.clone());
    (clock, dial, builder)
}

fn shed() -> (ManualClock, Dial, Shed) {
    let (clock, dial, builder) = builder();
    (clock, dial, builder.build().unwrap())
}

fn admit(shed: &Shed, priority: impl Into<Priority>) -> Result<LoadShedPermit<ManualClock>, Rejection> {
    let _entered = CallContext::default().with_priority(priority.into()).enter();
    shed.admit(&())
}

/// Makes 10 calls of each class in each interval. Returns the admitted of the last one by class.
fn admitted(clock: &ManualClock, shed: &Shed, intervals: u32) -> [u32; 4] {
    let mut admitted = [0; 4];
    for _interval in 0..intervals {
        clock.advance(100 * MS);
        admitted = Criticality::ALL.map(|class| (0..10).map(|_| u32::from(admit(shed, class).is_ok())).sum());
    }
    admitted
}

#[test]
fn all_calls_are_admitted_below_the_limit() {
    let (clock, dial, shed) = shed();
    dial.set(99);
    assert_eq!(admitted(&clock, &shed, 100), [10; 4]);
    assert_eq!((shed.share(), shed.threshold()), (0.0, None));
}

#[test]
fn the_least_important_calls_are_rejected_first_and_the_most_important_last() {
    let (clock, dial, shed) = shed();
    dial.set(100);
    let [critical_plus, critical, sheddable_plus, sheddable] = admitted(&clock, &shed, 10);
    assert_eq!((critical_plus, critical, sheddable), (10, 10, 0));
    assert!(sheddable_plus > 0, "0.6 are admitted");
    let after = admitted(&clock, &shed, 40);
    assert!(after[0] > 0 && after[1..] == [0, 0, 0], "a tenth is admitted: {after:?}");
    let counts = Criticality::ALL.map(|class| shed.shed(class));
    assert!(counts.is_sorted() && counts[0] < 100, "{counts:?}");
}

#[test]
fn calls_return_when_the_load_does() {
    let (clock, dial, shed) = shed();
    dial.set(200);
    admitted(&clock, &shed, 200);
    assert!((shed.share() - 0.95).abs() < 1e-9);
    dial.set(0);
    assert_eq!(admitted(&clock, &shed, 100), [10; 4]);
    dial.set(200);
    admitted(&clock, &shed, 200);
    dial.set(0);
    clock.advance(10 * SECOND);
    assert!(admit(&shed, Criticality::Sheddable).is_ok(), "also without calls in between");
}

#[test]
fn where_all_calls_are_alike_a_share_of_them_is_rejected() {
    let (clock, dial, shed) = shed();
    dial.set(100);
    let mut admitted = 0;
    for interval in 0..14 {
        clock.advance(100 * MS);
        let calls = (0..1_000).filter(|_| shed.admit(&()).is_ok()).count();
        admitted = if interval == 13 { calls } else { 0 };
    }
    assert!((430..540).contains(&admitted), "0.95^14 of 1,000: {admitted}");
}

#[test]
fn an_exempt_call_is_admitted_in_any_case_and_not_counted() {
    let (clock, dial, builder) = builder();
    let shed = builder.max_share(0.99).build().unwrap();
    dial.set(100);
    admitted(&clock, &shed, 200);
    let _entered = CallContext::default().with_deadline(clock.now()).enter();
    let probe = Call { is_exempt: true, ..Call::default() };
    assert!((0..1_000).all(|_| shed.admit_call(probe).is_ok()));
}

#[test]
fn a_tenant_that_floods_is_rejected_before_the_others() {
    let (clock, dial, shed) = shed();
    let call = |tenant: u64| shed.admit_call(Call { tenant: Some(tenant), ..Call::default() }).is_ok();
    let interval = |flood: u32| {
        clock.advance(100 * MS);
        let small = (1..=10).filter(|tenant| call(tenant * 0x9e37_79b9)).count();
        (small, (0..flood).filter(|_| call(u64::MAX / 3)).count())
    };
    (0..20).for_each(|_| _ = interval(40));
    dial.set(100);
    let (mut small, mut flood) = (0, 0);
    for _step in 0..10 {
        let (s, f) = interval(40);
        (small, flood) = (small + s, flood + f);
    }
    assert_eq!(small, 100, "nothing of theirs is rejected");
    assert!(flood < 350, "of 400: {flood}");
}

#[test]
fn a_call_whose_deadline_is_over_is_rejected_at_any_load() {
    let (clock, _, shed) = shed();
    let call = |left: Duration| {
        let _entered = CallContext::default().with_deadline(clock.now() + left).enter();
        shed.admit(&())
    };
    let rejection = call(Duration::ZERO).unwrap_err();
    assert_eq!(rejection.to_string(), "load shed `test`: the deadline cannot be met");
    assert_eq!((rejection.reason().class(), rejection.retry_after(), shed.too_late()), (Class::Deadline, None, 1));
    assert!(call(MS).is_ok(), "how long calls take is not known");
}

#[test]
fn a_call_that_has_less_time_left_than_calls_take_is_rejected_but_for_one_in_ten() {
    let (clock, _, shed) = shed();
    for _call in 0..20 {
        let mut permit = shed.admit(&()).unwrap();
        clock.advance(100 * MS);
        permit.settle(&Outcome::CANCELLED);
    }
    let median = shed.median_time().unwrap();
    assert!((80 * MS..=100 * MS).contains(&median), "{median:?}");
    let calls = |left: Duration| {
        let _entered = CallContext::default().with_deadline(clock.now() + left).enter();
        (0..100).filter(|_| shed.admit(&()).is_ok()).count()
    };
    assert_eq!((calls(101 * MS), calls(79 * MS)), (100, 10));
    clock.advance(60 * SECOND);
    assert_eq!((shed.median_time(), calls(79 * MS)), (None, 100), "an old estimate is no reason");
}

#[test]
fn the_time_of_a_stream_ends_at_its_head() {
    let (clock, _, shed) = shed();
    for _call in 0..20 {
        let mut permit = shed.admit(&()).unwrap();
        clock.advance(100 * MS);
        permit.progress(Progress::Head);
        clock.advance(900 * MS);
        permit.progress(Progress::Frame);
        permit.settle(&Outcome::Success);
    }
    // An interval with a call and nine without: 1 / (1 - 0.9^10) times are too few for a median.
    assert_eq!(shed.median_time(), None);
    for _call in 0..10 {
        let mut permit = shed.admit(&()).unwrap();
        clock.advance(100 * MS);
        permit.progress(Progress::Head);
    }
    assert!(shed.median_time().unwrap() <= 100 * MS);
}

#[test]
fn a_rejected_caller_is_told_to_come_back_at_random_within_the_range() {
    let (clock, dial, shed) = shed();
    dial.set(100);
    admitted(&clock, &shed, 60);
    let times: Vec<Duration> =
        (0..200).filter_map(|_| admit(&shed, Criticality::Sheddable).err()?.retry_after()).collect();
    assert!(times.iter().all(|time| (SECOND..=3 * SECOND).contains(time)) && times.len() > 100);
    assert!(times.iter().any(|time| *time < 2 * SECOND) && times.iter().any(|time| *time > 2 * SECOND));
}

#[test]
fn waits_of_calls_are_a_monitor() {
    let clock = ManualClock::new();
    let waits = QueueDelay::<ManualClock>::new(20 * MS, 100 * MS).unwrap().clock(clock.clone());
    let shed = Shed::builder("test").waits(waits).clock(clock.clone()).build().unwrap();
    let waited = |waited: Duration| shed.admit_call(Call { waited: Some(waited), ..Call::default() }).is_ok();
    waited(30 * MS);
    clock.advance(100 * MS);
    waited(30 * MS);
    assert_eq!(shed.levels(), [("queue_delay", 1.5)]);
    assert!(shed.share() > 0.0);
}

#[test]
fn the_highest_level_of_all_monitors_counts() {
    let (clock, dial, builder) = builder();
    let other = Dial::default();
    let level = other.clone();
    let shed = builder.monitor_at(0.5, monitor_fn("other", move || level.level())).build().unwrap();
    dial.set(10);
    other.set(49);
    admitted(&clock, &shed, 10);
    assert_eq!((shed.share(), shed.levels()[1]), (0.0, ("other", 0.98)));
    other.set(50);
    admitted(&clock, &shed, 2);
    assert!(shed.share() > 0.0);
}

#[test]
fn the_numbers_are_reported() {
    let (clock, dial, shed) = shed();
    dial.set(100);
    admitted(&clock, &shed, 20);
    let reported = reported(&shed);
    let value = |name, label| reported.iter().find(|(n, [l, _], _)| (*n, *l) == (name, label)).unwrap().2;
    assert_eq!(value("resilience.load_shed.level", "dial"), Value::Gauge(1.0));
    assert_eq!(value("resilience.load_shed.shed", "sheddable"), Value::Counter(shed.shed(Criticality::Sheddable)));
    let critical_plus = Value::Counter(shed.shed(Criticality::CriticalPlus));
    assert_eq!(value("resilience.load_shed.shed", "critical_plus"), critical_plus);
    assert_eq!(value("resilience.load_shed.too_late", ""), Value::Counter(0));
    assert!(matches!(value("resilience.load_shed.threshold", ""), Value::Gauge(rank) if rank < 512.0));
    assert!(matches!(value("resilience.load_shed.share", ""), Value::Gauge(share) if share > 0.5));
}

#[test]
fn settings_have_their_ranges() {
    let field = |builder: Builder<ManualClock>| builder.build().unwrap_err().field();
    assert!([-0.1, 1.0, f64::NAN].iter().all(|share| field(Shed::builder("x").max_share(*share)) == "max_share"));
    let limits = [0.0, -1.0, f64::NAN, f64::INFINITY];
    assert!(limits.iter().all(|limit| field(Shed::builder("x").monitor_at(*limit, Dial::default())) == "monitor_at"));
    assert!(Shed::builder("x").retry_after(Duration::ZERO..=Duration::MAX).build().is_ok());
}

#[test]
fn two_monitors_of_one_name_are_refused() {
    let dials = || Shed::builder("x").monitor(Dial::default()).monitor(Dial::default());
    let error = dials().build().unwrap_err().to_string();
    assert_eq!(error, "invalid configuration: `monitor` must have a name that no other monitor has");
    let waits = || QueueDelay::<ManualClock>::new(20 * MS, 100 * MS).unwrap();
    assert!(Shed::builder("x").waits(waits()).waits(waits()).build().is_err(), "only the last one would be fed");
    let other = monitor_fn("other", || 0.0);
    assert!(Shed::builder("x").monitor(Dial::default()).monitor(other).waits(waits()).build().is_ok());
}

#[test]
fn a_clock_that_was_set_back_does_not_stop_it() {
    let (clock, dial, shed) = shed();
    let start = clock.now();
    clock.advance(3600 * SECOND);
    dial.set(100);
    admitted(&clock, &shed, 60);
    clock.set(start);
    dial.set(0);
    assert_eq!(admitted(&clock, &shed, 110), [10; 4]);
}

/// A service that does one call in 10 ms, in order, with a queue. Half of the calls are critical.
struct Service {
    queue: VecDeque<(Duration, Criticality)>,
    served: [u32; 2],
    longest: Duration,
}

#[test]
fn at_twice_the_load_the_service_does_what_it_can_and_the_important_calls_first() {
    let clock = ManualClock::new();
    let waits = QueueDelay::<ManualClock>::new(20 * MS, 100 * MS).unwrap().clock(clock.clone());
    let shed = Shed::builder("test").monitor(waits.clone()).clock(clock.clone()).seed(7).build().unwrap();
    let mut service = Service { queue: VecDeque::new(), served: [0; 2], longest: Duration::ZERO };
    let mut passed = Duration::ZERO;
    for step in 0..24_000u32 {
        clock.advance(5 * MS);
        passed += 5 * MS;
        let class = if step % 3 == 0 { Criticality::Sheddable } else { Criticality::SheddablePlus };
        if admit(&shed, class).is_ok() {
            service.queue.push_back((passed, class));
        }
        if step % 2 == 0
            && let Some((arrived, class)) = service.queue.pop_front()
        {
            waits.observe(passed - arrived);
            if step > 12_000 {
                service.served[usize::from(class == Criticality::Sheddable)] += 1;
                service.longest = service.longest.max(passed - arrived);
            }
        }
    }
    let [important, other] = service.served;
    assert!(important + other > 5_000, "of 6,000 that it can do: {:?}", service.served);
    assert!(other < 300, "of 4,000: {other}");
    assert!(service.longest < SECOND, "without shedding the last call would wait a minute: {:?}", service.longest);
}
