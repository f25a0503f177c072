//! The client stacks of each service that calls others, and of the operators.

use std::error::Error as StdError;
use std::time::Duration;

use axum::body::Body;
use buttress::InvalidConfig;
use buttress_http::prelude::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use super::client::{Dependency, HttpChannel, HttpError, INVENTORY, ORDER, PARTICIPANT};
use crate::admin::Token;

/// The client stacks of the order service.
#[derive(Clone, Debug)]
pub struct OrderClients {
    pub payment: Dependency,
    pub inventory: Dependency,
}

impl OrderClients {
    /// `seed` makes the jitter of backoff pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self {
            payment: Dependency::new("order -> payment", PARTICIPANT, seed)?,
            inventory: Dependency::new("order -> inventory", PARTICIPANT, seed)?,
        })
    }

    pub fn all(&self) -> [&Dependency; 2] {
        [&self.payment, &self.inventory]
    }
}

/// The client stacks of the gateway. Payment and inventory have stacks separate from the order
/// service's, so that reads do not take places from orders.
#[derive(Clone, Debug)]
pub struct GatewayClients {
    pub order: Dependency,
    pub payment: Dependency,
    pub inventory: Dependency,
    pub shipping: Dependency,
    pub legacy: Dependency,
}

impl GatewayClients {
    /// `seed` makes the jitter of backoff pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self {
            order: Dependency::new("gateway -> order", ORDER, seed)?,
            payment: Dependency::new("gateway -> payment", PARTICIPANT, seed)?,
            inventory: Dependency::new("gateway -> inventory", INVENTORY, seed)?,
            shipping: Dependency::new("gateway -> shipping", PARTICIPANT, seed)?,
            legacy: Dependency::new("gateway -> legacy", PARTICIPANT, seed)?,
        })
    }

    pub fn all(&self) -> [&Dependency; 5] {
        [&self.order, &self.payment, &self.inventory, &self.shipping, &self.legacy]
    }
}

/// A client for operators' calls. Without a breaker, because they must reach failing services.
pub fn admin_client(token: Option<Token>) -> HttpChannel {
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    let header = token.map(|token| token.header());
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .map_request(move |request: Request<Full<Bytes>>| {
                let mut request = request.map(Body::new);
                if let Some(header) = &header {
                    request.headers_mut().insert(http::header::AUTHORIZATION, header.clone());
                }
                request
            })
            .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
            .service(client),
    )
}

/// Whether a call ended with a timeout.
pub fn timed_out(error: &HttpError) -> bool {
    error.rejection().is_some_and(|rejection| rejection.reason().timeout_kind().is_some())
}

/// Returns the `Retry-After` of the layer that rejected a call. Searches the source chain,
/// including tonic's errors.
pub fn retry_after(error: &(dyn StdError + 'static)) -> Option<Duration> {
    buttress::error::find_rejection(error)?.retry_after()
}
