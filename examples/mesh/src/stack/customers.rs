//! The rates of customers: a bucket for each of them, and one quota for all buckets.

use std::time::Duration;

use axum::extract::Request;
use buttress::gate::GateLayer;
use buttress::keyed::Keyed;
use buttress::metrics::Exporter;
use buttress::policy::{LabelValues, Metric, Report, Sink, Value};
use buttress::rate_limit::{Advertised, Quota};
use buttress_http::prelude::*;

use super::InvalidConfig;
use crate::gateway::Caller;
use crate::input::Customer;

/// Default of orders per second and customer. More than a person or the script of a shop that buys
/// here needs, and what `mesh load` places with its four customers at its documented rates. It is
/// not what protects the order service from overload: all customers together may be too many, and
/// for them there are bulkheads and load shed.
pub const ORDERS_PER_SECOND: u32 = 10;

/// How many seconds of its rate a customer may use at once: for scripts that send a day's orders in
/// one go. Twenty are less than a tenth of the orders that may be
/// [under way](crate::order::UNDER_WAY), so that one customer does not take the places of others.
const BURST_SECONDS: u32 = 2;

/// Other requests per order of the rate. They are cheap, and a page that waits for an order asks
/// for it several times.
const REQUESTS_PER_ORDER: u32 = 5;

/// Maximum number of customers with a bucket, which takes about 200 bytes. A bucket that is full
/// again makes room for another customer, after [`BURST_SECONDS`] at most: this is for 5,000 new
/// customers a second. If there are more, the rest are not limited, and counted as `untracked`.
const CUSTOMERS: usize = 10_000;

type KeyOf = fn(&Request) -> Option<Customer>;

/// The limits of all customers for one kind of request.
#[derive(Clone, Debug)]
pub struct CustomerRate {
    quota: RateLimit,
    buckets: Keyed<Option<Customer>, RateLimit, KeyOf>,
}

impl CustomerRate {
    /// The limits of a gateway. Each replica has its own: `n` replicas admit `n` times the rate.
    pub(super) fn all(orders_per_second: u32) -> Result<[Self; 2], InvalidConfig> {
        let requests = orders_per_second.saturating_mul(REQUESTS_PER_ORDER);
        Ok([Self::new("orders", orders_per_second)?, Self::new("requests", requests)?])
    }

    /// `name` is told to the customer in the headers `RateLimit` and `RateLimit-Policy`.
    fn new(name: &'static str, per_second: u32) -> Result<Self, InvalidConfig> {
        let burst = per_second.saturating_mul(BURST_SECONDS);
        let quota = RateLimit::builder(Quota::per_second(per_second)).burst(burst).name(name).build()?;
        let buckets = quota.clone();
        let buckets = Keyed::builder(customer as KeyOf, move |_: &Option<Customer>| buckets.new_bucket())
            .name(format!("{name} per customer"))
            .max_keys(CUSTOMERS)
            .build()?;
        Ok(Self { quota, buckets })
    }

    pub(super) fn layer(&self) -> GateLayer<Advertised<Keyed<Option<Customer>, RateLimit, KeyOf>>> {
        GateLayer::with_policy(self.buckets.clone()).advertise()
    }

    /// Registers the metrics: sums over all customers.
    pub(super) fn export(&self, exporter: &Exporter) {
        exporter.add(&self.buckets);
    }

    /// The state as JSON, for the dashboard and for operators.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let (quota, stats) = (self.quota.quota(), self.buckets.stats());
        serde_json::json!({
            "name": self.quota.name(),
            "per_second": f64::from(quota.limit) / quota.period.max(Duration::from_nanos(1)).as_secs_f64(),
            "burst": quota.burst,
            "customers": stats.keys,
            "untracked": stats.untracked,
            "rejected": self.rejected(),
        })
    }

    /// Requests that were rejected, of all customers, also of those whose bucket was evicted.
    pub fn rejected(&self) -> u64 {
        let mut rejected = Rejected(0);
        self.buckets.report(&mut rejected);
        rejected.0
    }
}

/// The customer, as the layer outside has authenticated it. A name that callers choose themselves
/// would make each request a new customer. Requests without a customer share a bucket.
fn customer(request: &Request) -> Option<Customer> {
    request.extensions().get::<Caller>().map(|Caller(customer)| customer.clone())
}

struct Rejected(u64);

impl Sink for Rejected {
    fn value(&mut self, metric: &Metric, _: LabelValues, value: Value) {
        if let ("resilience.rate_limit.rejected", Value::Counter(rejected)) = (metric.name, value) {
            self.0 += rejected;
        }
    }
}
