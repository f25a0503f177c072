//! The state machine of a saga. It makes all decisions, without a database, a clock or calls.

use std::time::Duration;

use buttress_core::Backoff;
use fastrand::Rng;

use super::error::{ErrorKind, StepError};
use super::rules::{LONGEST_PAUSE, Rules, longest_pause};
use super::state::{Failure, Status, StepState, Stuck};
use crate::clock::Timestamp;
use crate::text::storable;

/// The row of a saga and the rows of its steps.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) status: Status,
    /// Index of the step to run next. While compensating, all steps above it are settled.
    pub(super) step: usize,
    pub(super) steps: Vec<Option<StepRow>>,
    pub(super) failure: Option<Failure>,
    pub(super) stuck: Option<Stuck>,
    pub(super) deadline_at: Option<Timestamp>,
    pub(super) wake_at: Timestamp,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct StepRow {
    pub(super) state: StepState,
    /// Failed attempts at the action, or at the compensation once that has begun.
    pub(super) attempts: u32,
    /// Calls in a row that were not counted as attempts. They lengthen the pauses.
    pub(super) refused: u32,
    /// Whether an attempt may have had an effect that is not known.
    pub(super) uncertain: bool,
    pub(super) error: Option<String>,
    pub(super) started_at: Timestamp,
    pub(super) ended_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    Act {
        step: usize,
        attempt: u32,
        deadline: Timestamp,
    },
    Undo {
        step: usize,
        attempt: u32,
        deadline: Timestamp,
    },
    /// Nothing to do before `wake_at`.
    Wait,
    End,
}

impl Progress {
    pub(super) fn new(steps: usize, now: Timestamp, deadline: Option<Duration>) -> Self {
        let deadline_at = deadline.map(|deadline| now.plus(deadline));
        let steps = vec![None; steps];
        Self { status: Status::Running, step: 0, steps, failure: None, stuck: None, deadline_at, wake_at: now }
    }

    /// Decides what to do now, and marks the step as started.
    pub(super) fn plan(&mut self, rules: &[Rules], now: Timestamp) -> Next {
        let live = matches!(self.status, Status::Running | Status::Compensating);
        // A pause that is longer than any was measured by a clock that was ahead, and is over.
        if live && self.wake_at > now && self.wake_at <= now.plus(longest_pause(rules)) {
            return Next::Wait;
        }
        if self.status == Status::Running
            && let Some(next) = self.forward(rules, now)
        {
            return next;
        }
        match self.status {
            Status::Compensating => self.back(rules, now),
            _ => Next::End,
        }
    }

    /// Returns the next action, or `None` if the saga has ended, is stuck, or has turned back.
    fn forward(&mut self, rules: &[Rules], now: Timestamp) -> Option<Next> {
        let step = self.step;
        let Some(rule) = rules.get(step) else {
            self.status = Status::Completed;
            return None;
        };
        let row = self.row(step, now);
        // Started, but without an outcome: a crash interrupted the attempt.
        row.uncertain |= row.state == StepState::Started && !rule.local;
        let (attempt, uncertain) = (row.attempts.saturating_add(1), row.uncertain);
        let step_deadline = rule.deadline.map(|deadline| row.started_at.plus(deadline));
        if step_deadline.is_some_and(|deadline| deadline <= now) {
            self.exhausted(rules, "the step's deadline has passed");
            return None;
        }
        let turns_back = Self::may_turn_back(rule, uncertain);
        let saga_deadline = self.deadline_at.filter(|_| turns_back);
        if saga_deadline.is_some_and(|deadline| deadline <= now) {
            self.turn_back(rule, "the saga's deadline has passed");
            return None;
        }
        self.row(step, now).state = StepState::Started;
        let deadline = [Some(now.plus(rule.timeout)), step_deadline, saga_deadline].into_iter().flatten().min();
        Some(Next::Act { step, attempt, deadline: deadline.unwrap_or(now) })
    }

    /// Returns the next compensation, from the last step to the first.
    fn back(&mut self, rules: &[Rules], now: Timestamp) -> Next {
        for step in (0..self.steps.len().min(self.step.saturating_add(1))).rev() {
            let (Some(rule), Some(Some(row))) = (rules.get(step), self.steps.get_mut(step)) else { continue };
            if !rule.undoable || Self::is_settled(step, rule, row) {
                continue;
            }
            if row.state != StepState::Undoing {
                row.state = StepState::Undoing;
                (row.attempts, row.refused) = (0, 0);
                row.ended_at = None;
            }
            self.step = step;
            return Next::Undo { step, attempt: row.attempts.saturating_add(1), deadline: now.plus(rule.timeout) };
        }
        self.status = Status::Compensated;
        Next::End
    }

