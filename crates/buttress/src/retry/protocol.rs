/// How requests of a protocol are repeated.
pub trait Protocol<Req> {
    /// What is kept of a request to repeat it.
    type Kept: Replay;

    /// Splits a request into its first attempt and what is kept of it; `None` when it can never be repeated.
    fn first(&self, request: Req) -> (<Self::Kept as Replay>::Attempt, Option<Self::Kept>);

    /// The one attempt of a request that is not to be repeated: nothing has to be kept of it.
    fn only(&self, request: Req) -> <Self::Kept as Replay>::Attempt {
        self.first(request).0
    }

    /// Whether the request adds to the budget. A retry of somebody further up does not, or budgets would multiply over the tiers.
    fn deposits(&self, _request: &Req) -> bool {
        true
    }
}

/// What is kept of a request to repeat it.
pub trait Replay {
    /// What the inner service is called with.
    type Attempt;

    /// Attempt number `attempt`, where 1 was the first; `None` when it cannot be replayed any more.
    fn again(&mut self, attempt: u32) -> Option<Self::Attempt>;

    /// Whether doing it twice is the same as doing it once.
    fn is_idempotent(&self) -> bool;
}

/// For requests that are [`Clone`]. They are taken to be idempotent, because nothing can be known of them: put no retry around what is not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloning;

/// A request that is repeated by cloning it.
#[derive(Clone, Copy, Debug)]
pub struct Cloned<Req>(Req);

impl<Req: Clone> Protocol<Req> for Cloning {
    type Kept = Cloned<Req>;

    fn first(&self, request: Req) -> (Req, Option<Cloned<Req>>) {
        let kept = Cloned(request.clone());
        (request, Some(kept))
    }

    fn only(&self, request: Req) -> Req {
        request
    }
}

impl<Req: Clone> Replay for Cloned<Req> {
    type Attempt = Req;

    fn again(&mut self, _: u32) -> Option<Req> {
        Some(self.0.clone())
    }

    fn is_idempotent(&self) -> bool {
        true
    }
}
