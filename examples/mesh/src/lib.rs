//! A small shop as a service mesh without sidecars: every stack of layers that Buttress offers, at work.
//! Four services, each with its own database and its own way of failing: gateway and order speak REST, payment and
//! inventory speak gRPC. Read [`stack`] first: it holds every stack of layers. Then [`order`], which has the hard part.
//! [`demo`] breaks things on purpose and checks the books.

pub mod clock;
pub mod db;
pub mod demo;
pub mod faults;
pub mod gateway;
pub mod inventory;
pub mod mesh;
pub mod order;
pub mod payment;
pub mod probe;
pub mod problem;
pub mod process;
pub mod service;
pub mod stack;
pub mod upstream;
