//! The steps of a trace.

use super::Config;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub(crate) struct Step {
    pub(crate) at_ms: u64,
    pub(crate) op: Op,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    /// `count` calls request admission, and are named `call` afterwards. A rejection must have a
    /// retry-after of at most `retry_within_ms`.
    Admit { call: Option<String>, count: u32, expect: Admission, retry_within_ms: Option<u64> },
    /// A part of the response of a call arrives.
    Progress { call: String, part: Part },
    /// Calls end with an outcome.
    Settle { call: String, outcome: Outcome },
    /// Calls are dropped without an outcome.
    Drop { call: String },
    /// Consecutive calls, each admitted and ended before the next.
    Calls { count: u32, outcome: Outcome },
    /// Consecutive calls, each with its own outcome.
    Results { outcomes: Vec<Outcome> },
    /// Calls that may be admitted or rejected. An admitted one ends at once, before the next.
    Attempt { count: u32, outcome: Outcome, admitted_at_most: Option<u32> },
    /// Consecutive failing calls, until one is rejected.
    Trip,
    /// Checks the state.
    State { expect: State },
    /// Checks the exposed failure rate. `None`: unknown.
    FailureRate { expect: Option<f64> },
    /// Changes the configuration at run time.
    Reload { config: Box<Config> },
    /// Applies an operator's action.
    Operator(Operator),
}

/// A part of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    Head,
    Frame,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Admission {
    Admitted,
    Probe,
    Rejected,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Success,
    Failure,
    /// An error that the user declares to be no failure.
    Benign,
    Overload,
    Cancelled,
    Graceful,
    Ignored,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Closed,
    Open,
    HalfOpen,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operator {
    ForceOpen,
    Disable,
    MetricsOnly,
    Reset,
    OpenFor { ms: u64 },
}

/// A step as written. Each operation has its own fields and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    at_ms: u64,
    op: String,
    call: Option<String>,
    count: Option<u32>,
    outcome: Option<Outcome>,
    expect: Option<serde_json::Value>,
    for_ms: Option<u64>,
    retry_within_ms: Option<u64>,
    admitted_at_most: Option<u32>,
    outcomes: Option<String>,
    config: Option<Box<Config>>,
}

impl TryFrom<Fields> for Step {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { at_ms, op: name, mut call, mut count, mut outcome, mut expect, mut for_ms, .. } = fields;
        let Fields { mut retry_within_ms, mut admitted_at_most, mut outcomes, mut config, .. } = fields;
        let missing = |field| format!("`{name}` at {at_ms} needs the field `{field}`");
        let op = match name.as_str() {
            "admit" => Op::Admit {
                call: call.take(),
                count: count.take().unwrap_or(1),
                expect: word(expect.take().ok_or_else(|| missing("expect"))?)?,
                retry_within_ms: retry_within_ms.take(),
            },
            "head" | "frame" => Op::Progress {
                call: call.take().ok_or_else(|| missing("call"))?,
                part: if name == "head" { Part::Head } else { Part::Frame },
            },
            "settle" => Op::Settle {
                call: call.take().ok_or_else(|| missing("call"))?,
                outcome: outcome.take().ok_or_else(|| missing("outcome"))?,
            },
            "drop" => Op::Drop { call: call.take().ok_or_else(|| missing("call"))? },
            "calls" => Op::Calls {
                count: count.take().ok_or_else(|| missing("count"))?,
                outcome: outcome.take().ok_or_else(|| missing("outcome"))?,
            },
            "results" => Op::Results { outcomes: letters(&outcomes.take().ok_or_else(|| missing("outcomes"))?)? },
            "attempt" => Op::Attempt {
                count: count.take().unwrap_or(1),
                outcome: outcome.take().ok_or_else(|| missing("outcome"))?,
                admitted_at_most: admitted_at_most.take(),
            },
            "trip" => Op::Trip,
            "state" => Op::State { expect: word(expect.take().ok_or_else(|| missing("expect"))?)? },
            "failure-rate" => Op::FailureRate { expect: rate(expect.take().ok_or_else(|| missing("expect"))?)? },
            "reload" => Op::Reload { config: config.take().ok_or_else(|| missing("config"))? },
            "force-open" => Op::Operator(Operator::ForceOpen),
            "disable" => Op::Operator(Operator::Disable),
            "metrics-only" => Op::Operator(Operator::MetricsOnly),
            "reset" => Op::Operator(Operator::Reset),
            "open-for" => Op::Operator(Operator::OpenFor { ms: for_ms.take().ok_or_else(|| missing("for_ms"))? }),
            _ => return Err(format!("no operation is called `{name}`")),
        };
        let left = [
            call.map(|_| "call"),
            count.map(|_| "count"),
            outcome.map(|_| "outcome"),
            expect.map(|_| "expect"),
            for_ms.map(|_| "for_ms"),
            retry_within_ms.map(|_| "retry_within_ms"),
            admitted_at_most.map(|_| "admitted_at_most"),
            outcomes.map(|_| "outcomes"),
            config.map(|_| "config"),
        ];
        match left.into_iter().flatten().next() {
            None => Ok(Self { at_ms, op }),
            Some(field) => Err(format!("`{name}` at {at_ms} has no field `{field}`")),
        }
    }
}

fn word<T: for<'de> Deserialize<'de>>(value: serde_json::Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Parses `s` as a success and `f` as a failure.
fn letters(outcomes: &str) -> Result<Vec<Outcome>, String> {
    let outcome = |letter| match letter {
        's' => Ok(Outcome::Success),
        'f' => Ok(Outcome::Failure),
        other => Err(format!("no outcome is written `{other}`")),
    };
    outcomes.chars().map(outcome).collect()
}

/// Parses a number, or `"unknown"`.
fn rate(value: serde_json::Value) -> Result<Option<f64>, String> {
    match (value.as_f64(), value.as_str()) {
        (Some(rate), _) => Ok(Some(rate)),
        (None, Some("unknown")) => Ok(None),
        _ => Err(format!("{value} is no rate")),
    }
}
