use super::{LimitAlgorithm, Window};

/// Keeps the limit as it is. For comparisons, and to switch adaptation off.
///
/// ```
/// use buttress_core::concurrency::{Fixed, LimitAlgorithm, Window};
///
/// assert_eq!(Fixed.update(&Window::new(20)), 20);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed;

impl LimitAlgorithm for Fixed {
    fn update(&mut self, window: &Window) -> usize {
        window.limit
    }
}
