//! Why a flow is refused or cut, in words for people and for programs, and how a client is told that speaks cleartext HTTP.
//!
//! Source: RFC 9457 (problem details).

use serde::Serialize;

use super::sniff::Malformed;
use crate::policy::Reason;

/// Why a flow is refused, or cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It comes from nobody that we know.
    #[error("it comes from the address of no sandbox")]
    NoSandbox,
    /// It goes to a synthetic address that stands for no name of this sandbox.
    #[error("the address stands for no name of this sandbox: it is another's, or too old")]
    NoName,
    /// Where it goes is not known: it came to the gate by itself, and not by the fence.
    #[error("it was not brought here by the fence")]
    NoDestination,
    /// As many as may be are open.
    #[error("too many connections are open")]
    TooMany,
    /// The policy.
    #[error("{0}")]
    Policy(Reason),
    /// The sandbox is not attached any more.
    #[error("the sandbox is not attached any more")]
    Detached,
    /// The decision point.
    #[error("{0}")]
    Authz(String),
    /// A ClientHello or a head that did not come to its end.
    #[error("the client took too long to say where it goes")]
    TooSlow,
    /// TLS or HTTP, but not as its specification has it.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// TLS, to another name.
    #[error("TLS to another name: {0:?}")]
    ServerName(String),
    /// TLS, to no name.
    #[error("TLS without a server_name")]
    NoServerName,
    /// TLS that may hide a name.
    #[error("an encrypted ClientHello, which may hide another name")]
    EncryptedHello,
    /// HTTP, to another host.
    #[error("HTTP to another host: {0:?}")]
    Host(String),
    /// HTTP, to no host.
    #[error("HTTP without a Host")]
    NoHost,
    /// HTTP, of another version than 1.0 and 1.1.
    #[error("cleartext HTTP of a version other than 1, in which the host cannot be told")]
    HttpVersion,
    /// The name has addresses, but none that it may have.
    #[error("the name has no address that may be connected to: {0}")]
    Addresses(String),
}

impl Refusal {
    /// One word for it, for metrics and programs. Never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSandbox => "no_sandbox",
            Self::NoName => "no_name",
            Self::NoDestination => "no_destination",
            Self::TooMany => "too_many_connections",
            Self::Policy(_) => "policy",
            Self::Detached => "detached",
            Self::Authz(_) => "authz",
            Self::TooSlow => "too_slow",
            Self::Malformed(_) => "malformed",
            Self::ServerName(_) => "server_name",
            Self::NoServerName => "no_server_name",
            Self::EncryptedHello => "encrypted_client_hello",
            Self::Host(_) => "host",
            Self::NoHost => "no_host",
            Self::HttpVersion => "http_version",
            Self::Addresses(_) => "addresses",
        }
    }
}

/// What a client is told that speaks cleartext HTTP.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem<'a> {
    /// What kind of problem; a name, nothing is found there.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The same for every problem of its kind.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Why, for people.
    pub detail: String,
    /// Why, in one word.
    pub reason: &'static str,
    /// Where the client wanted to go: a name, or an address, and a port.
    pub destination: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// The generation of the policy that did.
    pub generation: u64,
}

impl<'a> Problem<'a> {
    /// A refusal: 403.
    pub fn refused(refusal: &Refusal, destination: String, rule: Option<&'a str>, generation: u64) -> Self {
        Self {
            kind: "https://creto.dev/problems/egress-refused",
            title: "The sandbox's egress policy refuses it",
            status: 403,
            detail: refusal.to_string(),
            reason: refusal.code(),
            destination,
            rule,
            generation,
        }
    }

    /// Nobody could be reached: 502.
    pub fn unreachable(detail: String, destination: String, rule: Option<&'a str>, generation: u64) -> Self {
        Self {
            kind: "https://creto.dev/problems/egress-unreachable",
            title: "The host cannot be reached",
            status: 502,
            detail,
            reason: "unreachable",
            destination,
            rule,
            generation,
        }
    }

    /// The whole response, after which the connection ends.
    pub fn response(&self) -> Vec<u8> {
        let phrase = if self.status == 403 { "Forbidden" } else { "Bad Gateway" };
        let body = serde_json::to_string(self).unwrap_or_default(); // text and numbers only: it does not fail
        format!(
            "HTTP/1.1 {} {phrase}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\n\r\n{body}",
            self.status,
            body.len(),
        )
        .into_bytes()
    }
}
