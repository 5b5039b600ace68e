//! The daemon's own metrics, with the worker's beside them: shown over egress.sock, and by `/metrics` over HTTP (OpenMetrics 1.0).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::worker::Worker;
use crate::worker::Outcome;

/// Readers at a time.
const READERS: usize = 16;
/// How long one may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is counted.
pub struct Metrics {
    registry: Registry,
    attempts: Family<Decided, Counter>,
    lost: Counter,
    attach: Histogram,
    fences: Gauge<i64, std::sync::atomic::AtomicI64>,
    tampered: Counter<u64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    decision: &'static str,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("creto_runtime_egress");
        let (attempts, lost, fences, tampered) =
            <(Family<Decided, Counter>, Counter, Gauge<_, _>, Counter<_, _>)>::default();
        // From a quarter of a millisecond: a fence takes a few.
        let attach = Histogram::new([0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0]);
        registry.register("attempts", "What sandboxes wanted to connect to, by what it came to", attempts.clone());
        registry.register("attempts_lost", "Attempts that found no room on their way to the record", lost.clone());
        registry.register(
            "attach_latency_seconds",
            "Putting up a fence, from the question to the answer",
            attach.clone(),
        );
        registry.register("fences", "Sandboxes with a fence around them", fences.clone());
        registry.register(
            "fences_tampered",
            "Fences whose rules in the kernel somebody else had changed",
            tampered.clone(),
        );
        for decision in ["Allow", "Deny", "RequireAuthz"] {
            drop(attempts.get_or_create(&Decided { decision })); // a rate needs a zero to begin with
        }
        Self { registry, attempts, lost, attach, fences, tampered }
    }

    /// Somebody tried something.
    pub fn attempt(&self, outcome: &Outcome) {
        let decision = match outcome {
            Outcome::Allowed => "Allow",
            Outcome::Denied(_) => "Deny",
            Outcome::AuthzRequired => "RequireAuthz",
        };
        self.attempts.get_or_create(&Decided { decision }).inc();
    }

    /// Attempts that nobody will ever hear of.
    pub fn lost(&self, count: u64) {
        self.lost.inc_by(count);
    }

    /// A fence was put up, from then until now.
    pub fn attached(&self, since: Instant) {
        self.attach.observe(since.elapsed().as_secs_f64());
    }

    /// So many stand.
    pub fn standing(&self, fences: usize) {
        self.fences.set(i64::try_from(fences).unwrap_or(i64::MAX));
    }

    /// One had been changed.
    pub fn tampered(&self) {
        self.tampered.inc();
    }

    /// All of it as text, and the worker's text before its end.
    fn text(&self, workers: &str) -> String {
        const END: &str = "# EOF\n";
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            return END.to_owned(); // writing into a string does not fail
        }
        let own = text.strip_suffix(END).unwrap_or(&text);
        format!("{own}{}{END}", workers.strip_suffix(END).unwrap_or(workers))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What whoever asks is shown: the daemon's own metrics, and the worker's where it answers. Clones share them.
#[derive(Clone)]
pub struct Shown {
    metrics: Arc<Metrics>,
    worker: Worker,
}

impl Shown {
    /// Of these two.
    pub fn new(metrics: Arc<Metrics>, worker: Worker) -> Self {
        Self { metrics, worker }
    }

    /// As OpenMetrics text.
    pub async fn text(&self) -> String {
        let workers = self.worker.report().await.map(|report| report.metrics).unwrap_or_default();
        self.metrics.text(&workers)
    }
}

/// Answers `GET /metrics` for ever.
pub async fn serve(listener: TcpListener, shown: Shown) {
    let room = Arc::new(Semaphore::new(READERS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a reader of metrics");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors, say
                continue;
            }
        };
        let shown = shown.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, &shown));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a reader of metrics is gone");
            }
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, shown: &Shown) -> Result<Response<String>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", shown.text().await)
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there is /metrics\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_ends_once() {
        let metrics = Metrics::new();
        metrics.attempt(&Outcome::Denied("x".into()));
        let text = metrics.text("# TYPE a gauge\na 1\n# EOF\n");
        assert!(text.contains("creto_runtime_egress_attempts_total{decision=\"Deny\"} 1\n"), "{text}");
        assert!(text.ends_with("a 1\n# EOF\n"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
    }
}
