//! Who is calling: the customer whom a token names.

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};

use crate::clock::now_ms;
use crate::input::Customer;
use crate::problem::Problem;
use crate::token::{TokenError, Tokens};

/// The customer who calls, in the extensions of a request that [`authenticate`] has let through. A
/// handler with this argument answers 401 to all others.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Customer);

impl Caller {
    /// Refuses what names another customer.
    pub(super) fn must_be(&self, named: &str) -> Result<(), Problem> {
        if named == self.0.as_str() {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "another-customer",
            "The token belongs to another customer",
            "leave the customer out, or name the one whom the token names",
        ))
    }
}

/// Middleware, outside of all layers that ask who calls: answers 401 without a valid token.
pub(crate) async fn authenticate(
    State(tokens): State<Tokens>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let customer = check(request.headers(), &tokens, now_ms())?;
    request.extensions_mut().insert(Caller(customer));
    Ok(next.run(request).await)
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    /// A route whose row in the table forgets the token admits nobody.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().ok_or_else(|| unauthorized("this needs a customer".to_owned()))
    }
}

fn unauthorized(detail: String) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "no-valid-token", "A token is required", detail).challenge("Bearer")
}

fn check(headers: &HeaderMap, tokens: &Tokens, now_ms: i64) -> Result<Customer, Problem> {
    // The name of the scheme is case-insensitive (RFC 9110, section 11.1).
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    let Some((_, token)) = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(unauthorized("send a token as Authorization: Bearer".to_owned()));
    };
    tokens.check(token.trim(), now_ms).map_err(|error: TokenError| unauthorized(error.to_string()))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn only_a_bearer_token_of_this_shop_is_a_customer() {
        let tokens = Tokens::new(&[7; 32]).unwrap();
        let alice: Customer = "alice".parse().unwrap();
        let token = tokens.issue(&alice, 0);
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            check(&headers, &tokens, 0).map_err(|problem| problem.status())
        };
        assert_eq!(of(&format!("Bearer {token}")), Ok(alice.clone()));
        assert_eq!(of(&format!("bearer {token}")), Ok(alice));
        for wrong in ["", "Bearer", "Bearer ", "Bearer alice", &format!("Basic {token}"), &token] {
            assert_eq!(of(wrong), Err(StatusCode::UNAUTHORIZED), "{wrong}");
        }
        let response = check(&HeaderMap::new(), &tokens, 0).unwrap_err().into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    }

    #[test]
    fn a_caller_acts_for_no_other_customer() {
        let caller = Caller("alice".parse().unwrap());
        assert!(caller.must_be("alice").is_ok());
        assert_eq!(caller.must_be("bob").unwrap_err().status(), StatusCode::FORBIDDEN);
    }
}
