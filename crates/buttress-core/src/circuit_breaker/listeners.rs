use super::{event::Event, log};
use crate::sync::{AtomicU32, Mutex, Ordering, lock};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// The event listeners of a circuit. Check [`wants_calls`](Self::wants_calls) before building an
/// event of a call.
#[derive(Default)]
pub(super) struct Listeners {
    /// `None` until the first listener is added.
    list: Mutex<Option<Arc<Vec<Listener>>>>,
    /// The number of listeners that are called for calls as well as for changes of state.
    of_calls: AtomicU32,
}

#[derive(Clone)]
struct Listener {
    of_calls: bool,
    /// Returns false to be removed.
    call: Arc<dyn Fn(&Event) -> bool + Send + Sync>,
}

impl Listeners {
    pub(super) fn add(&self, of_calls: bool, call: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.change(|list| list.push(Listener { of_calls, call: Arc::new(call) }));
    }

    pub(super) fn wants_calls(&self) -> bool {
        self.of_calls.load(Ordering::Relaxed) != 0
    }

    /// Logs a change of state, and calls the listeners on this thread, outside the lock.
    pub(super) fn emit(&self, event: &Event) {
        if let Event::Transition(transition) = event {
            log::transition(transition);
        }
        let Some(list) = lock(&self.list).clone() else { return };
        let wanted = |listener: &&Listener| listener.of_calls || matches!(event, Event::Transition(_));
        // A listener that panics must not fail the call that caused the event.
        let is_done = |listener: &&Listener| !catch_unwind(AssertUnwindSafe(|| (listener.call)(event))).unwrap_or(true);
        let address = |listener: &Listener| Arc::as_ptr(&listener.call).cast::<()>();
        let done: HashSet<_> = list.iter().filter(wanted).filter(is_done).map(address).collect();
        if !done.is_empty() {
            self.change(|list| list.retain(|known| !done.contains(&address(known))));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Listener>)) {
        let mut list = lock(&self.list);
        let listeners = Arc::make_mut(list.get_or_insert_default());
        change(listeners);
        let of_calls = listeners.iter().filter(|listener| listener.of_calls).count();
        self.of_calls.store(of_calls as u32, Ordering::Relaxed);
    }
}
