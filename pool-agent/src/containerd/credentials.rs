//! Who we are to a registry: Docker's `config.json`, with its `auths` and its credential helpers. Read at each pull, so that a
//! login counts at once. What is read here is never logged.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};

/// Docker's own host names, and the key that `docker login` stores for them.
const HUB: [&str; 3] = ["registry-1.docker.io", "docker.io", "index.docker.io"];
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a registry is told.
pub enum Credentials {
    /// Nothing: anonymous.
    None,
    /// Who, and the password.
    Password(String, String),
    /// A token that is exchanged for others.
    Token(String),
}

/// Why there are none, where the file should have some.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Not JSON as Docker writes it, or its helper fails.
    #[error("{path}: credentials for {host}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The registry.
        host: String,
        /// What is wrong; nothing of its content.
        why: String,
    },
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub fn default_path() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(dir.join("config.json"))
}

/// What to tell a registry (host, and port if any). A file that is not there has nothing to say.
pub fn of(path: &Path, host: &str) -> Result<Credentials, CredentialsError> {
    let unreadable = |why: String| CredentialsError::Unreadable { path: path.to_owned(), host: host.to_owned(), why };
    for key in keys(host) {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::None),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        match docker_credential::get_credential_from_reader(BufReader::new(file), &key) {
            Ok(DockerCredential::UsernamePassword(name, word)) => return Ok(Credentials::Password(name, word)),
            Ok(DockerCredential::IdentityToken(token)) => return Ok(Credentials::Token(token)),
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            Err(error) => return Err(unreadable(said(&error).to_owned())),
        }
    }
    Ok(Credentials::None)
}

/// What is wrong, without what a helper printed.
fn said(error: &CredentialRetrievalError) -> &'static str {
    match error {
        CredentialRetrievalError::HelperCommunicationError => "its credential helper cannot be run",
        CredentialRetrievalError::MalformedHelperResponse => "its credential helper answers something else",
        CredentialRetrievalError::HelperFailure { .. } => "its credential helper fails",
        CredentialRetrievalError::CredentialDecodingError => "`auth` is not base64 of name:password",
        _ => "it is not a config.json of Docker's",
    }
}

/// Under which keys `docker login` may have stored a host's.
fn keys(host: &str) -> Vec<String> {
    let of_hub = HUB.contains(&host).then(|| HUB_KEY.to_owned());
    let plain = [host.to_owned(), format!("https://{host}"), format!("https://{host}/")];
    of_hub.into_iter().chain(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_told_what_docker_login_has_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let encoded = "YWRhOmxvdmVsYWNl"; // ada:lovelace
        let text = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": encoded},
            "127.0.0.1:5000": {"auth": encoded},
            "https://ghcr.io": {"auth": encoded},
        }});
        std::fs::write(&path, text.to_string()).unwrap();
        for (host, known) in
            [("registry-1.docker.io", true), ("127.0.0.1:5000", true), ("ghcr.io", true), ("quay.io", false)]
        {
            match of(&path, host).unwrap() {
                Credentials::Password(name, word) => assert!(known && name == "ada" && word == "lovelace", "{host}"),
                Credentials::None => assert!(!known, "{host}"),
                Credentials::Token(_) => panic!("{host}"),
            }
        }
        assert!(matches!(of(&dir.path().join("none.json"), "quay.io"), Ok(Credentials::None)));
    }

    #[test]
    fn a_bad_file_is_an_error_that_repeats_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["s3cret", r#"{"auths":{"quay.io":{"auth":"s3cret!!"}}}"#, r#"{"auths":"s3cret"}"#] {
            std::fs::write(&path, text).unwrap();
            let Err(error) = of(&path, "quay.io") else { panic!("{text}") };
            assert!(!error.to_string().contains("s3cret") && error.to_string().contains("config.json"), "{error}");
        }
    }
}
