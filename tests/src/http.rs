use axum::{
    Router,
    body::Body,
    response::IntoResponse,
    routing::{MethodRouter, any},
};
use buttress::BoxError;
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::{AbortHandle, JoinSet},
};
use tower::Service;

/// hyper's client with a connection pool.
pub type Client = legacy::Client<HttpConnector, Body>;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// The address it listens on.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Server {
    /// Listens on a free port and runs `serve` on the listener.
    pub async fn start<F>(serve: impl FnOnce(TcpListener) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        Self { address, task: tokio::spawn(serve(listener)).abort_handle() }
    }

    /// The URI of a path on the server.
    pub fn uri(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.address).parse().expect("it is a URI")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a router with `axum::serve`, which calls `layer()` for every connection.
pub async fn axum_server(router: Router) -> Server {
    Server::start(async |listener| {
        axum::serve(listener, router).await.expect("a server does not end");
    })
    .await
}

/// Serves HTTP/1 and HTTP/2 with hyper alone. Its connections end with the server.
pub async fn hyper_server<S, B>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + Sync + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    Server::start(async move |listener| {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // Connection errors are ignored here. Clients assert on them.
                let _ = server.serve_connection_with_upgrades(TokioIo::new(socket), service).await;
            });
        }
    })
    .await
}

/// A URI whose port refuses connections while the socket is kept: bound, but not listening.
pub fn refuses() -> (TcpSocket, Uri) {
    let deaf = TcpSocket::new_v4().expect("there is a socket");
    deaf.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("there is a free port");
    let uri = format!("http://{}/", deaf.local_addr().expect("it is bound"));
    (deaf, uri.parse().expect("it is a URI"))
}

/// Answers the first request with a body that the test sends, and later ones with an empty body.
pub fn streams(head: impl IntoResponse + Clone + Send + Sync + 'static) -> (Sender<Bytes, io::Error>, MethodRouter) {
    let (sender, body) = Channel::new(8);
    let body = Arc::new(Mutex::new(Some(Body::new(body))));
    let handler = async move || {
        let body = body.lock().expect("no panic under the lock").take().unwrap_or_default();
        let (head, _) = head.into_response().into_parts();
        Response::from_parts(head, body)
    };
    (sender, any(handler))
}

/// An HTTP/1 client.
pub fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

/// An HTTP/2 client with prior knowledge.
pub fn client_h2() -> Client {
    legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

/// A client that opens a connection for each request.
pub fn fresh_client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http()
}

/// A `GET` request without a body.
pub fn get(uri: Uri) -> Request<Body> {
    Request::get(uri).body(Body::empty()).expect("it is a request")
}

/// A `POST` request with a body.
pub fn post(uri: Uri, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(Method::POST).uri(uri).body(body.into()).expect("it is a request")
}

/// A response with this status and text.
pub fn reply(status: u16, text: &'static str) -> Response<Body> {
    Response::builder().status(status).body(Body::from(text)).expect("it is a response")
}

/// Reads the whole body as text.
pub async fn text<B>(response: Response<B>) -> String
where
    B: http_body_util::BodyExt<Data = Bytes, Error: std::fmt::Debug>,
{
    let body = response.into_body().collect().await.expect("the body arrives");
    String::from_utf8(body.to_bytes().to_vec()).expect("it is a text")
}
