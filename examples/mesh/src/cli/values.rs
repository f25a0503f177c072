//! Values of flags, each with its bounds.

use std::time::Duration;

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("between 0 and 3600 seconds".to_owned()),
    }
}

pub(super) fn path(text: &str) -> Result<String, String> {
    let path: Result<http::uri::PathAndQuery, _> = text.parse();
    if text.starts_with('/') && path.is_ok() {
        Ok(text.to_owned())
    } else {
        Err("must be a path, beginning with /".to_owned())
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("between 0 and 1".to_owned()),
    }
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("between 0.1 and 10000 orders per second".to_owned()),
    }
}
