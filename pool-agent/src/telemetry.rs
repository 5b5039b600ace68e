//! The agent's log, and its spans to a collector: OTLP over HTTP, where `[tracing]` or the environment names one. Spans go by way of a
//! bounded queue that a thread of its own empties: nobody waits for a collector, and what it does not take is counted and gone.
//!
//! The log has the spans of level info; exported are those of level debug, too, and no event: what an attribute says is written at its
//! span. Not here: how a request becomes part of its caller's trace ([`crate::api`]). Sources: OTLP 1.x, OpenTelemetry's environment
//! variables, and its semantic conventions for HTTP servers.

pub mod spans;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use rustls::RootCertStore;
use tokio::runtime::Handle;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, registry};
use trust::https::{self, BadServiceUrl, ServiceUrl};
use trust::id::NodeId;

use crate::config;
use spans::{SpanCounts, ToCollector};

/// What the agent is called, where the environment does not say otherwise.
const SERVICE: &str = "creto-pool-agent";
/// A collector has so long for a batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// When the agent ends, what waits has so long to go.
const LAST: Duration = Duration::from_secs(3);
/// Where a collector takes traces (OTLP, "OTLP/HTTP Request").
const TRACES: &str = "/v1/traces";

/// The subscriber is the process's, and so is this. (`tracing::span_enabled!` would leave its verdict for the next span of the thread,
/// where layers have filters of their own: tracing-subscriber 0.3.23.)
static EXPORTS: AtomicBool = AtomicBool::new(false);

/// Whether spans go to a collector.
pub fn exports() -> bool {
    EXPORTS.load(Ordering::Relaxed)
}

/// Why spans are not exported as they should be.
#[derive(Debug, thiserror::Error)]
pub enum BadTelemetry {
    /// The collector's address.
    #[error("{key}: the collector's {why}")]
    Url {
        /// Who names it.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        why: BadServiceUrl,
    },
    /// Nobody vouches for it.
    #[error(
        "{0}: an https collector needs the certificate that vouches for it: tracing.ca, or OTEL_EXPORTER_OTLP_CERTIFICATE"
    )]
    NoCa(&'static str),
    /// The certificates cannot be read.
    #[error("the collector's certificates: {}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// TLS cannot be spoken.
    #[error("the TLS client cannot be made")]
    Tls(#[from] rustls::Error),
    /// What else the environment says of OTLP.
    #[error("OTLP")]
    Exporter(#[from] ExporterBuildError),
    /// Somebody logs in this process already.
    #[error("the log is set up twice")]
    Twice(#[from] TryInitError),
}

/// A collector that spans go to.
#[derive(Debug)]
struct Collector {
    url: ServiceUrl,
    traces: String,
    ca: Option<PathBuf>,
}

impl Collector {
    /// As the settings say, else as the environment does; none where nobody names one.
    fn named(settings: &config::Tracing, env: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, BadTelemetry> {
        let env = |key| env(key).filter(|value| !value.is_empty());
        if env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let below = |base: String| format!("{}{TRACES}", base.trim_end_matches('/'));
        let (own, of_traces, of_all) =
            ("tracing.otlp_endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let named = settings.otlp_endpoint.clone().map(|base| (own, below(base)));
        let named = named.or_else(|| Some((of_traces, env(of_traces)?)));
        let Some((key, traces)) = named.or_else(|| Some((of_all, below(env(of_all)?)))) else { return Ok(None) };
        let url = ServiceUrl::parse(&traces).map_err(|why| BadTelemetry::Url { key, why })?;
        let ca = settings.ca.clone().or_else(|| env("OTEL_EXPORTER_OTLP_CERTIFICATE").map(PathBuf::from));
        match url.is_secure() && ca.is_none() {
            true => Err(BadTelemetry::NoCa(key)),
            false => Ok(Some(Self { url, traces, ca })),
        }
    }

    fn client(&self) -> Result<ToCollector, BadTelemetry> {
        let roots = match self.ca.as_ref().filter(|_| self.url.is_secure()) {
            Some(path) => {
                let bad = |why: String| BadTelemetry::Ca { path: path.clone(), why };
                https::roots(&fs::read(path).map_err(|e| bad(e.to_string()))?).map_err(bad)?
            }
            None => RootCertStore::empty(),
        };
        let connector = self.url.connector(HttpConnector::new(), roots)?;
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(ToCollector { client, runtime: Handle::current() })
    }
}

/// The log, and the way to a collector where there is one.
#[must_use = "what waits is exported at its end"]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sets both up for this process, within its runtime. From here on it logs to stderr.
    pub fn start(
        settings: &config::Tracing,
        node: &NodeId,
        level: Level,
        counts: SpanCounts,
    ) -> Result<Self, BadTelemetry> {
        let env = |key: &str| std::env::var(key).ok();
        let collector = Collector::named(settings, env)?;
        let provider = collector.map(|collector| provider(&collector, settings, node, counts)).transpose()?;
        let exported = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SERVICE))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_context_activation(false)
                .with_filter(filter_fn(|it| it.is_span() && it.target().starts_with(env!("CARGO_CRATE_NAME"))))
        });
        let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
        registry().with(exported).with(log.with_filter(LevelFilter::from_level(level))).try_init()?;
        EXPORTS.store(provider.is_some(), Ordering::Relaxed);
        Ok(Self(provider))
    }

    /// What waits goes, as far as that is quickly done.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last spans are not exported");
        }
    }
}

