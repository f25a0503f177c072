use super::{event::Event, log};
use crate::sync::{AtomicU32, Mutex, Ordering, lock};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Event listeners. Check [`wants_calls`](Self::wants_calls) before building an event of a call.
#[derive(Default)]
pub(super) struct Listeners {
    /// `None` until the first one comes.
    list: Mutex<Option<Arc<Vec<Listener>>>>,
    /// How many of them listen to calls too, and not only to changes.
    of_calls: AtomicU32,
}

#[derive(Clone)]
struct Listener {
    of_calls: bool,
    /// Returns whether it stays.
    call: Arc<dyn Fn(&Event) -> bool + Send + Sync>,
}

impl Listeners {
    pub(super) fn add(&self, of_calls: bool, call: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.change(|list| list.push(Listener { of_calls, call: Arc::new(call) }));
    }

    pub(super) fn wants_calls(&self) -> bool {
        self.of_calls.load(Ordering::Relaxed) != 0
    }

    /// Calls the listeners on this thread, outside the lock.
    pub(super) fn emit(&self, event: &Event) {
        if let Event::Transition(transition) = event {
            log::transition(transition);
        }
        let Some(list) = lock(&self.list).clone() else { return };
        let wanted = |listener: &&Listener| listener.of_calls || matches!(event, Event::Transition(_));
        // A listener is for watching. If it panics, the call that caused the event goes on.
        let leaves = |listener: &&Listener| !catch_unwind(AssertUnwindSafe(|| (listener.call)(event))).unwrap_or(true);
        let address = |listener: &Listener| Arc::as_ptr(&listener.call).cast::<()>();
        let gone: HashSet<_> = list.iter().filter(wanted).filter(leaves).map(address).collect();
        if !gone.is_empty() {
            self.change(|list| list.retain(|known| !gone.contains(&address(known))));
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
