//! What a connection is doing, and by when it must do something else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Version;
use tokio::time::Instant;

use super::Limits;
use crate::clock::now;

/// The state of one connection. Shared by its socket, its requests and the task that supervises it.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests whose answer has not been sent completely.
    in_flight: usize,
    /// When the connection was accepted, or when its last request ended.
    quiet_since: Instant,
    /// When the first byte of the current head arrived. HTTP/1 only: on HTTP/2 a byte may belong
    /// to a ping.
    head_since: Option<Instant>,
    /// Since when the client has not read what was written.
    blocked_since: Option<Instant>,
    /// Since when answers have a part that is not sent. HTTP/2 only: there the client may open no
    /// window for it, while it takes everything from the socket.
    unsent: HashMap<u64, Instant>,
    /// Number of the next request.
    next: u64,
    /// The protocol, known from the first request on.
    version: Option<Version>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            in_flight: 0,
            quiet_since: now(),
            head_since: None,
            blocked_since: None,
            unsent: HashMap::new(),
            next: 0,
            version: None,
        })))
    }

    /// Records bytes from the client.
    pub(super) fn received(&self, bytes: usize) {
        let mut state = self.lock();
        let in_head = state.in_flight == 0 && state.version != Some(Version::HTTP_2);
        if bytes > 0 && in_head && state.head_since.is_none() {
            state.head_since = Some(now());
        }
    }

    /// Records whether the client has taken what was written.
    pub(super) fn written(&self, taken: bool) {
        let mut state = self.lock();
        match taken {
            true => state.blocked_since = None,
            false if state.blocked_since.is_none() => state.blocked_since = Some(now()),
            false => {}
        }
    }

    /// Begins a request, which ends when the guard is dropped.
    pub(super) fn begin(&self, version: Version) -> InFlight {
        let mut state = self.lock();
        state.in_flight += 1;
        state.head_since = None;
        state.version = Some(version);
        state.next += 1;
        InFlight { activity: self.clone(), id: state.next }
    }

    /// Whether no request is in progress and nothing waits to be written.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.in_flight == 0 && state.blocked_since.is_none()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.lock().version == Some(Version::HTTP_2)
    }

    /// By when the client must have done something, if anything is expected of it.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let state = self.lock();
        let wait = if state.version.is_some() { limits.idle } else { limits.head };
        let request = match state.head_since {
            _ if state.in_flight > 0 => None,
            Some(began) => Some(began + limits.head),
            None => Some(state.quiet_since + wait),
        };
        let unread = state.unsent.values().copied().chain(state.blocked_since).min();
        request.into_iter().chain(unread.map(|since| since + limits.write)).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Activity,
    id: u64,
}

impl InFlight {
    /// Records whether the next step is to send a part of the answer, or to wait for the service.
    pub(super) fn sending(&self, sending: bool) {
        let mut state = self.activity.lock();
        if sending && state.version == Some(Version::HTTP_2) {
            state.unsent.insert(self.id, now());
        } else {
            state.unsent.remove(&self.id);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.in_flight -= 1;
        state.unsent.remove(&self.id);
        if state.in_flight == 0 {
            state.quiet_since = now();
            state.head_since = None;
        }
    }
}
