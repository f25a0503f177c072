use super::injection::Drawn;
use crate::{InvalidConfig, Ratio, draws::spread};
use std::{ops::RangeInclusive, time::Duration};

/// A kind of fault.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails: an error, or a response with a status that says so.
    Error,
    /// The call begins late.
    Latency,
    /// The call gets no response.
    Hang,
    /// The connection breaks after the head of the response.
    Reset,
    /// The body ends in the middle.
    Truncation,
    /// The trailers are missing.
    LostTrailers,
    /// The frames of the body are late.
    SlowBody,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 7] =
        [Self::Error, Self::Latency, Self::Hang, Self::Reset, Self::Truncation, Self::LostTrailers, Self::SlowBody];

    /// Returns the word for labels of metrics.
    ///
    /// ```
    /// assert_eq!(buttress_core::chaos::Fault::LostTrailers.word(), "lost_trailers");
    /// ```
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Latency => "latency",
            Self::Hang => "hang",
            Self::Reset => "reset",
            Self::Truncation => "truncation",
            Self::LostTrailers => "lost_trailers",
            Self::SlowBody => "slow_body",
        }
    }
}

/// On which side of the inner service errors and hangs occur.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Strike {
    /// Before it: the request has no effect.
    #[default]
    Before,
    /// After it: the request has its effect, and the response is lost. A caller must not conclude
    /// that nothing happened.
    After,
    /// Each call draws one of the two with equal probability.
    Either,
}

/// Which faults to inject into which share of the calls. The default injects none.
///
/// ```
/// use buttress_core::chaos::Faults;
/// use std::time::Duration;
///
/// let faults = Faults::builder()
///     .errors(0.01) // 1 % of the calls
///     .latency(0.1, Duration::from_millis(50)..=Duration::from_millis(250))
///     .build()?;
/// assert!(!faults.is_none() && Faults::default().is_none());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    rates: [Ratio; Fault::ALL.len()],
    latency: RangeInclusive<Duration>,
    pause: RangeInclusive<Duration>,
    status: u16,
    grpc_status: i32,
    strike: Strike,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            rates: [Ratio::from_millionths(0); Fault::ALL.len()],
            latency: Duration::ZERO..=Duration::ZERO,
            pause: Duration::ZERO..=Duration::ZERO,
            status: 503,
            grpc_status: 14,
            strike: Strike::Before,
        }
    }
}

/// Random numbers of a call: one for each fault, the side of the strike, and two times.
pub(super) type Numbers = [u64; Fault::ALL.len() + 3];

impl Faults {
    /// Returns a builder for faults. All rates are 0.
    pub fn builder() -> FaultsBuilder {
        FaultsBuilder { rates: [0.0; Fault::ALL.len()], rest: Self::default() }
    }

    /// Returns whether no call would suffer.
    pub fn is_none(&self) -> bool {
        self.rates.iter().all(|rate| rate.is_zero())
    }

    /// Returns the share of the calls that suffers from `fault`, between 0 and 1.
    ///
    /// ```
    /// use buttress_core::chaos::{Fault, Faults};
    ///
    /// assert_eq!(Faults::builder().hangs(0.25).build()?.rate(Fault::Hang), 0.25);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn rate(&self, fault: Fault) -> f64 {
        self.rates[fault as usize].as_f64()
    }

    /// Returns what a call with these random numbers suffers.
    pub(super) fn draw(&self, numbers: Numbers) -> Drawn {
        let [.., coin, latency, pause] = numbers;
        let hits = |fault: Fault| {
            let millionth = (u128::from(numbers[fault as usize]) * 1_000_000) >> 64;
            millionth < u128::from(self.rates[fault as usize].millionths())
        };
        Drawn {
            error: hits(Fault::Error),
            latency: hits(Fault::Latency).then(|| spread(latency, &self.latency)),
            hang: hits(Fault::Hang),
            reset: hits(Fault::Reset),
            truncation: hits(Fault::Truncation),
            lost_trailers: hits(Fault::LostTrailers),
            pause: hits(Fault::SlowBody).then(|| spread(pause, &self.pause)),
            is_late: match self.strike {
                Strike::Before => false,
                Strike::After => true,
                Strike::Either => coin >> 63 == 1,
            },
            status: self.status,
            grpc_status: self.grpc_status,
        }
    }
}

