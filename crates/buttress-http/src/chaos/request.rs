use crate::ending::RequestHead;
use buttress::{
    InvalidConfig,
    chaos::{Faults, FaultsBuilder},
};
use http::Request;
use std::time::Duration;

/// The header by which a request asks for faults.
const CHAOS: &str = "x-buttress-chaos";

/// The longest latency or pause that a request may ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Reads the faults of a call from its header `x-buttress-chaos`, for
/// [`ChaosLayer::by`](buttress::chaos::ChaosLayer::by).
///
/// The header is ignored unless `may_ask` returns true, which must authenticate the caller: anyone
/// who can send the header could otherwise make the service fail. Its value is a list, separated by
/// commas: `error`, `error=500` with an HTTP status, `hang`, `reset`, `truncate`, `lose-trailers`,
/// and `latency=250` and `slow-body=50` in milliseconds, at most 60 seconds. A value with anything
/// else in it is ignored. The switch must be on, and its bound holds.
///
/// ```
/// use buttress::chaos::{Chaos, ChaosLayer, Faults};
/// use buttress_http::{chaos::requested, prelude::*};
/// use http::Request;
///
/// let chaos = Chaos::new();
/// chaos.set(Faults::default()); // on, without faults of its own
/// let layer = ChaosLayer::from(chaos)
///     .by(requested::<String>(|head| head.headers.get("x-chaos-key").is_some_and(|key| key == "a secret")))
///     .http();
/// # fn is_layer<L: tower::Layer<S>, S>(_: L, _: S) {}
/// # is_layer(layer, tower::service_fn(async |_: Request<String>| Ok::<_, std::io::Error>(http::Response::new(String::new()))));
/// ```
pub fn requested<B>(
    may_ask: impl Fn(RequestHead<'_>) -> bool + Clone,
) -> impl Fn(&Request<B>) -> Option<Faults> + Clone {
    move |request| {
        let value = request.headers().get(CHAOS)?;
        let head = RequestHead {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
            is_grpc: false,
        };
        if !may_ask(head) {
            return None;
        }
        parse(value.to_str().ok()?)
    }
}

fn parse(value: &str) -> Option<Faults> {
    let faults = value.split(',').try_fold(Faults::builder(), |faults, item| add(faults, item.trim()));
    faults.and_then(|faults| Result::<_, InvalidConfig>::ok(faults.build()))
}

fn add(faults: FaultsBuilder, item: &str) -> Option<FaultsBuilder> {
    let (name, value) = item.split_once('=').map_or((item, None), |(name, value)| (name, Some(value)));
    let time = || {
        let time = Duration::from_millis(value?.parse().ok()?);
        (time <= LONGEST).then_some(time..=time)
    };
    Some(match (name, value) {
        ("error", None) => faults.errors(1.0),
        ("error", Some(status)) => faults.errors(1.0).status(status.parse().ok()?),
        ("hang", None) => faults.hangs(1.0),
        ("reset", None) => faults.resets(1.0),
        ("truncate", None) => faults.truncations(1.0),
        ("lose-trailers", None) => faults.lost_trailers(1.0),
        ("latency", _) => faults.latency(1.0, time()?),
        ("slow-body", _) => faults.slow_bodies(1.0, time()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress::chaos::Fault;
    use proptest::prelude::*;

    fn rates(value: &str) -> Option<Vec<Fault>> {
        let faults = parse(value)?;
        Some(Fault::ALL.into_iter().filter(|fault| faults.rate(*fault) == 1.0).collect())
    }

    #[test]
    fn a_header_names_its_faults() {
        assert_eq!(rates("error"), Some(vec![Fault::Error]));
        assert_eq!(rates("hang, reset,truncate , lose-trailers"), {
            Some(vec![Fault::Hang, Fault::Reset, Fault::Truncation, Fault::LostTrailers])
        });
        assert_eq!(rates("latency=250,slow-body=60000"), Some(vec![Fault::Latency, Fault::SlowBody]));
        let builder = Faults::builder().errors(1.0).status(500);
        assert_eq!(parse("error=500"), builder.build().ok());
    }

    #[test]
    fn a_header_with_anything_else_in_it_is_ignored() {
        for value in
            ["", "errors", "error,", "error=200", "error=x", "hang=1", "latency", "latency=60001", "slow-body=-1"]
        {
            assert_eq!(parse(value), None, "{value}");
        }
    }

    #[test]
    fn a_header_of_a_caller_that_may_not_ask_is_ignored() {
        let request = Request::builder().header(CHAOS, "error").header("x-chaos-key", "guess").body(()).unwrap();
        assert!(requested(|_| true)(&request).is_some());
        assert!(requested(|head| head.headers["x-chaos-key"] == "a secret")(&request).is_none());
        assert!(requested(|_| true)(&Request::new(())).is_none());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(value in "[a-z=,0-9 -]*|.*") {
            let _ = parse(&value);
        }
    }
}
