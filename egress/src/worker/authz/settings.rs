//! The table `[authz]` of egress.toml, and the files it names: read by the privileged half, for the worker. `configs/authz/` has
//! an example of each kind.

use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trust::https::{BadServiceUrl, ServiceUrl};

use super::setup::{DecisionPoint, Limits, Setup, Token};
use super::{authzen, cedar};

/// The longest file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The table `[authz]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct Settings {
    /// Times and counts.
    pub limits: Limits,
    /// Whom to ask, and which files say more.
    pub source: Source,
}

/// Whom to ask, as the table says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `kind = "none"`.
    #[default]
    None,
    /// `kind = "cedar"`.
    Cedar {
        /// Policies, in Cedar's language.
        policies: PathBuf,
        /// Entities, as Cedar's JSON.
        entities: Option<PathBuf>,
        /// The schema of both, in Cedar's language.
        schema: Option<PathBuf>,
    },
    /// `kind = "authzen"`.
    AuthZen {
        /// What comes before `/access/v1/evaluation`.
        url: String,
        /// Certificates (PEM) of whoever may vouch for it.
        ca_file: Option<PathBuf>,
        /// Its bearer token.
        token_file: Option<PathBuf>,
    },
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kind: Kind,
    policies: Option<PathBuf>,
    entities: Option<PathBuf>,
    schema: Option<PathBuf>,
    url: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    deadline: Option<Time>,
    ttl: Option<Time>,
    negative_ttl: Option<Time>,
    breaker_failures: Option<u32>,
    breaker_open: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    None,
    Cedar,
    AuthZen,
}

/// `30s`, `1min 30s`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Time(Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text).map(Self).map_err(|error| format!("{text:?}: {error}"))
    }
}

/// What is wrong with the table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSettings {
    /// A key is missing.
    #[error("authz.{0} is missing: kind = {1:?} needs it")]
    Missing(&'static str, &'static str),
    /// A key of another kind.
    #[error("authz.{0} says nothing where kind = {1:?}: remove it")]
    Surplus(&'static str, &'static str),
    /// The service's address.
    #[error("authz.{0}")]
    Url(#[from] BadServiceUrl),
    /// Nobody could answer.
    #[error("authz.ca_file is missing: an https service needs the certificate that vouches for it")]
    NoCa,
    /// Plain http asks for no certificate.
    #[error("authz.ca_file says nothing where the service is asked by http: remove it")]
    NeedlessCa,
    /// A count or time out of range.
    #[error("authz.{0}: give {1}")]
    Range(&'static str, &'static str),
}

impl TryFrom<Table> for Settings {
    type Error = BadSettings;

    fn try_from(table: Table) -> Result<Self, BadSettings> {
        let kind = match table.kind {
            Kind::None => "none",
            Kind::Cedar => "cedar",
            Kind::AuthZen => "authzen",
        };
        for (key, given, of) in [
            ("policies", table.policies.is_some(), Kind::Cedar),
            ("entities", table.entities.is_some(), Kind::Cedar),
            ("schema", table.schema.is_some(), Kind::Cedar),
            ("url", table.url.is_some(), Kind::AuthZen),
            ("ca_file", table.ca_file.is_some(), Kind::AuthZen),
            ("token_file", table.token_file.is_some(), Kind::AuthZen),
        ] {
            if given && table.kind != of {
                return Err(BadSettings::Surplus(key, kind));
            }
        }
        let limits = limits(&table)?;
        let Table { policies, entities, schema, url, ca_file, token_file, .. } = table;
        let source = match table.kind {
            Kind::None => Source::None,
            Kind::Cedar => {
                let policies = policies.ok_or(BadSettings::Missing("policies", kind))?;
                Source::Cedar { policies, entities, schema }
            }
            Kind::AuthZen => {
                let url = url.ok_or(BadSettings::Missing("url", kind))?;
                match (ServiceUrl::parse(&url)?.is_secure(), &ca_file) {
                    (true, None) => return Err(BadSettings::NoCa),
                    (false, Some(_)) => return Err(BadSettings::NeedlessCa),
                    _ => Source::AuthZen { url, ca_file, token_file },
                }
            }
        };
        Ok(Self { limits, source })
    }
}

