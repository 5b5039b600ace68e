//! Spans on their way to a collector: a bound on how many wait, what is counted of them, what they are called there, and how they are
//! sent. Not here: whereto, and what is exported at all (`super`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{Context, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;

use super::PATIENCE;

/// Spans that wait at most; more are dropped.
const WAITING: usize = 2048;
/// So many go at once.
const BATCH: usize = 256;
/// What waits goes so often.
const EVERY: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// The name of a request's span.
pub const REQUEST: &str = "request";
/// What of it the log calls otherwise than OpenTelemetry does.
const NAMES: [(&str, &str); 2] = [("method", "http.request.method"), ("path", "url.path")];
/// What the log needs and a span has anyway.
const OF_THE_LOG: [&str; 3] = ["trace_id", "span_id", "parent_id"];
/// The path's pattern.
pub const ROUTE: &str = "http.route";
/// What was answered.
pub const STATUS: &str = "http.response.status_code";

/// Spans that were to be exported. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SpanCounts {
    /// A collector has taken them.
    pub exported: Counter,
    /// The queue was full, or no collector took them.
    pub dropped: Counter,
}

/// What takes spans that end, and gives them to the exporter by and by.
pub fn queue(to: impl SpanExporter + 'static, counts: SpanCounts) -> impl SpanProcessor + 'static {
    let waiting = Arc::new(AtomicUsize::new(0));
    let counted = Counted { to, waiting: waiting.clone(), counts: counts.clone(), fails: AtomicBool::new(false) };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(WAITING)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(EVERY)
        .build();
    Bounded { to: BatchSpanProcessor::builder(counted).with_batch_config(batches).build(), waiting, counts }
}

/// Takes no more spans than may wait. (The SDK's own processor does not tell how many it drops; what passes here, it does not drop.)
#[derive(Debug)]
struct Bounded<P> {
    to: P,
    waiting: Arc<AtomicUsize>,
    counts: SpanCounts,
}

impl<P: SpanProcessor> SpanProcessor for Bounded<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.to.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.dropped.inc();
            return;
        }
        self.to.on_end(conventional(span));
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.to.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.to.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}

/// Counts what comes of spans, and says once that a collector does not take them, and that it does again.
#[derive(Debug)]
struct Counted<E> {
    to: E,
    waiting: Arc<AtomicUsize>,
    counts: SpanCounts,
    fails: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let done = self.to.export(batch).await;
        let count = if done.is_ok() { &self.counts.exported } else { &self.counts.dropped };
        count.inc_by(spans as u64);
        match (&done, self.fails.swap(done.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(%error, "the collector takes no spans; they are dropped, and work goes on")
            }
            (Ok(()), true) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.to.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.to.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}

/// A request's span as OpenTelemetry's conventions have it. Others are as they are.
fn conventional(mut span: SpanData) -> SpanData {
    if span.name != REQUEST {
        return span;
    }
    span.span_kind = SpanKind::Server;
    span.attributes.retain(|attribute| !OF_THE_LOG.contains(&attribute.key.as_str()));
    for attribute in &mut span.attributes {
        if let Some((_, name)) = NAMES.iter().find(|(ours, _)| *ours == attribute.key.as_str()) {
            attribute.key = (*name).into();
        }
    }
    let of = |key: &str| span.attributes.iter().find(|it| it.key.as_str() == key).map(|it| it.value.clone());
    if let (Some(method), Some(route)) = (of("http.request.method"), of(ROUTE)) {
        span.name = format!("{method} {route}").into();
    }
    if let Some(Value::I64(500..)) = of(STATUS) {
        span.status = Status::error("");
    }
    span
}

/// An exporter's way to its collector: within the agent's runtime, for the exporter's own thread has none.
#[derive(Debug)]
pub struct ToCollector {
    /// Connects.
    pub client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Where it does.
    pub runtime: Handle,
}

#[async_trait]
impl HttpClient for ToCollector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        self.runtime.spawn(async move { tokio::time::timeout(PATIENCE, exchange).await }).await??
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    /// Of a collector that takes nothing, or of a queue that is full, nobody waits: it is dropped, and counted once.
    #[test]
    fn what_is_dropped_is_counted() {
        #[derive(Debug)]
        struct Refuses;
        impl SpanExporter for Refuses {
            async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
                Err(OTelSdkError::InternalFailure("no".into()))
            }
        }
        #[derive(Debug)]
        struct Keeps;
        impl SpanProcessor for Keeps {
            fn on_start(&self, _: &mut Span, _: &Context) {}
            fn on_end(&self, _: SpanData) {}
            fn force_flush(&self) -> OTelSdkResult {
                Ok(())
            }
            fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
                Ok(())
            }
        }
        let (counts, waiting) = (SpanCounts::default(), Arc::new(AtomicUsize::new(0)));
        let queue = Bounded { to: Keeps, waiting: waiting.clone(), counts: counts.clone() };
        for _ in 0..WAITING + 3 {
            queue.on_end(request(true, &[]));
        }
        queue.on_end(request(false, &[])); // nobody wants it
        assert_eq!((counts.dropped.get(), counts.exported.get()), (3, 0));
        let exporter =
            Counted { to: Refuses, waiting: waiting.clone(), counts: counts.clone(), fails: AtomicBool::new(false) };
        let batch = vec![request(true, &[]); 10];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(exporter.export(batch)).is_err());
        assert_eq!((counts.dropped.get(), waiting.load(Ordering::Relaxed)), (13, WAITING - 10));
    }

    fn request(sampled: bool, attributes: &[(&'static str, Value)]) -> SpanData {
        use opentelemetry::KeyValue;
        use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
        let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        SpanData {
            span_context: SpanContext::new(TraceId::from(1), SpanId::from(2), flags, false, TraceState::NONE),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: REQUEST.into(),
            start_time: std::time::UNIX_EPOCH,
            end_time: std::time::UNIX_EPOCH,
            attributes: attributes.iter().map(|(key, value)| KeyValue::new(*key, value.clone())).collect(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: Default::default(),
        }
    }

    #[test]
    fn a_request_is_told_as_the_conventions_have_it() {
        let of_log = [("method", "GET".into()), ("path", "/v1/a/b".into()), ("trace_id", "1".into())];
        let of_answer = [(ROUTE, "/v1/a/{id}".into()), (STATUS, 503.into())];
        let span = conventional(request(true, &[&of_log[..], &of_answer].concat()));
        let keys: Vec<_> = span.attributes.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["http.request.method", "url.path", ROUTE, STATUS]);
        assert_eq!((&*span.name, span.span_kind), ("GET /v1/a/{id}", SpanKind::Server));
        assert!(matches!(span.status, Status::Error { .. }));
        assert!(matches!(conventional(request(true, &[(STATUS, 404.into())])).status, Status::Unset));
    }
}
