//! The gate as a whole, over loopback: real sockets, real TLS, a policy that changes. Where connections were to go before the fence
//! redirected them is told by the test; `redirected` has it from the kernel.

use std::io;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::sniff::tests::hello_to;
use super::*;
use crate::policy::{Action, CompiledPolicy, Destination, Policy, Rule};
use crate::worker::{Attempt, Binding, Outcome, Unauthorized};

mod carried;
mod decided;
mod held_to_the_name;
mod redirected;

/// The name that all flows are for.
pub const NAME: &str = "a.example.com";
/// What stands for it.
pub const SYNTHETIC: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);
/// Long enough never to come in a test that goes well.
pub const NEVER: Duration = Duration::from_secs(3600);

/// A policy of one rule.
pub fn policy(action: Action, port: u16, generation: u64) -> Arc<Effective> {
    policy_for(Destination::Name(Fqdn::parse(NAME).unwrap()), action, port, generation)
}

pub fn policy_for(destination: Destination, action: Action, port: u16, generation: u64) -> Arc<Effective> {
    let allow_special = matches!(destination, Destination::Net(_));
    let id = "the rule".to_owned();
    let rule = Rule { id, destination, ports: vec![port..=port], protocol: None, action, allow_special };
    Arc::new(Effective { policy: CompiledPolicy::new(Policy { rules: vec![rule] }), generation })
}

pub type Policies = watch::Sender<Option<Arc<Effective>>>;

pub fn binding_with(effective: Arc<Effective>) -> (Policies, Arc<Binding>) {
    let (policies, effective) = watch::channel(Some(effective));
    let sandbox = SandboxKey { namespace: "default".to_owned(), id: "a".to_owned() };
    (policies, Arc::new(Binding { sandbox, agent: None, effective }))
}

/// A decision point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decides {
    Yes,
    No,
    Never,
}

impl Authorizer for Decides {
    async fn authorize(&self, _: &Binding, _: Authorizable<'_>, _: u16) -> Result<(), Unauthorized> {
        match self {
            Self::Yes => Ok(()),
            Self::No => Err(Unauthorized::Refused),
            Self::Never => std::future::pending().await,
        }
    }
}

/// One name, one address.
struct OneName;

struct Held(Fqdn);

impl AsRef<Fqdn> for Held {
    fn as_ref(&self) -> &Fqdn {
        &self.0
    }
}

impl Names for OneName {
    type Held = Held;

    fn hold(&self, _: &SandboxKey, address: Ipv4Addr) -> Option<Held> {
        (address == SYNTHETIC).then(|| Held(Fqdn::parse(NAME).unwrap()))
    }
}

/// Where the name really is.
struct At(Vec<SocketAddr>);

impl Resolve for At {
    async fn resolve(&self, _: &Fqdn, _: u16, _: &Effective) -> Result<Vec<SocketAddr>, Unresolved> {
        match self.0.is_empty() {
            true => Err(Unresolved::Forbidden("203.0.113.1 is private".to_owned())),
            false => Ok(self.0.clone()),
        }
    }

    fn may_stay(&self, _: SocketAddr, _: &Effective) -> Result<(), Reason> {
        Ok(()) // loopback, which no policy allows
    }
}

/// What the gate told.
#[derive(Default)]
pub struct Told(Mutex<Vec<Attempt>>);

impl Attempts for Told {
    fn tell(&self, attempt: Attempt) {
        self.0.lock().unwrap().push(attempt);
    }
}

/// A gate, its sandbox (which is 127.0.0.1) and its host.
pub struct World {
    pub host: TcpListener,
    pub policies: Policies,
    told: Arc<Told>,
    metrics: Metrics,
    gate: SocketAddr,
    serving: JoinHandle<io::Result<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// How a world differs from the usual one.
pub struct Differently {
    pub effective: Arc<Effective>,
    pub settings: Settings,
    pub decides: Decides,
    pub original: Option<SocketAddr>,
    pub has_address: bool,
    pub known: bool,
}

impl Default for Differently {
    fn default() -> Self {
        let settings = Settings { silence: NEVER, head: NEVER, hold: NEVER, idle: NEVER, ..Settings::default() };
        Self {
            effective: policy(Action::Allow, 443, 1),
            settings,
            decides: Decides::No,
            original: Some(SocketAddr::new(SYNTHETIC.into(), 443)),
            has_address: true,
            known: true,
        }
    }
}

impl World {
    pub async fn new(with: Differently) -> Self {
        let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (policies, binding) = binding_with(with.effective);
        let bindings = Arc::new(Bindings::default());
        if with.known {
            bindings.put(&["127.0.0.1".parse().unwrap()], &binding);
        }
        let told = Arc::new(Told::default());
        let (original, metrics) = (with.original, Metrics::default());
        let gate = Arc::new(Gate {
            settings: with.settings,
            bindings,
            names: OneName,
            resolve: At(with.has_address.then(|| host.local_addr().unwrap()).into_iter().collect()),
            authorizer: with.decides,
            attempts: told.clone(),
            open: Open::new(&metrics),
            metrics: metrics.clone(),
            original_destination: Box::new(move |_| original.ok_or(io::ErrorKind::NotFound.into())),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(gate.serve(listener));
        Self { host, policies, told, metrics, gate: address, serving }
    }

    /// A sandbox's connection.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gate).await.unwrap()
    }

    /// A sandbox's connection that has said something, and the host's end of it.
    pub async fn connected(&self, said: &[u8]) -> (TcpStream, TcpStream) {
        let mut client = self.connect().await;
        client.write_all(said).await.unwrap();
        let (host, _) = self.host.accept().await.unwrap();
        (client, host)
    }

    /// The outcomes so far.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.told.0.lock().unwrap().iter().map(|attempt| attempt.outcome.clone()).collect()
    }

    /// The only outcome, which was a refusal that says this.
    pub fn was_denied(&self, why: &str) {
        match &self.outcomes()[..] {
            [Outcome::Denied(reason)] => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?}, and not only a refusal: {why}"),
        }
    }

    /// Whether the host was never connected to.
    pub fn reached_nobody(&self) {
        use std::future::Future;
        let mut accept = std::pin::pin!(self.host.accept());
        let waker = std::task::Waker::noop();
        let polled = accept.as_mut().poll(&mut std::task::Context::from_waker(waker));
        assert!(polled.is_pending(), "the host was connected to");
    }
}

/// That a connection was reset, whatever came before.
pub async fn is_reset(stream: &mut TcpStream) {
    let ended = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

pub async fn hears(stream: &mut TcpStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
}
