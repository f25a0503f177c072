use super::{freshness::Freshness, *};
use crate::{HttpExt, HttpKey, SharedBody};
use buttress::{CircuitBreaker, CircuitBreakerLayer, Error, TimeoutLayer};
use buttress_test::{Answer, Inner, Part, Plan, TestBody};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use proptest::prelude::*;
use std::time::{Duration, SystemTime};
use tokio::time::{advance, timeout};
use tower::{Layer, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

const S: Duration = Duration::from_secs(1);

type Client = BoxCloneSyncService<Request<TestBody>, Response<SharedBody<TestBody>>, Error>;

fn client(cache: &Cache, backend: &Inner) -> Client {
    BoxCloneSyncService::new(CacheLayer::from(cache.clone()).layer(backend.clone()))
}

fn response(status: u16, headers: &[(&str, &str)], body: Vec<Part>) -> Plan {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    Plan::of(Answer::Response(response))
}

fn ok(headers: &[(&str, &str)], body: &'static str) -> Plan {
    response(200, headers, vec![Part::Data(body)])
}

fn get() -> Request<TestBody> {
    Request::get("http://rows/7").body(TestBody::default()).unwrap()
}

fn with(name: HeaderName, value: &'static str) -> Request<TestBody> {
    let mut request = get();
    request.headers_mut().append(name, HeaderValue::from_static(value));
    request
}

/// Calls, and returns the status of the cache and the body.
async fn call(client: &Client, request: Request<TestBody>) -> (CacheStatus, String) {
    let response = client.clone().oneshot(request).await.unwrap();
    let status = *response.extensions().get::<CacheStatus>().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn is(status: CacheStatus, body: &str) -> (CacheStatus, String) {
    (status, body.to_owned())
}

use CacheStatus::{Bypass, Hit, Miss, Revalidated, Stale};

#[tokio::test(start_paused = true)]
async fn a_fresh_response_is_served_without_a_call_and_with_its_age() {
    let (cache, backend) =
        (Cache::new("rows"), Inner::new(ok(&[("cache-control", "max-age=60"), ("age", "10")], "one")));
    let client = client(&cache, &backend);
    assert_eq!(call(&client, get()).await, is(Miss, "one"));
    backend.follow(ok(&[], "two"));
    advance(30 * S).await;
    let hit = client.clone().oneshot(get()).await.unwrap();
    assert_eq!(
        (&hit.headers()["age"], &hit.headers()["cache-status"]),
        (&"40".parse().unwrap(), &"rows; hit; ttl=20".parse().unwrap())
    );
    assert_eq!(call(&client, get()).await, is(Hit, "one"));
    advance(20 * S).await;
    assert_eq!(call(&client, get()).await, is(Miss, "two"), "as old as its lifetime");
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.stale, backend.received().len()), (2, 2, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_misses_make_one_call() {
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&[("cache-control", "max-age=60")], "one").slow(S)));
    let client = client(&cache, &backend);
    let mut all = Vec::new();
    for _ in 0..100 {
        let client = client.clone();
        all.push(tokio::spawn(async move { call(&client, get()).await }));
    }
    for one in all {
        assert_eq!(one.await.unwrap(), is(Miss, "one"));
    }
    assert_eq!(backend.received().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_revalidated_and_the_304_renews_it() {
    let fresh =
        [("cache-control", "max-age=60"), ("etag", "\"1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&fresh, "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    advance(61 * S).await;
    backend.follow(response(304, &[("etag", "W/\"1\""), ("cache-control", "max-age=10"), ("x-new", "yes")], vec![]));
    let renewed = client.clone().oneshot(get()).await.unwrap();
    assert_eq!((renewed.status(), &renewed.headers()["x-new"]), (StatusCode::OK, &"yes".parse().unwrap()));
    assert_eq!(renewed.headers()["cache-status"], "rows; fwd=stale; fwd-status=304; ttl=10");
    assert_eq!(renewed.extensions().get(), Some(&Revalidated));
    let asked = backend.received()[1].headers.clone();
    assert_eq!(
        (&asked["if-none-match"], &asked["if-modified-since"]),
        (&"\"1\"".parse().unwrap(), &fresh[2].1.parse().unwrap())
    );
    assert_eq!(call(&client, get()).await, is(Hit, "one"));
    advance(10 * S).await;
    backend.follow(ok(&[("cache-control", "max-age=60")], "two"));
    assert_eq!(call(&client, get()).await, is(Miss, "two"), "the backend has another one");
    assert_eq!(cache.stats().revalidated, 1);
}

#[tokio::test(start_paused = true)]
async fn a_304_about_another_response_is_an_error_and_the_next_call_is_not_conditional() {
    let (cache, backend) =
        (Cache::new("rows"), Inner::new(ok(&[("cache-control", "max-age=1"), ("etag", "\"1\"")], "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    advance(S).await;
    backend.follow(response(304, &[("etag", "\"2\"")], vec![]));
    assert!(client.clone().oneshot(get()).await.is_err());
    backend.follow(ok(&[], "two"));
    assert_eq!(call(&client, get()).await, is(Miss, "two"));
    assert!(!backend.received()[2].headers.contains_key("if-none-match"));
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_served_at_once_while_one_call_refreshes_it() {
    let control = [("cache-control", "max-age=60, stale-while-revalidate=30")];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&control, "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    advance(60 * S).await;
    backend.follow(ok(&control, "two").slow(S));
    for _ in 0..10 {
        assert_eq!(call(&client, get()).await, is(Stale, "one"));
    }
    tokio::time::sleep(2 * S).await;
    assert_eq!(call(&client, get()).await, is(Hit, "two"));
    assert_eq!((backend.received().len(), cache.stats().stale), (2, 10));
    advance(90 * S).await;
    backend.follow(ok(&control, "three"));
    assert_eq!(call(&client, get()).await, is(Miss, "three"), "too stale");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_ends_with_the_last_handle() {
    let control = [("cache-control", "max-age=1, stale-while-revalidate=30")];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&control, "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    advance(S).await;
    backend.follow(Plan::of(Answer::Never));
    assert_eq!(call(&client, get()).await, is(Stale, "one"));
    tokio::task::yield_now().await;
    assert_eq!(backend.alive(), 1);
    drop((client, cache));
    tokio::task::yield_now().await;
    assert_eq!(backend.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_served_while_the_backend_fails_or_its_circuit_is_open() {
    let cache = Cache::builder("rows").default_ttl(S).stale_if_error(600 * S).build().unwrap();
    let backend = Inner::new(ok(&[], "one"));
    let circuit = CircuitBreaker::builder("rows").consecutive_failures(2).build().unwrap();
    let stack = ServiceBuilder::new()
        .layer(CacheLayer::from(cache.clone()))
        .layer(CircuitBreakerLayer::from(circuit.clone()).http_client())
        .service(backend.clone());
    let call = async |request: Request<TestBody>| {
        let response = stack.clone().oneshot(request).await.map_err(drop)?;
        Ok::<_, ()>((*response.extensions().get::<CacheStatus>().unwrap(), response.status().as_u16()))
    };
    assert_eq!(call(get()).await, Ok((Miss, 200)));
    advance(S).await;
    backend.follow(response(503, &[], vec![]));
    assert_eq!(call(get()).await, Ok((Stale, 200)));
    backend.follow(Plan::of(Answer::Error));
    assert_eq!(call(get()).await, Ok((Stale, 200)));
    assert!(circuit.state() != buttress::circuit_breaker::State::Closed);
    assert_eq!(call(get()).await, Ok((Stale, 200)), "the circuit is open");
    assert_eq!(backend.received().len(), 3);
    circuit.reset();
    backend.follow(ok(&[], "two"));
    assert_eq!(call(get()).await, Ok((Miss, 200)), "it is up again");
    advance(602 * S).await;
    backend.follow(Plan::of(Answer::Error));
    assert_eq!(call(get()).await, Err(()), "too stale");
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_served_while_the_backend_hangs() {
    let cache = Cache::builder("rows").default_ttl(S).stale_if_error(600 * S).build().unwrap();
    let backend = Inner::new(ok(&[], "one"));
    let stack = ServiceBuilder::new()
        .layer(CacheLayer::from(cache))
        .layer(TimeoutLayer::attempt(S).http_client())
        .service(backend.clone());
    stack.clone().oneshot(get()).await.unwrap();
    advance(S).await;
    backend.follow(Plan::of(Answer::Never));
    let response = timeout(2 * S, stack.oneshot(get())).await.unwrap().unwrap();
    assert_eq!(response.headers()["cache-status"], "rows; fwd=stale; ttl=-1");
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_stored_is_not() {
    for head in [
        ("cache-control", "max-age=60, No-Store"),
        ("cache-control", "max-age=60, private"),
        ("cache-control", "max-age=60, private=\"x-user\""),
        ("set-cookie", "session=1"),
        ("vary", "*"),
        ("content-type", "text/event-stream"),
        ("content-length", "2000000"),
    ] {
        let cache = Cache::builder("rows").default_ttl(60 * S).build().unwrap();
        let backend = Inner::new(ok(&[head], "mine"));
        let client = client(&cache, &backend);
        for _ in 0..2 {
            assert_eq!(call(&client, get()).await, is(Miss, "mine"), "{head:?}");
        }
        assert_eq!((backend.received().len(), cache.stats().entries), (2, 0), "{head:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_with_credentials_or_conditions_pass_by() {
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&[("cache-control", "public, max-age=60")], "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    let requests: [fn() -> Request<TestBody>; 6] = [
        || with(header::AUTHORIZATION, "Bearer a"),
        || with(header::COOKIE, "session=1"),
        || with(header::RANGE, "bytes=0-1"),
        || with(header::IF_NONE_MATCH, "\"1\""),
        || with(header::CACHE_CONTROL, "no-store"),
        || Request::get("http://rows/7").body(TestBody::new([Part::Data("query")])).unwrap(),
    ];
    for request in requests {
        assert_eq!(call(&client, request()).await.0, Bypass, "{:?}", request());
    }
    assert_eq!(cache.stats().bypassed, 6);
}

#[tokio::test(start_paused = true)]
async fn each_credential_in_the_key_has_responses_of_its_own() {
    let cache =
        Cache::builder("rows").key(HttpKey::new().header(header::AUTHORIZATION)).default_ttl(60 * S).build().unwrap();
    let backend = Inner::new(ok(&[], "a's"));
    let client = client(&cache, &backend);
    let of = |token| with(header::AUTHORIZATION, token);
    assert_eq!(call(&client, of("a")).await, is(Miss, "a's"));
    backend.follow(ok(&[], "b's"));
    assert_eq!(call(&client, of("b")).await, is(Miss, "b's"));
    assert_eq!(call(&client, of("a")).await, is(Hit, "a's"));
}

#[tokio::test(start_paused = true)]
async fn a_response_is_served_only_to_requests_that_its_vary_selects() {
    let vary = [("cache-control", "max-age=60"), ("vary", "X-Tenant")];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&vary, "a's").slow(S)));
    let client = client(&cache, &backend);
    let tenant = HeaderName::from_static("x-tenant");
    let of = |id| with(tenant.clone(), id);
    let (a, b) = tokio::join!(call(&client, of("a")), call(&client, of("b")));
    assert_eq!((a.0, b.0, backend.received().len()), (Miss, Miss, 2), "they do not share a call");
    assert_eq!(call(&client, of("a")).await.0, Hit);
    let mut both = of("a");
    both.headers_mut().append(tenant.clone(), HeaderValue::from_static("b"));
    assert_eq!(call(&client, both).await.0, Miss);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_succeeds_forgets_its_uri_and_what_was_under_way() {
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&[("cache-control", "max-age=60")], "one")));
    let client = client(&cache, &backend);
    let post = || Request::post("http://rows/7").body(TestBody::default()).unwrap();
    call(&client, get()).await;
    backend.follow(response(500, &[], vec![]));
    assert_eq!(call(&client, post()).await.0, Bypass);
    assert_eq!(call(&client, get()).await.0, Hit, "the write failed");
    backend.follow(response(204, &[], vec![]));
    call(&client, post()).await;
    backend.follow(ok(&[("cache-control", "max-age=60")], "old").slow(S));
    let under_way = tokio::spawn({
        let client = client.clone();
        async move { call(&client, get()).await }
    });
    tokio::task::yield_now().await;
    cache.purge(&"/7".parse().unwrap());
    assert_eq!(under_way.await.unwrap(), is(Miss, "old"));
    backend.follow(ok(&[("cache-control", "max-age=60")], "two"));
    assert_eq!(call(&client, get()).await, is(Miss, "two"));
    cache.purge_all();
    assert_eq!((cache.stats().entries, call(&client, get()).await.0), (0, Miss));
}

#[tokio::test(start_paused = true)]
async fn only_whole_bodies_within_the_limit_are_stored() {
    let cache = Cache::builder("rows").max_body(8).default_ttl(60 * S).build().unwrap();
    for (body, whole) in [
        (vec![Part::Data("12345678")], true),
        (vec![Part::Data("12345"), Part::Data("6789")], false),
        (vec![Part::Data("slow"), Part::Wait(S), Part::Data("er")], false),
    ] {
        cache.purge_all();
        let backend = Inner::new(response(200, &[], body.clone()));
        let client = client(&cache, &backend);
        let (_, first) = call(&client, get()).await;
        let (status, second) = call(&client, get()).await;
        assert_eq!((status == Hit, &first), (whole, &second), "{body:?}");
    }
    cache.purge_all();
    let backend = Inner::new(response(200, &[], vec![Part::Data("half"), Part::Error("reset")]));
    let client = client(&cache, &backend);
    let broken = client.clone().oneshot(get()).await.unwrap();
    assert!(broken.into_body().collect().await.is_err());
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_remembered_for_a_short_time() {
    let (cache, backend) = (Cache::new("rows"), Inner::new(response(404, &[], vec![])));
    let client = client(&cache, &backend);
    assert_eq!((call(&client, get()).await.0, call(&client, get()).await.0), (Miss, Hit));
    advance(S).await;
    assert_eq!(call(&client, get()).await.0, Miss);
    backend.follow(response(503, &[], vec![]));
    advance(S).await;
    assert_eq!((call(&client, get()).await.0, call(&client, get()).await.0), (Miss, Miss));
}

#[tokio::test(start_paused = true)]
async fn a_request_says_how_old_its_response_may_be() {
    let control = [("cache-control", "max-age=60")];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&control, "one")));
    let client = client(&cache, &backend);
    let asks = |control| with(header::CACHE_CONTROL, control);
    let unsatisfied = client.clone().oneshot(asks("only-if-cached")).await.unwrap();
    assert_eq!((unsatisfied.status().as_u16(), backend.received().len()), (504, 0));
    call(&client, get()).await;
    advance(30 * S).await;
    for (ask, expected) in [
        ("max-age=30", Hit),
        ("min-fresh=30", Hit),
        ("only-if-cached", Hit),
        ("min-fresh=31", Miss),
        ("max-age=0, max-stale", Miss),
        ("no-cache", Miss),
    ] {
        cache.purge_all();
        backend.follow(ok(&control, "one"));
        call(&client, get()).await;
        advance(30 * S).await;
        assert_eq!(call(&client, asks(ask)).await.0, expected, "{ask}");
    }
    cache.purge_all();
    call(&client, get()).await;
    advance(70 * S).await;
    assert_eq!(call(&client, asks("max-stale=10")).await.0, Stale);
    assert_eq!(call(&client, asks("max-stale=9")).await.0, Miss);
}

#[tokio::test(start_paused = true)]
async fn the_memory_is_bounded_and_evictions_are_counted() {
    const BODY: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";
    let cache = Cache::builder("rows").max_bytes(256 << 10).max_body(1 << 10).default_ttl(60 * S).build().unwrap();
    let backend = Inner::new(ok(&[], BODY));
    let client = client(&cache, &backend);
    for id in 0..2_000 {
        let request = Request::get(format!("http://rows/{id}")).body(TestBody::default()).unwrap();
        call(&client, request).await;
        assert!(cache.stats().bytes <= 256 << 10);
    }
    let stats = cache.stats();
    assert!(stats.entries > 50 && stats.evictions + stats.entries == 2_000, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn headers_of_the_connection_are_not_stored_and_those_of_the_response_are() {
    let heads = [
        ("cache-control", "max-age=60"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("link", "a"),
        ("link", "b"),
    ];
    let (cache, backend) = (Cache::new("rows"), Inner::new(ok(&heads, "one")));
    let client = client(&cache, &backend);
    call(&client, get()).await;
    let hit = client.oneshot(get()).await.unwrap();
    assert!(["connection", "x-hop", "keep-alive"].iter().all(|name| !hit.headers().contains_key(*name)));
    assert_eq!(hit.headers().get_all("link").iter().count(), 2);
}

fn freshness(headers: &[(&str, String)], now: SystemTime) -> Option<Freshness> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap()))
        .collect();
    let cache = Cache::new("rows");
    Freshness::of(StatusCode::OK, &headers, &cache.core.config, S, now)
}

#[test]
fn times_come_from_the_strongest_header_and_ages_from_the_worse_one() {
    let now = SystemTime::UNIX_EPOCH + 1_000_000 * S;
    let at = |time: SystemTime| httpdate::fmt_http_date(time);
    let of = |headers: &[(&str, String)]| {
        freshness(headers, now).map(|it| (it.lifetime.as_secs(), it.initial_age.as_secs()))
    };
    let (expires, control) = (("expires", at(now + 90 * S)), |text: &str| ("cache-control", text.to_owned()));
    assert_eq!(of(std::slice::from_ref(&expires)), Some((90, 1)));
    assert_eq!(of(&[expires.clone(), ("date", at(now - 10 * S))]), Some((100, 10)));
    assert_eq!(of(&[expires.clone(), control("max-age=60"), ("age", "20".into())]), Some((60, 21)));
    assert_eq!(of(&[control("max-age=60, s-maxage=30")]), Some((30, 1)));
    assert_eq!(of(&[("expires", "0".into()), ("etag", "\"1\"".into())]), Some((0, 1)));
    assert_eq!(of(&[control("max-age=60"), ("age", u64::MAX.to_string()), ("etag", "x".into())]), Some((60, u64::MAX)));
    assert_eq!(of(&[control("no-cache, max-age=60"), ("etag", "x".into())]), Some((0, 1)));
    assert_eq!(of(&[control("no-cache, max-age=60")]), None, "it could never be used");
}

/// A response and a request, in the terms of RFC 9111.
#[derive(Clone, Debug)]
struct Case {
    response: Vec<String>,
    age: u64,
    vary: bool,
    request: Vec<String>,
    same_tenant: bool,
    after: u64,
    fails: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let seconds = || 0u64..40;
    let of_response = prop_oneof![
        Just("no-store".to_owned()),
        Just("Private".to_owned()),
        Just("no-cache".to_owned()),
        Just("must-revalidate".to_owned()),
        Just("proxy-revalidate".to_owned()),
        Just("public".to_owned()),
        seconds().prop_map(|n| format!("max-age={n}")),
        seconds().prop_map(|n| format!("S-MaxAge=\"{n}\"")),
        seconds().prop_map(|n| format!("stale-while-revalidate={n}")),
        seconds().prop_map(|n| format!("stale-if-error={n}")),
    ];
    let of_request = prop_oneof![
        Just("no-cache".to_owned()),
        Just("max-stale".to_owned()),
        seconds().prop_map(|n| format!("max-age={n}")),
        seconds().prop_map(|n| format!("min-fresh={n}")),
        seconds().prop_map(|n| format!("max-stale={n}")),
    ];
    (
        prop::collection::vec(of_response, 0..4),
        seconds(),
        any::<bool>(),
        prop::collection::vec(of_request, 0..3),
        any::<bool>(),
        0u64..80,
        any::<bool>(),
    )
        .prop_map(|(response, age, vary, request, same_tenant, after, fails)| Case {
            response,
            age,
            vary,
            request,
            same_tenant,
            after,
            fails,
        })
}

impl Case {
    fn has(&self, word: &str) -> bool {
        self.response.iter().any(|directive| directive.eq_ignore_ascii_case(word))
    }

    /// The smallest value of a directive.
    fn least(directives: &[String], name: &str) -> Option<u64> {
        let values = directives.iter().filter_map(|directive| {
            let (found, value) = directive.split_once('=')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim_matches('"').parse().unwrap())
        });
        values.min()
    }

    /// Whether RFC 9111 and RFC 5861 allow to serve the stored response without asking.
    fn may_be_served(&self) -> bool {
        let asks = |word: &str| self.request.iter().any(|directive| directive == word);
        let most = |name: &str| {
            let values = self.request.iter().filter_map(|one| one.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
            values.max()
        };
        if self.has("no-store") || self.has("private") || self.has("no-cache") || (self.vary && !self.same_tenant) {
            return false;
        }
        let lifetime = Self::least(&self.response, "s-maxage").or_else(|| Self::least(&self.response, "max-age"));
        let (lifetime, age) = (lifetime.unwrap_or(0), self.age + self.after);
        let too_old = Self::least(&self.request, "max-age").is_some_and(|max: u64| age > max);
        let too_short = most("min-fresh").is_some_and(|min: u64| lifetime.saturating_sub(age) < min);
        // A failed call excuses age, and never a forbidden reuse.
        let if_error = self.fails && Self::least(&self.response, "stale-if-error").is_some_and(|n| age < lifetime + n);
        if asks("no-cache") {
            return false;
        }
        if age < lifetime {
            return !(too_old || too_short) || self.fails;
        }
        if self.has("must-revalidate")
            || self.has("proxy-revalidate")
            || Self::least(&self.response, "s-maxage").is_some()
        {
            return false;
        }
        let max_stale = match Self::least(&self.request, "max-stale") {
            Some(max) => age <= lifetime + max,
            None => asks("max-stale"),
        };
        let while_revalidate =
            Self::least(&self.response, "stale-while-revalidate").is_some_and(|n| age < lifetime + n);
        if_error || (!(too_old || too_short) && (max_stale || while_revalidate))
    }
}

proptest! {
    /// An independent reading of the two RFCs: what it forbids is never served from the cache.
    #[test]
    fn nothing_is_served_that_rfc_9111_forbids(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let status = runtime.block_on(async {
            let cache = Cache::new("rows");
            let age = case.age.to_string();
            let control = case.response.join(", ");
            let mut head = vec![("age", age.as_str()), ("etag", "\"1\"")];
            if !control.is_empty() {
                head.push(("cache-control", &control));
            }
            if case.vary {
                head.push(("vary", "x-tenant"));
            }
            let backend = Inner::new(ok(&head, "one"));
            let client = client(&cache, &backend);
            let tenant = HeaderName::from_static("x-tenant");
            call(&client, with(tenant.clone(), "a")).await;
            advance(S * u32::try_from(case.after).unwrap()).await;
            backend.follow(if case.fails { Plan::of(Answer::Error) } else { ok(&[], "two") });
            let mut request = with(tenant, if case.same_tenant { "a" } else { "b" });
            if !case.request.is_empty() {
                request.headers_mut().insert(header::CACHE_CONTROL, case.request.join(", ").parse().unwrap());
            }
            let response = client.clone().oneshot(request).await.ok()?;
            response.extensions().get::<CacheStatus>().copied()
        });
        let is_served = matches!(status, Some(Hit | Stale));
        prop_assert!(!is_served || case.may_be_served(), "{:?}", status);
        // What may be served without a failure is, so that the cache is of use.
        let serves = !is_served && !case.fails && case.may_be_served();
        prop_assert!(!serves, "a call was made: {:?}", status);
    }
}
