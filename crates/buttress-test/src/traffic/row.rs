use std::fmt;

/// A kind of traffic: a row of the table in `docs/traffic.md` of the repository.
///
/// Rows 8 to 12 need real transports, row 20 needs the handle of a layer, and row 22 is checked by
/// composing a stack, so they are not here.
///
/// ```
/// use buttress_test::traffic::Row;
///
/// assert_eq!(Row::Streams.to_string(), "row 3 (streaming responses)");
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Row {
    /// Calls every 30 seconds, every minute and every 10 minutes.
    Rare,
    /// Calls that take 20 seconds to 60 days.
    Long,
    /// Responses of three minutes with one frame per second.
    Streams,
    /// Bodies that the caller drops before their end.
    Unread,
    /// HEAD, 101, 204, 205, 304, statuses from 400 to 422, empty bodies, `Content-Length`.
    Empty,
    /// POST, PATCH, PUT and unary gRPC calls with a body of several frames.
    Uploads,
    /// Callers that drop the call or the body, and uploads that fail or stop.
    HangUps,
    /// Random errors: 1 to 40 % of 10, 100 and 1,000 calls per second.
    RandomErrors,
    /// An outage of 12 seconds, and the recovery.
    Outage,
    /// Rejections by inner layers, as errors and as responses.
    Rejections,
    /// Panics of the backend.
    Panics,
    /// A backend that never answers or spends tokio's cooperative budget, and a body that stops.
    Hung,
    /// Services that are ready and are called late or never.
    Ready,
    /// `Retry-After`, pushbacks and statuses with values at and beyond the limits.
    Limits,
    /// 10,000 waiting tasks.
    Crowds,
}

impl Row {
    /// All rows, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Rare,
        Self::Long,
        Self::Streams,
        Self::Unread,
        Self::Empty,
        Self::Uploads,
        Self::HangUps,
        Self::RandomErrors,
        Self::Outage,
        Self::Rejections,
        Self::Panics,
        Self::Hung,
        Self::Ready,
        Self::Limits,
        Self::Crowds,
    ];

    /// Returns the number and the name of the row.
    const fn label(self) -> (u32, &'static str) {
        match self {
            Self::Rare => (1, "rare calls"),
            Self::Long => (2, "long calls"),
            Self::Streams => (3, "streaming responses"),
            Self::Unread => (4, "unread bodies"),
            Self::Empty => (5, "empty responses"),
            Self::Uploads => (6, "requests with a body"),
            Self::HangUps => (7, "hang-ups"),
            Self::RandomErrors => (13, "random errors"),
            Self::Outage => (14, "outage and recovery"),
            Self::Rejections => (15, "rejections by inner layers"),
            Self::Panics => (16, "panics"),
            Self::Hung => (17, "hung backends"),
            Self::Ready => (18, "readiness"),
            Self::Limits => (19, "limits"),
            Self::Crowds => (21, "crowds"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, name) = self.label();
        write!(f, "row {number} ({name})")
    }
}
