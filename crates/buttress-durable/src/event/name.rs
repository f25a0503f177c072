/// Kafka allows 249; the rest is for the names of dead-letter topics.
pub(super) const MAX_TOPIC: usize = 120;
pub(super) const MAX_KEY: usize = 255;

/// Whether every broker takes this as the name of a topic or a group.
pub(crate) fn is_topic(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether this is a key: 1 to 255 bytes without control characters.
pub(super) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && !key.chars().any(char::is_control)
}
