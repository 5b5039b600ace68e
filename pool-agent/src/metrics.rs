//! What the node agent counts: the runbook's names, as OpenMetrics 1.0. What sandboxes connect to is counted by creto-egress;
//! `/metrics` shows its text behind ours.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::telemetry::spans::SpanCounts;

/// From 100 µs: a target of 20 ms must lie between two of them.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];
/// The end of a text of OpenMetrics.
const END: &str = "# EOF\n";

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// A member was ready.
    Hit,
    /// None was, and one was made for it.
    Cold,
    /// None was within the time that the caller would wait.
    Empty,
    /// It was refused, or failed.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Claimed {
    pool_id: String,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    pool_id: String,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

type Ratio = Gauge<f64, AtomicU64>;
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// How a pool stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolCounts {
    /// Members that a claim would get.
    pub ready: usize,
    /// Members that were claimed and have not ended.
    pub claimed: usize,
    /// The fewest that are to be ready.
    pub min_ready: usize,
    /// Claims in the last minute.
    pub claims_per_minute: f64,
    /// Claims that found a member, of all; none where there was none.
    pub hit_ratio: Option<f64>,
    /// Of the oldest member that is ready.
    pub oldest: Option<Duration>,
}

/// How the audit ledger stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditCounts {
    /// Records that wait in the spools.
    pub waiting: u64,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
    /// Records that the ledger has.
    pub kept: u64,
    /// Drains that failed.
    pub failures: u64,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    spawn: Histograms<Backend>,
    claim: Histograms<OfPool>,
    claims: Family<Claimed, Counter>,
    warming_failures: Family<Cause, Counter>,
    sandboxes: Family<Status, Gauge>,
    ready: Family<OfPool, Gauge>,
    claimed: Family<OfPool, Gauge>,
    min_ready: Family<OfPool, Gauge>,
    claims_per_minute: Family<OfPool, Ratio>,
    hit_ratio: Family<OfPool, Ratio>,
    oldest: Family<OfPool, Gauge>,
    egress_up: Gauge,
    audit_waiting: Gauge,
    audit_oldest: Ratio,
    audit_kept: Gauge,
    audit_failures: Counter,
    /// Spans that were to be exported.
    pub spans: SpanCounts,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("creto_runtime");
        let metrics = Self {
            spawn: Family::new_with_constructor(seconds),
            claim: Family::new_with_constructor(seconds),
            claims: Family::default(),
            warming_failures: Family::default(),
            sandboxes: Family::default(),
            ready: Family::default(),
            claimed: Family::default(),
            min_ready: Family::default(),
            claims_per_minute: Family::default(),
            hit_ratio: Family::default(),
            oldest: Family::default(),
            egress_up: Gauge::default(),
            audit_waiting: Gauge::default(),
            audit_oldest: Ratio::default(),
            audit_kept: Gauge::default(),
            audit_failures: Counter::default(),
            spans: SpanCounts::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register_with_unit(
            "spawn_latency",
            "Asked for → running, without a pool",
            Unit::Seconds,
            m.spawn.clone(),
        );
        registry.register_with_unit(
            "pool_claim_latency",
            "A claim accepted → answered, of a member that was ready",
            Unit::Seconds,
            m.claim.clone(),
        );
        registry.register("pool_claims", "Claims, by what came of them: Hit / all is the hit ratio", m.claims.clone());
        registry.register("pool_warming_failures", "Members that could not be made", m.warming_failures.clone());
        // The runbook's name for a gauge, though OpenMetrics keeps `_total` for counters; and the name that it should have.
        registry.register("sandboxes_total", "Sandboxes of this node by phase", m.sandboxes.clone());
        registry.register("sandboxes", "Sandboxes of this node by phase", m.sandboxes.clone());
        registry.register("pool_ready_count", "Members that a claim would get", m.ready.clone());
        registry.register("pool_claimed_count", "Members that were claimed and have not ended", m.claimed.clone());
        registry.register("pool_min_ready", "The fewest members that are to be ready", m.min_ready.clone());
        registry.register("pool_claims_per_minute", "Claims in the last minute", m.claims_per_minute.clone());
        registry.register(
            "pool_hit_ratio",
            "Claims that found a member, of all since the agent was started",
            m.hit_ratio.clone(),
        );
        registry.register_with_unit(
            "pool_oldest_member_age",
            "Since the oldest member that waits was made",
            Unit::Seconds,
            m.oldest.clone(),
        );
        registry.register("egress_up", "1: creto-egress answers, and its metrics stand below", m.egress_up.clone());
        registry.register("audit_spool_records", "Records that the ledger does not have yet", m.audit_waiting.clone());
        registry.register_with_unit(
            "audit_spool_oldest_age",
            "Since the oldest of them was written",
            Unit::Seconds,
            m.audit_oldest.clone(),
        );
        registry.register("audit_ledger_records", "Records that the ledger has", m.audit_kept.clone());
        registry.register("audit_ledger_failures", "Drains that failed", m.audit_failures.clone());
        registry.register("spans_exported", "Spans that a collector has taken", m.spans.exported.clone());
        registry.register(
            "spans_dropped",
            "Spans that no collector took, or that found the queue full",
            m.spans.dropped.clone(),
        );
        registry.register("build", "Which build this is", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, ..metrics }
    }

    /// A sandbox was made without a pool.
    pub fn spawned(&self, backend: &str, took: Duration) {
        self.spawn.get_or_create(&Backend { backend: backend.to_owned() }).observe(took.as_secs_f64());
    }

    /// A claim was answered.
    pub fn claimed(&self, pool: &str, outcome: Outcome, took: Duration) {
        let pool_id = pool.to_owned();
        if outcome == Outcome::Hit {
            self.claim.get_or_create(&OfPool { pool_id: pool_id.clone() }).observe(took.as_secs_f64());
        }
        self.claims.get_or_create(&Claimed { pool_id, outcome }).inc();
    }

    /// A member could not be made.
    pub fn warming_failed(&self, pool: &str, cause: &'static str) {
        self.warming_failures.get_or_create(&Cause { pool_id: pool.to_owned(), cause }).inc();
    }

    /// How many sandboxes are in each phase.
    pub fn count_sandboxes(&self, by_phase: &[(&'static str, usize)]) {
        for (status, count) in by_phase {
            self.sandboxes.get_or_create(&Status { status }).set(gauge(*count));
        }
    }

    /// How a pool stands.
    pub fn count_pool(&self, pool: &str, counts: PoolCounts) {
        let label = OfPool { pool_id: pool.to_owned() };
        self.ready.get_or_create(&label).set(gauge(counts.ready));
        self.claimed.get_or_create(&label).set(gauge(counts.claimed));
        self.min_ready.get_or_create(&label).set(gauge(counts.min_ready));
        self.claims_per_minute.get_or_create(&label).set(counts.claims_per_minute);
        if let Some(ratio) = counts.hit_ratio {
            self.hit_ratio.get_or_create(&label).set(ratio);
        }
        let oldest = counts.oldest.map_or(0, |oldest| i64::try_from(oldest.as_secs()).unwrap_or(i64::MAX));
        self.oldest.get_or_create(&label).set(oldest);
    }

    /// How the audit ledger stands.
    pub fn count_audit(&self, counts: AuditCounts) {
        let AuditCounts { waiting, oldest, kept, failures } = counts;
        self.audit_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.audit_oldest.set(oldest.as_secs_f64());
        self.audit_kept.set(i64::try_from(kept).unwrap_or(i64::MAX));
        self.audit_failures.inc_by(failures.saturating_sub(self.audit_failures.get()));
    }

    /// A pool is gone: it is shown no more.
    pub fn forget_pool(&self, pool: &str) {
        let label = OfPool { pool_id: pool.to_owned() };
        for gauges in [&self.ready, &self.claimed, &self.min_ready, &self.oldest] {
            gauges.remove(&label);
        }
        for ratios in [&self.claims_per_minute, &self.hit_ratio] {
            ratios.remove(&label);
        }
    }

    /// All of it as text, and creto-egress' before its end, where that answers.
    pub fn text(&self, egress: Option<&str>) -> String {
        self.egress_up.set(egress.is_some().into());
        let others = egress.unwrap_or_default();
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            return END.to_owned(); // writing into a string does not fail
        }
        let own = text.strip_suffix(END).unwrap_or(&text);
        format!("{own}{}{END}", others.strip_suffix(END).unwrap_or(others))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbooks_names_are_there() {
        let metrics = Metrics::new();
        metrics.spawned("gvisor", Duration::from_millis(300));
        metrics.claimed("p", Outcome::Hit, Duration::from_micros(9_000));
        metrics.claimed("p", Outcome::Empty, Duration::from_secs(30));
        metrics.warming_failed("p", "image-not-found");
        metrics.count_sandboxes(&[("Ready", 3), ("Running", 1)]);
        let counts = PoolCounts {
            ready: 3,
            claimed: 1,
            min_ready: 5,
            claims_per_minute: 1.5,
            hit_ratio: Some(0.5),
            oldest: Some(Duration::from_secs(7)),
        };
        metrics.count_audit(AuditCounts { waiting: 4, oldest: Duration::from_millis(1500), kept: 9, failures: 2 });
        metrics.count_audit(AuditCounts { waiting: 4, oldest: Duration::from_millis(1500), kept: 9, failures: 3 });
        metrics.count_pool("p", counts);
        let egress = "# TYPE creto_runtime_egress_fences gauge\ncreto_runtime_egress_fences 1\n# EOF\n";
        let text = metrics.text(Some(egress));
        for line in [
            "creto_runtime_spawn_latency_seconds_bucket{le=\"0.5\",backend=\"gvisor\"} 1",
            "creto_runtime_pool_claim_latency_seconds_bucket{le=\"0.01\",pool_id=\"p\"} 1",
            "creto_runtime_pool_claim_latency_seconds_count{pool_id=\"p\"} 1",
            "creto_runtime_pool_claims_total{pool_id=\"p\",outcome=\"Empty\"} 1",
            "creto_runtime_pool_warming_failures_total{pool_id=\"p\",cause=\"image-not-found\"} 1",
            "creto_runtime_sandboxes_total{status=\"Ready\"} 3",
            "creto_runtime_sandboxes{status=\"Running\"} 1",
            "creto_runtime_pool_ready_count{pool_id=\"p\"} 3",
            "creto_runtime_pool_claimed_count{pool_id=\"p\"} 1",
            "creto_runtime_pool_min_ready{pool_id=\"p\"} 5",
            "creto_runtime_pool_claims_per_minute{pool_id=\"p\"} 1.5",
            "creto_runtime_pool_hit_ratio{pool_id=\"p\"} 0.5",
            "creto_runtime_pool_oldest_member_age_seconds{pool_id=\"p\"} 7",
            "creto_runtime_audit_spool_records 4",
            "creto_runtime_audit_spool_oldest_age_seconds 1.5",
            "creto_runtime_audit_ledger_records 9",
            "creto_runtime_audit_ledger_failures_total 3",
            "creto_runtime_egress_up 1",
            "creto_runtime_egress_fences 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
        metrics.forget_pool("p");
        let text = metrics.text(None);
        assert!(text.lines().any(|line| line == "creto_runtime_egress_up 0") && text.ends_with("\n# EOF\n"), "{text}");
        for gone in ["ready_count", "hit_ratio", "oldest_member_age_seconds", "claims_per_minute"] {
            assert!(!text.contains(&format!("pool_{gone}{{pool_id=\"p\"}}")), "{gone}");
        }
    }
}
