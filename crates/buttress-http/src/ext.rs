use crate::{
    exit::{AsGrpc, AsHttp},
    health::HttpProbes,
    observe::{Grpc, Http},
    retry::{HttpRetry, Unmapped},
};
use buttress::{HealthLayer, RetryLayer, TimeoutLayer, bulkhead::QueuedLayer, gate::GateLayer};
use http::request::Parts;

/// Endings for servers: outcomes to the end of the stream, and rejections that leave as responses.
pub trait ServerExt: Sized {
    /// The layer for an HTTP server.
    type Http;
    /// The layer for a gRPC server.
    type Grpc;

    /// Rejections leave as 503 with `Retry-After`, timeouts as 504.
    fn http(self) -> Self::Http;

    /// Rejections leave as `UNAVAILABLE`, `RESOURCE_EXHAUSTED` or `DEADLINE_EXCEEDED`.
    fn grpc(self) -> Self::Grpc;
}

/// Endings for clients: outcomes to the end of the stream, and rejections that leave as [`buttress::Error`].
pub trait ClientExt: Sized {
    /// The layer for an HTTP client.
    type HttpClient;
    /// The layer for a gRPC client.
    type GrpcClient;

    /// Reads outcomes from HTTP.
    fn http_client(self) -> Self::HttpClient;

    /// Reads outcomes from gRPC.
    fn grpc_client(self) -> Self::GrpcClient;
}

macro_rules! endings {
    ($($layer:ident [$($generics:tt)*];)*) => {$(
        impl<$($generics)* O, X> ServerExt for $layer<$($generics)* O, X> {
            type Http = $layer<$($generics)* Http, AsHttp>;
            type Grpc = $layer<$($generics)* Grpc, AsGrpc>;

            fn http(self) -> Self::Http {
                self.observe(Http).exit(AsHttp)
            }

            fn grpc(self) -> Self::Grpc {
                self.observe(Grpc).exit(AsGrpc)
            }
        }

        impl<$($generics)* O, X> ClientExt for $layer<$($generics)* O, X> {
            type HttpClient = $layer<$($generics)* Http, X>;
            type GrpcClient = $layer<$($generics)* Grpc, X>;

            fn http_client(self) -> Self::HttpClient {
                self.observe(Http)
            }

            fn grpc_client(self) -> Self::GrpcClient {
                self.observe(Grpc)
            }
        }
    )*};
}

endings! {
    GateLayer[A,];
    QueuedLayer[];
}

/// A timeout reads no outcomes, so around a client it needs no ending.
impl<X> ServerExt for TimeoutLayer<X> {
    type Http = TimeoutLayer<AsHttp>;
    type Grpc = TimeoutLayer<AsGrpc>;

    fn http(self) -> Self::Http {
        self.exit(AsHttp)
    }

    fn grpc(self) -> Self::Grpc {
        self.exit(AsGrpc)
    }
}

/// Kubernetes probes a gRPC server over HTTP too, where it has the endpoints; both endings are the same.
impl<A> ServerExt for HealthLayer<A> {
    type Http = HealthLayer<HttpProbes>;
    type Grpc = HealthLayer<HttpProbes>;

    fn http(self) -> Self::Http {
        self.answer(HttpProbes::new())
    }

    fn grpc(self) -> Self::Grpc {
        self.http()
    }
}

impl<P, C> ClientExt for RetryLayer<P, C> {
    type HttpClient = RetryLayer<HttpRetry, Http>;
    type GrpcClient = RetryLayer<HttpRetry, Grpc>;

    fn http_client(self) -> Self::HttpClient {
        self.protocol(HttpRetry::http()).classify(Http)
    }

    fn grpc_client(self) -> Self::GrpcClient {
        self.protocol(HttpRetry::grpc()).classify(Grpc)
    }
}

/// Settings of a retry layer for HTTP or gRPC, after [`ClientExt::http_client`] or [`ClientExt::grpc_client`].
pub trait HttpRetryExt: Sized {
    /// The layer, with the body mapped by `M`.
    type Reboxed<M>;

    /// How many bytes of a request's body are kept to repeat it. A larger body is sent once. Default 64 KiB.
    fn max_body(self, bytes: u64) -> Self;

    /// Which requests may be done twice. For HTTP the default goes by the method and the `Idempotency-Key`; for gRPC it is none, and only what
    /// the server did not process is repeated.
    fn idempotent(self, idempotent: fn(&Parts) -> bool) -> Self;

    /// Turns the body into the one that the service underneath takes, such as `tonic::body::Body::new`.
    fn rebox<M>(self, map: M) -> Self::Reboxed<M>;
}

impl<C> HttpRetryExt for RetryLayer<HttpRetry<Unmapped>, C> {
    type Reboxed<M> = RetryLayer<HttpRetry<M>, C>;

    fn max_body(self, bytes: u64) -> Self {
        self.map_protocol(|protocol| HttpRetry { max_body: bytes, ..protocol })
    }

    fn idempotent(self, idempotent: fn(&Parts) -> bool) -> Self {
        self.map_protocol(|protocol| HttpRetry { idempotent, ..protocol })
    }

    fn rebox<M>(self, map: M) -> RetryLayer<HttpRetry<M>, C> {
        self.map_protocol(|HttpRetry { max_body, idempotent, header, .. }| HttpRetry {
            max_body,
            idempotent,
            header,
            map,
        })
    }
}
