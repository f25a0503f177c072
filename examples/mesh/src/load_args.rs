//! What can be said of `mesh load`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mesh::load::{Arrivals, Options, Own, Target};

use crate::cli::{BusArgs, ServerArgs};

/// How long to send if nothing says so.
const DURATION: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct Load {
    /// Orders per second. They are sent on schedule, whether or not earlier ones have been answered.
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    rate: f64,
    /// How long to send, such as 30s, 500ms, 2m or 1h. Default: 30s, or as long as --orders takes.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Stop after so many orders, even if there is time left.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    orders: Option<u64>,
    /// How orders are spread over time.
    #[arg(long, value_enum, default_value = "even")]
    arrivals: Spread,
    /// How many orders may be out at once. What is due beyond that is not sent, and counted.
    #[arg(long, default_value_t = 256, value_parser = in_flight)]
    in_flight: usize,
    /// How long a customer waits for an answer.
    #[arg(long, default_value = "15s", value_parser = duration)]
    timeout: Duration,
    /// Look for the highest rate at which 99 of 100 orders are decided within this time, such as 250ms, and nothing is refused,
    /// lost or left behind: begin at --rate, send for --duration, raise it, and close in.
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "orders")]
    pub(crate) max_p99: Option<Duration>,
    /// The same seed gives the same orders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// What every order's Idempotency-Key begins with. Default: new for each run. The same keys with the same seed are the same
    /// orders, which no mesh places twice.
    #[arg(long, value_parser = keys)]
    keys: Option<String>,
    /// The gateway of a mesh that runs already, such as http://127.0.0.1:8080, instead of a mesh of our own.
    #[arg(long, value_parser = url, conflicts_with_all = ["postgres", "database_prefix", "kafka", "data_dir", "processes"])]
    url: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    bus: BusArgs,
    /// Run every service as a process of its own, and not all in this one.
    #[arg(long)]
    processes: bool,
    /// Keep SQLite's files here instead of in a temporary directory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How long accepted orders and events may take to end after the load.
    #[arg(long, default_value = "2m", value_parser = duration)]
    settle: Duration,
    /// Write the whole report here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Draw a histogram of the latencies here.
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Spread {
    /// At equal distances.
    Even,
    /// At random, as independent customers come: with bursts.
    Poisson,
}

impl Load {
    pub(crate) fn options(self, terminal: bool) -> anyhow::Result<Options> {
        let Self { rate, orders, in_flight, timeout, seed, keys, settle, data_dir, processes, .. } = self;
        // A second more than the last order needs.
        let enough =
            orders.map(|orders| Duration::try_from_secs_f64(orders as f64 / rate + 1.0).unwrap_or(Duration::MAX));
        let target = match self.url {
            Some(url) => Target::Url(url),
            None => Target::Own(Own {
                databases: self.server.server()?,
                postgres: self.server.postgres,
                prefix: self.server.database_prefix,
                kafka: self.bus.kafka,
                processes,
            }),
        };
        Ok(Options {
            rate,
            duration: self.duration.or(enough).unwrap_or(DURATION),
            orders,
            arrivals: match self.arrivals {
                Spread::Even => Arrivals::Even,
                Spread::Poisson => Arrivals::Poisson,
            },
            in_flight,
            timeout,
            seed,
            keys,
            target,
            settle,
            data_dir,
            terminal,
        })
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("must be between 0.01 and 100000 orders per second".to_owned()),
    }
}

fn in_flight(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(number),
        _ => Err("must be between 1 and 10000, each with a connection of its own".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("must be a number with a unit: ms, s, m or h".to_owned()),
    };
    match number.trim().parse::<f64>().map(|number| number * unit) {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be between 1ms and 24h".to_owned()),
    }
}

fn keys(text: &str) -> Result<String, String> {
    // The order's number comes after it, and services take 200 characters.
    if (1..=150).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 150 printable ASCII characters without spaces".to_owned())
    }
}

fn url(text: &str) -> Result<String, String> {
    let rule =
        "must be http:// with a host, and a port unless it is 80, such as http://127.0.0.1:8080, and nothing behind it";
    let uri: http::Uri = text.parse().map_err(|_| rule.to_owned())?;
    let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    let named = uri.authority().is_some_and(|authority| !authority.host().is_empty() && !text.contains('@'));
    if uri.scheme_str() == Some("http") && bare && named {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(rule.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_length() {
        for (text, millis) in [("30s", 30_000), ("500ms", 500), ("1.5m", 90_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "30", "s", "0s", "-1s", "inf s", "nans", "1d", "1e9h", "30 seconds"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_url_is_a_scheme_a_host_and_nothing_more() {
        assert_eq!(url("http://127.0.0.1:8080/").as_deref(), Ok("http://127.0.0.1:8080"));
        assert!(url("http://[::1]:80").is_ok());
        for wrong in
            ["", "127.0.0.1:8080", "localhost", "https://shop", "http://", "http://a/v1", "http://u:p@a", "http://a?b"]
        {
            assert!(url(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rates_and_keys_have_bounds() {
        assert!(
            rate("0").is_err()
                && rate("-1").is_err()
                && rate("NaN").is_err()
                && rate("1e9").is_err()
                && rate("0.5").is_ok()
        );
        assert!(keys("").is_err() && keys("a b").is_err() && keys("é").is_err() && keys(&"k".repeat(151)).is_err());
        assert!(in_flight("0").is_err() && in_flight("256").is_ok());
    }
}
