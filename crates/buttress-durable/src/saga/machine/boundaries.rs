//! Every limit at its boundary, and every setting of a step, on sagas that are stepped by hand.

use buttress_core::Backoff;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

struct Hand {
    rules: Vec<Rules>,
    now: Timestamp,
    progress: Progress,
}

impl Hand {
    fn new(rules: impl Into<Vec<Rules>>) -> Self {
        Self::with_deadline(rules, None)
    }

    fn with_deadline(rules: impl Into<Vec<Rules>>, deadline: Option<Duration>) -> Self {
        let now = Timestamp::from_millis(1_000);
        Self { rules: rules.into(), now, progress: Progress::new(0, now, deadline) }
    }

    fn advance(&mut self, pause: Duration) {
        self.now = self.now.plus(pause);
    }

    fn plan(&mut self) -> Next {
        self.progress.plan(&self.rules, self.now)
    }

    /// Plans and answers an action, when it is due. Returns the number of the attempt.
    fn act(&mut self, step: usize, result: Result<(), StepError>) -> u32 {
        self.now = self.now.max(self.progress.wake_at);
        let Next::Act { step: planned, attempt, .. } = self.plan() else { panic!("no action: {:?}", self.progress) };
        assert_eq!(planned, step);
        self.progress.acted(&self.rules, result.as_ref().map(drop), self.now, &mut Rng::with_seed(1));
        attempt
    }

    /// Plans and answers a compensation, when it is due. Returns the number of the attempt.
    fn undo(&mut self, step: usize, result: Result<(), StepError>) -> u32 {
        self.now = self.now.max(self.progress.wake_at);
        let Next::Undo { step: planned, attempt, .. } = self.plan() else { panic!("no undo: {:?}", self.progress) };
        assert_eq!(planned, step);
        self.progress.undone(&self.rules, result.as_ref().map(drop), self.now, &mut Rng::with_seed(1));
        attempt
    }

    fn pause(&self) -> Duration {
        self.progress.wake_at.since(self.now)
    }

    fn row(&self, step: usize) -> &StepRow {
        self.progress.steps[step].as_ref().unwrap()
    }

    fn stuck(&self) -> &str {
        &self.progress.stuck.as_ref().unwrap().message
    }
}

/// A step with pauses of 1, 2, 4 s, and of 10, 20, 40 s between compensations.
fn rule(name: &str) -> Rules {
    Rules {
        undoable: true,
        attempts: 3,
        backoff: Backoff::exponential(SECOND, HOUR),
        timeout: 5 * SECOND,
        undo_attempts: 3,
        undo_backoff: Backoff::exponential(10 * SECOND, HOUR),
        ..Rules::new(name.to_owned())
    }
}

fn after_the_pivot(name: &str) -> Rules {
    Rules { retriable: true, undoable: false, ..rule(name) }
}

fn pivot() -> Rules {
    Rules { pivot: true, ..rule("pivot") }
}

fn busy() -> Result<(), StepError> {
    Err(StepError::retriable("busy"))
}

fn lost() -> Result<(), StepError> {
    Err(StepError::unknown("lost"))
}

fn refused() -> Result<(), StepError> {
    Err(StepError::terminal("no"))
}

#[test]
fn an_action_is_tried_exactly_as_often_as_set() {
    let mut saga = Hand::new([rule("a")]);
    assert_eq!((saga.act(0, busy()), saga.act(0, busy())), (1, 2));
    assert_eq!(saga.progress.status, Status::Running);
    assert_eq!(saga.act(0, busy()), 3);
    assert_eq!((saga.progress.status, saga.plan()), (Status::Compensating, Next::End));
    assert_eq!(saga.progress.failure, Some(Failure { step: "a".to_owned(), message: "busy".to_owned() }));
}

#[test]
fn a_compensation_is_tried_exactly_as_often_as_set_and_counts_from_one() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, busy());
    saga.act(0, busy());
    assert_eq!(saga.act(0, Ok(())), 3);
    saga.act(1, refused());
    assert_eq!((saga.undo(0, busy()), saga.undo(0, lost())), (1, 2));
    assert_eq!(saga.progress.status, Status::Compensating);
    assert_eq!(saga.undo(0, busy()), 3);
    assert_eq!(saga.progress.status, Status::Stuck);
    assert_eq!(saga.stuck(), "compensation failed after 3 attempts: busy");
    saga.progress.retry(saga.now);
    assert_eq!(saga.undo(0, Ok(())), 1, "an operator's retry has all attempts again");
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
}

