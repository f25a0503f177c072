//! Who a customer is: a signed token, checked at the gateway.
//!
//! The token is a JSON Web Token (RFC 7519) signed with HMAC-SHA256 (`HS256`), in
//! `Authorization: Bearer`. Its subject is the customer. The demo issues tokens itself (`mesh token
//! alice`), because it has no accounts with passwords. A real shop puts an OpenID Connect provider
//! in this place and checks the provider's signature with its public keys, so that no service of
//! the shop can issue a token; [`Tokens::check`] is the only function that changes.
//!
//! The key is never an argument of a command, because arguments are visible to every user of the
//! machine. It comes from the environment or from a file.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::input::Customer;

/// The variable with the key itself.
pub const KEY: &str = "MESH_TOKEN_KEY";
/// The variable with the path of a file that holds the key.
pub const KEY_FILE: &str = "MESH_TOKEN_KEY_FILE";

/// Name of the key's file in a data directory.
pub const KEY_IN_DIR: &str = "token.key";

/// Shortest key, in bytes: as long as the hash (RFC 7518, section 3.2).
const SHORTEST_KEY: usize = 32;
/// How long a token is valid. Long enough for an afternoon with `curl`.
pub const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// How far the clocks of issuer and gateway may differ.
const LEEWAY_SECS: i64 = 60;
/// Longest token that is looked at, in bytes.
const LONGEST: usize = 1024;

/// The only header that is issued and accepted. Other algorithms, `none` among them, are not
/// negotiated (RFC 8725, section 3.1).
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
/// Who issued the token and for whom, so that a token for another purpose is not accepted here.
const ISSUER: &str = "mesh";

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: Customer,
    /// Seconds since 1970.
    iat: i64,
    exp: i64,
}

/// Issues and checks tokens.
#[derive(Clone)]
pub struct Tokens(Hmac<Sha256>);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("token key: must have at least {SHORTEST_KEY} bytes, not {0}")]
    Short(usize),
    #[error("token key: cannot read {}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    #[error("token key: set {KEY_FILE} to a file, or {KEY} to the key itself")]
    Missing,
}

/// Why a token was not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not one of this shop")]
    Foreign,
    #[error("the token has expired")]
    Expired,
}

impl Tokens {
    /// Uses a key of at least 32 bytes.
    ///
    /// ```
    /// use mesh::token::Tokens;
    ///
    /// let tokens = Tokens::new(b"0123456789abcdef0123456789abcdef")?;
    /// let token = tokens.issue(&"alice".parse()?, 1_000);
    /// assert_eq!(tokens.check(&token, 1_000)?.as_str(), "alice");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(key: &[u8]) -> Result<Self, KeyError> {
        let short = || KeyError::Short(key.len());
        if key.len() < SHORTEST_KEY {
            return Err(short());
        }
        Hmac::new_from_slice(key).map(Self).map_err(|_| short())
    }

    /// A key that no other process knows, for a mesh whose customers are in this process.
    pub fn ephemeral() -> Self {
        // Padded with zeros to the block of the hash, as any shorter key is (RFC 2104, section 2).
        let mut key = hmac::digest::Key::<Hmac<Sha256>>::default();
        key[..SHORTEST_KEY].copy_from_slice(&random_key());
        Self(Hmac::new(&key))
    }

    /// Reads the key from the environment: [`KEY`], or the file that [`KEY_FILE`] names.
    pub fn from_env() -> Result<Self, KeyError> {
        if let Some(key) = std::env::var_os(KEY) {
            return Self::new(key.as_encoded_bytes());
        }
        Self::from_file(Path::new(&std::env::var_os(KEY_FILE).ok_or(KeyError::Missing)?))
    }

    /// Reads the key from the environment, or from the file [`KEY_IN_DIR`] in a directory, which is
    /// created with a random key if it does not exist.
    pub fn from_env_or_dir(dir: &Path) -> Result<Self, KeyError> {
        match Self::from_env() {
            Err(KeyError::Missing) => {
                let path = dir.join(KEY_IN_DIR);
                Self::create_key(&path)?;
                Self::from_file(&path)
            }
            read => read,
        }
    }

    /// Creates a file with a random key that only its owner can read, and its directory. An
    /// existing file is left as it is.
    pub fn create_key(path: &Path) -> Result<(), KeyError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).and_then(|()| create(path)).map_err(|error| KeyError::File(path.to_owned(), error))
    }

    /// Reads the key from a file. White space around it is ignored.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let key = std::fs::read(path).map_err(|error| KeyError::File(path.to_owned(), error))?;
        Self::new(key.trim_ascii())
    }

    /// Issues a token. `now_ms` is the wall time in milliseconds since 1970.
    pub fn issue(&self, customer: &Customer, now_ms: i64) -> String {
        let iat = now_ms / 1000;
        let exp = iat.saturating_add_unsigned(LIFETIME.as_secs());
        let claims = Claims { iss: ISSUER.to_owned(), sub: customer.clone(), iat, exp };
        // Claims are strings and numbers, which serialise.
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(claims));
        let signature = self.0.clone().chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64.encode(signature))
    }

    /// Returns the customer of a valid token.
    pub fn check(&self, token: &str, now_ms: i64) -> Result<Customer, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let signature = BASE64.decode(signature).map_err(|_| TokenError::Foreign)?;
        if token.len() > LONGEST || self.0.clone().chain_update(signed).verify_slice(&signature).is_err() {
            return Err(TokenError::Foreign);
        }
        let Claims { iss, sub, iat, exp } = claims(signed).ok_or(TokenError::Foreign)?;
        let now = now_ms / 1000;
        if iss != ISSUER || iat > now + LEEWAY_SECS {
            return Err(TokenError::Foreign);
        }
        if exp < now - LEEWAY_SECS { Err(TokenError::Expired) } else { Ok(sub) }
    }
}

