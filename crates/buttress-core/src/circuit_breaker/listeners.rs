use super::event::Event;
use crate::sync::{AtomicU32, Mutex, Ordering, lock};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Who is told what happens. Nothing is made for nobody: whoever has something to tell asks first where that costs.
pub(super) struct Listeners {
    list: Mutex<Arc<[Listener]>>,
    /// How many of them hear of calls too, and not only of changes.
    of_calls: AtomicU32,
}

#[derive(Clone)]
struct Listener {
    of_calls: bool,
    hear: Arc<dyn Fn(&Event) -> bool + Send + Sync>,
}

impl Listeners {
    pub(super) fn add(&self, of_calls: bool, hear: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        let listener = Listener { of_calls, hear: Arc::new(hear) };
        self.change(|list| list.iter().cloned().chain([listener]).collect());
    }

    pub(super) fn hear_of_calls(&self) -> bool {
        self.of_calls.load(Ordering::Relaxed) != 0
    }

    /// On the thread that caused it, outside the lock.
    pub(super) fn tell(&self, event: &Event) {
        let list = lock(&self.list).clone();
        for listener in &*list {
            if !listener.of_calls && !matches!(event, Event::Transition(_)) {
                continue;
            }
            // A listener is for watching. If it breaks, the call that it hears of goes on.
            let stays = catch_unwind(AssertUnwindSafe(|| (listener.hear)(event))).unwrap_or(true);
            if !stays {
                let others = |known: &&Listener| !Arc::ptr_eq(&known.hear, &listener.hear);
                self.change(|list| list.iter().filter(others).cloned().collect());
            }
        }
    }

    fn change(&self, change: impl FnOnce(&[Listener]) -> Arc<[Listener]>) {
        let mut list = lock(&self.list);
        *list = change(&list);
        let of_calls = list.iter().filter(|listener| listener.of_calls).count();
        self.of_calls.store(of_calls as u32, Ordering::Relaxed);
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Self { list: Mutex::new(Arc::new([])), of_calls: AtomicU32::new(0) }
    }
}
