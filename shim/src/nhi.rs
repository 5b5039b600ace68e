//! Agents from a creto-nhi service (`trust::identity::http`), asked in a child (`errand`): TLS does not stay in the shim's memory. A
//! shim asks once, for its one sandbox, so that no answer is older than the request, and none is kept.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use trust::id::AgentId;
use trust::identity::http::{self, BadSettings, HttpSource};
use trust::identity::source::{Agent, AgentSource, SourceError};

use crate::errand::{self, Errand};
use crate::settings::HttpSettings;

/// What the child is called by.
pub const ACTION: &str = "agent";
/// Beyond the time for the request: for the child to begin and to end.
const MARGIN: Duration = Duration::from_secs(2);

/// The service, by its settings.
pub struct Nhi(pub HttpSettings);

#[derive(Serialize, Deserialize)]
struct Question {
    url: String,
    ca_file: Option<PathBuf>,
    timeout: Duration,
    agent: AgentId,
}

#[async_trait]
impl AgentSource for Nhi {
    async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError> {
        let HttpSettings { url, ca_file, timeout } = self.0.clone();
        let away = |why: errand::NoAnswer| SourceError::Unreachable(id.clone(), format!("{}: {why}", self.0.url));
        let errand = Errand::start(ACTION, &Question { url, ca_file, timeout, agent: id.clone() }).map_err(away)?;
        errand.answer::<Result<Agent, SourceError>>(timeout + MARGIN).await.map_err(away)?
    }
}

/// The child: asks, and says what it was told.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    errand::run(ask, HttpSettings::LONGEST + MARGIN)
}

async fn ask(question: Question) -> Result<Result<Agent, SourceError>, BadSettings> {
    let Question { url, ca_file, timeout, agent } = question;
    let source = HttpSource::new(http::Settings { timeout, ..http::Settings::new(url, ca_file) })?;
    Ok(source.agent(&agent).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_says_is_what_the_source_said() {
        let id: AgentId = "spiffe://example.org/agents/a".parse().unwrap();
        let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let jwk: trust::keys::jwks::Jwk =
            serde_json::from_value(serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": key})).unwrap();
        let keys = vec![trust::identity::source::AgentKey::new(Some("k".into()), jwk.public_key().unwrap())];
        let backends = Some(vec!["gvisor".parse().unwrap()]);
        let agent = Agent { id: id.clone(), keys, backends, default_policy: Some("web-only".parse().unwrap()) };
        for said in [
            Ok(agent),
            Err(SourceError::Unknown(id.clone(), "x".into())),
            Err(SourceError::Disabled(id.clone(), "x".into())),
            Err(SourceError::Revoked(id.clone(), "x".into())),
            Err(SourceError::Broken("x".into())),
            Err(SourceError::Unreachable(id, "x".into())),
        ] {
            let text = serde_json::to_string(&said).unwrap();
            assert_eq!(serde_json::from_str::<Result<Agent, SourceError>>(&text).unwrap(), said, "{text}");
        }
        // A key that is none does not become one on the way.
        let text = serde_json::to_string(
            &serde_json::json!({"kid": "k", "key": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}}),
        );
        assert!(serde_json::from_str::<trust::identity::source::AgentKey>(&text.unwrap()).is_err());
    }
}
