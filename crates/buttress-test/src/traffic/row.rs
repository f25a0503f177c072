use std::fmt;

/// A row of the table in `docs/traffic.md`. Rows 8 to 12 need real transports, and row 22 is a
/// matter of types.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Row {
    /// A call every 30 seconds to 10 minutes.
    Rare,
    /// Calls that take 20 seconds to 60 days.
    Long,
    /// Responses that take minutes, a frame a second.
    Streams,
    /// Bodies that the caller does not read.
    Unread,
    /// HEAD, 204, 304, 1xx, empty bodies, `Content-Length`, and the errors of callers.
    Empty,
    /// POST and unary gRPC with a body that is not empty.
    Uploads,
    /// Callers that hang up, and uploads that break.
    HangUps,
    /// Errors at random.
    RandomErrors,
    /// A total outage, and the recovery.
    Outage,
    /// Rejections by inner layers.
    Rejections,
    /// Panics of the backend.
    Panics,
    /// A backend that never answers, or spends tokio's cooperative budget.
    Hung,
    /// Services that are made ready, and called late or never.
    Ready,
    /// Values at the limits.
    Limits,
    /// Ten thousand tasks that wait.
    Crowds,
}

impl Row {
    /// All rows.
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

    /// The number and the name of the row.
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
