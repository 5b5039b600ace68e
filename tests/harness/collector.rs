//! OpenTelemetry's collector on the loopback of a node's network: it takes OTLP over HTTP, as any does, and writes what it was sent.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::json;

use super::network::Network;
use super::{parts, wait_until};

/// A collector; it ends with the test.
pub struct Collector<'a> {
    network: &'a Network,
    process: Child,
}

/// A span that it was sent.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// The ids, in hexadecimal digits: its trace's, its own, and its parent's, empty where it has none.
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// `Server` for a request.
    pub kind: String,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// What is said of who sends it.
    pub resource: BTreeMap<String, String>,
}

impl<'a> Collector<'a> {
    /// What pool-agent.toml says of it.
    pub const SETTINGS: &'static str = "[tracing]\notlp_endpoint = \"http://127.0.0.1:4318\"\n";

    /// Starts it, and waits until it listens.
    pub fn start(network: &'a Network) -> Self {
        let config = network.node.path("otelcol.yaml");
        let text = json!({ // JSON is YAML
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": "127.0.0.1:4318"}}}},
            "exporters": {"debug": {"verbosity": "detailed", "use_internal_logger": false}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}},
            },
        });
        fs::write(&config, text.to_string()).unwrap();
        let out = fs::File::options().create(true).append(true).open(network.node.path("spans.txt")).unwrap();
        let mut command = network.host.command(parts::otelcol().to_str().unwrap());
        command.arg(format!("--config=file:{}", config.display())).stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let collector = Self { network, process: command.spawn().unwrap() };
        wait_until("the collector listens", || network.host.inside(|| TcpStream::connect("127.0.0.1:4318").is_ok()));
        collector
    }

    /// What it was sent so far.
    pub fn sent(&self) -> Vec<Sent> {
        spans(&fs::read_to_string(self.network.node.path("spans.txt")).unwrap())
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads what its exporter `debug` writes. What is still being written of the last span is missing.
fn spans(text: &str) -> Vec<Sent> {
    let (mut all, mut resource, mut of_resource) = (Vec::new(), BTreeMap::new(), false);
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("ResourceSpans #") {
            (resource, of_resource) = (BTreeMap::new(), true);
        } else if line.starts_with("ScopeSpans #") {
            of_resource = false;
        } else if line.starts_with("Span #") {
            all.push(Sent { resource: resource.clone(), ..Sent::default() });
        } else if let Some((key, value)) = line.strip_prefix("-> ").and_then(|it| it.split_once(": ")) {
            // `Str(…)`, `Int(…)`
            let value = value.split_once('(').map_or(value, |(_, inner)| inner.strip_suffix(')').unwrap_or(inner));
            let attributes = match all.last_mut() {
                _ if of_resource => &mut resource,
                Some(span) => &mut span.attributes,
                None => continue,
            };
            attributes.insert(key.to_owned(), value.to_owned());
        } else if let (Some((key, value)), Some(span)) = (line.split_once(':'), all.last_mut()) {
            let field = match key.trim() {
                "Trace ID" => &mut span.trace,
                "Parent ID" => &mut span.parent,
                "ID" => &mut span.id,
                "Name" => &mut span.name,
                "Kind" => &mut span.kind,
                _ => continue,
            };
            value.trim().clone_into(field);
        }
    }
    all
}
