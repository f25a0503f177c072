//! Settings of the allocator that keep a fault of librdkafka from doing harm.

use std::sync::Once;

/// A value of the environment variable `GLIBC_TUNABLES` with which a
/// [fault of librdkafka](super#a-fault-of-librdkafka) neither ends the process nor stalls a
/// partition. It has to be set when the process starts, and works with the allocator of glibc only.
///
/// Memory of 256 bytes and less is allocated as before; see [`malloc`'s tunables][tunables]. What
/// librdkafka reads without having written it is part of a larger piece, of 376 bytes or more.
///
/// ```
/// use buttress_durable::bus::kafka::GLIBC_TUNABLES;
///
/// let mut service = std::process::Command::new("orders");
/// service.env("GLIBC_TUNABLES", GLIBC_TUNABLES);
/// ```
///
/// [tunables]: https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
pub const GLIBC_TUNABLES: &str = "glibc.malloc.tcache_max=256:glibc.malloc.perturb=1";

/// The smallest piece of memory that librdkafka reads without having written all of it, in bytes:
/// new leaders of one topic with two partitions.
const SMALLEST: u64 = 376;

/// Warns once for each process that runs with the allocator of glibc and without these settings.
pub(super) fn warn_once() {
    static ONCE: Once = Once::new();
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return;
    }
    ONCE.call_once(|| {
        if !protects(&std::env::var("GLIBC_TUNABLES").unwrap_or_default()) {
            tracing::warn!(
                GLIBC_TUNABLES,
                "librdkafka may crash while a broker is replaced; set the environment variable GLIBC_TUNABLES"
            );
        }
    });
}

/// Returns whether these settings fill all memory that matters.
fn protects(tunables: &str) -> bool {
    let value = |name: &str| {
        // Of several values the last one counts.
        let pairs = tunables.split(':').rev().filter_map(|tunable| tunable.split_once('='));
        pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse::<u64>().ok())
    };
    // A filled number must be negative, and the filling is the complement of the lowest byte.
    let fills = value("glibc.malloc.perturb").is_some_and(|byte| (1..0x80).contains(&(byte & 0xff)));
    // Memory from the cache of a thread is not filled.
    let no_cache = value("glibc.malloc.tcache_count") == Some(0);
    fills && (no_cache || value("glibc.malloc.tcache_max").is_some_and(|size| size < SMALLEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_protect_if_memory_is_filled_and_not_taken_from_a_cache() {
        assert!(protects(GLIBC_TUNABLES));
        for tunables in [
            "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0",
            "glibc.malloc.tcache_max=64:glibc.malloc.arena_max=2:glibc.malloc.perturb=127",
            "glibc.malloc.perturb=0:glibc.malloc.perturb=1:glibc.malloc.tcache_max=0",
        ] {
            assert!(protects(tunables), "{tunables}");
        }
        for tunables in [
            "",
            "glibc.malloc.perturb=1",
            "glibc.malloc.tcache_max=256",
            "glibc.malloc.perturb=0:glibc.malloc.tcache_count=0",
            // The filling would be positive, so that it could be the number of a partition.
            "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0",
            "glibc.malloc.perturb=1:glibc.malloc.tcache_max=376",
            "glibc.malloc.perturb=yes:glibc.malloc.tcache_count=0",
        ] {
            assert!(!protects(tunables), "{tunables:?}");
        }
    }
}
