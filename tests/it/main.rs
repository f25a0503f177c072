//! Stacks of layers over real hyper, axum and tonic, on loopback sockets. Nothing sleeps but on a
//! paused clock, and nothing depends on how long it takes.

mod answers;
mod axum_server;
mod balancing;
mod circuit;
mod flow_control;
mod grpc_client;
mod grpc_server;
mod network;
mod own_policy;
mod pauses;
mod per_request;
mod readme;
mod repeats;
mod reqwest_client;
mod restarts;
mod retry;
mod tower_http;
mod unread;
mod upgrades;
mod uploads;
