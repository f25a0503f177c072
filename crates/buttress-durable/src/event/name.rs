/// Kafka allows 249 bytes. The rest is for the prefix of dead-letter topics.
pub(super) const MAX_TOPIC: usize = 120;
pub(super) const MAX_KEY: usize = 255;

/// Whether every broker accepts this as a topic or a group, with at most `max` bytes.
pub(crate) fn is_topic(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether this is a legal key: 1 to 255 bytes without control characters.
pub(super) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && !key.chars().any(char::is_control)
}
