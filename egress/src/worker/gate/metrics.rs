//! What the gate counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The gate's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections that were brought here, by what became of them.
    pub connections: Family<Outcome, Counter>,
    /// Flows that were let through and then cut, by why.
    pub cut: Family<Outcome, Counter>,
    /// Connections open now, those that are still being decided on among them.
    pub open: Gauge,
    /// Bytes carried, by direction.
    pub bytes: Family<Direction, Counter>,
    /// From the accept to the connection to the host, in seconds: what the client says first, a decision, resolving and connecting.
    pub connect: Histogram,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_errors: Counter,
}

/// What became of a connection: `allowed`, `unreachable`, or why it was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// One word.
    pub outcome: &'static str,
}

/// Which way bytes went: `out` of the sandbox, or `in`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Direction {
    /// One word.
    pub direction: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0, 5.0, 15.0];
        Self {
            connections: Family::default(),
            cut: Family::default(),
            open: Gauge::default(),
            bytes: Family::default(),
            connect: Histogram::new(buckets),
            accept_errors: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let gate = registry.sub_registry_with_prefix("creto_runtime_egress_gate");
        gate.register("connections", "Connections brought to the gate, by outcome", self.connections.clone());
        gate.register("cut", "Flows that were let through and later cut, by reason", self.cut.clone());
        gate.register("open_connections", "Connections open now", self.open.clone());
        gate.register_with_unit("carried", "Bytes carried, by direction", Unit::Bytes, self.bytes.clone());
        gate.register_with_unit("connect", "From accept to connected", Unit::Seconds, self.connect.clone());
        gate.register(
            "accept_errors",
            "Accepts that failed for want of descriptors or memory",
            self.accept_errors.clone(),
        );
    }

    pub(super) fn count(&self, outcome: &'static str) {
        self.connections.get_or_create(&Outcome { outcome }).inc();
    }
}
