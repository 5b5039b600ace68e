//! TLS over TCP: the node's certificate and key out of two files, read when the agent starts and whenever it is told to; each connection
//! has what was read last. Source: RFC 8446; rustls, with ring.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config;

/// What connections are accepted by.
pub struct Tls {
    files: config::Tls,
    config: RwLock<Arc<ServerConfig>>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// A file is not there, or not what it should be.
    #[error("{key} {}: {why}", path.display())]
    File {
        /// By which it is named.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// They do not belong together.
    #[error("api.tls: the key {} is not that of the certificate {}, or one of them cannot be used", key.display(), certificate.display())]
    Pair {
        /// The one.
        certificate: PathBuf,
        /// The other.
        key: PathBuf,
        /// What rustls says.
        #[source]
        why: rustls::Error,
    },
}

impl Tls {
    /// Reads the files. Blocks.
    pub fn read(files: &config::Tls) -> Result<Self, BadTls> {
        Ok(Self { config: RwLock::new(read(files)?), files: files.clone() })
    }

    /// Reads them again, for connections from now on; where that fails, what was read before goes on. Blocks.
    pub fn reload(&self) -> Result<(), BadTls> {
        let config = read(&self.files)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// For one connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn read(files: &config::Tls) -> Result<Arc<ServerConfig>, BadTls> {
    let config::Tls { certificate, key } = files;
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| bad("api.tls.certificate", certificate, e.to_string()))?;
    if chain.is_empty() {
        return Err(bad("api.tls.certificate", certificate, "there is no certificate (PEM) in it".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("api.tls.key", key, e.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let (certificate, key) = (certificate.clone(), key.clone());
    let mut config = config.map_err(|why| BadTls::Pair { certificate, key, why })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn bad(key: &'static str, path: &Path, why: String) -> BadTls {
    BadTls::File { key, path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_that_will_not_do_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap());
        let path = |name: &str| dir.path().join(name);
        fs::write(path("certificate"), one.cert.pem()).unwrap();
        fs::write(path("key"), one.signing_key.serialize_pem()).unwrap();
        fs::write(path("other-key"), other.signing_key.serialize_pem()).unwrap();
        fs::write(path("empty"), "").unwrap();
        for (certificate, key, why) in [
            ("none", "key", "api.tls.certificate"),
            ("empty", "key", "no certificate"),
            ("certificate", "none", "api.tls.key"),
            ("certificate", "certificate", "api.tls.key"),
            ("certificate", "other-key", "is not that of the certificate"),
        ] {
            let files = config::Tls { certificate: path(certificate), key: path(key) };
            let error = Tls::read(&files).err().expect(why).to_string();
            assert!(error.contains(why) && error.contains(&dir.path().display().to_string()), "{error}");
        }
        let files = config::Tls { certificate: path("certificate"), key: path("key") };
        let tls = Tls::read(&files).unwrap();
        let before = tls.config.read().unwrap().clone();
        fs::write(path("key"), "").unwrap();
        assert!(tls.reload().is_err());
        assert!(Arc::ptr_eq(&before, &tls.config.read().unwrap()), "what was read before goes on");
        fs::write(path("certificate"), other.cert.pem()).unwrap();
        fs::write(path("key"), other.signing_key.serialize_pem()).unwrap();
        tls.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &tls.config.read().unwrap()));
    }
}
