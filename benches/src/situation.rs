//! The situations in which a layer is measured: how its service is called, and what the service
//! below it answers.
//!
//! Each is a type, so that every row is compiled for itself. Code that two rows share would not be
//! inlined into either.

use std::fmt;

/// A number of failures in a row that [`TenthFails`] does not reach, also if all tasks fail in step
/// because they queue for a peer's lock.
pub(crate) const MANY_IN_A_ROW: u32 = 100;

/// A failure rate that [`MostFail`] does not reach, also if one or two of its successes are late.
pub(crate) const NEARLY_ALL: f32 = 0.995;

/// A request that [`Bare`](crate::inner::Bare) answers.
pub(crate) const ASK: u64 = 7;

/// A request that it fails.
pub(crate) const FAIL: u64 = u64::MAX;

/// A request that it never answers when the layer is to [reject](Situation::REJECTS) the others.
pub(crate) const HOLD: u64 = u64::MAX - 1;

pub(crate) trait Situation: Copy + fmt::Debug + Send + Sync + Unpin + 'static {
    /// Appended to the name of the layer. Empty for the plain situation.
    const NAME: &'static str;
    /// The situation whose bare service is subtracted.
    const BASELINE: &'static str = Self::NAME;
    /// Whether the service is cloned for every call, as axum, retry and generated clients do. The
    /// drop of the clone is half of the cost.
    const CLONES: bool = false;
    /// Whether the inner service is pending once, and wakes its task.
    const PENDS: bool = false;
    /// Whether the layer rejects every call.
    const REJECTS: bool = false;
    /// Whether no call succeeds. Then a further call shows that the failures are the service's.
    const ALL_FAIL: bool = false;

    /// Returns the request with this number.
    fn request(_number: u32) -> u64 {
        ASK
    }
}

macro_rules! situations {
    ($($(#[$doc:meta])* $name:ident { $($item:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl Situation for $name { $($item)* }
    )*};
}

situations! {
    /// Every call succeeds at once, through one service that is kept.
    Kept {
        const NAME: &'static str = "";
    }

    /// Every call is made by a clone of its own.
    Cloned {
        const NAME: &'static str = "cloned per call";
        const CLONES: bool = true;
    }

    /// The inner service needs a second poll, so that a timer must be set and a permit kept.
    Pending {
        const NAME: &'static str = "pending once";
        const PENDS: bool = true;
    }

    TenthFails {
        const NAME: &'static str = "1 in 10 fails";

        fn request(number: u32) -> u64 {
            if number % 10 == 9 { FAIL } else { ASK }
        }
    }

    /// As many failures as a rule can judge without tripping: any 100 calls have a success.
    MostFail {
        const NAME: &'static str = "19 in 20 fail";

        fn request(number: u32) -> u64 {
            if number % 20 == 19 { ASK } else { FAIL }
        }
    }

    AllFail {
        const NAME: &'static str = "all fail";
        const ALL_FAIL: bool = true;

        fn request(_: u32) -> u64 {
            FAIL
        }
    }

    Rejecting {
        const NAME: &'static str = "rejecting";
        const BASELINE: &'static str = Kept::NAME;
        const REJECTS: bool = true;
    }
}