#[test]
fn a_compensation_that_is_rejected_is_stuck_at_once() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, Ok(()));
    saga.act(1, refused());
    saga.undo(0, refused());
    assert_eq!((saga.progress.status, saga.stuck()), (Status::Stuck, "compensation rejected: no"));
    assert!(saga.progress.stuck.as_ref().unwrap().compensating);
}

#[test]
fn action_and_compensation_have_pauses_of_their_own() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, busy());
    assert_eq!(saga.pause(), SECOND);
    saga.act(0, busy());
    assert_eq!(saga.pause(), 2 * SECOND);
    saga.act(0, Ok(()));
    assert_eq!(saga.pause(), Duration::ZERO);
    saga.act(1, refused());
    assert_eq!(saga.pause(), Duration::ZERO, "nothing to wait for before the compensation");
    saga.undo(0, busy());
    assert_eq!(saga.pause(), 10 * SECOND);
    saga.undo(0, busy());
    assert_eq!(saga.pause(), 20 * SECOND);
    saga.undo(0, Ok(()));
    assert_eq!(saga.pause(), Duration::ZERO);
}

#[test]
fn a_pause_that_the_participant_asks_for_is_a_minimum() {
    let asks = |pause| Err(StepError::retriable("busy").after(pause));
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, asks(7 * SECOND));
    assert_eq!(saga.pause(), 7 * SECOND);
    saga.act(0, asks(SECOND));
    assert_eq!(saga.pause(), 2 * SECOND, "the backoff is longer");
    saga.act(0, Ok(()));
    saga.act(1, refused());
    saga.undo(0, asks(70 * SECOND));
    assert_eq!(saga.pause(), 70 * SECOND);
    saga.undo(0, asks(SECOND));
    assert_eq!(saga.pause(), 20 * SECOND);
}

#[test]
fn a_saga_waits_until_its_next_attempt_is_due() {
    let mut saga = Hand::new([rule("a")]);
    saga.act(0, busy());
    saga.advance(SECOND - MS);
    assert_eq!(saga.plan(), Next::Wait);
    saga.advance(MS);
    assert!(matches!(saga.plan(), Next::Act { attempt: 2, .. }));
}

#[test]
fn a_saga_that_waits_longer_than_any_pause_is_due() {
    // The longest pause is that of the backoff.
    let mut saga = Hand::new([rule("a")]);
    saga.act(0, busy());
    saga.progress.wake_at = saga.now.plus(HOUR);
    assert_eq!(saga.plan(), Next::Wait);
    saga.progress.wake_at = saga.now.plus(HOUR + MS);
    assert!(matches!(saga.plan(), Next::Act { attempt: 2, .. }));
    // And that of an error.
    let quick = Backoff::constant(SECOND);
    let mut saga = Hand::new([Rules { backoff: quick, undo_backoff: quick, ..rule("a") }]);
    saga.act(0, busy());
    saga.progress.wake_at = saga.now.plus(LONGEST_PAUSE);
    assert_eq!(saga.plan(), Next::Wait);
    saga.progress.wake_at = saga.now.plus(LONGEST_PAUSE + MS);
    assert!(matches!(saga.plan(), Next::Act { attempt: 2, .. }));
}