fn claims(signed: &str) -> Option<Claims> {
    let (header, claims) = signed.split_once('.')?;
    if header != BASE64.encode(HEADER) {
        return None;
    }
    serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
}

/// 32 bytes from the operating system, by way of two random UUIDs, whose 244 random bits are enough
/// for a key of 128-bit strength, and which need no further dependency.
fn random_key() -> [u8; SHORTEST_KEY] {
    let mut key = [0; SHORTEST_KEY];
    key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    key
}

/// Writes the key to a file of its own and links it, so that no process reads a part of it, and a
/// crash leaves no empty key.
fn create(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&new)?.write_all(BASE64.encode(random_key()).as_bytes())?;
    let linked = std::fs::hard_link(&new, path);
    std::fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn tokens() -> Tokens {
        Tokens::new(&[7; 32]).unwrap()
    }

    fn alice() -> Customer {
        "alice".parse().unwrap()
    }

    #[test]
    fn a_token_names_its_customer_until_it_expires() {
        let token = tokens().issue(&alice(), NOW);
        let after = |millis: u128| tokens().check(&token, NOW + i64::try_from(millis).unwrap());
        assert_eq!(after(0), Ok(alice()));
        assert_eq!(after(LIFETIME.as_millis() + 60_000), Ok(alice()), "with the leeway");
        assert_eq!(after(LIFETIME.as_millis() + 61_000), Err(TokenError::Expired));
        assert_eq!(tokens().check(&token, NOW - 3_600_000), Err(TokenError::Foreign), "issued in the future");
    }

    #[test]
    fn a_token_of_another_key_or_with_a_changed_byte_is_foreign() {
        let token = tokens().issue(&alice(), NOW);
        let other = Tokens::new(&[8; 32]).unwrap();
        assert_eq!(other.check(&token, NOW), Err(TokenError::Foreign));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(tokens().check(&changed, NOW), Err(TokenError::Foreign), "byte {at}");
        }
        for text in ["", ".", "..", "a.b.c", "alice", &"x.".repeat(5000)] {
            assert_eq!(tokens().check(text, NOW), Err(TokenError::Foreign), "{text:.20}");
        }
    }

    #[test]
    fn no_other_algorithm_and_no_other_issuer_is_accepted() {
        let sign = |header: &str, claims: &str| {
            let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
            let signature = tokens().0.chain_update(&signed).finalize().into_bytes();
            format!("{signed}.{}", BASE64.encode(signature))
        };
        let claims = |iss: &str, sub: &str| format!(r#"{{"iss":"{iss}","sub":"{sub}","iat":0,"exp":9999999999}}"#);
        assert_eq!(tokens().check(&sign(HEADER, &claims(ISSUER, "alice")), NOW), Ok(alice()));
        for (header, claims) in [
            (r#"{"alg":"none","typ":"JWT"}"#, claims(ISSUER, "alice")),
            (r#"{"alg":"HS512","typ":"JWT"}"#, claims(ISSUER, "alice")),
            (HEADER, claims("another shop", "alice")),
            (HEADER, claims(ISSUER, "a b")),
            (HEADER, "[]".to_owned()),
        ] {
            assert_eq!(tokens().check(&sign(header, &claims), NOW), Err(TokenError::Foreign), "{header} {claims}");
        }
        let unsigned = format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(claims(ISSUER, "alice")));
        assert_eq!(tokens().check(&unsigned, NOW), Err(TokenError::Foreign));
    }

    #[test]
    fn a_key_file_is_created_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token.key");
        create(&path).unwrap();
        let token = Tokens::from_file(&path).unwrap().issue(&alice(), NOW);
        create(&path).unwrap();
        assert_eq!(Tokens::from_file(&path).unwrap().check(&token, NOW), Ok(alice()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_short_key_is_refused_and_no_key_is_shown() {
        assert_eq!(Tokens::new(&[7; 31]).unwrap_err().to_string(), "token key: must have at least 32 bytes, not 31");
        assert!(!format!("{:?}", tokens()).contains('7'));
        assert!(Tokens::from_file(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
    }
}
