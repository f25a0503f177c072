//! What callers send, as types. A service parses every text into one of these before it does
//! anything else, so that no control character, no endless name and no empty key reaches a
//! database, an event, a log or another service.
//!
//! REST answers a violation with 422 or 400 and the name of the field, gRPC with INVALID_ARGUMENT.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a value of its type: the rule that it violates.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be {0}")]
pub struct Invalid(&'static str);

/// Defines a type of texts: a maximum length in characters, the characters, and the rule as words.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $min:literal..=$max:literal, $legal:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let legal: fn(char) -> bool = $legal;
                // Counted up to the limit only: the text may be as long as a request.
                let length = text.chars().take($max + 1).count();
                if !($min..=$max).contains(&length) || !text.chars().all(legal) {
                    return Err(Invalid($rule));
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// The id of a customer.
    Customer, 1..=64, |c| c.is_ascii_alphanumeric() || "._@+-".contains(c),
    "1 to 64 letters, digits or any of . _ @ + -"
);

text!(
    /// The id of a product.
    Sku, 1..=64, |c| c.is_ascii_alphanumeric() || "._-".contains(c),
    "1 to 64 letters, digits or any of . _ -"
);

text!(
    /// An idempotency key: a customer's for an order, or a saga's for one of its steps. Keys are
    /// stored, so their length is limited.
    Key, 1..=200, |c| c.is_ascii_graphic(),
    "1 to 200 printable ASCII characters without spaces"
);

text!(
    /// The id of an order, as other services send it.
    OrderId, 1..=100, |c| c.is_ascii_graphic(),
    "1 to 100 printable ASCII characters without spaces"
);

text!(
    /// A text for people, of any language and several lines.
    Prose, 0..=2000, |c| !c.is_control() || c == '\n' || c == '\t',
    "at most 2000 characters, none of them a control character"
);

/// A violation in one field of a request.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct FieldError {
    pub field: String,
    pub detail: String,
}

/// Collects the violations in a request, so that its caller gets all of them at once.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// Parses one field. Returns `None` and records why if it is not valid.
    pub fn parse<T: FromStr<Err = Invalid>>(&mut self, field: impl Into<String>, text: &str) -> Option<T> {
        text.parse().map_err(|error: Invalid| self.add(field, error.to_string())).ok()
    }

    /// Records a violation.
    pub fn add(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), detail: detail.into() });
    }

    /// Whether there is none so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations, in the order in which they were found.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Parses one field of a gRPC request.
pub fn field<T: FromStr<Err = Invalid>>(name: &str, text: &str) -> Result<T, tonic::Status> {
    text.parse().map_err(|error| tonic::Status::invalid_argument(format!("{name} {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T: FromStr>(texts: &[&str]) {
        texts.iter().for_each(|text| assert!(text.parse::<T>().is_ok(), "{text:?}"));
    }

    fn rejects<T: FromStr>(texts: &[&str]) {
        texts.iter().for_each(|text| assert!(text.parse::<T>().is_err(), "{text:?}"));
    }

    #[test]
    fn no_name_is_empty_endless_or_has_control_characters() {
        let hostile = ["", " ", "a\0", "\0", "a b", "a\n", "a\u{7f}", "a\u{202e}b", "tea;--", &"x".repeat(65_536)];
        rejects::<Customer>(&hostile);
        rejects::<Sku>(&hostile);
        rejects::<Key>(&["", " ", "a\0", "a b", "a\n", "\u{e9}", &"k".repeat(201)]);
        rejects::<OrderId>(&["", "a\0", "a b", &"o".repeat(101)]);
        accepts::<Customer>(&["alice", "alice.archer+shop@example.com", "a", &"a".repeat(64)]);
        accepts::<Sku>(&["tea", "TEA-250_g.1", &"a".repeat(64)]);
        accepts::<Key>(&["k", "0197-ab", "o1:reserve", &"k".repeat(200)]);
    }

    #[test]
    fn prose_has_lines_and_any_language_and_no_control_characters() {
        accepts::<Prose>(&[
            "",
            "Strong and honest.",
            "line\nline\tcolumn",
            "\u{1f375} \u{8336}",
            &"\u{e9}".repeat(2000),
        ]);
        rejects::<Prose>(&["a\0", "\u{1b}[2J", "a\r\nb", &"\u{e9}".repeat(2001)]);
    }

    #[test]
    fn a_stored_name_is_checked_when_it_is_read() {
        assert_eq!(serde_json::from_str::<Sku>("\"tea\"").unwrap().as_str(), "tea");
        assert!(serde_json::from_str::<Sku>("\"a\\u0000\"").is_err());
        assert_eq!(serde_json::to_string(&"tea".parse::<Sku>().unwrap()).unwrap(), "\"tea\"");
    }

    #[test]
    fn all_violations_are_collected_with_their_fields_and_rules() {
        let mut errors = Errors::default();
        assert!(errors.parse::<Sku>("sku", "tea").is_some() && errors.is_empty());
        assert!(errors.parse::<Sku>("items[0].sku", "a\0").is_none());
        errors.add("items", "must not be empty");
        let errors = errors.into_vec();
        assert_eq!(errors[0].field, "items[0].sku");
        assert_eq!(errors[0].detail, "must be 1 to 64 letters, digits or any of . _ -");
        assert_eq!(errors[1].detail, "must not be empty");
    }

    #[test]
    fn a_grpc_field_is_named_with_its_rule() {
        let status = field::<Customer>("customer", "").unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with("customer must be 1 to 64"), "{status}");
    }
}
