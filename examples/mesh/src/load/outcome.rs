//! The outcome of an order, from its customer's point of view.

use http::StatusCode;
use serde::Serialize;

use crate::customers::{Answer, Refusal};

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 201.
    Confirmed,
    /// Declined or out of stock: a regular decision.
    Cancelled,
    /// 202: stored, and decided later.
    Accepted,
    /// 429, or 503 before anything was stored: a layer rejected it.
    Rejected,
    /// Any other error.
    Failed,
    /// No answer in time: 504, or none at all before the customer's timeout.
    TimedOut,
}

impl Outcome {
    pub const ALL: [Self; 6] =
        [Self::Confirmed, Self::Cancelled, Self::Accepted, Self::Rejected, Self::Failed, Self::TimedOut];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::TimedOut => "timed out",
        }
    }

    /// Whether the order has a regular final state.
    pub fn is_completed(self) -> bool {
        matches!(self, Self::Confirmed | Self::Cancelled)
    }

    /// Whether its latency counts. Rejections and failures are answered fast and would make an
    /// overloaded mesh look fast, so they do not count; timeouts do.
    pub fn is_served(self) -> bool {
        !matches!(self, Self::Rejected | Self::Failed)
    }

    /// Returns the outcome of an answer, and the reason if it is not a confirmation. `None` means
    /// that no answer came in time.
    pub(super) fn of(answer: Option<&Answer>) -> (Self, Option<String>) {
        let because = |Refusal { status, reason }: &Refusal| Some(format!("{} {reason}", status.as_u16()));
        match answer {
            None => (Self::TimedOut, Some("no answer in time".to_owned())),
            Some(Answer::Lost) => {
                (Self::Failed, Some("no answer: the connection broke, or the answer could not be parsed".to_owned()))
            }
            Some(Answer::Confirmed(_)) => (Self::Confirmed, None),
            Some(Answer::Pending) => (Self::Accepted, None),
            Some(Answer::Cancelled(_, why) | Answer::Refused(why)) if why.status == StatusCode::GATEWAY_TIMEOUT => {
                (Self::TimedOut, because(why))
            }
            Some(Answer::Cancelled(_, why)) => match why.status {
                StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT => (Self::Cancelled, because(why)),
                // Stored, then failed by a backend service and compensated.
                _ => (Self::Failed, because(why)),
            },
            Some(Answer::Refused(why)) => match why.status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => (Self::Rejected, because(why)),
                _ => (Self::Failed, because(why)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_one_outcome() {
        let refusal = |status| Refusal { status: StatusCode::from_u16(status).unwrap(), reason: "why".into() };
        let stored = |status| Some(Answer::Cancelled("id".into(), refusal(status)));
        let refused = |status| Some(Answer::Refused(refusal(status)));
        let cases = [
            (Some(Answer::Confirmed("id".into())), Outcome::Confirmed),
            (Some(Answer::Pending), Outcome::Accepted),
            (stored(402), Outcome::Cancelled),
            (stored(409), Outcome::Cancelled),
            (stored(503), Outcome::Failed),
            (stored(504), Outcome::TimedOut),
            (refused(429), Outcome::Rejected),
            (refused(503), Outcome::Rejected),
            (refused(504), Outcome::TimedOut),
            (refused(500), Outcome::Failed),
            (refused(404), Outcome::Failed),
            (Some(Answer::Lost), Outcome::Failed),
            (None, Outcome::TimedOut),
        ];
        for (answer, expected) in cases {
            assert_eq!(Outcome::of(answer.as_ref()).0, expected, "{answer:?}");
        }
        assert_eq!(Outcome::of(refused(503).as_ref()).1.as_deref(), Some("503 why"));
    }
}
