//! The arguments of `mesh load`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mesh::load::{Arrivals, Options, Own, Target};

use crate::cli::{BusArgs, ServerArgs};

/// Default of `--duration`.
const DURATION: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct Load {
    /// Orders per second. They are sent on schedule, whether or not earlier orders have been
    /// answered.
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    rate: f64,
    /// How long to send orders, such as 30s, 500ms, 2m or 1h. Default: 30s, or as long as --orders
    /// takes.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Maximum number of orders, even if time is left.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    orders: Option<u64>,
    /// How orders are distributed over time.
    #[arg(long, value_enum, default_value = "even")]
    arrivals: Spread,
    /// Maximum number of orders in flight. An order that is due beyond that is counted and not
    /// sent.
    #[arg(long, default_value_t = 256, value_parser = in_flight)]
    in_flight: usize,
    /// How long a customer waits for an answer.
    #[arg(long, default_value = "15s", value_parser = duration)]
    timeout: Duration,
    /// Search for the highest rate with a p99 below this time, such as 250ms, and no order
    /// rejected, failed, timed out or left behind. Starts at --rate and sends for --duration per
    /// step.
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "orders")]
    pub(crate) max_p99: Option<Duration>,
    /// Random seed. The same seed gives the same orders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Prefix of every order's Idempotency-Key. Default: new for each run. The same prefix and seed
    /// give the same orders, which a mesh places once.
    #[arg(long, value_parser = keys)]
    keys: Option<String>,
    /// The gateway of a running mesh, such as http://127.0.0.1:8080. Default: a mesh is started for
    /// the load.
    #[arg(long, value_parser = url, conflicts_with_all = ["postgres", "database_prefix", "kafka", "data_dir", "processes"])]
    url: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    bus: BusArgs,
    /// Run every service as its own process instead of as a thread.
    #[arg(long)]
    processes: bool,
    /// Directory of the SQLite files. Default: a temporary directory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How long accepted orders and events may take to end after the load.
    #[arg(long, default_value = "2m", value_parser = duration)]
    settle: Duration,
    /// Write the full JSON report to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write a histogram of the latencies to this SVG file.
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Spread {
    /// At equal intervals.
    Even,
    /// At random intervals, like independent customers: with bursts.
    Poisson,
}

impl Load {
    pub(crate) fn options(self, terminal: bool) -> anyhow::Result<Options> {
        let Self { rate, orders, in_flight, timeout, seed, keys, settle, data_dir, processes, .. } = self;
        // 1 s longer than the schedule of these orders.
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
        _ => Err("must be between 1 and 10000, each with its own connection".to_owned()),
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
    // The order's number is appended, and the services accept keys of at most 200 characters.
    if (1..=150).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 150 printable ASCII characters without spaces".to_owned())
    }
}

fn url(text: &str) -> Result<String, String> {
    let rule = "must be http:// with a host, and a port unless it is 80, such as http://127.0.0.1:8080, and no path";
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

    fn options(args: &[&str]) -> Options {
        use clap::Parser;

        match crate::cli::Cli::parse_from(["mesh", "load"].iter().chain(args)).command {
            crate::cli::Command::Load(load) => load.options(true).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let Options { rate, duration, orders, arrivals, in_flight, timeout, seed, keys, target, settle, .. } =
            options(&[]);
        assert_eq!((rate, duration, orders, arrivals), (50.0, Duration::from_secs(30), None, Arrivals::Even));
        assert_eq!((in_flight, timeout, seed, keys), (256, Duration::from_secs(15), 42, None));
        assert_eq!((target.describe().as_str(), settle.as_secs()), ("SQLite, the embedded log, one process", 120));
    }

    #[test]
    fn every_flag_is_its_own() {
        let set = options(&[
            "--rate",
            "7",
            "--duration",
            "8s",
            "--orders",
            "9",
            "--arrivals",
            "poisson",
            "--in-flight",
            "10",
            "--timeout",
            "11s",
            "--seed",
            "12",
            "--keys",
            "k",
            "--settle",
            "13s",
            "--data-dir",
            "d",
            "--processes",
            "--kafka",
            "mock",
        ]);
        assert_eq!((set.rate, set.duration.as_secs(), set.orders, set.arrivals), (7.0, 8, Some(9), Arrivals::Poisson));
        assert_eq!((set.in_flight, set.timeout.as_secs(), set.seed, set.keys.as_deref()), (10, 11, 12, Some("k")));
        assert_eq!((set.settle.as_secs(), set.data_dir), (13, Some(PathBuf::from("d"))));
        assert_eq!(set.target.describe(), "SQLite, Kafka (a mock cluster), seven processes");
        let url = options(&["--url", "http://a:1/"]);
        assert_eq!(url.target.describe(), "http://a:1");
        let server = options(&["--postgres", "postgres://p", "--kafka", "k:1"]);
        assert_eq!(server.target.describe(), "PostgreSQL, Kafka, one process");
        let Target::Own(Own { postgres, prefix, kafka, processes, .. }) = server.target else { panic!("not our own") };
        assert_eq!((postgres.as_deref(), prefix.as_str()), (Some("postgres://p"), "mesh_"));
        assert_eq!((kafka.as_deref(), processes), (Some("k:1"), false));
    }

    #[test]
    fn a_number_of_orders_is_given_the_time_it_takes() {
        assert_eq!(options(&["--orders", "100", "--rate", "20"]).duration, Duration::from_secs(6));
        assert_eq!(options(&["--orders", "100", "--rate", "20", "--duration", "2s"]).duration, Duration::from_secs(2));
    }

    #[test]
    fn bounds_are_allowed_themselves() {
        assert_eq!((rate("0.01"), rate("100000")), (Ok(0.01), Ok(100_000.0)));
        assert!(rate("0.009").is_err() && rate("100001").is_err());
        assert_eq!((in_flight("1"), in_flight("10000")), (Ok(1), Ok(10_000)));
        assert!(in_flight("10001").is_err());
        assert_eq!((duration("1ms"), duration("24h")), (Ok(Duration::from_millis(1)), Ok(Duration::from_secs(86_400))));
        assert!(duration("0.9ms").is_err() && duration("24.1h").is_err());
        assert!(keys("k").is_ok() && keys(&"k".repeat(150)).is_ok());
    }
}
