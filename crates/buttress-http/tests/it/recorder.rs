use buttress::{
    Rejection,
    outcome::Outcome,
    policy::{Permit, Policy, Progress},
};
use std::sync::{Arc, Mutex};

/// A policy that admits every call and records its progress and its outcome. With `HELD`, its
/// permits are held until the end of the body.
#[derive(Clone, Default)]
pub(crate) struct Recorder<const HELD: bool>(Arc<Mutex<(Vec<Progress>, Vec<Outcome>)>>);

impl<const HELD: bool> Recorder<HELD> {
    /// Returns the outcomes recorded so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.0.lock().unwrap().1.clone()
    }

    /// Returns the parts of responses that were reported so far.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.0.lock().unwrap().0.clone()
    }
}

pub(crate) struct Writes<const HELD: bool>(Recorder<HELD>);

impl<const HELD: bool> Permit for Writes<HELD> {
    const HOLDS_UNTIL_BODY_END: bool = HELD;

    fn settle(&mut self, outcome: &Outcome) {
        self.0.0.lock().unwrap().1.push(*outcome);
    }

    fn progress(&mut self, progress: Progress) {
        self.0.0.lock().unwrap().0.push(progress);
    }
}

impl<Req: ?Sized, const HELD: bool> Policy<Req> for Recorder<HELD> {
    type Permit = Writes<HELD>;

    fn admit(&self, _: &Req) -> Result<Writes<HELD>, Rejection> {
        Ok(Writes(self.clone()))
    }
}
