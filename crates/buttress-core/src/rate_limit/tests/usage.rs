use super::*;

#[test]
fn usage_is_told_by_the_permits_of_an_advertised_limit_only() {
    let (limit, clock) = limit(quota(10, SECOND, 2));
    fn told(permit: &impl Permit) -> Vec<(u32, Option<Duration>)> {
        let mut usages = Vec::new();
        permit.usages(&mut |usage: &Usage| usages.push((usage.remaining, usage.next)));
        usages
    }
    assert_eq!(limit.usage(&()).unwrap().next, None);
    let plain = limit.admit(&()).unwrap();
    assert_eq!(told(&plain), []);
    clock.advance(30 * MILLI);
    let advertised = Advertised::new(limit.clone());
    let permit = advertised.admit(&()).unwrap();
    assert_eq!(told(&permit), [(0, Some(70 * MILLI))]);
    advertised.undo(&(), permit);
    assert_eq!(limit.available(), 1);
}

#[test]
fn while_calls_wait_usage_says_when_a_call_would_start_at_once() {
    let (limit, clock) = limit(quota(10, SECOND, 2));
    let _calls = [(); 5].map(|()| limit.reserve(1, SECOND).unwrap());
    let next = |after: u32| {
        clock.advance(after * MILLI);
        (limit.usage(&()).unwrap().next, limit.retry_after(1))
    };
    assert_eq!(next(0), (Some(400 * MILLI), Some(400 * MILLI)));
    assert_eq!(next(330), (Some(70 * MILLI), Some(70 * MILLI)));
    assert_eq!(next(70), (Some(100 * MILLI), Some(Duration::ZERO)), "one is there, and the next one comes");
}

#[test]
fn a_call_that_waits_tells_the_usage_of_its_start() {
    let (limit, _) = limit(quota(10, SECOND, 1));
    let advertised = Advertised::new(limit);
    let told = [0, 100, 200].map(|wait| {
        let call = advertised.schedule(&(), SECOND).unwrap();
        let mut next = None;
        call.permit.usages(&mut |usage| next = usage.next);
        (call.wait == wait * MILLI, next)
    });
    assert_eq!(told, [(true, Some(100 * MILLI)); 3]);
}

/// A metered policy that learns from outcomes, and rejects each call in `confirm`.
#[derive(Clone, Debug)]
struct Learning(RateLimit<ManualClock>);

struct LearningPermit;

impl Permit for LearningPermit {
    fn settle(&mut self, _: &crate::Outcome) {}
}

impl<Req: ?Sized> Policy<Req> for Learning {
    type Permit = LearningPermit;

    fn admit(&self, _: &Req) -> Result<LearningPermit, Rejection> {
        self.0.try_take(1).map(|_| LearningPermit)
    }

    fn confirm(&self, _: LearningPermit, _: &Req) -> Result<LearningPermit, Rejection> {
        Err(Rejection::new("learning", &RATE_LIMITED))
    }

    fn unready(&self) -> Option<Result<LearningPermit, Refused>> {
        Some(Ok(LearningPermit))
    }
}

impl<Req: ?Sized> Metered<Req> for Learning {
    fn usage(&self, request: &Req) -> Option<Usage> {
        self.0.usage(request)
    }
}

#[test]
fn an_advertised_policy_confirms_calls_and_learns_of_unready_services_as_it_does_itself() {
    let (limit, _) = limit(quota(10, SECOND, 2));
    let advertised = Advertised::new(Learning(limit));
    assert!(Policy::<()>::unready(&advertised).is_some_and(|permit| permit.is_ok()));
    let permit = advertised.admit(&()).unwrap();
    assert!(advertised.confirm(permit, &()).is_err());
}
