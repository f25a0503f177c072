//! The service below every layer.

use std::fmt;
use std::future::Future;
use std::hint::black_box;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::situation::{FAIL, HOLD, Situation};

/// Always ready, and answers at once unless the situation says otherwise. It is the part of a call
/// that remains without layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bare<T>(PhantomData<T>);

/// Error of [`Bare`]. Created without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure;

/// The future of [`Bare`].
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// None for a call that is never answered.
    result: Option<Result<u64, Failure>>,
    is_polled: bool,
    situation: PhantomData<T>,
}

impl<T> Bare<T> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Situation> Answer<T> {
    #[inline]
    fn new(req: u64) -> Self {
        let result = match req {
            FAIL => Some(Err(Failure)),
            HOLD if T::REJECTS => None,
            req => Some(Ok(black_box(req))),
        };
        Self { result, is_polled: false, situation: PhantomData }
    }
}

impl<T: Situation> Future for Answer<T> {
    type Output = Result<u64, Failure>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if T::PENDS && !self.is_polled {
            self.is_polled = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.result.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T: Situation> tower::Service<u64> for Bare<T> {
    type Response = u64;
    type Error = Failure;
    type Future = Answer<T>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: u64) -> Answer<T> {
        Answer::new(req)
    }
}

impl<T: Situation> layered::Service<u64> for Bare<T> {
    type Out = Result<u64, Failure>;

    #[inline]
    fn execute(&self, req: u64) -> impl Future<Output = Self::Out> + Send {
        Answer::<T>::new(req)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service failed")
    }
}

impl std::error::Error for Failure {}
