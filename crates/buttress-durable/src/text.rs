//! Errors as the text that is kept in rows.

use std::error::Error;
use std::fmt;

/// Bytes of an error's text that are worth keeping in a row.
const MAX: usize = 1_000;

/// An error with all its causes, `: ` in between.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Cut to a sensible length. PostgreSQL refuses NUL in text, and an error may quote anything.
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
    }
}
