use crate::{Failure, FailureKind, Ignored, Outcome};
use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// A call that one of our own policies did not let through, or gave up on: which policy, why, and when to come back.
///
/// Four words, made without an allocation. It travels where a permit or a response would, and those are moved in pieces as wide as it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct Rejection {
    label: Label,
    /// Nanoseconds; [`UNKNOWN`] where there is no such number. The time to come back, or, of a
    /// timeout, the time that ran out: no timeout says when to come back.
    nanos: u64,
    reason: Reason,
}

const UNKNOWN: u64 = u64::MAX;

impl Rejection {
    /// `policy` is the kind of policy in words, such as `"circuit breaker"`.
    pub const fn new(policy: &'static str, reason: Reason) -> Self {
        Self::labelled(Label::new(policy), reason)
    }

    /// By the policy that the label names.
    pub const fn labelled(label: Label, reason: Reason) -> Self {
        Self { label, nanos: UNKNOWN, reason }
    }

    /// By a timeout of so long, which ran out.
    pub fn timed_out(label: Label, kind: TimeoutKind, limit: Duration) -> Self {
        Self { label, nanos: nanos(limit), reason: Reason::TimedOut(kind) }
    }

    /// The earliest moment, from now, at which another try may go through. A timeout has none.
    pub fn after(mut self, retry_after: Option<Duration>) -> Self {
        if !self.is_timeout() {
            self.nanos = retry_after.map_or(UNKNOWN, nanos);
        }
        self
    }

