use std::fmt;

/// Why a policy rejected a call, or gave up on it.
///
/// Each is a `static` beside its policy. Policies of users define their own.
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
    /// Creates the reason of a rejection.
    ///
    /// * `word` is used in metrics, logs and headers: lower case with underscores.
    /// * `text` is used in error messages, after the name of the policy.
    /// * `class` decides how protocols answer.
    pub const fn new(word: &'static str, text: &'static str, class: Class) -> Self {
        Self { word, text, class, timeout: None }
    }

    /// Creates the reason of a timeout. The call was sent, so the backend may have processed it.
    /// The class is [`Class::Deadline`].
    ///
    /// ```
    /// use buttress_core::{Class, Reason, TimeoutKind};
    ///
    /// static SLOW_UPLOAD: Reason =
    ///     Reason::timeout("upload_timeout", "the upload took too long", TimeoutKind::Total);
    ///
    /// assert_eq!(SLOW_UPLOAD.class(), Class::Deadline);
    /// assert_eq!(SLOW_UPLOAD.timeout_kind(), Some(TimeoutKind::Total));
    /// ```
    pub const fn timeout(word: &'static str, text: &'static str, kind: TimeoutKind) -> Self {
        Self { word, text, class: Class::Deadline, timeout: Some(kind) }
    }

    /// Returns the word for labels of metrics and for the header `x-buttress-rejected`.
    pub const fn word(&self) -> &'static str {
        self.word
    }

    /// Returns the class, which decides how protocols answer.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Returns which time limit expired; `None` if the reason is not a timeout.
    pub const fn timeout_kind(&self) -> Option<TimeoutKind> {
        self.timeout
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// The class of a rejection, which decides the HTTP status and the gRPC code of the answer.
///
/// There are no others: a protocol can match all of them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Class {
    /// The service behind the policy is not available: 503, `UNAVAILABLE`.
    Unavailable,
    /// No permit or other resource is free: 503, `RESOURCE_EXHAUSTED`.
    Exhausted,
    /// The caller exceeds its rate: 429, `RESOURCE_EXHAUSTED`.
    RateLimited,
    /// The deadline has passed, or the time left is too short: 504, `DEADLINE_EXCEEDED`.
    Deadline,
    /// The policy does not allow this request, now or later: 403, `PERMISSION_DENIED`.
    Refused,
}

/// The time limit that expired.
///
/// Only [`Attempt`](TimeoutKind::Attempt) may be retried: after [`Total`](TimeoutKind::Total) and
/// [`Deadline`](TimeoutKind::Deadline) the caller no longer waits, and the others end a response
/// whose head the caller has received.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum TimeoutKind {
    /// The limit of one attempt, until the head of its response.
    Attempt,
    /// The limit of the whole call, with all attempts and the pauses between them.
    Total,
    /// The deadline of the call, which its caller may have set.
    Deadline,
    /// The limit between two frames of a response's body.
    Idle,
    /// The limit of a response's body, from its head to its end.
    Body,
    /// The limit for the caller to ask for the next frame of a response's body. Its expiry is no
    /// evidence against the backend.
    Reader,
}
