//! What is compared with what: rows of one family, in one situation. Their layers do the same by
//! the same rule.

/// The title of a group of comparable rows. Empty: not compared.
pub(crate) type Family = &'static str;

pub(crate) const NONE: Family = "";

pub(crate) const CONSECUTIVE: Family = "circuit breaker, failures in a row";
pub(crate) const LAST_100: Family = "circuit breaker, half of the last 100 calls";
pub(crate) const TEN_SECONDS: Family = "circuit breaker, half of the calls of 10 s";
pub(crate) const TEN_MILLISECONDS: Family = "circuit breaker, half of the calls of 10 ms";
pub(crate) const DEFAULTS: Family = "circuit breaker, each with its defaults";
pub(crate) const SLOW: Family = "circuit breaker, half of the last 100 calls fail or are slow";
pub(crate) const OPEN: Family = "circuit breaker, open";

pub(crate) const BULKHEAD: Family = "bulkhead that rejects";
pub(crate) const FULL: Family = "bulkhead, full";
pub(crate) const LIMIT: Family = "bulkhead whose callers wait";

pub(crate) const ADAPTIVE: Family = "adaptive limit, and a static one";
pub(crate) const ADAPTIVE_FULL: Family = "adaptive limit, full, and a static one";

pub(crate) const RATE_LIMIT: Family = "rate limit";
pub(crate) const OVER_RATE: Family = "rate limit, over the rate";

pub(crate) const RETRY: Family = "retry";
pub(crate) const TIMEOUT: Family = "timeout";

pub(crate) const STACK_TOWER: Family = "stack: timeout, retry, load-shedding limit, timeout";
pub(crate) const STACK_RESILIENCE: Family = "stack: timeout, retry, breaker (last 100), bulkhead, timeout";
pub(crate) const STACK_SEATBELT: Family = "stack: retry, breaker (10 s), timeout";

pub(crate) const HTTP_BREAKER: Family = "HTTP circuit breaker, each with its defaults";
pub(crate) const HTTP_RETRY: Family = "HTTP retry, no body";
pub(crate) const HTTP_RETRY_BODY: Family = "HTTP retry, body of one frame";
