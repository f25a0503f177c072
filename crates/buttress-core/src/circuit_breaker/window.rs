use super::{count_window::CountWindow, event::Counts, settings::Window, time_window::TimeWindow};

/// The window of the results to which the rules apply.
pub(super) enum Counting {
    Time(TimeWindow),
    Count(Box<CountWindow>),
}

/// How a window must change for new settings.
pub(super) enum Resize<'a> {
    Unchanged,
    /// The length of the time window changes.
    Time(&'a TimeWindow, std::time::Duration),
    /// The kind of the window or the number of its results differs, which a live circuit cannot
    /// change.
    Impossible,
}

impl Counting {
    pub(super) fn new(window: Window, shards: usize) -> Self {
        match window {
            Window::Time(time) => Self::Time(TimeWindow::new(time, shards)),
            Window::Count(results) => Self::Count(Box::new(CountWindow::new(results))),
        }
    }

    /// Sums again with the next bad result, because the rules have changed.
    pub(super) fn invalidate(&self) {
        match self {
            Self::Time(window) => window.invalidate(),
            Self::Count(window) => window.invalidate(),
        }
    }

    /// Returns the results of a generation at `nanos`.
    pub(super) fn counts(&self, generation: u64, nanos: u64) -> Counts {
        match self {
            Self::Time(window) => window.counts(window.tag(nanos, generation)),
            Self::Count(window) => window.counts(generation),
        }
    }

    /// Returns whether the bad result that was recorded last can meet a rule, so that the results
    /// must be summed.
    pub(super) fn check(&self, generation: u64, nanos: u64) -> Check {
        match self {
            Self::Time(window) => {
                let tag = window.tag(nanos, generation);
                let bad = window.bad_in_bucket(tag);
                Check { needed: window.needs_check(tag, bad), at: u64::from(tag), bad }
            }
            Self::Count(window) => {
                let number = window.next_check(generation);
                Check { needed: number.is_some(), at: number.unwrap_or_default(), bad: 0 }
            }
        }
    }

    /// Skips sums until there are `missing` more bad results, because a sum that was taken after
    /// `check` met no rule.
    pub(super) fn skip(&self, check: Check, generation: u64, missing: u32) {
        match self {
            Self::Time(window) => window.skip_until(check.at as u32, check.bad, missing),
            Self::Count(window) if check.needed => window.skip_until(generation, check.at, missing),
            Self::Count(_) => {}
        }
    }

    pub(super) fn resize(this: Option<&Self>, window: Option<Window>) -> Resize<'_> {
        match (this, window) {
            (Some(Self::Time(window)), Some(Window::Time(new))) if window.differs(new) => Resize::Time(window, new),
            (Some(Self::Time(_)), Some(Window::Time(_))) | (None, None) => Resize::Unchanged,
            (Some(Self::Count(window)), Some(Window::Count(new))) if window.holds(new) => Resize::Unchanged,
            _ => Resize::Impossible,
        }
    }
}

/// The result of [`Counting::check`].
#[derive(Clone, Copy)]
pub(super) struct Check {
    pub(super) needed: bool,
    /// The tag of the current bucket, or the number of the bad result.
    at: u64,
    /// The bad results in the current bucket.
    bad: u32,
}