fn provider(
    collector: &Collector,
    settings: &config::Tracing,
    node: &NodeId,
    counts: SpanCounts,
) -> Result<SdkTracerProvider, BadTelemetry> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&collector.traces)
        .with_timeout(PATIENCE)
        .with_http_client(collector.client()?)
        .build()?;
    let roots = Sampler::TraceIdRatioBased(f64::from(settings.sample_percent) / 100.0);
    let mut resource = Resource::builder() // with OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", node.to_string()));
    if std::env::var("OTEL_SERVICE_NAME").is_err() {
        resource = resource.with_service_name(SERVICE);
    }
    Ok(SdkTracerProvider::builder()
        .with_span_processor(spans::queue(exporter, counts))
        .with_sampler(Sampler::ParentBased(Box::new(roots)))
        .with_resource(resource.build())
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(settings: &[&str; 2], env: &[(&str, &str)]) -> Result<Option<Collector>, String> {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let settings = config::Tracing {
            otlp_endpoint: some(settings[0]),
            ca: some(settings[1]).map(PathBuf::from),
            ..config::Tracing::default()
        };
        let env = |key: &str| env.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
        Collector::named(&settings, env).map_err(|e| e.to_string())
    }

    #[test]
    fn the_settings_name_the_collector_or_the_environment_does_or_there_is_none() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1/a/");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:2/b");
        for (settings, env, expected) in [
            (["", ""], &[][..], None),
            (["", ""], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], None),
            (["http://127.0.0.1:4318", ""], &[all, traces], Some("http://127.0.0.1:4318/v1/traces")),
            (["", ""], &[all, traces], Some("http://127.0.0.1:2/b")),
            (["", ""], &[all], Some("http://127.0.0.1:1/a/v1/traces")),
            (["http://127.0.0.1:4318", ""], &[("OTEL_SDK_DISABLED", "true")], None),
            (["https://otel.example.org/", "/ca.pem"], &[], Some("https://otel.example.org/v1/traces")),
            (
                ["", ""],
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a.example.org"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/c")],
                Some("https://a.example.org/v1/traces"),
            ),
        ] {
            let named = named(&settings, env).unwrap().map(|collector| collector.traces);
            assert_eq!(named.as_deref(), expected, "{settings:?} {env:?}");
        }
        for (settings, env, why) in [
            (["http://10.0.0.1:4318", ""], &[][..], "tracing.otlp_endpoint"),
            (["https://otel.example.org", ""], &[], "tracing.ca"),
            (["", ""], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ] {
            let error = named(&settings, env).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_named() {
        let named = named(&["https://otel.example.org", "/nonexistent/ca.pem"], &[]).unwrap().unwrap();
        assert!(named.client().unwrap_err().to_string().contains("/nonexistent/ca.pem"));
    }
}
