//! Stacks of layers over real hyper, axum and tonic, on loopback sockets. Nothing sleeps, and nothing depends on how long it takes.

mod axum_server;
mod circuit;
mod flow_control;
mod grpc_client;
mod grpc_server;
mod network;
mod repeats;
mod restarts;
mod retry;
mod tower_http;
mod unread;
mod upgrades;
mod uploads;
