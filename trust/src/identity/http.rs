//! Agents from a creto-nhi service: `GET /v1/jwks?spiffe_id=…`; docs/creto-nhi.openapi.json is the contract.
//!
//! An answer is kept for a while, a refusal or a failure for a shorter one; however many ask for an agent, one request is under
//! way. Whatever is not an answer is a refusal. Not here: what the keys are good for (`token`).

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::source::{Agent, AgentKey, AgentSource, SourceError};
use crate::chain::chain;
use crate::https::{self, BadServiceUrl, ServiceUrl};
use crate::id::{AgentId, BackendName, PolicyName};
use crate::json;
use crate::keys::jwks::{JwkSet, MAX_SET_BYTES};

/// So many agents are remembered; then all that nobody is asking for are forgotten.
const MOST_AGENTS: usize = 10_000;

/// Where the service is, and how long its answers count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What comes before `/v1/jwks`: `https://…`, or `http://` and a loopback address.
    pub url: String,
    /// Certificates (PEM) of whoever may vouch for an https service; the system's own are not asked.
    pub ca_file: Option<PathBuf>,
    /// An agent's keys count for this long: so long may a revocation take.
    pub ttl: Duration,
    /// A refusal or failure counts for this long.
    pub negative_ttl: Duration,
    /// After `ttl`, an old answer is served for this long while a new one is fetched; zero for never.
    pub stale: Duration,
    /// One request, all in all.
    pub timeout: Duration,
}

impl Settings {
    /// 60 s, 5 s for refusals, nothing stale, 2 s a request.
    pub fn new(url: impl Into<String>, ca_file: Option<PathBuf>) -> Self {
        let [ttl, negative_ttl, stale, timeout] = [60, 5, 0, 2].map(Duration::from_secs);
        Self { url: url.into(), ca_file, ttl, negative_ttl, stale, timeout }
    }
}

