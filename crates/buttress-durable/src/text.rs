//! Errors as text for database rows.

use std::error::Error;
use std::fmt;

/// Longest text of an error in a row, in bytes.
const MAX: usize = 1_000;

/// Displays an error with all its causes, separated by `: `. A cause that the error before it has
/// shown already, as those of sqlx do, is left out.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !shown.ends_with(&text) {
                write!(f, ": {text}")?;
                shown = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// Truncates a text to 1,000 bytes and replaces NUL, which PostgreSQL rejects and an error message
/// may contain.
pub(crate) fn storable(text: impl fmt::Display) -> String {
    let mut text = text.to_string().replace('\0', "\u{fffd}");
    text.truncate(text.floor_char_boundary(MAX));
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_text_can_be_stored() {
        assert_eq!(super::storable("a\0b"), "a\u{fffd}b");
        assert_eq!(super::storable("\u{e9}".repeat(1_000)).len(), 1_000);
        assert_eq!(super::storable(format!("x{}", "\u{e9}".repeat(1_000))).len(), 999, "no half characters");
    }

    #[test]
    fn an_error_is_shown_with_all_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner(#[source] std::fmt::Error);
        let innermost = std::fmt::Error.to_string();
        assert_eq!(super::Chain(&Outer(Inner(std::fmt::Error))).to_string(), format!("outer: inner: {innermost}"));
    }
    #[test]
    fn a_cause_that_is_in_the_text_before_it_is_shown_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read: {0}")]
        struct Both(#[source] std::fmt::Error);
        let error = Both(std::fmt::Error);
        assert_eq!(super::Chain(&error).to_string(), error.to_string());
    }
}
