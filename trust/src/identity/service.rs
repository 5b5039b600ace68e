//! The settings of a creto-nhi service, as runtime.toml has them: the tables `[identity]` and `[identity.http]`, read by the shim and by
//! the node agent alike. Not here: asking it (`http`).

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where agents are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// In files on the node.
    #[default]
    Registry,
    /// At a creto-nhi service.
    Http,
}

/// The table `[identity.http]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// Of the service: `https://…`, or `http://` and a loopback address.
    pub url: String,
    /// Certificates (PEM) of whoever vouches for it.
    pub ca_file: Option<PathBuf>,
    /// One request, all in all.
    #[serde(default = "HttpSettings::timeout", deserialize_with = "timeout")]
    pub timeout: Duration,
}

impl HttpSettings {
    /// Nobody's Create waits longer.
    pub const LONGEST: Duration = Duration::from_secs(30);

    fn timeout() -> Duration {
        Duration::from_secs(2)
    }

    /// The service that is asked by what `[identity]` says; `None` for the registry.
    pub fn of(source: Source, http: Option<&Self>) -> Result<Option<&Self>, String> {
        match (source, http) {
            (Source::Registry, _) => Ok(None),
            (Source::Http, Some(http)) => Ok(Some(http)),
            (Source::Http, None) => Err("identity.source is \"http\": give the service in [identity.http], url".into()),
        }
    }
}

/// `2s`, and no longer than somebody waits for a sandbox.
fn timeout<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text).map_err(|e| serde::de::Error::custom(format!("{text:?}: {e}")))?;
    match !parsed.is_zero() && parsed <= HttpSettings::LONGEST {
        true => Ok(parsed),
        false => {
            Err(serde::de::Error::custom(format!("{text:?}: give up to {:?}, such as \"2s\"", HttpSettings::LONGEST)))
        }
    }
}
