//! What the steps of a trace show to be required, so that no trace forgets to say so.

use super::{Admission, CloseRule, Feature, OnDrop, Op, Operator, Outcome, Part, State, Streak, Trace, Window};
use std::collections::BTreeSet;

impl Trace {
    /// The features that the configuration and the steps show to be needed. The rule of a trace may
    /// need more.
    pub(super) fn uses(&self) -> Vec<Feature> {
        let config = &self.config;
        let mut uses = Vec::new();
        let mut add = |yes: bool, feature| uses.extend(yes.then_some(feature));
        add(config.probes > 1, Feature::SeveralProbes);
        add(config.close_rule != CloseRule::All, Feature::CloseShare);
        add(config.open_max_ms.is_some(), Feature::OpenGrowth);
        add(config.recovery_ms.is_some(), Feature::GradualRecovery);
        add(config.slow_rate.is_some(), Feature::SlowRate);
        add(matches!(config.window, Window::Count(_)), Feature::CountWindow);
        add(matches!(config.consecutive_failures, Some(Streak::Rule(_))), Feature::CalibratedStreak);
        add(self.rejects_beside_a_probe(), Feature::ProbesOnly);
        for step in &self.steps {
            let outcomes = match &step.op {
                Op::Settle { outcome, .. } | Op::Calls { outcome, .. } | Op::Attempt { outcome, .. } => &[*outcome][..],
                Op::Results { outcomes } => outcomes,
                Op::Drop { .. } => &[Outcome::Cancelled],
                _ => &[],
            };
            for outcome in outcomes {
                match outcome {
                    Outcome::Success | Outcome::Failure => {}
                    Outcome::Benign => add(true, Feature::Classifier),
                    Outcome::Overload => add(true, Feature::Overload),
                    Outcome::Graceful => add(true, Feature::Graceful),
                    Outcome::Ignored => add(true, Feature::Ignored),
                    Outcome::Cancelled => match config.on_drop {
                        OnDrop::Ignore => add(true, Feature::DropIgnored),
                        OnDrop::Slow | OnDrop::Failure => add(true, Feature::DropCounts),
                        OnDrop::Share(_) => add(true, Feature::DropShare),
                        OnDrop::Default => {}
                    },
                }
            }
            match &step.op {
                Op::Admit { retry_within_ms, .. } => add(retry_within_ms.is_some(), Feature::RetryAfter),
                Op::Progress { part: Part::Head, .. } => {
                    add(!self.requires(Feature::SlowToHead), Feature::Progress);
                }
                Op::Progress { part: Part::Frame, .. } => add(true, Feature::Progress),
                Op::FailureRate { expect } => {
                    add(true, Feature::FailureRateShown);
                    add(expect.is_none(), Feature::FailureRateUnknown);
                }
                Op::Reload { .. } => add(true, Feature::Reload),
                Op::Operator(Operator::ForceOpen) => add(true, Feature::ForceOpen),
                Op::Operator(Operator::Disable) => add(true, Feature::Disable),
                Op::Operator(Operator::MetricsOnly) => add(true, Feature::MetricsOnly),
                Op::Operator(Operator::Reset) => add(true, Feature::Reset),
                Op::Operator(Operator::OpenFor { .. }) => add(true, Feature::OpenFor),
                _ => {}
            }
        }
        uses
    }

    /// Whether a call is rejected while a probe is in flight and nothing has opened the circuit.
    fn rejects_beside_a_probe(&self) -> bool {
        let (mut probes, mut opened) = (BTreeSet::new(), false);
        for step in &self.steps {
            match &step.op {
                Op::Admit { call: Some(call), expect: Admission::Probe, .. } => {
                    probes.insert(call);
                    opened = false;
                }
                Op::Admit { expect: Admission::Rejected, .. } if !probes.is_empty() && !opened => return true,
                Op::Settle { call, outcome } => {
                    probes.remove(call);
                    opened |= *outcome == Outcome::Failure;
                }
                Op::Drop { call } => {
                    probes.remove(call);
                }
                Op::Attempt { outcome: Outcome::Failure, .. } | Op::State { expect: State::Open } => opened = true,
                _ => {}
            }
        }
        false
    }
}
