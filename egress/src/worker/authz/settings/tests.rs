//! The table as it is written, and the examples that we ship.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::worker::authz::question::tests::question;
use crate::worker::authz::{Authz, Undecided, Verdict};

#[derive(Deserialize)]
struct EgressToml {
    authz: Settings,
}

fn settings(table: &str) -> Result<Settings, String> {
    let text = format!("[authz]\n{table}");
    toml::from_str(&text).map(|EgressToml { authz }| authz).map_err(|error| error.to_string())
}

#[test]
fn a_wrong_table_is_refused_and_the_key_named() {
    for (table, why) in [
        ("", "missing field `kind`"),
        ("kind = 'opa'", "unknown variant `opa`"),
        ("kind = 'none'\nurl = 'https://x'", "authz.url says nothing"),
        ("kind = 'none'\nuri = 'https://x'", "unknown field `uri`"),
        ("kind = 'cedar'", "authz.policies is missing"),
        ("kind = 'cedar'\npolicies = '/p'\ntoken_file = '/t'", "authz.token_file says nothing"),
        ("kind = 'authzen'", "authz.url is missing"),
        ("kind = 'authzen'\nurl = 'https://x'\nschema = '/s'", "authz.schema says nothing"),
        ("kind = 'authzen'\nurl = 'https://x'", "authz.ca_file is missing"),
        ("kind = 'authzen'\nurl = 'http://127.0.0.1'\nca_file = '/c'", "authz.ca_file says nothing"),
        ("kind = 'authzen'\nurl = 'http://pdp.example.org'", "use https"),
        ("kind = 'authzen'\nurl = 'http://localhost'", "use https"),
        ("kind = 'none'\ndeadline = '2'", "\"2\""),
        ("kind = 'none'\ndeadline = '1ms'", "authz.deadline: give 10ms to 1min"),
        ("kind = 'none'\nttl = '2h'", "authz.ttl"),
        ("kind = 'none'\nnegative_ttl = '2h'", "authz.negative_ttl"),
        ("kind = 'none'\nbreaker_failures = 0", "authz.breaker_failures"),
        ("kind = 'none'\nbreaker_open = '0s'", "authz.breaker_open"),
    ] {
        let error = settings(table).expect_err(why);
        assert!(error.contains(why), "{table}: {error}");
    }
}

#[test]
fn limits_are_read_and_have_defaults() {
    assert_eq!(settings("kind = 'none'").unwrap(), Settings::default());
    let times = "ttl = '1min'\nnegative_ttl = '0s'\ndeadline = '500ms'\nbreaker_failures = 3\nbreaker_open = '10s'";
    let limits = Limits {
        ttl: Duration::from_secs(60),
        negative_ttl: Duration::ZERO,
        deadline: Duration::from_millis(500),
        breaker_failures: 3,
        breaker_open: Duration::from_secs(10),
    };
    assert_eq!(settings(&format!("kind = 'none'\n{times}")).unwrap(), Settings { limits, source: Source::None });
}

#[test]
fn files_are_read_for_the_worker_and_a_token_that_anybody_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [ca, token] = ["ca.pem", "token"].map(|name| dir.path().join(name));
    std::fs::write(&ca, "certificates").unwrap();
    let table = "kind = 'authzen'\nurl = 'https://127.0.0.1:8443/pdp'\n";
    let table = format!("{table}ca_file = '{}'\ntoken_file = '{}'", ca.display(), token.display());
    let settings = settings(&table).unwrap();
    let error = || settings.read().unwrap_err().to_string();
    assert!(error().contains("token: No such file"), "{}", error());
    for (text, mode, why) in [
        ("s3cret\n", 0o644, "anybody may read"),
        ("s3 cret\n", 0o600, "no bearer token"),
        ("", 0o600, "no bearer token"),
    ] {
        std::fs::write(&token, text).unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(error().contains(why), "{why}: {}", error());
    }
    std::fs::write(&token, "s3cret\n").unwrap();
    let setup = settings.read().unwrap();
    let service = authzen::Service {
        url: "https://127.0.0.1:8443/pdp".into(),
        addresses: vec!["127.0.0.1:8443".parse().unwrap()],
        ca: Some("certificates".into()),
        token: Token::parse("s3cret"),
    };
    assert_eq!(setup.point, DecisionPoint::AuthZen(service));
    let sent = serde_json::to_string(&setup).unwrap();
    assert_eq!(serde_json::from_str::<Setup>(&sent).unwrap(), setup, "the worker reads what is sent to it");
}

/// `configs/authz` as it is shipped, but for the directory that it will be installed in.
fn example(name: &str) -> Settings {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/authz");
    let text = std::fs::read_to_string(dir.join(name)).unwrap();
    let text = text.replace("/etc/creto/authz", dir.to_str().unwrap());
    toml::from_str::<EgressToml>(&text).unwrap().authz
}

#[tokio::test]
async fn the_examples_do_what_they_say() {
    let Source::AuthZen { url, .. } = example("authzen.toml").source else { panic!() };
    assert_eq!(url, "https://pdp.example.org");
    let authz = Authz::new();
    authz.set_up(example("cedar.toml").read().unwrap()).unwrap();
    for (agent, host, port, verdict) in [
        (Some("spiffe://example.org/agents/researcher"), "api.github.com", 443, Verdict::Granted),
        (Some("spiffe://example.org/agents/researcher"), "api.github.com", 22, Verdict::Refused),
        (Some("spiffe://example.org/agents/researcher"), "github.com", 443, Verdict::Granted),
        (Some("spiffe://example.org/agents/researcher"), "gist.github.com", 443, Verdict::Refused),
        (Some("spiffe://example.org/agents/researcher"), "www.example.com", 443, Verdict::Refused),
        (Some("spiffe://example.org/agents/deployer"), "api.github.com", 443, Verdict::Refused),
        (Some("spiffe://example.org/agents/deployer"), "192.0.2.10", 8443, Verdict::Granted),
        (Some("spiffe://example.org/agents/deployer"), "198.51.100.1", 8443, Verdict::Refused),
        (None, "api.github.com", 443, Verdict::Refused),
    ] {
        let mut asked = question(host);
        (asked.agent, asked.port) = (agent.map(str::to_owned), port);
        assert_eq!(authz.decide(&asked).await, Ok::<_, Undecided>(verdict), "{agent:?} to {host}:{port}");
    }
}
