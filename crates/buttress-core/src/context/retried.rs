use std::{cell::Cell, marker::PhantomData};

thread_local! {
    static RETRIED: Cell<Retried> = const { Cell::new(Retried::NONE) };
}

/// Whether calls that were made while a call was served have been repeated in vain.
///
/// A retry layer that gives up notes it for the thread ([`note`](Self::note)). A server's layer
/// keeps a value for each of its calls, and collects what is noted while it polls that call
/// ([`collect`](Self::collect)): the value moves between threads with the call. It then tells its
/// own caller, which does not repeat the call again.
///
/// ```
/// use buttress_core::context::Retried;
///
/// let (mut outer, mut inner) = (Retried::default(), Retried::default());
/// let collecting = outer.collect();
/// {
///     let _collecting = inner.collect();
///     Retried::note(2); // by a retry layer inside of the inner call
/// }
/// drop(collecting);
/// assert_eq!((inner.retries(), outer.retries()), (Some(2), None));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Retried(Option<u32>);

impl Retried {
    const NONE: Self = Self(None);

    /// Notes that a call has failed after `retries` retries, or could not be repeated because a
    /// budget was empty. Of several notes the highest number is kept.
    pub fn note(retries: u32) {
        RETRIED.set(Self(RETRIED.get().0.max(Some(retries))));
    }

    /// Returns the highest number that was noted. `None` if nothing was.
    pub fn retries(self) -> Option<u32> {
        self.0
    }

    /// Collects what is noted on this thread until the guard is dropped. What an outer guard has
    /// collected is set aside meanwhile.
    #[inline]
    pub fn collect(&mut self) -> Collecting<'_> {
        Collecting { outer: RETRIED.replace(*self), mine: self, _not_send: PhantomData }
    }
}

/// Guard of [`Retried::collect`].
#[derive(Debug)]
#[must_use = "notes are collected until the guard is dropped"]
pub struct Collecting<'a> {
    mine: &'a mut Retried,
    outer: Retried,
    _not_send: PhantomData<*const ()>,
}

impl Drop for Collecting<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.mine = RETRIED.replace(self.outer);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn notes_are_kept_over_polls_on_several_threads_and_the_highest_number_wins() {
        let mut call = Retried::default();
        {
            let _collecting = call.collect();
            Retried::note(2);
        }
        let mut call = std::thread::spawn(move || {
            let collecting = call.collect();
            Retried::note(0);
            drop(collecting);
            call
        })
        .join()
        .unwrap();
        drop(call.collect());
        assert_eq!(call.retries(), Some(2));
    }

    #[test]
    fn a_note_without_a_collector_reaches_no_call() {
        Retried::note(7);
        let mut call = Retried::default();
        drop(call.collect());
        assert_eq!(call.retries(), None);
    }

    #[test]
    fn notes_of_a_call_inside_do_not_reach_the_call_around_it_also_after_a_panic() {
        let (mut outer, mut inner) = (Retried::default(), Retried::default());
        let collecting = outer.collect();
        Retried::note(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _collecting = inner.collect();
            Retried::note(5);
            panic!("in the call");
        }));
        assert!(panicked.is_err());
        drop(collecting);
        assert_eq!((outer.retries(), inner.retries()), (Some(1), Some(5)));
    }
}