    /// Whether a step has no effect that must be undone.
    fn is_settled(step: usize, rule: &Rules, row: &StepRow) -> bool {
        match row.state {
            StepState::Undone => true,
            StepState::Done | StepState::Undoing => false,
            // Skipped forward it counts as done, and is uncertain; skipped backward as undone.
            StepState::Skipped => !row.uncertain,
            // The start of the saga is an effect, too: the caller's transaction wrote what the
            // local compensation of the first step undoes, whether or not the step was called.
            StepState::Started | StepState::Waiting | StepState::Failed => {
                !(row.uncertain || step == 0 && rule.undo_local)
            }
        }
    }

    /// Records the outcome of the current step's action.
    pub(super) fn acted(&mut self, rules: &[Rules], result: Result<(), &StepError>, now: Timestamp, rng: &mut Rng) {
        let step = self.step;
        let Some(rule) = rules.get(step) else { return };
        let row = self.row(step, now);
        let Err(error) = result else {
            (row.state, row.error, row.ended_at) = (StepState::Done, None, Some(now));
            (row.uncertain, row.refused) = (false, 0);
            self.step += 1;
            self.wake_at = now;
            return;
        };
        let message = storable(error);
        row.error = Some(message.clone());
        row.state = StepState::Waiting;
        row.uncertain |= error.kind == ErrorKind::Unknown && !rule.local;
        let Some(attempts) = row.count(error) else {
            let pause = pause(&rule.backoff, row.refused, error, rng);
            return self.rest(rule, now, pause);
        };
        match error.kind {
            ErrorKind::Terminal if rule.retriable => self.stick(&rule.name, format!("rejected: {message}")),
            ErrorKind::Terminal => {
                // The participant has rejected this key. It is asked to compensate only if a
                // compensation exists.
                row.uncertain &= rule.undoable;
                self.turn_back(rule, &message);
            }
            _ if attempts >= rule.attempts => self.exhausted(rules, &message),
            _ => self.rest(rule, now, pause(&rule.backoff, attempts, error, rng)),
        }
    }

    /// Waits before the next attempt at the current action, at most until a deadline: it ends the
    /// waiting when it passes, and not a pause later.
    fn rest(&mut self, rule: &Rules, now: Timestamp, pause: Duration) {
        let row = self.row(self.step, now);
        let (uncertain, started_at) = (row.uncertain, row.started_at);
        let step = rule.deadline.map(|deadline| started_at.plus(deadline));
        let saga = self.deadline_at.filter(|_| Self::may_turn_back(rule, uncertain));
        let wake_at = [step, saga].into_iter().flatten().fold(now.plus(pause), Timestamp::min);
        self.wake_at = wake_at.max(now);
    }

    /// Records the outcome of the current step's compensation.
    pub(super) fn undone(&mut self, rules: &[Rules], result: Result<(), &StepError>, now: Timestamp, rng: &mut Rng) {
        let step = self.step;
        let Some(rule) = rules.get(step) else { return };
        let row = self.row(step, now);
        let Err(error) = result else {
            (row.state, row.error, row.ended_at) = (StepState::Undone, None, Some(now));
            row.refused = 0;
            self.wake_at = now;
            return;
        };
        let message = storable(error);
        row.error = Some(message.clone());
        let Some(attempts) = row.count(error) else {
            self.wake_at = now.plus(pause(&rule.undo_backoff, row.refused, error, rng));
            return;
        };
        match error.kind {
            ErrorKind::Terminal => self.stick(&rule.name, format!("compensation rejected: {message}")),
            _ if attempts >= rule.undo_attempts => {
                self.stick(&rule.name, format!("compensation failed after {attempts} attempts: {message}"));
            }
            _ => self.wake_at = now.plus(pause(&rule.undo_backoff, attempts, error, rng)),
        }
    }

    /// Makes the saga stuck at the current step.
    pub(super) fn stick(&mut self, step: &str, message: String) {
        let compensating = self.status == Status::Compensating;
        self.stuck = Some(Stuck { step: step.to_owned(), message: storable(message), compensating, note: None });
        self.status = Status::Stuck;
    }

    /// Continues a stuck saga at its current step, with fresh attempts and a fresh step deadline.
    pub(super) fn retry(&mut self, now: Timestamp) {
        let Some(stuck) = self.stuck.take() else { return };
        self.status = if stuck.compensating { Status::Compensating } else { Status::Running };
        self.wake_at = now;
        if let Some(Some(row)) = self.steps.get_mut(self.step) {
            (row.attempts, row.refused, row.started_at) = (0, 0, now);
        }
    }

