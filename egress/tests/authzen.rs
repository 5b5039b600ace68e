//! A decision point that we did not write: cerbos, asked over https through all that a node asks through.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use egress::policy::{CompiledPolicy, Fqdn, Policy};
use egress::protocol::SandboxKey;
use egress::worker::authz::Authz;
use egress::worker::authz::settings::Settings;
use egress::worker::{Authorizable, Authorizer, Binding, Effective, Unauthorized};
use serde::Deserialize;
use tokio::sync::watch;

/// Agents of example.org, in one namespace, reach port 443 below example.com, and one network.
const POLICY: &str = r#"
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  version: default
  resource: destination
  rules:
    - actions: [connect]
      effect: EFFECT_ALLOW
      roles: [agent]
      condition:
        match:
          all:
            of:
              - expr: request.principal.id.startsWith("spiffe://example.org/")
              - expr: P.attr.namespace == "default"
              - expr: R.attr.port == 443
              - any:
                  of:
                    - expr: ("example.com" in R.attr.zones)
                    - expr: has(R.attr.ip) && R.attr.ip.inIPAddrRange("192.0.2.0/24")
"#;

/// So long may it take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

struct Cerbos {
    process: Child,
    url: String,
}

impl Drop for Cerbos {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Cerbos {
    /// With its policies, certificate and sockets in `dir`; a port that another took in the meantime is not taken from it.
    fn start(dir: &Path) -> Self {
        let program = part("cerbos").join("bin/cerbos");
        (0..5).find_map(|_| Self::at(&program, dir, free_port())).unwrap_or_else(|| panic!("cerbos does not start"))
    }

    fn at(program: &Path, dir: &Path, port: u16) -> Option<Self> {
        let mut command = Command::new(program);
        command.arg("server").stdout(Stdio::piped()).stderr(Stdio::null());
        for setting in [
            format!("server.httpListenAddr=127.0.0.1:{port}"),
            format!("server.grpcListenAddr=unix:{}", dir.join("grpc.sock").display()),
            format!("server.tls.cert={}", dir.join("cert.pem").display()),
            format!("server.tls.key={}", dir.join("key.pem").display()),
            "storage.driver=disk".into(),
            format!("storage.disk.directory={}", dir.join("policies").display()),
            "telemetry.disabled=true".into(),
        ] {
            command.args(["--set", &setting]);
        }
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stdout.take().unwrap());
        let cerbos = Self { process, url: format!("https://localhost:{port}") };
        let (tell, heard) = mpsc::channel();
        // Reads on to its end: a log that nobody reads would stop it.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        loop {
            match heard.recv_timeout(START) {
                Ok(line) if line.contains("Starting HTTP server") => return Some(cerbos), // its socket listens by then
                Ok(_) => (),
                Err(_) => return None,
            }
        }
    }
}

/// Where `scripts/setup` has put a part.
fn part(part: &str) -> PathBuf {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup");
    let asked = Command::new(&setup).args(["--path", part]).output();
    let asked = asked.unwrap_or_else(|error| panic!("running {}: {error}", setup.display()));
    let dir = PathBuf::from(String::from_utf8(asked.stdout).unwrap().trim());
    assert!(dir.join(".complete").exists(), "{part} is not installed: run scripts/setup {part}");
    dir
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[derive(Deserialize)]
struct EgressToml {
    authz: Settings,
}

#[tokio::test]
async fn cerbos_allows_and_denies() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    for (file, text) in [
        ("policies/destination.yaml", POLICY),
        ("cert.pem", &certified.cert.pem()),
        ("key.pem", &certified.signing_key.serialize_pem()),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let cerbos = Cerbos::start(dir.path());
    let table = format!(
        "[authz]\nkind = 'authzen'\nurl = '{}'\nca_file = '{}'\ndeadline = '30s'\n",
        cerbos.url,
        dir.path().join("cert.pem").display()
    );
    let EgressToml { authz: settings } = toml::from_str(&table).unwrap();
    let authz = Authz::new();
    authz.set_up(settings.read().unwrap()).unwrap();

    let policy = CompiledPolicy::new(Policy::default());
    let (_policies, effective) = watch::channel(Some(Arc::new(Effective { policy, generation: 1 })));
    let binding = |namespace: &str, agent: Option<&str>| Binding {
        sandbox: SandboxKey { namespace: namespace.into(), id: "s".into() },
        agent: agent.map(str::to_owned),
        effective: effective.clone(),
    };
    let name = |name: &str| Fqdn::parse(name).unwrap();
    let (below, apex, other) = (name("www.example.com"), name("example.com"), name("www.example.net"));
    let [inside, outside] =
        ["192.0.2.7", "198.51.100.7"].map(|address| Authorizable::Address(address.parse().unwrap()));
    let agent = Some("spiffe://example.org/agents/a");
    for (namespace, agent, destination, port, allowed) in [
        ("default", agent, Authorizable::Name(&below), 443, true),
        ("default", agent, Authorizable::Name(&below), 80, false),
        ("default", agent, Authorizable::Name(&apex), 443, false),
        ("default", agent, Authorizable::Name(&other), 443, false),
        ("default", agent, inside, 443, true),
        ("default", agent, outside, 443, false),
        ("k8s.io", agent, Authorizable::Name(&below), 443, false),
        ("default", Some("spiffe://example.net/agents/a"), Authorizable::Name(&below), 443, false),
        ("default", None, Authorizable::Name(&below), 443, false),
    ] {
        let answer = authz.authorize(&binding(namespace, agent), destination, port).await;
        let expected = if allowed { Ok(()) } else { Err(Unauthorized::Refused) };
        assert_eq!(answer, expected, "{agent:?} in {namespace} to {destination:?}, port {port}");
    }

    drop(cerbos);
    let known = authz.authorize(&binding("default", agent), Authorizable::Name(&below), 443).await;
    assert_eq!(known, Ok(()), "what it allowed counts for its time");
    let new = authz.authorize(&binding("default", agent), Authorizable::Name(&below), 8443).await;
    assert!(matches!(new, Err(Unauthorized::Undecided(_))), "{new:?}");
}
