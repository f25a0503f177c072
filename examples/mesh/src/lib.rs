//! A small shop as a service mesh without sidecars: every stack of Buttress layers in use.
//!
//! Seven services, each with its own database and its own failure modes. Gateway, order, shipping,
//! notification and the old shop speak REST, payment and inventory speak gRPC, and all but the
//! gateway and the old shop publish events. Read [`stack`] first: it holds every stack of layers.
//! Then [`order`], which has the saga, and [`events`]. [`demo`] injects faults and audits the
//! databases; [`load`] measures latency and throughput.

pub mod admin;
pub mod bus;
pub mod clock;
mod customers;
pub mod db;
pub mod demo;
pub mod edge;
pub mod events;
pub mod faults;
pub mod gateway;
pub mod input;
pub mod inventory;
pub mod lanes;
pub mod launch;
pub mod legacy;
pub mod load;
pub mod mesh;
pub mod network;
pub mod notification;
pub mod ops;
pub mod order;
pub mod page;
pub mod payment;
pub mod probe;
pub mod problem;
pub mod process;
mod seldom;
pub mod service;
pub mod shipping;
pub mod soak;
pub mod stack;
pub mod telemetry;
pub mod token;
pub mod upstream;
