use std::sync::atomic::{AtomicU64, Ordering};

/// A limit on the bytes of request bodies that are kept to be sent again, for many calls together.
///
/// [`max_body`](crate::HttpRetryExt::max_body) limits what one call keeps; this limits the process.
/// A body that does not fit is sent to its end, and its call is not repeated. Layers use
/// [`ReplayMemory::process`], of 64 MiB, unless they are given another.
///
/// ```
/// use buttress_http::{prelude::*, replay::ReplayMemory};
///
/// static UPLOADS: ReplayMemory = ReplayMemory::new(256 * 1024 * 1024);
///
/// let layer = RetryLayer::new(3).http_client().max_body(8 * 1024 * 1024).replay_memory(&UPLOADS);
/// assert_eq!(UPLOADS.kept(), 0);
/// # let _ = layer;
/// ```
#[derive(Debug)]
pub struct ReplayMemory {
    max: u64,
    kept: AtomicU64,
}

/// Default of a process: 64 MiB, which is a thousand bodies of the default size.
static PROCESS: ReplayMemory = ReplayMemory::new(64 * 1024 * 1024);

impl ReplayMemory {
    /// Creates a limit in bytes. 0 keeps no bodies but empty ones.
    pub const fn new(max_bytes: u64) -> Self {
        Self { max: max_bytes, kept: AtomicU64::new(0) }
    }

    /// Returns the limit of all layers that are given no other: 64 MiB.
    pub fn process() -> &'static Self {
        &PROCESS
    }

    /// Returns the number of bytes that are kept now.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Adds to the bytes that are kept, unless they would exceed the limit.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let fits = |kept: u64| kept.checked_add(bytes).filter(|kept| *kept <= self.max);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub(super) fn release(&self, bytes: u64) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
    }
}