fn limits(table: &Table) -> Result<Limits, BadSettings> {
    let default = Limits::default();
    let time = |key, time: &Option<Time>, default, [least, most]: [u64; 2], range| {
        let time = time.as_ref().map_or(default, |time| time.0);
        let fits = (Duration::from_millis(least)..=Duration::from_millis(most)).contains(&time);
        if fits { Ok(time) } else { Err(BadSettings::Range(key, range)) }
    };
    let breaker_failures = table.breaker_failures.unwrap_or(default.breaker_failures);
    if !(1..=1000).contains(&breaker_failures) {
        return Err(BadSettings::Range("breaker_failures", "1 to 1000"));
    }
    Ok(Limits {
        deadline: time("deadline", &table.deadline, default.deadline, [10, 60_000], "10ms to 1min")?,
        ttl: time("ttl", &table.ttl, default.ttl, [0, 3_600_000], "0s to 1h")?,
        negative_ttl: time("negative_ttl", &table.negative_ttl, default.negative_ttl, [0, 3_600_000], "0s to 1h")?,
        breaker_failures,
        breaker_open: time(
            "breaker_open",
            &table.breaker_open,
            default.breaker_open,
            [100, 600_000],
            "100ms to 10min",
        )?,
    })
}

/// Why the privileged half cannot tell the worker whom to ask.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The service's name.
    #[error("{0} cannot be resolved")]
    Name(String, #[source] std::io::Error),
    /// The service's address.
    #[error(transparent)]
    Url(#[from] BadServiceUrl),
}

impl Settings {
    /// Reads the files and resolves the service's name, as the privileged half does at start, when it is told to reload, and
    /// now and then (addresses change). Blocks.
    pub fn read(&self) -> Result<Setup, ReadError> {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let point = match &self.source {
            Source::None => DecisionPoint::None,
            Source::Cedar { policies, entities, schema } => DecisionPoint::Cedar(cedar::Texts {
                policies: read(policies)?,
                entities: optional(entities)?,
                schema: optional(schema)?,
            }),
            Source::AuthZen { url, ca_file, token_file } => DecisionPoint::AuthZen(authzen::Service {
                url: url.clone(),
                addresses: addresses(&ServiceUrl::parse(url)?)?,
                ca: optional(ca_file)?,
                token: token_file.as_deref().map(token).transpose()?,
            }),
        };
        Ok(Setup { limits: self.limits, point })
    }
}

fn addresses(url: &ServiceUrl) -> Result<Vec<SocketAddr>, ReadError> {
    let (host, _) = url.authority();
    let found = url.authority().to_socket_addrs().map_err(|error| ReadError::Name(host.to_owned(), error))?;
    // In one order, whatever the resolver's: only a change is a change.
    let mut addresses: Vec<_> = found.collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn token(path: &Path) -> Result<Token, ReadError> {
    let bad = |why: &str| ReadError::File { path: path.to_owned(), why: why.to_owned() };
    let mode = std::fs::metadata(path).map_err(|error| bad(&error.to_string()))?.mode();
    if mode & 0o007 != 0 {
        return Err(bad("anybody may read or change this token: chmod o= it"));
    }
    Token::parse(read(path)?.trim_end()).ok_or_else(|| bad("no bearer token (RFC 6750): one line of visible ASCII"))
}

fn read(path: &Path) -> Result<String, ReadError> {
    let bad = |why: String| ReadError::File { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| bad(error.to_string()))?;
    if text.len() as u64 > MAX_FILE { Err(bad(format!("longer than {MAX_FILE} bytes"))) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