#[test]
fn an_attempt_ends_at_the_earliest_of_timeout_step_deadline_and_saga_deadline() {
    let deadline = |step: Option<Duration>, saga: Option<Duration>| {
        let mut saga = Hand::with_deadline([Rules { deadline: step, ..rule("a") }], saga);
        match saga.plan() {
            Next::Act { deadline, .. } => deadline.since(saga.now),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(deadline(None, None), 5 * SECOND);
    assert_eq!(deadline(Some(2 * SECOND), Some(3 * SECOND)), 2 * SECOND);
    assert_eq!(deadline(Some(4 * SECOND), Some(3 * SECOND)), 3 * SECOND);
    assert_eq!(deadline(Some(HOUR), Some(HOUR)), 5 * SECOND);
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, Ok(()));
    saga.act(1, refused());
    let until = saga.now.plus(5 * SECOND);
    assert_eq!(saga.plan(), Next::Undo { step: 0, attempt: 1, deadline: until }, "compensations have the timeout too");
}

#[test]
fn a_deadline_ends_the_saga_when_it_is_reached_and_not_before() {
    let by_step = || Hand::new([Rules { deadline: Some(10 * SECOND), ..rule("a") }]);
    let by_saga = || Hand::with_deadline([rule("a")], Some(10 * SECOND));
    for (saga, why) in [
        (&by_step as &dyn Fn() -> Hand, "the step's deadline has passed"),
        (&by_saga, "the saga's deadline has passed"),
    ] {
        let mut early = saga();
        early.act(0, busy());
        early.advance(10 * SECOND - MS);
        assert!(matches!(early.plan(), Next::Act { attempt: 2, .. }), "{why}");
        let mut late = saga();
        late.act(0, busy());
        late.advance(10 * SECOND);
        assert_eq!(late.plan(), Next::End, "{why}");
        assert_eq!(late.progress.failure.unwrap().message, why);
    }
}

#[test]
fn past_the_pivot_only_the_step_deadline_counts_and_the_saga_is_stuck() {
    let last = Rules { deadline: Some(10 * SECOND), ..after_the_pivot("last") };
    let mut saga = Hand::with_deadline([pivot(), last], Some(SECOND));
    saga.act(0, Ok(()));
    saga.advance(HOUR);
    saga.act(1, busy());
    saga.advance(10 * SECOND);
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Stuck));
    assert_eq!(saga.stuck(), "the step's deadline has passed");
    saga.advance(HOUR);
    saga.progress.retry(saga.now);
    assert!(matches!(saga.plan(), Next::Act { step: 1, attempt: 1, .. }), "a retry has the deadline anew");
}

#[test]
fn a_rejection_past_the_pivot_is_stuck() {
    let mut saga = Hand::new([pivot(), after_the_pivot("last")]);
    saga.act(0, Ok(()));
    saga.act(1, refused());
    assert_eq!((saga.plan(), saga.progress.status, saga.stuck()), (Next::End, Status::Stuck, "rejected: no"));
    assert_eq!(saga.progress.stuck.as_ref().unwrap().step, "last");
}

#[test]
fn a_local_step_that_failed_is_not_undone() {
    let local = || Rules { local: true, ..rule("local") };
    let mut saga = Hand::new([local()]);
    // The first attempt was interrupted by a crash, and all others fail with an unknown outcome.
    saga.plan();
    for _ in 0..3 {
        saga.act(0, lost());
    }
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    assert!(!saga.row(0).uncertain);
    let mut remote = Hand::new([rule("remote")]);
    for _ in 0..3 {
        remote.act(0, lost());
    }
    assert!(matches!(remote.plan(), Next::Undo { step: 0, .. }), "unlike a remote one");
}

#[test]
fn a_step_that_succeeds_in_the_end_is_certain_and_has_no_error() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, lost());
    let row = saga.row(0);
    assert_eq!((row.state, row.attempts, row.uncertain), (StepState::Waiting, 1, true));
    assert_eq!((row.error.as_deref(), row.ended_at), (Some("lost"), None));
    let started = saga.now;
    saga.act(0, Ok(()));
    let expected = StepRow {
        state: StepState::Done,
        attempts: 1,
        refused: 0,
        uncertain: false,
        error: None,
        started_at: started,
        ended_at: Some(saga.now),
    };
    assert_eq!(saga.row(0), &expected);
    saga.act(1, refused());
    assert_eq!((saga.row(1).state, saga.row(1).error.as_deref()), (StepState::Failed, Some("no")));
    saga.advance(SECOND);
    saga.undo(0, busy());
    let row = saga.row(0);
    assert_eq!((row.state, row.attempts, row.error.as_deref()), (StepState::Undoing, 1, Some("busy")));
    assert_eq!(row.ended_at, None);
    saga.undo(0, Ok(()));
    assert_eq!(saga.row(0), &StepRow { state: StepState::Undone, ended_at: Some(saga.now), ..expected });
}