    /// Continues a stuck saga without its current step: as if done when forward, as if undone when
    /// compensating. One that was skipped forward is undone like any other if the saga turns back.
    pub(super) fn skip(&mut self, now: Timestamp) {
        let compensating = self.stuck.as_ref().is_some_and(|stuck| stuck.compensating);
        self.retry(now);
        let row = self.row(self.step, now);
        (row.state, row.ended_at, row.uncertain) = (StepState::Skipped, Some(now), !compensating);
        if !compensating {
            self.step += 1;
        }
    }

    /// Closes a stuck saga.
    pub(super) fn resolve(&mut self, note: &str) {
        self.status = Status::Resolved;
        if let Some(stuck) = &mut self.stuck {
            stuck.note = Some(storable(note));
        }
    }

    /// Turns back or gets stuck, because the attempts or the time of the current action are used
    /// up.
    fn exhausted(&mut self, rules: &[Rules], message: &str) {
        let Some(rule) = rules.get(self.step) else { return };
        let uncertain = self.steps.get(self.step).and_then(Option::as_ref).is_some_and(|row| row.uncertain);
        if Self::may_turn_back(rule, uncertain) {
            self.turn_back(rule, message);
        } else {
            self.stick(&rule.name, message.to_owned());
        }
    }

    /// Whether the saga may be compensated from this step. Not after the pivot; and not at the
    /// pivot while its outcome is unknown and it has no compensation.
    fn may_turn_back(rule: &Rules, uncertain: bool) -> bool {
        !rule.retriable && (!rule.pivot || !uncertain || rule.undoable)
    }

    fn turn_back(&mut self, rule: &Rules, message: &str) {
        if let Some(Some(row)) = self.steps.get_mut(self.step) {
            row.state = StepState::Failed;
        }
        self.failure = Some(Failure { step: rule.name.clone(), message: storable(message) });
        self.status = Status::Compensating;
    }

    fn row(&mut self, step: usize, now: Timestamp) -> &mut StepRow {
        if self.steps.len() <= step {
            self.steps.resize(step + 1, None);
        }
        self.steps[step].get_or_insert(StepRow {
            state: StepState::Waiting,
            attempts: 0,
            refused: 0,
            uncertain: false,
            error: None,
            started_at: now,
            ended_at: None,
        })
    }
}

impl StepRow {
    /// Counts a failure. Returns the number of attempts, or `None` if it was none.
    fn count(&mut self, error: &StepError) -> Option<u32> {
        if error.counts || error.kind == ErrorKind::Terminal {
            self.refused = 0;
            self.attempts = self.attempts.saturating_add(1);
            return Some(self.attempts);
        }
        self.refused = self.refused.saturating_add(1);
        None
    }
}

/// The pause after the n-th failure in a row.
fn pause(backoff: &Backoff, n: u32, error: &StepError, rng: &mut Rng) -> Duration {
    backoff.pause(n.saturating_sub(1), rng).max(error.pause.unwrap_or_default().min(LONGEST_PAUSE))
}

