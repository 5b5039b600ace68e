//! How another service is asked: by https, under the certificates that are given for it and no others, or by plain http on
//! loopback. Not here: what is asked, and what an answer means.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    url: Uri,
    host: String,
    secure: bool,
}

/// Why an address is none of a service that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadServiceUrl {
    /// Not an address of a service.
    #[error("url {0:?}: give https://HOST, or http:// and a loopback address, without query")]
    Url(String),
    /// Anybody could answer.
    #[error(
        "url {0:?}: plain http to another machine lets anybody on the way answer in the service's place; use https"
    )]
    Plain(String),
}

impl ServiceUrl {
    /// Reads `https://HOST[:PORT][/PATH]`, or the same with `http` and a loopback address. A name, `localhost` too, is none:
    /// whoever resolves it decides.
    pub fn parse(text: &str) -> Result<Self, BadServiceUrl> {
        let bad = || BadServiceUrl::Url(text.to_owned());
        let url: Uri = text.parse().map_err(|_| bad())?;
        let host = url.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        if url.query().is_some() {
            return Err(bad());
        }
        let secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => false,
            Some("http") => return Err(BadServiceUrl::Plain(text.to_owned())),
            _ => return Err(bad()),
        };
        Ok(Self { url, host, secure })
    }

    /// Whether it is spoken to by https.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Its host, a name or an address (without brackets), and port.
    pub fn authority(&self) -> (&str, u16) {
        (&self.host, self.url.port_u16().unwrap_or(if self.secure { 443 } else { 80 }))
    }

    /// What connects to it: over `http`, which finds its addresses, and for https believing `roots` alone.
    pub fn connector<R>(
        &self,
        mut http: HttpConnector<R>,
        roots: RootCertStore,
    ) -> Result<HttpsConnector<HttpConnector<R>>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls);
        let https = if self.secure { https.https_only() } else { https.https_or_http() };
        http.enforce_http(false); // the scheme is the outer connector's to check
        Ok(https.enable_http1().wrap_connector(http))
    }
}

/// The certificates (PEM) of whoever may vouch for a service; one at least.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() { Err("no certificate in it".into()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_anybody_could_pose_as_is_refused() {
        for (url, why) in [
            ("http://pdp.example.org", "use https"),
            ("http://10.0.0.1", "use https"),
            ("http://localhost", "use https"), // a name, and whoever resolves it decides
            ("http://127.0.0.1.example.org", "use https"),
            ("ftp://127.0.0.1", "give https"),
            ("/v1", "give https"),
            ("http://127.0.0.1/?a=b", "without query"),
        ] {
            let error = ServiceUrl::parse(url).expect_err(url).to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
        for (url, secure, host, port) in [
            ("http://127.0.0.1:8080/nhi/", false, "127.0.0.1", 8080),
            ("http://[::1]", false, "::1", 80),
            ("https://pdp.example.org", true, "pdp.example.org", 443),
            ("https://[2001:db8::1]:8443", true, "2001:db8::1", 8443),
        ] {
            let parsed = ServiceUrl::parse(url).unwrap();
            assert_eq!((parsed.is_secure(), parsed.authority()), (secure, (host, port)), "{url}");
        }
    }
}