#[test]
fn a_rejection_without_a_doubt_has_nothing_to_undo() {
    let mut saga = Hand::new([rule("a")]);
    saga.act(0, busy());
    saga.act(0, refused());
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    let mut saga = Hand::new([rule("a")]);
    saga.act(0, lost());
    saga.act(0, refused());
    assert!(matches!(saga.plan(), Next::Undo { step: 0, .. }), "an earlier attempt may have had an effect");
    let mut saga = Hand::new([Rules { undoable: false, ..rule("a") }]);
    saga.act(0, lost());
    saga.act(0, refused());
    assert!(!saga.row(0).uncertain, "the rejection is the last word where nothing can be undone");
}

#[test]
fn what_an_operator_skips_counts_as_done_or_as_undone() {
    let mut saga = Hand::new([pivot(), after_the_pivot("a"), after_the_pivot("b")]);
    saga.act(0, Ok(()));
    saga.act(1, refused());
    saga.advance(HOUR);
    saga.progress.skip(saga.now);
    assert_eq!((saga.progress.stuck.clone(), saga.pause()), (None, Duration::ZERO));
    assert_eq!((saga.row(1).state, saga.row(1).ended_at), (StepState::Skipped, Some(saga.now)));
    saga.act(2, Ok(()));
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Completed));

    let mut saga = Hand::new([rule("a"), rule("b"), rule("c")]);
    saga.act(0, Ok(()));
    saga.act(1, Ok(()));
    saga.act(2, refused());
    saga.undo(1, refused());
    saga.progress.skip(saga.now);
    saga.undo(0, Ok(()));
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    assert_eq!(saga.row(1).state, StepState::Skipped);
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let Rules { attempts, backoff, timeout, deadline, undo_attempts, undo_backoff, .. } = Rules::new("a".to_owned());
    assert_eq!((attempts, timeout, deadline, undo_attempts), (5, 10 * SECOND, None, 20));
    assert_eq!(backoff, Backoff::equal_jitter(100 * MS, 10 * SECOND));
    assert_eq!(undo_backoff, Backoff::equal_jitter(200 * MS, 60 * SECOND));
}

fn down() -> Result<(), StepError> {
    Err(StepError::not_sent("circuit open"))
}

#[test]
fn a_call_that_is_not_sent_costs_no_attempt_and_leaves_no_doubt() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    for _ in 0..1_000 {
        assert_eq!(saga.act(0, down()), 1);
    }
    let row = saga.row(0);
    assert_eq!((row.state, row.attempts, row.refused, row.uncertain), (StepState::Waiting, 0, 1_000, false));
    assert_eq!(row.error.as_deref(), Some("circuit open"));
    assert_eq!((saga.act(0, busy()), saga.act(0, down()), saga.act(0, busy())), (1, 2, 2));
    saga.act(0, refused());
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated), "nothing to undo");
}

#[test]
fn the_pauses_of_an_outage_grow_by_the_step_s_backoff_and_end_with_an_answer() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    let mut pauses = Vec::new();
    for _ in 0..3 {
        saga.act(0, down());
        pauses.push(saga.pause());
    }
    assert_eq!(pauses, [SECOND, 2 * SECOND, 4 * SECOND]);
    saga.act(0, Err(StepError::not_sent("circuit open").after(LONGEST_PAUSE)));
    assert_eq!(saga.pause(), LONGEST_PAUSE, "Retry-After is a minimum");
    saga.act(0, Err(StepError::not_sent("circuit open").after(HOUR)));
    assert_eq!(saga.pause(), LONGEST_PAUSE, "and has a maximum");
    saga.act(0, busy());
    assert_eq!(saga.pause(), SECOND, "the first attempt that was made");
    saga.act(0, down());
    assert_eq!(saga.pause(), SECOND, "a new outage");
    saga.act(0, Ok(()));
    saga.act(1, refused());
    assert_eq!(saga.undo(0, down()), 1);
    assert_eq!((saga.pause(), saga.row(0).refused), (10 * SECOND, 1), "the compensation counts anew");
}