/// Why a service cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// Nobody's address, or anybody's.
    #[error(transparent)]
    Url(#[from] BadServiceUrl),
    /// TLS cannot be spoken.
    #[error("the TLS client cannot be made")]
    Tls(#[from] rustls::Error),
    /// Nobody could answer.
    #[error("ca_file is missing: an https service needs the certificate that vouches for it")]
    NoCa,
    /// No certificate in it.
    #[error("ca_file {}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The service, and its answers so far.
pub struct HttpSource {
    service: Arc<Service>,
}

struct Service {
    settings: Settings,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    agents: Mutex<HashMap<AgentId, Arc<Slot>>>,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
}

/// What is known of one agent.
#[derive(Default)]
struct Slot {
    answer: Mutex<Option<Answer>>,
    /// Held by whoever asks the service.
    asking: Arc<tokio::sync::Mutex<()>>,
}

struct Answer {
    at: Instant,
    result: Result<Agent, SourceError>,
}

/// The members of a key set that are ours.
#[derive(Deserialize)]
struct Members {
    #[serde(rename = "creto.dev/agent")]
    agent: AgentId,
    #[serde(rename = "creto.dev/backends")]
    backends: Option<Vec<BackendName>>,
    #[serde(rename = "creto.dev/default-policy")]
    default_policy: Option<PolicyName>,
}

impl HttpSource {
    /// Reads the certificates; asks nobody yet.
    pub fn new(settings: Settings) -> Result<Self, BadSettings> {
        Self::with_time(settings, Box::new(Instant::now))
    }

    fn with_time(settings: Settings, now: Box<dyn Fn() -> Instant + Send + Sync>) -> Result<Self, BadSettings> {
        let url = ServiceUrl::parse(&settings.url)?;
        let roots = match (&settings.ca_file, url.is_secure()) {
            (Some(path), true) => roots(path)?,
            (None, true) => return Err(BadSettings::NoCa),
            (_, false) => rustls::RootCertStore::empty(),
        };
        let client = Client::builder(TokioExecutor::new()).build(url.connector(HttpConnector::new(), roots)?);
        Ok(Self { service: Arc::new(Service { settings, client, agents: Mutex::default(), now }) })
    }
}

#[async_trait]
impl AgentSource for HttpSource {
    async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError> {
        let (service, slot) = (&self.service, self.service.slot(id));
        if let Some(result) = service.fresh(&slot) {
            return result;
        }
        if let Some(agent) = service.stale(&slot) {
            if let Ok(asking) = slot.asking.clone().try_lock_owned() {
                let (service, id) = (self.service.clone(), id.clone());
                tokio::spawn(async move {
                    let result = service.ask(&id).await;
                    // The old answer goes on counting while the service is away, to the end of its time.
                    if !matches!(result, Err(SourceError::Unreachable(..))) {
                        service.keep(&slot, result);
                    }
                    drop(asking);
                });
            }
            return Ok(agent);
        }
        let _asking = slot.asking.lock().await;
        // Whoever asked before us may have got the answer for us, too.
        if let Some(result) = service.fresh(&slot) {
            return result;
        }
        let result = service.ask(id).await;
        service.keep(&slot, result.clone());
        result
    }
}

impl Service {
    fn slot(&self, id: &AgentId) -> Arc<Slot> {
        let mut agents = locked(&self.agents);
        if agents.len() >= MOST_AGENTS && !agents.contains_key(id) {
            agents.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        agents.entry(id.clone()).or_default().clone()
    }

    fn keep(&self, slot: &Slot, result: Result<Agent, SourceError>) {
        *locked(&slot.answer) = Some(Answer { at: (self.now)(), result });
    }

    fn fresh(&self, slot: &Slot) -> Option<Result<Agent, SourceError>> {
        let answer = locked(&slot.answer);
        let Answer { at, result } = answer.as_ref()?;
        let counts = if result.is_ok() { self.settings.ttl } else { self.settings.negative_ttl };
        (self.age(*at) < counts).then(|| result.clone())
    }

    fn stale(&self, slot: &Slot) -> Option<Agent> {
        let answer = locked(&slot.answer);
        let Answer { at, result } = answer.as_ref()?;
        (self.age(*at) < self.settings.ttl + self.settings.stale).then(|| result.as_ref().ok().cloned())?
    }

    fn age(&self, at: Instant) -> Duration {
        (self.now)().saturating_duration_since(at)
    }

    async fn ask(&self, id: &AgentId) -> Result<Agent, SourceError> {
        let away = |why: String| SourceError::Unreachable(id.clone(), format!("{}: {why}", self.settings.url));
        let (status, body) = match tokio::time::timeout(self.settings.timeout, self.get(id)).await {
            Ok(answer) => answer.map_err(away)?,
            Err(_) => return Err(away(format!("no answer within {:?}", self.settings.timeout))),
        };
        let who = || self.settings.url.clone();
        match status {
            StatusCode::OK => agent(id, &body).map_err(|why| SourceError::Broken(format!("{}: {id}: {why}", who()))),
            StatusCode::NOT_FOUND => Err(SourceError::Unknown(id.clone(), format!("{} has no such agent", who()))),
            StatusCode::FORBIDDEN => Err(SourceError::Disabled(id.clone(), who())),
            StatusCode::GONE => Err(SourceError::Revoked(id.clone(), who())),
            other => Err(away(format!("answered {other}"))),
        }
    }

    /// All that a SPIFFE ID is made of may stand in a query as it is (RFC 3986 §3.4).
    async fn get(&self, id: &AgentId) -> Result<(StatusCode, Bytes), String> {
        let url: Uri = format!("{}/v1/jwks?spiffe_id={id}", self.settings.url.trim_end_matches('/'))
            .parse()
            .map_err(|e| format!("{e}"))?;
        let request = Request::get(url)
            .header(ACCEPT, "application/jwk-set+json")
            .body(Empty::new())
            .map_err(|e| e.to_string())?;
        let response = self.client.request(request).await.map_err(|e| chain(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_SET_BYTES).collect().await.map_err(|e| chain(&*e))?;
        Ok((status, body.to_bytes()))
    }
}

/// What a good answer says; it must be about the agent that was asked for.
fn agent(id: &AgentId, body: &[u8]) -> Result<Agent, String> {
    let set = JwkSet::parse(body).map_err(|e| chain(&e))?;
    let members: Members = json::from_slice(body).map_err(|e| e.to_string())?;
    if members.agent != *id {
        return Err(format!("the answer is about {}", members.agent));
    }
    let Members { backends, default_policy, .. } = members;
    Ok(Agent { id: id.clone(), keys: AgentKey::of_jwks(set.keys)?, backends, default_policy })
}

fn roots(path: &Path) -> Result<rustls::RootCertStore, BadSettings> {
    let bad = |why: String| BadSettings::Ca { path: path.to_owned(), why };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    https::roots(&pem).map_err(bad)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