/// Builds [`Faults`]. Each rate is a share of the calls between 0 and 1.
///
/// ```
/// use buttress_core::chaos::Faults;
///
/// let error = Faults::builder().hangs(1.5).build().unwrap_err();
/// assert_eq!(error.to_string(), "invalid configuration: `hangs` must be between 0 and 1");
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct FaultsBuilder {
    rates: [f64; Fault::ALL.len()],
    rest: Faults,
}

/// The setters of the rates, in the order of [`Fault::ALL`].
const SETTERS: [&str; Fault::ALL.len()] =
    ["errors", "latency", "hangs", "resets", "truncations", "lost_trailers", "slow_bodies"];

impl FaultsBuilder {
    /// Sets the share of the calls that fails. An HTTP ending answers with the
    /// [status](Self::status), a gRPC ending with the [gRPC status](Self::grpc_status), and
    /// `.plain()` with an error.
    pub fn errors(self, rate: f64) -> Self {
        self.rate(Fault::Error, rate)
    }

    /// Sets the share of the calls that begins late, and how late: each draws a time of the range,
    /// in whole milliseconds.
    pub fn latency(mut self, rate: f64, time: RangeInclusive<Duration>) -> Self {
        self.rest.latency = time;
        self.rate(Fault::Latency, rate)
    }

    /// Sets the share of the calls that hangs, until the faults are changed or switched off.
    pub fn hangs(self, rate: f64) -> Self {
        self.rate(Fault::Hang, rate)
    }

    /// Sets the share of the HTTP responses whose body breaks after the head.
    pub fn resets(self, rate: f64) -> Self {
        self.rate(Fault::Reset, rate)
    }

    /// Sets the share of the HTTP responses whose body ends within its first frame.
    pub fn truncations(self, rate: f64) -> Self {
        self.rate(Fault::Truncation, rate)
    }

    /// Sets the share of the HTTP responses that lose their trailers. gRPC has its status there.
    pub fn lost_trailers(self, rate: f64) -> Self {
        self.rate(Fault::LostTrailers, rate)
    }

    /// Sets the share of the HTTP responses whose frames are late, and by how much: each response
    /// draws a time of the range for all of its frames, in whole milliseconds.
    pub fn slow_bodies(mut self, rate: f64, pause: RangeInclusive<Duration>) -> Self {
        self.rest.pause = pause;
        self.rate(Fault::SlowBody, rate)
    }

    /// Sets the HTTP status of errors, 400 to 599. Default 503.
    pub fn status(mut self, status: u16) -> Self {
        self.rest.status = status;
        self
    }

    /// Sets the gRPC status of errors, 1 to 16. Default 14, `UNAVAILABLE`.
    pub fn grpc_status(mut self, code: i32) -> Self {
        self.rest.grpc_status = code;
        self
    }

    /// Sets on which side of the inner service errors and hangs occur. Default
    /// [`Strike::Before`].
    pub fn strike(mut self, strike: Strike) -> Self {
        self.rest.strike = strike;
        self
    }

    fn rate(mut self, fault: Fault, rate: f64) -> Self {
        self.rates[fault as usize] = rate;
        self
    }

    /// Checks and returns the faults.
    ///
    /// # Errors
    /// If a rate is not between 0 and 1, a range is empty, or a status is out of its range.
    pub fn build(self) -> Result<Faults, InvalidConfig> {
        let Self { rates, rest } = self;
        let mut faults = rest;
        for ((rate, field), parsed) in rates.into_iter().zip(SETTERS).zip(&mut faults.rates) {
            *parsed = Ratio::new(rate).ok_or(InvalidConfig::new(field, "must be between 0 and 1"))?;
        }
        for (field, range) in [("latency", &faults.latency), ("slow_bodies", &faults.pause)] {
            if range.is_empty() {
                return Err(InvalidConfig::new(field, "must have a range that is not empty"));
            }
        }
        if !(400..=599).contains(&faults.status) {
            return Err(InvalidConfig::new("status", "must be between 400 and 599"));
        }
        if !(1..=16).contains(&faults.grpc_status) {
            return Err(InvalidConfig::new("grpc_status", "must be between 1 and 16"));
        }
        Ok(faults)
    }
}
