/// FNV-1a, 64 bits. Its values are stored, so it must be the same on every machine and in every
/// version.
pub(crate) fn fnv1a(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns the bucket of a key, from 0 to `buckets - 1`.
pub(crate) fn bucket(key: &str, buckets: u16) -> i64 {
    i64::try_from(fnv1a(key) % u64::from(buckets.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_where_they_were_stored() {
        // The published test vectors. A changed hash would move the keys of every existing
        // database.
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!((bucket("foobar", 8), bucket("foobar", 16), bucket("foobar", 10_000)), (0, 8, 6_968));
    }

    #[test]
    fn every_bucket_gets_keys() {
        let used =
            |buckets| (0..1_000).map(|n| bucket(&n.to_string(), buckets)).collect::<std::collections::BTreeSet<_>>();
        assert!(used(8).into_iter().eq(0..8));
        assert!(used(16).into_iter().eq(0..16));
        assert!(used(1).into_iter().eq(0..1));
    }
}