#[test]
fn a_compensation_waits_through_an_outage_of_hours() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, Ok(()));
    saga.act(1, refused());
    let since = saga.now;
    while saga.now.since(since) < 3 * HOUR {
        assert_eq!(saga.undo(0, down()), 1);
        // The call may also have been sent and timed out.
        assert_eq!(saga.undo(0, Err(StepError::unknown("timeout").uncounted())), 1);
        assert_eq!(saga.progress.status, Status::Compensating);
    }
    saga.undo(0, Ok(()));
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
}

#[test]
fn a_deadline_ends_the_waiting_before_the_pivot() {
    let mut saga = Hand::with_deadline([rule("a"), rule("b")], Some(10 * SECOND));
    saga.act(0, Ok(()));
    while saga.progress.status == Status::Running {
        saga.now = saga.now.max(saga.progress.wake_at);
        if matches!(saga.plan(), Next::Act { .. }) {
            saga.progress.acted(&saga.rules, down().as_ref().map(drop), saga.now, &mut Rng::with_seed(1));
        }
    }
    assert_eq!(saga.progress.failure.as_ref().unwrap().message, "the saga's deadline has passed");
    assert!(matches!(saga.plan(), Next::Undo { step: 0, .. }), "only what was done: b was never called");
}

#[test]
fn a_rejection_is_final_even_if_it_is_not_to_be_counted() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.act(0, Ok(()));
    saga.act(1, Err(StepError::terminal("no").uncounted()));
    assert_eq!(saga.progress.status, Status::Compensating);
    saga.undo(0, Err(StepError::terminal("no").uncounted()));
    assert_eq!(saga.progress.status, Status::Stuck);
}

#[test]
fn the_local_compensation_of_the_first_step_runs_although_the_step_did_not() {
    let local = |name: &str| Rules { local: true, undo_local: true, ..rule(name) };
    let late = || Hand::with_deadline([local("create"), local("b")], Some(SECOND));
    // The deadline has passed before the first call.
    let mut saga = late();
    saga.advance(SECOND);
    let until = saga.now.plus(5 * SECOND);
    assert_eq!(saga.plan(), Next::Undo { step: 0, attempt: 1, deadline: until });
    saga.undo(0, Ok(()));
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    // The step was rejected.
    let mut saga = late();
    saga.act(0, refused());
    assert!(matches!(saga.plan(), Next::Undo { step: 0, .. }));
    // Another step has nothing to undo if it was not done.
    let mut saga = late();
    saga.act(0, Ok(()));
    saga.act(1, refused());
    assert!(matches!(saga.plan(), Next::Undo { step: 0, .. }));
    // A remote compensation is not called for a call that was never made.
    let mut saga = Hand::with_deadline([rule("remote")], Some(SECOND));
    saga.advance(SECOND);
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
}

#[test]
fn a_step_that_was_skipped_forward_is_undone_if_the_saga_turns_back() {
    let mut saga = Hand::new([rule("a"), rule("b")]);
    saga.progress.stick("a", "stopped".to_owned());
    saga.progress.skip(saga.now);
    saga.act(1, refused());
    assert!(matches!(saga.plan(), Next::Undo { step: 0, .. }));
    // Skipped once more, on the way back, it is settled.
    saga.undo(0, refused());
    saga.progress.skip(saga.now);
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    assert_eq!(saga.row(0).state, StepState::Skipped);
}

#[test]
fn a_pause_ends_at_the_deadline() {
    let asks = || Err(StepError::not_sent("circuit open").after(HOUR));
    let mut saga = Hand::with_deadline([rule("a"), rule("b")], Some(10 * SECOND));
    saga.act(0, asks());
    assert_eq!(saga.pause(), 10 * SECOND);
    saga.advance(10 * SECOND);
    assert_eq!((saga.plan(), saga.progress.status), (Next::End, Status::Compensated));
    let mut saga = Hand::new([Rules { deadline: Some(20 * SECOND), ..rule("a") }]);
    saga.act(0, asks());
    assert_eq!(saga.pause(), 20 * SECOND, "the step's");
    // The saga's deadline does not hold after the pivot.
    let mut saga = Hand::with_deadline([pivot(), after_the_pivot("last")], Some(10 * SECOND));
    saga.act(0, Ok(()));
    saga.act(1, asks());
    assert_eq!(saga.pause(), LONGEST_PAUSE);
}
