//! Stacks of layers over real hyper, axum and tonic, on loopback sockets. Tests sleep only on a
//! paused clock, and none depends on durations.

mod admission;
mod answers;
mod axum_server;
mod balancing;
mod caching;
mod chaos;
mod circuit;
mod deadlines;
mod flow_control;
mod grpc_client;
mod grpc_retries;
mod grpc_server;
mod hedge;
mod network;
mod overload;
mod own_policy;
mod pauses;
mod per_request;
mod promises;
mod rates;
mod readiness;
mod readme;
mod rejections;
mod repeats;
mod reqwest_client;
mod restarts;
mod retry;
mod tiers;
mod tower_http;
mod unread;
mod upgrades;
mod uploads;