#[cfg(test)]
mod boundaries;
#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// A participant that follows the rules: one effect for each key, and none after a
    /// compensation.
    #[derive(Clone, Copy, Debug, Default)]
    struct Participant {
        effect: bool,
        revoked: bool,
        declined: bool,
    }

    impl Participant {
        fn act(&mut self, die: u8) -> Option<Result<(), StepError>> {
            if self.effect {
                return Some(Ok(()));
            }
            if self.revoked || self.declined {
                return Some(Err(StepError::terminal("refused")));
            }
            match die % 8 {
                0 => return Some(Err(StepError::retriable("busy"))),
                1 => return Some(Err(StepError::unknown("lost on the way there"))),
                2 => self.declined = true,
                5 if die > 127 => return Some(Err(StepError::not_sent("circuit open"))),
                _ => self.effect = true,
            }
            match die % 8 {
                2 => Some(Err(StepError::terminal("declined"))),
                3 => Some(Err(StepError::unknown("lost on the way back"))),
                // The coordinator crashes after the call.
                4 => None,
                _ => Some(Ok(())),
            }
        }

        fn undo(&mut self, die: u8) -> Option<Result<(), StepError>> {
            if die.is_multiple_of(4) {
                return Some(Err(match die > 127 {
                    true => StepError::not_sent("circuit open"),
                    false => StepError::retriable("busy"),
                }));
            }
            (self.effect, self.revoked) = (false, true);
            match die % 4 {
                1 => Some(Err(StepError::unknown("lost on the way back"))),
                2 => None,
                _ => Some(Ok(())),
            }
        }
    }

    fn rules(before: usize, after: usize, pivot_undoable: bool) -> Vec<Rules> {
        let rule = |name: String| Rules { attempts: 3, undo_attempts: 5, ..Rules::new(name) };
        let before = (0..before).map(|n| Rules { undoable: true, ..rule(format!("before-{n}")) });
        let pivot = Rules { pivot: true, undoable: pivot_undoable, ..rule("pivot".to_owned()) };
        let after = (0..after).map(|n| Rules { retriable: true, ..rule(format!("after-{n}")) });
        before.chain([pivot]).chain(after).collect()
    }

    /// Runs until the saga is at rest, with the given dice and then up to 200 successful steps.
    fn play(rules: &[Rules], deadline: Option<Duration>, dice: &[u8]) -> (Progress, Vec<Participant>) {
        let mut now = Timestamp::from_millis(1_000);
        let mut rng = Rng::with_seed(7);
        let mut progress = Progress::new(0, now, deadline);
        let mut participants = vec![Participant::default(); rules.len()];
        for die in dice.iter().copied().chain(std::iter::repeat_n(7, 200)) {
            now = now.plus(Duration::from_millis(5));
            // `None` is a crash: nothing is recorded, and the saga is planned again from its last
            // state.
            match progress.plan(rules, now) {
                Next::Act { step, .. } => {
                    if let Some(result) = participants[step].act(die) {
                        progress.acted(rules, result.as_ref().map(drop), now, &mut rng);
                    }
                }
                Next::Undo { step, .. } => {
                    if let Some(result) = participants[step].undo(die) {
                        progress.undone(rules, result.as_ref().map(drop), now, &mut rng);
                    }
                }
                Next::Wait => now = progress.wake_at,
                Next::End => break,
            }
        }
        (progress, participants)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn it_ends_with_all_effects_or_with_none_or_says_that_it_is_stuck(
            before in 0usize..4, after in 0usize..3, pivot_undoable: bool, short: bool, dice in vec(any::<u8>(), 0..60)
        ) {
            let rules = rules(before, after, pivot_undoable);
            let deadline = short.then_some(Duration::from_millis(300));
            let (progress, participants) = play(&rules, deadline, &dice);
            let effects = participants.iter().filter(|participant| participant.effect).count();
            match progress.status {
                Status::Completed => prop_assert_eq!(effects, rules.len()),
                Status::Compensated => prop_assert_eq!(effects, 0, "{:?}", participants),
                Status::Stuck => prop_assert!(progress.stuck.is_some()),
                other => prop_assert!(false, "not at rest: {:?}", other),
            }
        }

        #[test]
        fn past_the_pivot_nothing_is_undone(after in 1usize..4, dice in vec(any::<u8>(), 0..60)) {
            let rules = rules(2, after, true);
            let (progress, participants) = play(&rules, Some(Duration::from_millis(50)), &dice);
            let row = |step: usize| progress.steps.get(step).cloned().flatten();
            if row(3).is_some() {
                prop_assert!(participants[..3].iter().all(|participant| participant.effect));
                prop_assert!((0..3).all(|step| row(step).is_some_and(|row| row.state == StepState::Done)));
            }
        }
    }

    #[test]
    fn an_uncertain_pivot_that_nothing_can_undo_is_stuck_rather_than_guessed_at() {
        let rules = rules(1, 0, false);
        let mut now = Timestamp::from_millis(0);
        let mut progress = Progress::new(0, now, None);
        let mut rng = Rng::with_seed(1);
        progress.plan(&rules, now);
        progress.acted(&rules, Ok(()), now, &mut rng);
        for _ in 0..3 {
            now = now.plus(Duration::from_secs(60));
            assert!(matches!(progress.plan(&rules, now), Next::Act { step: 1, .. }));
            progress.acted(&rules, Err(&StepError::unknown("timeout")), now, &mut rng);
        }
        assert_eq!((progress.plan(&rules, now), progress.status), (Next::End, Status::Stuck));
        progress.retry(now);
        assert!(matches!(progress.plan(&rules, now), Next::Act { step: 1, attempt: 1, .. }));
        progress.acted(&rules, Ok(()), now, &mut rng);
        assert_eq!((progress.plan(&rules, now), progress.status), (Next::End, Status::Completed));
    }

    #[test]
    fn an_attempt_that_a_crash_cut_off_is_made_again_and_not_counted() {
        let rules = rules(1, 0, true);
        let now = Timestamp::from_millis(0);
        let mut progress = Progress::new(0, now, None);
        for _ in 0..10 {
            assert!(matches!(progress.plan(&rules, now), Next::Act { step: 0, attempt: 1, .. }));
        }
        progress.acted(&rules, Err(&StepError::terminal("declined")), now, &mut Rng::with_seed(1));
        assert!(matches!(progress.plan(&rules, now), Next::Undo { step: 0, .. }), "it may have happened before");
    }
}
