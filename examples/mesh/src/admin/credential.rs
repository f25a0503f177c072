//! The secret that operators present.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use subtle::ConstantTimeEq;

/// The shortest token, in bytes: 16 hexadecimal digits have 64 bits.
const SHORTEST: usize = 16;

/// A shared secret of the operators, from the environment or a file. It is never an argument,
/// because other users of a machine can read the arguments of a process.
///
/// ```
/// use mesh::admin::Token;
///
/// let token = Token::new("correct-horse-battery")?;
/// assert_eq!(format!("{token:?}"), "Token(..)");
/// assert!(Token::new("short").is_err());
/// # Ok::<(), mesh::admin::BadToken>(())
/// ```
#[derive(Clone)]
pub struct Token(Arc<str>);

/// Why a token was rejected.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    #[error("admin-token: must have at least {SHORTEST} printable ASCII characters and no spaces")]
    Weak,
    #[error("admin-token-file: cannot read {0}")]
    Unreadable(String, #[source] std::io::Error),
}

impl Token {
    /// Checks the form of a token: at least 16 printable ASCII characters without spaces.
    pub fn new(text: &str) -> Result<Self, BadToken> {
        let fits = text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(text.into())) } else { Err(BadToken::Weak) }
    }

    /// Reads a token from a file. Space around it, such as the last line feed, is ignored.
    pub fn read(path: &Path) -> Result<Self, BadToken> {
        let text = std::fs::read_to_string(path);
        Self::new(text.map_err(|error| BadToken::Unreadable(path.display().to_string(), error))?.trim())
    }

    /// Returns the value of the `Authorization` header.
    pub fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).expect("a token is printable ASCII");
        value.set_sensitive(true);
        value
    }

    /// Whether a request carries this token: as a bearer token, or as the password of HTTP Basic,
    /// which a browser asks for.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        match value.as_bytes().split_once_space() {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer") => self.is(token),
            Some((scheme, pair)) if scheme.eq_ignore_ascii_case(b"basic") => {
                let Ok(pair) = BASE64_STANDARD.decode(pair) else { return false };
                pair.iter().position(|byte| *byte == b':').is_some_and(|colon| self.is(&pair[colon + 1..]))
            }
            _ => false,
        }
    }

    /// Takes the same time wherever the texts differ. The length of the token is not a secret.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

trait SplitOnceSpace {
    fn split_once_space(&self) -> Option<(&[u8], &[u8])>;
}

impl SplitOnceSpace for [u8] {
    fn split_once_space(&self) -> Option<(&[u8], &[u8])> {
        let at = self.iter().position(|byte| *byte == b' ')?;
        Some((&self[..at], self[at + 1..].trim_ascii()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_accepted_as_bearer_and_as_a_password_and_nothing_else_is() {
        let token = Token::new("0123456789abcdef").unwrap();
        let with = |value: &str| token.is_in(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]));
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        assert!(with("Bearer 0123456789abcdef") && with("bearer  0123456789abcdef"));
        assert!(with(&basic("operator:0123456789abcdef")) && with(&basic(":0123456789abcdef")));
        for wrong in ["Bearer 0123456789abcdeF", "Bearer", "Bearer ", "0123456789abcdef", "Basic !", "Digest x"] {
            assert!(!with(wrong), "{wrong}");
        }
        assert!(!with(&basic("0123456789abcdef")) && !with(&basic("0123456789abcdef:wrong")));
        assert!(!token.is_in(&HeaderMap::new()));
        assert_eq!(token.header(), "Bearer 0123456789abcdef");
        assert!(token.header().is_sensitive());
    }

    #[test]
    fn a_token_is_long_and_printable() {
        for wrong in ["", "short", "0123456789abcde", "0123456789 abcdef", "0123456789abcdé", "0123456789abcdef\n"] {
            assert!(Token::new(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_may_end_with_a_line_feed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(Token::read(&path).unwrap().header(), "Bearer 0123456789abcdef");
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Token::read(&path), Err(BadToken::Weak)));
        let missing = Token::read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.starts_with("admin-token-file: cannot read "), "{missing}");
    }
}
