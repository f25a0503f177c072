use crate::{ending::Client, replay::Replays};
use buttress::RetryLayer;
use http::request::Parts;
use std::marker::PhantomData;

/// Settings of a retry layer with a client ending.
pub trait HttpRetryExt<S, C, M, I, L>: Sized {
    /// How many bytes of a request's body are kept to repeat it. A larger body is sent once. Default 64 KiB.
    fn max_body(self, bytes: u64) -> Self;

    /// Which requests may be done twice. For HTTP the default goes by the method and the
    /// `Idempotency-Key`; for gRPC it is those with an `Idempotency-Key`. Others are repeated only
    /// when the server did not process them.
    fn idempotent<J: Fn(&Parts) -> bool>(self, idempotent: J) -> RetryLayer<Client<S, C, Replays<M, J>>, L>;

    /// Converts the body of an attempt into the one that the service underneath takes. Not needed
    /// for the bodies of tonic and axum, with the features of these names.
    fn map_request_body<N>(self, map: N) -> RetryLayer<Client<S, C, Replays<N, I>>, L>;
}

impl<S, C, M, I, L> HttpRetryExt<S, C, M, I, L> for RetryLayer<Client<S, C, Replays<M, I>>, L> {
    fn max_body(self, bytes: u64) -> Self {
        self.map_ending(|mut client| {
            client.replays.max_body = bytes;
            client
        })
    }

    fn idempotent<J: Fn(&Parts) -> bool>(self, idempotent: J) -> RetryLayer<Client<S, C, Replays<M, J>>, L> {
        self.map_ending(|Client { classify, replays: Replays { max_body, header, map, .. }, .. }| Client {
            classify,
            replays: Replays { max_body, idempotent, header, map },
            speaks: PhantomData,
        })
    }

    fn map_request_body<N>(self, map: N) -> RetryLayer<Client<S, C, Replays<N, I>>, L> {
        self.map_ending(|Client { classify, replays: Replays { max_body, idempotent, header, .. }, .. }| Client {
            classify,
            replays: Replays { max_body, idempotent, header, map },
            speaks: PhantomData,
        })
    }
}
