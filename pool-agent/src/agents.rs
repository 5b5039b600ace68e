//! The text of an agent's file in agents.d: how a new one is written, and one revoked. Pure; the reading side, which decides
//! what counts, is `trust::identity::registry`.

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TomlError, Value, value};
use trust::digest::Digest;
use trust::id::{AgentId, BackendName, PolicyName};
use trust::keys::jwks::Jwk;

/// The readable part of a file's name has at most so many bytes.
const NAME_BYTES: usize = 64;

/// A new agent's file; without backends it may have any, without a policy it connects nowhere.
pub fn text(id: &AgentId, backends: Option<&[BackendName]>, policy: Option<&PolicyName>, jwks: &[Jwk]) -> String {
    let mut text = DocumentMut::new();
    text["spiffe_id"] = value(id.to_string());
    text["status"] = value("enabled");
    if let Some(backends) = backends {
        text["backends"] = value(backends.iter().map(ToString::to_string).collect::<Array>());
    }
    if let Some(policy) = policy {
        text["default_policy"] = value(policy.to_string());
    }
    let mut keys = ArrayOfTables::new();
    for jwk in jwks {
        let mut key = Table::new();
        for (name, member) in
            [("kty", Some(&jwk.kty)), ("crv", jwk.crv.as_ref()), ("x", jwk.x.as_ref()), ("kid", jwk.kid.as_ref())]
        {
            if let Some(member) = member {
                key[name] = value(member);
            }
        }
        keys.push(key);
    }
    text["keys"] = Item::ArrayOfTables(keys);
    text.to_string()
}

/// One name per agent: the end of its path for people, a digest so that no two meet, and never hidden.
pub fn file_name(id: &AgentId) -> String {
    let text = id.to_string();
    let last = text.rsplit('/').next().unwrap_or_default().trim_start_matches('.');
    // A SPIFFE ID is ASCII, so any byte is a boundary.
    let readable = &last[..last.len().min(NAME_BYTES)];
    format!("{readable}-{}.toml", &Digest::of(text.as_bytes()).hex()[..12]).trim_start_matches('-').to_owned()
}

/// The same file, but revoked; what the operator wrote beside it stays.
pub fn revoked(text: &str) -> Result<String, TomlError> {
    let mut text: DocumentMut = text.parse()?;
    let mut status = Value::from("revoked");
    if let Some(before) = text.get("status").and_then(Item::as_value) {
        *status.decor_mut() = before.decor().clone();
    }
    text["status"] = Item::Value(status);
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_has_a_file_name_of_its_own_that_the_registry_reads() {
        let name = |id: &str| file_name(&id.parse().unwrap());
        assert!(name("spiffe://example.org/agents/research").starts_with("research-"));
        assert_ne!(name("spiffe://example.org/a/x"), name("spiffe://example.org/b/x"));
        for id in ["spiffe://d/...", "spiffe://d/.hidden", &format!("spiffe://d/{}", "p".repeat(2000))] {
            let name = name(id);
            assert!(name.len() <= 255 && !name.starts_with(['.', '-']) && name.ends_with(".toml"), "{name}");
        }
    }

    #[test]
    fn revoking_changes_one_word_of_the_operators_file() {
        for (before, after) in [
            (
                "a = 1 # x\nstatus = \"enabled\"  # since May\n[[keys]]\n",
                "a = 1 # x\nstatus = \"revoked\"  # since May\n[[keys]]\n",
            ),
            (
                "# ours\na = 1\n\n[[keys]] # old\nx = \"y\"\n",
                "# ours\na = 1\nstatus = \"revoked\"\n\n[[keys]] # old\nx = \"y\"\n",
            ),
        ] {
            assert_eq!(revoked(before).unwrap(), after);
        }
        assert!(revoked("status =").is_err());
    }
}
