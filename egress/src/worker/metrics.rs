//! The worker's metrics: what DNS, gate and policy count, in one registry.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::dns::{Dns, Names};
use super::gate;

/// How long the policy took to decide. From one microsecond: it rarely needs more.
pub static CHECK_LATENCY: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([1e-6, 2e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 10e-3]));

/// All of them.
pub fn registry(gate: &gate::Metrics, dns: Arc<Dns>, names: Arc<Names>) -> Registry {
    let mut registry = Registry::default();
    let egress = registry.sub_registry_with_prefix("creto_runtime_egress");
    egress.register_with_unit(
        "check_latency",
        "The policy's decision on one flow",
        Unit::Seconds,
        CHECK_LATENCY.clone(),
    );
    gate.register(&mut registry);
    registry.register_collector(Box::new(DnsCollector { dns, names }));
    registry
}

/// Reads the DNS's counters when they are asked for.
struct DnsCollector {
    dns: Arc<Dns>,
    names: Arc<Names>,
}

impl std::fmt::Debug for DnsCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DnsCollector")
    }
}

impl Collector for DnsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = self.dns.counters();
        let name = "creto_runtime_egress_dns_questions";
        let kind = ConstCounter::new(0u64).metric_type();
        let mut questions =
            encoder.encode_descriptor(name, "Questions of sandboxes, by what came of them", None, kind)?;
        for (outcome, counter) in [
            ("answered", &counters.answered),
            ("no_data", &counters.no_data),
            ("denied", &counters.denied),
            ("unanswerable", &counters.unanswerable),
            ("no_address", &counters.no_address),
            ("stranger", &counters.strangers),
            ("malformed", &counters.malformed),
            ("limited", &counters.limited),
            ("turned_away", &counters.turned_away),
        ] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(counter.load(Ordering::Relaxed)).encode(questions.encode_family(&labels)?)?;
        }
        let in_use = ConstGauge::new(i64::try_from(self.names.in_use()).unwrap_or(i64::MAX));
        let name = "creto_runtime_egress_dns_names";
        in_use.encode(encoder.encode_descriptor(
            name,
            "Names that have an address of a sandbox's own",
            None,
            in_use.metric_type(),
        )?)
    }
}
