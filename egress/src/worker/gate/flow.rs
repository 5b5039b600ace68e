//! The life of one connection, from the policy's first word to its end. Read this first.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::admit::{self, Denied, Permit};
use super::dial::{DialError, dial};
use super::filter::{Expected, Filter};
use super::listen::{Place, reset};
use super::metrics::{Direction, Outcome as Counted};
use super::refusal::{Problem, Refusal};
use super::splice::{End, Splice};
use super::way::{Sieve, Stop, Way};
use super::{Authorizer, Gate, Goal, Names, Resolve};
use crate::policy::Protocol;
use crate::worker::{Attempt, Binding, Outcome};

/// How long a client that was told of a refusal is listened to: closed at once, the answer would be lost with what it still sends.
const LINGER: Duration = Duration::from_secs(1);

/// A connection of which is known whose it is and where it goes.
pub struct Incoming<H> {
    /// To the sandbox.
    pub client: TcpStream,
    /// Whose.
    pub binding: Arc<Binding>,
    /// To where.
    pub goal: Goal,
    /// To which port.
    pub port: u16,
    /// When it was taken.
    pub accepted: Instant,
    /// Keeps the synthetic address in use.
    pub _held: Option<H>,
    /// Its place among those that may be open.
    pub _place: Place,
}

/// Why a connection does not come to be.
enum Stopped {
    Denied(Denied),
    Unreachable(Permit, DialError),
    /// The client is gone.
    Gone,
}

impl From<Denied> for Stopped {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl<N: Names, R: Resolve, A: Authorizer + 'static> Gate<N, R, A> {
    /// Carries one connection to its end.
    pub(super) async fn carry(self: Arc<Self>, mut incoming: Incoming<N::Held>) {
        self.tune(&incoming.client);
        let mut policies = incoming.binding.effective.clone();
        let mut filter = match &incoming.goal {
            Goal::Name(name) => {
                let (name, port, ech) = (name.clone(), incoming.port, self.settings.ech);
                Filter::Sniffing(Expected { name, port, ech })
            }
            Goal::Address(_) => Filter::Free, // there is no name to hold it to
        };
        let mut said = Way::default();
        match self.connect(&mut incoming, &mut policies, &mut filter, &mut said).await {
            Ok((permit, server)) => {
                self.tune(&server);
                self.splice(incoming, policies, permit, server, filter, said).await;
            }
            Err(Stopped::Gone) => self.metrics.count("gone"),
            Err(Stopped::Denied(denied)) => {
                self.metrics.count(denied.refusal.code());
                self.tell(
                    &incoming,
                    Outcome::Denied(denied.refusal.to_string()),
                    denied.rule.as_deref(),
                    denied.generation,
                );
                let destination = format!("{}:{}", incoming.goal, incoming.port);
                let problem = Problem::refused(&denied.refusal, destination, denied.rule.as_deref(), denied.generation);
                answer(incoming.client, &filter, &problem).await;
            }
            Err(Stopped::Unreachable(permit, error)) => {
                tracing::debug!(sandbox = %incoming.binding.sandbox, goal = %incoming.goal, %error, "unreachable");
                self.metrics.count("unreachable");
                let destination = format!("{}:{}", incoming.goal, incoming.port);
                let generation = permit.effective().generation;
                let problem = Problem::unreachable(error.to_string(), destination, permit.rule(), generation);
                answer(incoming.client, &filter, &problem).await;
            }
        }
    }

    /// From a connection to one with a permit and with its host at the other end.
    async fn connect(
        &self,
        incoming: &mut Incoming<N::Held>,
        policies: &mut admit::Policies,
        filter: &mut Filter,
        said: &mut Way,
    ) -> Result<(Permit, TcpStream), Stopped> {
        admit::check(policies, &incoming.goal, incoming.port)?; // nothing is read for what is denied
        if !filter.is_free() {
            self.listen(&incoming.client, policies, filter, said).await?;
        }
        let permit = self.admit(incoming, policies).await?;
        let dialled = dial(&permit, &self.resolve, self.settings.dial, self.settings.stagger).await;
        let server = match dialled {
            Ok(server) => server,
            Err(DialError::Forbidden(why)) => {
                let rule = permit.rule().map(str::to_owned);
                let generation = permit.effective().generation;
                return Err(Denied { refusal: Refusal::Addresses(why), rule, generation }.into());
            }
            Err(error) => {
                self.tell(incoming, Outcome::Allowed, permit.rule(), permit.effective().generation);
                return Err(Stopped::Unreachable(permit, error));
            }
        };
        self.metrics.connect.observe(incoming.accepted.elapsed().as_secs_f64());
        self.metrics.count("allowed");
        self.tell(incoming, Outcome::Allowed, permit.rule(), permit.effective().generation);
        Ok((permit, server))
    }

