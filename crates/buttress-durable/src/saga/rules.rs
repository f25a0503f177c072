use std::time::Duration;

use buttress_core::Backoff;

/// Longest pause that an error of a step can ask for. Bounded, so that a moment far ahead can be
/// told from one that was written by a clock that was ahead.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The settings of one step.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) name: String,
    pub(super) pivot: bool,
    pub(super) retriable: bool,
    pub(super) undoable: bool,
    /// The compensation runs in our own transaction.
    pub(super) undo_local: bool,
    /// The action runs in our own transaction, so an interrupted attempt has not happened.
    pub(super) local: bool,
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) timeout: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) undo_attempts: u32,
    pub(super) undo_backoff: Backoff,
}

/// The longest pause that these steps can make a saga wait.
pub(super) fn longest_pause(rules: &[Rules]) -> Duration {
    let caps = rules.iter().flat_map(|rule| [rule.backoff.cap(), rule.undo_backoff.cap()]);
    caps.fold(LONGEST_PAUSE, Duration::max)
}

impl Rules {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            pivot: false,
            retriable: false,
            undoable: false,
            undo_local: false,
            local: false,
            attempts: 5,
            backoff: Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(10)),
            timeout: Duration::from_secs(10),
            deadline: None,
            undo_attempts: 20,
            undo_backoff: Backoff::equal_jitter(Duration::from_millis(200), Duration::from_secs(60)),
        }
    }
}
