use buttress::{
    Rejection,
    outcome::Outcome,
    policy::{Permit, Policy},
};
use std::sync::{Arc, Mutex};

/// A policy that admits every call and records its outcome. With `HELD`, its permits are held until
/// the end of the body.
#[derive(Clone, Default)]
pub(crate) struct Recorder<const HELD: bool>(Arc<Mutex<Vec<Outcome>>>);

impl<const HELD: bool> Recorder<HELD> {
    /// Returns the outcomes recorded so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) struct Writes<const HELD: bool>(Recorder<HELD>);

impl<const HELD: bool> Permit for Writes<HELD> {
    const HOLDS_UNTIL_BODY_END: bool = HELD;

    fn settle(&mut self, outcome: &Outcome) {
        self.0.0.lock().unwrap().push(*outcome);
    }
}

impl<Req: ?Sized, const HELD: bool> Policy<Req> for Recorder<HELD> {
    type Permit = Writes<HELD>;

    fn admit(&self, _: &Req) -> Result<Writes<HELD>, Rejection> {
        Ok(Writes(self.clone()))
    }
}
