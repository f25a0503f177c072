use std::fmt;

/// Why a policy did not let a call through, or gave up on it. Defined as a `static` beside the
/// policy, also by policies of users.
///
/// ```
/// use buttress_core::{Class, Reason, Rejection};
///
/// static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);
///
/// let rejection = Rejection::new("token bucket", &OVER_RATE);
/// assert_eq!(rejection.to_string(), "token bucket: over its rate");
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Reason {
    word: &'static str,
    text: &'static str,
    class: Class,
    timeout: Option<TimeoutKind>,
}

impl Reason {
    /// `word` is for metrics, logs and the wire: lower case with underscores. `text` is for people
    /// and follows the name of the policy. `class` decides how protocols answer.
    pub const fn new(word: &'static str, text: &'static str, class: Class) -> Self {
        Self { word, text, class, timeout: None }
    }

    /// A timeout of a call that was sent: the other side may have processed it.
    pub const fn timeout(word: &'static str, text: &'static str, kind: TimeoutKind) -> Self {
        Self { word, text, class: Class::Deadline, timeout: Some(kind) }
    }

    /// One word, as in labels of metrics and in the header `x-buttress-rejected`.
    pub const fn word(&self) -> &'static str {
        self.word
    }

    /// What kind of refusal it is.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// The time that ran out, if one did.
    pub const fn timeout_kind(&self) -> Option<TimeoutKind> {
        self.timeout
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// The kinds of refusal. Protocols answer each in their own way; there are no others.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Class {
    /// The service behind the policy is not available: 503, `UNAVAILABLE`.
    Unavailable,
    /// No place or other resource is free: 503, `RESOURCE_EXHAUSTED`.
    Exhausted,
    /// The caller sends too much: 429, `RESOURCE_EXHAUSTED`.
    RateLimited,
    /// The time is over, or too short: 504, `DEADLINE_EXCEEDED`.
    Deadline,
    /// The policy does not allow this request, now or later: 403, `PERMISSION_DENIED`.
    Refused,
}

/// Which time ran out. Only [`Attempt`](TimeoutKind::Attempt) may be retried: after
/// [`Total`](TimeoutKind::Total) the caller does not wait any more, and the others end a response
/// whose head the caller has.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum TimeoutKind {
    /// One attempt, until its response began.
    Attempt,
    /// The whole call, with all attempts and the pauses between them.
    Total,
    /// The time between two frames of a response's body.
    Idle,
    /// The response's body, from its head to its end.
    Body,
    /// The time in which the reader of a response did not ask for more. No evidence against the
    /// backend.
    Reader,
}
