use super::Window;

/// A limit with a fraction, which the whole limit of the handle follows.
///
/// The whole limit can change without the algorithm: when its bounds are changed, or with an
/// algorithm that takes over from another. The fraction is then lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tracked {
    exact: f64,
    published: usize,
}

impl Tracked {
    /// Returns whether the limit of the window is not the one that was published last.
    pub(super) fn was_changed(&self, window: &Window) -> bool {
        self.published != window.limit
    }

    /// Returns the limit of the window, with its fraction.
    pub(super) fn limit(&mut self, window: &Window) -> f64 {
        if self.was_changed(window) {
            (self.exact, self.published) = (window.limit as f64, window.limit);
        }
        self.exact
    }

    /// Sets the limit, within the bounds of the window, and returns it as a whole number.
    pub(super) fn set(&mut self, limit: f64, window: &Window) -> usize {
        // A NaN becomes the lower bound.
        self.exact = limit.min(window.max as f64).max(window.min as f64);
        self.published = self.exact as usize;
        self.published
    }

    /// Publishes a limit for a while, and keeps the exact one for later.
    pub(super) fn publish(&mut self, limit: usize, window: &Window) -> usize {
        self.published = limit.clamp(window.min.min(window.max), window.max);
        self.published
    }
}
