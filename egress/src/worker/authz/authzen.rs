//! A decision point that speaks the AuthZEN Authorization API 1.0 (OpenID, §6 Access Evaluation API, §10.1 HTTPS binding):
//! `POST /access/v1/evaluation`, over connections that are kept. Only a plain yes is a yes. Not here: how long an answer
//! counts, deadlines, and what happens where there is none (`mod`).

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use trust::chain::chain;
use trust::https::{self, BadServiceUrl, ServiceUrl};
use trust::json;

use super::question::{Host, Question};
use super::setup::Token;
use super::{Undecided, Verdict};

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// So many questions are asked at once; more wait for their turn, within their deadline.
const MOST_AT_ONCE: usize = 64;
/// A connection that nobody used for so long is closed, before the service may think of it.
const IDLE: Duration = Duration::from_secs(30);
const JSON: &str = "application/json";

/// Where the service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What comes before `/access/v1/evaluation`: `https://…`, or `http://` and a loopback address.
    pub url: String,
    /// What its name resolves to: the worker resolves none.
    pub addresses: Vec<SocketAddr>,
    /// Certificates (PEM) of whoever may vouch for an https service; the system's own are not asked.
    pub ca: Option<String>,
    /// Sent with every question.
    pub token: Option<Token>,
}

/// Why a service cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum BadAuthZen {
    /// Nobody's address, or anybody's.
    #[error(transparent)]
    Url(#[from] BadServiceUrl),
    /// Nobody could answer.
    #[error("ca is missing: an https service needs the certificate that vouches for it")]
    NoCa,
    /// No certificate in it.
    #[error("ca: {0}")]
    Ca(String),
    /// No header could carry it.
    #[error("token: not a bearer token (RFC 6750)")]
    Token,
    /// TLS cannot be spoken.
    #[error("the TLS client cannot be made")]
    Tls(#[from] rustls::Error),
}

/// The service.
pub struct AuthZen {
    evaluation: Uri,
    headers: HeaderMap,
    client: Client<HttpsConnector<HttpConnector<Addresses>>, Full<Bytes>>,
    turns: Semaphore,
}

/// The service's addresses, as they were given.
#[derive(Clone)]
struct Addresses(Vec<SocketAddr>);

impl AuthZen {
    /// Asks nobody yet.
    pub fn new(service: &Service) -> Result<Self, BadAuthZen> {
        let url = ServiceUrl::parse(&service.url)?;
        let roots = match (&service.ca, url.is_secure()) {
            (Some(pem), true) => https::roots(pem.as_bytes()).map_err(BadAuthZen::Ca)?,
            (None, true) => return Err(BadAuthZen::NoCa),
            (_, false) => rustls::RootCertStore::empty(),
        };
        let evaluation = format!("{}/access/v1/evaluation", service.url.trim_end_matches('/'));
        let evaluation = evaluation.parse().map_err(|_| BadServiceUrl::Url(service.url.clone()))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(ACCEPT, HeaderValue::from_static(JSON));
        if let Some(token) = &service.token {
            let mut bearer =
                HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| BadAuthZen::Token)?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut http = HttpConnector::new_with_resolver(Addresses(service.addresses.clone()));
        http.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(url.connector(http, roots)?);
        Ok(Self { evaluation, headers, client, turns: Semaphore::new(MOST_AT_ONCE) })
    }

    /// Asks. hyper repeats a question by itself in one case alone: the connection that was kept had been closed before a byte
    /// of the question went out. Nothing else is repeated, and no redirection followed.
    pub async fn ask(&self, question: &Question) -> Result<Verdict, Undecided> {
        let away = |error: &dyn std::error::Error| Undecided::Unreachable(chain(error));
        let _turn = self.turns.acquire().await.map_err(|error| away(&error))?;
        let mut request = Request::post(&self.evaluation)
            .body(Full::from(evaluation(question).to_string()))
            .map_err(|error| away(&error))?;
        request.headers_mut().clone_from(&self.headers);
        let response = self.client.request(request).await.map_err(|error| away(&error))?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(Undecided::NoAnswer(format!("status {}", head.status.as_u16())));
        }
        if !is_json(&head.headers) {
            return Err(Undecided::NoAnswer(format!("its type is not {JSON}")));
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Undecided::NoAnswer(chain(&*error)))?;
        verdict(&body.to_bytes())
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON)
}

/// What an answer says: of an object `decision`, which must be there, once, and a boolean.
fn verdict(body: &[u8]) -> Result<Verdict, Undecided> {
    let answer: Map<String, Value> = json::from_slice(body).map_err(|error| Undecided::NoAnswer(error.to_string()))?;
    match answer.get("decision") {
        Some(Value::Bool(true)) => Ok(Verdict::Granted),
        Some(Value::Bool(false)) => Ok(Verdict::Refused),
        Some(_) => Err(Undecided::NoAnswer("decision is neither true nor false".into())),
        None => Err(Undecided::NoAnswer("decision is missing".into())),
    }
}

/// The question as it is asked. What only decision points that look at the context could see stands in the properties, too.
fn evaluation(question: &Question) -> Value {
    let Question { sandbox, agent, host, port, generation } = question;
    let name = sandbox.to_string();
    let (kind, id) = match agent {
        Some(agent) => ("agent", agent),
        None => ("workload", &name),
    };
    let zones: Vec<_> = host.zones().collect();
    let mut destination = json!({"host": host.to_string(), "port": port, "protocol": "tcp", "zones": zones});
    match host {
        Host::Name(name) => destination["name"] = name.as_str().into(),
        Host::Address(address) => destination["ip"] = address.to_string().into(),
    }
    json!({
        "subject": {"type": kind, "id": id, "properties": {"sandbox": name, "namespace": sandbox.namespace}},
        "action": {"name": "connect"},
        "resource": {"type": "destination", "id": question.destination(), "properties": destination},
        "context": {"sandbox": name, "namespace": sandbox.namespace, "generation": generation},
    })
}

impl tower_service::Service<Name> for Addresses {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}

#[cfg(test)]
mod tests;
