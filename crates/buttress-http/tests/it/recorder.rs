use buttress::{Admit, Clock, Outcome, Permit, Policy, Refused, Rejection};
use std::sync::{Arc, Mutex};

/// A policy that admits everything and writes down what became of it. `HELD` says whether its permits are held to the end.
#[derive(Clone, Default)]
pub(crate) struct Recorder<const HELD: bool>(Arc<Mutex<Vec<Outcome>>>);

impl<const HELD: bool> Recorder<HELD> {
    /// Every outcome up to now.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) struct Writes<const HELD: bool>(Recorder<HELD>);

impl<const HELD: bool> Permit for Writes<HELD> {
    const HELD_TO_END: bool = HELD;

    fn settle(&mut self, outcome: &Outcome, _: &impl Clock) {
        self.0.0.lock().unwrap().push(*outcome);
    }
}

impl<const HELD: bool> Policy for Recorder<HELD> {
    type Permit = Writes<HELD>;

    fn reserve(&self, _: &impl Clock) -> Result<Writes<HELD>, Rejection> {
        Ok(Writes(self.clone()))
    }

    fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
        Ok(())
    }
}

impl<Req: ?Sized, const HELD: bool> Admit<Req> for Recorder<HELD> {}