    /// The kind of policy, in words.
    pub fn policy(&self) -> &'static str {
        match &self.label.0 {
            LabelRepr::Plain(policy) => policy,
            LabelRepr::Named(named) => named.policy,
        }
    }

    /// The name its owner gave to the policy.
    pub fn name(&self) -> Option<&str> {
        match &self.label.0 {
            LabelRepr::Plain(_) => None,
            LabelRepr::Named(named) => Some(&named.name),
        }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How long to wait before another try can succeed; `None` where that is not known.
    pub fn retry_after(&self) -> Option<Duration> {
        (!self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    /// The time that ran out, of a rejection by a timeout.
    pub fn limit(&self) -> Option<Duration> {
        (self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    fn is_timeout(&self) -> bool {
        matches!(self.reason, Reason::TimedOut(_))
    }

    /// The status code by which gRPC says it: 8 `RESOURCE_EXHAUSTED` where there was no place, 4 `DEADLINE_EXCEEDED` for a timeout, and otherwise 14
    /// `UNAVAILABLE`.
    pub fn grpc_status(&self) -> i32 {
        match self.reason {
            Reason::BulkheadFull | Reason::QueueFull | Reason::QueueTimeout => 8,
            Reason::TimedOut(_) => 4,
            _ => 14,
        }
    }

    /// [`retry_after`](Self::retry_after) as `grpc-retry-pushback-ms` has it: a signed 32-bit number of milliseconds (gRFC A6).
    pub fn grpc_pushback(&self) -> Option<i32> {
        self.retry_after().map(|after| i32::try_from(after.as_millis()).unwrap_or(i32::MAX))
    }

    /// What this rejection teaches the layers around the one that made it. A refusal of our own is no evidence against a
    /// backend; an attempt that timed out while the backend had it, is.
    pub fn outcome(&self) -> Outcome {
        match self.reason {
            Reason::TimedOut(TimeoutKind::Reader) => Outcome::Ignored(Ignored::Cancelled),
            Reason::TimedOut(kind) => {
                let no_retry = kind == TimeoutKind::Total;
                Failure { no_retry, ..Failure::new(FailureKind::Timeout) }.into()
            }
            _ => Outcome::Ignored(Ignored::LocalReject),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy())?;
        if let Some(name) = self.name() {
            write!(f, " `{name}`")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(limit) = self.limit() {
            return write!(f, " ({limit:?})");
        }
        match self.retry_after() {
            Some(after) if !after.is_zero() => write!(f, "; try again in {after:.1?}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Rejection {}

/// Why a policy did not let a call through.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The circuit is open.
    CircuitOpen,
    /// The circuit is half-open and all its probes are on their way, or this request may not be a probe.
    ProbesExhausted,
    /// The circuit has just closed, and admits a growing share of the calls.
    Recovering,
    /// An operator opened the circuit.
    ForcedOpen,
    /// As many calls as allowed are in flight.
    BulkheadFull,
    /// The bulkhead is full, and so is its queue.
    QueueFull,
    /// The call stood in the queue of a bulkhead for as long as it may.
    QueueTimeout,
    /// A timeout ran out.
    TimedOut(TimeoutKind),
    /// `call` came without the `poll_ready` that would have reserved a place, or the inner service was not ready.
    NotReady,
    /// The policy, which is not of this family, said no.
    Refused,
}

impl Reason {
    /// One word, as for labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::ProbesExhausted => "probes_exhausted",
            Self::Recovering => "recovering",
            Self::ForcedOpen => "forced_open",
            Self::BulkheadFull => "bulkhead_full",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::TimedOut(TimeoutKind::Attempt) => "attempt_timeout",
            Self::TimedOut(TimeoutKind::Total) => "total_timeout",
            Self::TimedOut(TimeoutKind::Idle) => "idle_timeout",
            Self::TimedOut(TimeoutKind::Body) => "body_timeout",
            Self::TimedOut(TimeoutKind::Reader) => "reader_timeout",
            Self::NotReady => "not_ready",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitOpen => "open",
            Self::ProbesExhausted => "half-open, all probes are on their way",
            Self::Recovering => "recovering, only a share of the calls is let through",
            Self::ForcedOpen => "forced open by an operator",
            Self::BulkheadFull => "full",
            Self::QueueFull => "full, and so is its queue",
            Self::QueueTimeout => "full, no place became free in time",
            Self::TimedOut(TimeoutKind::Attempt) => "the attempt took too long",
            Self::TimedOut(TimeoutKind::Total) => "the call took too long, all attempts included",
            Self::TimedOut(TimeoutKind::Idle) => "no part of the response came for too long",
            Self::TimedOut(TimeoutKind::Body) => "the body of the response took too long",
            Self::TimedOut(TimeoutKind::Reader) => "the reader of the response stopped for too long",
            Self::NotReady => "called before it was ready",
            Self::Refused => "refused",
        })
    }
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

/// 584 years stand for all longer times.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN - 1)
}

/// Which policy a rejection comes from: its kind, and its name if it has one. Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label(LabelRepr);

#[derive(Clone, Debug, Eq, PartialEq)]
enum LabelRepr {
    Plain(&'static str),
    Named(Arc<Named>),
}

/// On lines of its own, because the count of the `Arc` around it goes up with every rejection.
#[derive(Debug, Eq, PartialEq)]
#[repr(align(128))]
struct Named {
    policy: &'static str,
    name: Name,
}

impl Label {
    /// A policy without a name.
    pub const fn new(policy: &'static str) -> Self {
        Self(LabelRepr::Plain(policy))
    }

    /// A policy with a name.
    pub fn named(policy: &'static str, name: Name) -> Self {
        Self(LabelRepr::Named(Arc::new(Named { policy, name })))
    }
}

/// The label of a policy that rejects on many threads: a copy for each shard, so that rejections do
/// not contend for its reference count. The copies are made by the first rejection.
#[derive(Debug)]
pub(crate) struct Labels {
    policy: &'static str,
    name: Option<Name>,
    shards: usize,
    copies: OnceLock<Box<[Label]>>,
}

impl Labels {
    pub(crate) fn new(policy: &'static str, name: Option<&Name>, shards: usize) -> Self {
        Self { policy, name: name.cloned(), shards: shards.max(1), copies: OnceLock::new() }
    }

    pub(crate) fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    pub(crate) fn reject(&self, reason: Reason) -> Rejection {
        let copies = self.copies.get_or_init(|| (0..self.shards).map(|_| self.label()).collect());
        Rejection::labelled(copies[crate::shard::thread_index() % copies.len()].clone(), reason)
    }

    fn label(&self) -> Label {
        self.name.as_ref().map_or(Label::new(self.policy), |name| Label::named(self.policy, name.clone()))
    }
}

/// The name of a policy. A literal costs nothing to clone, not even a reference count.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Name(Repr);

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(name))
    }
}

impl From<Cow<'static, str>> for Name {
    fn from(name: Cow<'static, str>) -> Self {
        match name {
            Cow::Borrowed(name) => name.into(),
            Cow::Owned(name) => name.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_reads_as_a_sentence() {
        let label = Label::named("circuit breaker", "payments".into());
        let rejection = Rejection::labelled(label, Reason::CircuitOpen).after(Some(Duration::from_millis(4200)));
        assert_eq!(rejection.to_string(), "circuit breaker `payments`: open; try again in 4.2s");
    }

    #[test]
    fn a_timeout_says_how_long_it_was_and_not_when_to_come_back() {
        let label = Label::named("timeout", "payments".into());
        let rejection = Rejection::timed_out(label, TimeoutKind::Attempt, Duration::from_millis(500));
        assert_eq!(rejection.to_string(), "timeout `payments`: the attempt took too long (500ms)");
        let after = rejection.after(Some(Duration::from_secs(1)));
        assert_eq!((after.retry_after(), after.limit()), (None, Some(Duration::from_millis(500))));
        assert_eq!(Rejection::new("timeout", Reason::TimedOut(TimeoutKind::Total)).limit(), None);
    }

    #[test]
    fn a_reader_that_stops_is_no_evidence_against_the_backend() {
        let rejection = Rejection::new("timeout", Reason::TimedOut(TimeoutKind::Reader));
        assert_eq!(rejection.outcome(), Outcome::CANCELLED);
    }

    #[test]
    fn only_a_timeout_is_evidence_against_the_backend() {
        let of = |reason| Rejection::new("x", reason).outcome();
        assert!(of(Reason::TimedOut(TimeoutKind::Attempt)).is_failure());
        for reason in [Reason::CircuitOpen, Reason::BulkheadFull, Reason::QueueTimeout, Reason::NotReady] {
            assert_eq!(of(reason), Outcome::Ignored(Ignored::LocalReject));
        }
    }
}