    /// Listens to what the client says first, until it may pass. A client that is silent is left to `splice`, which listens on:
    /// it may be the server's turn.
    async fn listen(
        &self,
        client: &TcpStream,
        policies: &mut admit::Policies,
        filter: &mut Filter,
        said: &mut Way,
    ) -> Result<(), Stopped> {
        let denied = |refusal| {
            let generation = policies.borrow().as_ref().map_or(0, |effective| effective.generation);
            Stopped::Denied(Denied { refusal, rule: None, generation })
        };
        let begun = Instant::now();
        loop {
            match said.listen(client, filter) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Stop::Refused(refusal)) => return Err(denied(refusal)),
                Err(Stop::Broken) => return Err(Stopped::Gone),
            }
            let is_silent = !said.holds_back();
            let patience = if is_silent { self.settings.silence } else { self.settings.head };
            match timeout_at(begun + patience, client.readable()).await {
                Err(_) if is_silent => return Ok(()),
                Err(_) => return Err(denied(Refusal::TooSlow)),
                Ok(readable) => readable.map_err(|_| Stopped::Gone)?,
            }
        }
    }

    /// Asks whether the flow may be, and has it told when the decision point is asked.
    async fn admit(&self, incoming: &Incoming<N::Held>, policies: &mut admit::Policies) -> Result<Permit, Denied> {
        let asked = |rule: Option<&str>, generation| self.tell(incoming, Outcome::AuthzRequired, rule, generation);
        let (goal, port, hold) = (&incoming.goal, incoming.port, self.settings.hold);
        admit::admit(&incoming.binding, policies, goal, port, &self.authorizer, hold, asked).await
    }

    /// Carries bytes until both ends have ended, nothing is said any more, or the flow may not be any longer.
    async fn splice(
        &self,
        incoming: Incoming<N::Held>,
        mut policies: admit::Policies,
        permit: Permit,
        server: TcpStream,
        filter: Filter,
        said: Way,
    ) {
        let Ok(address) = server.peer_addr() else { return reset(incoming.client) };
        let mut splice = Splice::new(&incoming.client, &server, filter, said);
        let end = loop {
            tokio::select! {
                biased;
                _ = policies.changed() => match self.still(&incoming, &mut policies, &mut splice, address).await {
                    Ok(()) => {}
                    Err(end) => break end,
                },
                end = splice.run(self.settings.idle, self.settings.head) => break end,
            }
        };
        let (out, back) = splice.carried();
        self.metrics.bytes.get_or_create(&Direction { direction: "out" }).inc_by(out);
        self.metrics.bytes.get_or_create(&Direction { direction: "in" }).inc_by(back);
        let is_unanswered = back == 0;
        let filter = splice.into_filter();
        tracing::debug!(sandbox = %incoming.binding.sandbox, goal = %incoming.goal, out, back, ?end, "a flow has ended");
        let denied = match end {
            End::Closed => return,
            End::Broken | End::Idle => {
                reset(server);
                return reset(incoming.client);
            }
            End::Cut(denied) => denied,
            End::Refused(refusal) => {
                let rule = permit.rule().map(str::to_owned);
                Denied { refusal, rule, generation: permit.effective().generation }
            }
        };
        reset(server);
        self.metrics.cut.get_or_create(&Counted { outcome: denied.refusal.code() }).inc();
        self.tell(&incoming, Outcome::Denied(denied.refusal.to_string()), denied.rule.as_deref(), denied.generation);
        if !is_unanswered {
            return reset(incoming.client); // an answer may be under way; ours would be taken for a part of it
        }
        let destination = format!("{}:{}", incoming.goal, incoming.port);
        let problem = Problem::refused(&denied.refusal, destination, denied.rule.as_deref(), denied.generation);
        answer(incoming.client, &filter, &problem).await;
    }

    /// Whether a flow may still be now that the policy has changed. It goes on while the decision point is asked.
    async fn still(
        &self,
        incoming: &Incoming<N::Held>,
        policies: &mut admit::Policies,
        splice: &mut Splice<'_>,
        address: std::net::SocketAddr,
    ) -> Result<(), End> {
        let permit = tokio::select! {
            biased;
            permit = self.admit(incoming, policies) => permit.map_err(End::Cut)?,
            end = splice.run(self.settings.idle, self.settings.head) => return Err(end),
        };
        let Goal::Name(_) = permit.goal() else { return Ok(()) };
        self.resolve.may_stay(address, permit.effective()).map_err(|reason| {
            let (rule, generation) = (permit.rule().map(str::to_owned), permit.effective().generation);
            End::Cut(Denied { refusal: Refusal::Addresses(format!("{}: {reason}", address.ip())), rule, generation })
        })
    }

    fn tell(&self, incoming: &Incoming<N::Held>, outcome: Outcome, rule: Option<&str>, generation: u64) {
        self.attempts.tell(Attempt {
            sandbox: incoming.binding.sandbox.clone(),
            destination: incoming.goal.to_string(),
            port: incoming.port,
            protocol: Protocol::Tcp,
            outcome,
            rule: rule.map(str::to_owned),
            generation,
        });
    }
}

/// Tells a client that speaks HTTP in the clear why nothing comes of it; resets every other.
async fn answer(mut client: TcpStream, filter: &Filter, problem: &Problem<'_>) {
    if !matches!(filter, Filter::Http(_)) {
        return reset(client);
    }
    let told = async {
        client.write_all(&problem.response()).await?;
        client.shutdown().await?;
        loop {
            client.readable().await?;
            match client.try_read(&mut [0; 4096]) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    };
    let _ = timeout(LINGER, told).await; // it is gone, or it goes on sending: either way this is the end
}
