use crate::{message::Message, run};
use buttress_http::prelude::*;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use std::{convert::Infallible, time::Duration};
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// Sends a request of any client to a server with all layers of a server, twice: the second one
/// meets a rate limit. The first line is `METHOD URI`.
pub fn request(data: &[u8]) {
    let message = Message::parse(data);
    let Some(request) = make(&message) else { return };
    let server = ServiceBuilder::new()
        .layer(HealthLayer::new(Health::new()).http())
        .layer(DeadlineLayer::server().max_limit(Duration::from_secs(30)).http())
        .layer(ContextLayer::new().trust_priority().http())
        .layer(LoadShedLayer::new("server").http())
        .layer(RateLimitLayer::named("caller", 1, Duration::from_secs(1)).burst(1).advertise().http())
        .layer(TimeoutLayer::total(Duration::from_secs(5)).http())
        .layer(AdaptiveLimitLayer::new("handler").http())
        .layer(BulkheadLayer::new(1).queue(1, Duration::from_secs(1)).http())
        .service(service_fn(async |request: Request<crate::message::Body>| {
            let answer = match request.into_body().collect().await {
                Ok(body) => Response::new(body.to_bytes().len().to_string()),
                Err(_) => status(StatusCode::BAD_REQUEST),
            };
            Ok::<_, Infallible>(answer)
        }));
    run(async {
        for _ in 0..2 {
            let Ok(response) = server.clone().oneshot(request(&message)).await;
            let known = [
                StatusCode::OK,
                StatusCode::BAD_REQUEST,
                StatusCode::METHOD_NOT_ALLOWED,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
                // A deadline that has passed already.
                StatusCode::GATEWAY_TIMEOUT,
            ];
            assert!(known.contains(&response.status()), "{}", response.status());
            let _ = response.into_body().collect().await;
        }
    });
}

fn status(status: StatusCode) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = status;
    response
}

/// Returns what makes the request, unless HTTP allows no such request.
fn make(message: &Message) -> Option<impl Fn(&Message) -> Request<crate::message::Body> + use<>> {
    let (method, uri) = std::str::from_utf8(&message.first).ok()?.split_once(' ')?;
    let (method, uri) = (method.parse::<Method>().ok()?, uri.trim().parse::<Uri>().ok()?);
    Some(move |message: &Message| {
        let mut request = Request::new(message.body());
        (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
        *request.headers_mut() = message.headers.clone();
        request
    })
}
