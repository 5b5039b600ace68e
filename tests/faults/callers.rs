//! Twenty callers, each an agent with a secret of its own. What they claim says from inside who it is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::plan::{Bad, Dice, Then, Wish};
use crate::harness::network::Network;
use crate::harness::poll;
use crate::harness::trust::Agent;

/// So many ask at the same time.
pub const CALLERS: usize = 20;
/// Whom creto-egress lets nobody connect to.
pub const FORBIDDEN: (&str, u16) = ("93.184.215.15", 443);
/// Where each claim's own port is.
pub const ALLOWED: &str = "93.184.215.18";
/// A claim under a key is asked so often until there is an answer; one without as long as nobody has heard it.
const TRIES: usize = 100;

/// What it writes: its claim, by which template it was made, whom it works for, what it was told, and that it has tried to connect to
/// where it may and where nobody may.
const SCRIPT: &str = "echo claim $CLAIM; echo generation $GENERATION; cat /run/creto/identity.jwt; echo; \
    cat /run/creto/secrets/own; echo; nc -w 1 $ALLOWED </dev/null; nc -w 1 $FORBIDDEN </dev/null; echo end";

/// All of them, and what they were answered.
pub struct Callers<'a> {
    network: &'a Network,
    agents: Vec<Agent>,
    revoked: Agent,
    /// The template's number; a claim that begins after it has changed gets nothing older.
    pub generation: AtomicUsize,
    /// What was handed out, by the sandbox.
    pub got: Mutex<BTreeMap<String, Got>>,
    /// What was asked, by its number: the oldest template that it may get.
    pub asked: Mutex<BTreeMap<usize, (Wish, usize)>>,
    /// How often which answer was given, and what it was the first time.
    pub answers: Mutex<BTreeMap<String, (usize, String)>>,
}

/// A sandbox that a caller has been given.
#[derive(Clone, Debug)]
pub struct Got {
    /// Which claim of theirs it answers.
    pub wish: Wish,
    /// Under which the record of it is kept.
    pub claim: String,
    /// Its caller has ended it, or was told that it has ended.
    pub over: bool,
}

impl<'a> Callers<'a> {
    /// Registered at the node, with their secrets.
    pub fn at(network: &'a Network) -> Self {
        let agents =
            (0..CALLERS).map(|n| Agent::register(&network.node, &format!("caller-{n}"), n as u8 + 1)).collect();
        let revoked = Agent::unregistered("revoked", 200);
        revoked.write(&network.node, "revoked", "revoked");
        let callers = Self {
            network,
            agents,
            revoked,
            generation: AtomicUsize::default(),
            got: Mutex::default(),
            asked: Mutex::default(),
            answers: Mutex::default(),
        };
        for (n, agent) in callers.agents.iter().enumerate() {
            let dir = network.node.path("secrets/agents").join(agent.id.strip_prefix("spiffe://").unwrap());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("own"), secret(n)).unwrap();
            fs::write(dir.join(format!("only-of-{n}")), secret(n)).unwrap();
        }
        callers
    }

    /// runtime.toml, by which the secrets are found.
    pub fn settings(network: &Network) {
        let settings = format!("[secrets]\ndir = {:?}\n", network.node.path("secrets"));
        fs::write(network.node.path("creto/etc/runtime.toml"), settings).unwrap();
    }

    /// The SPIFFE ID of a caller.
    pub fn agent(&self, caller: usize) -> &str {
        &self.agents[caller].id
    }

    /// Claims from here to there, one after the other.
    pub fn claim(&self, caller: usize, numbers: impl Iterator<Item = usize>, dice: &mut Dice) {
        for number in numbers {
            let wish = Wish::of(number, caller, dice);
            self.asked.lock().unwrap().insert(number, (wish.clone(), self.generation.load(Ordering::SeqCst)));
            let Some(claimed) = self.answer(&wish) else { continue };
            let id = claimed["sandbox"]["id"].as_str().unwrap().to_owned();
            let claim = claimed["sandbox"]["claim"]["id"].as_str().unwrap_or_default().to_owned();
            let before = self.got.lock().unwrap().insert(id.clone(), Got { wish: wish.clone(), claim, over: false });
            assert!(before.is_none(), "{id} was handed out to {before:?}, and to {wish:?}");
            let ended = self.read_to_the_end(&id);
            if wish.then == Then::Terminate || ended {
                self.terminate(&id);
            }
        }
    }

    /// What is claimed in the end, if it is.
    fn answer(&self, wish: &Wish) -> Option<Value> {
        let request = self.request(wish);
        for _ in 0..TRIES {
            let answer = self.network.node.ask("POST", "/v1/warm-pools/chaos/claims", &request);
            let heard = match &answer {
                Ok((200, claimed)) if claimed["warm"] == true => "warm".to_owned(),
                Ok((200, _)) => "cold".to_owned(),
                Ok((_, problem)) => problem["code"].as_str().unwrap_or("no code").to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            let first =
                || (0, answer.as_ref().map_or_else(ToString::to_string, |(_, said)| said["detail"].to_string()));
            self.answers.lock().unwrap().entry(heard.clone()).or_insert_with(first).0 += 1;
            match answer {
                Ok((200, claimed)) => {
                    assert_eq!(wish.bad, None, "{wish:?} got {claimed}");
                    return Some(claimed);
                }
                Ok((status, problem)) => {
                    let kind = problem["type"].as_str().unwrap_or_default();
                    assert!(kind.starts_with("https://creto.dev/problems/"), "{wish:?}: {status} {problem}");
                    let wrong =
                        matches!(&*heard, "identity-rejected" | "policy-invalid" | "pool-not-found" | "pool-draining");
                    assert!(!wrong || wish.bad.is_some(), "{wish:?}: {problem}");
                    if wish.bad.is_some() || matches!(&*heard, "idempotency-key-reused" | "pool-empty") {
                        return None;
                    }
                }
                // Nobody was there who could have heard it.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                    breathe();
                    continue;
                }
                Err(_) => {}
            }
            if !wish.key {
                return None;
            }
            breathe();
        }
        None
    }

    fn request(&self, wish: &Wish) -> Value {
        let agent = if wish.bad == Some(Bad::Agent) { &self.revoked } else { &self.agents[wish.caller] };
        let secrets = match wish.bad {
            Some(Bad::Secret) => vec!["file:own".to_owned(), format!("file:only-of-{}", (wish.caller + 1) % CALLERS)],
            _ => vec!["file:own".to_owned()],
        };
        let script = if wish.then == Then::Ends { SCRIPT.to_owned() } else { format!("{SCRIPT}; sleep 1000") };
        let policy = json!({"rules": [{"destination": ALLOWED, "ports": [wish.port()], "action": "Allow"}]});
        let env = json!({
            "CLAIM": wish.number.to_string(),
            "ALLOWED": format!("{ALLOWED} {}", wish.port()),
            "FORBIDDEN": format!("{} {}", FORBIDDEN.0, FORBIDDEN.1),
        });
        let mut request = json!({
            "agent": agent.id, "onEmpty": wish.on_empty, "timeout": "30s", "secrets": secrets, "networkPolicy": policy,
            "command": ["sh", "-c", script], "env": env,
        });
        if wish.key {
            request["idempotencyKey"] = format!("key-{}", wish.number).into();
        }
        request
    }

    /// Until it has said all; whether it has ended before.
    fn read_to_the_end(&self, id: &str) -> bool {
        let log = self.network.node.path(&format!("creto/lib/logs/{id}.log"));
        let said_all = || fs::read_to_string(&log).is_ok_and(|text| text.ends_with("end\n"));
        let gone = || match self.network.node.ask("GET", &format!("/v1/sandboxes/{id}"), &Value::Null) {
            Ok((404, _)) => true,
            Ok((200, sandbox)) => sandbox["phase"] != "Running",
            _ => false,
        };
        let ended = poll(|| if said_all() { Some(false) } else { gone().then_some(true) });
        ended.unwrap_or_else(|| panic!("{id} runs, and its command does not: {:?}", fs::read_to_string(&log)))
    }

    fn terminate(&self, id: &str) {
        let ended =
            poll(|| match self.network.node.ask("DELETE", &format!("/v1/sandboxes/{id}?force=true"), &Value::Null) {
                Ok((200 | 404, _)) => Some(()),
                _ => None,
            });
        assert!(ended.is_some(), "{id} cannot be ended");
        if let Some(got) = self.got.lock().unwrap().get_mut(id) {
            got.over = true;
        }
    }
}

/// A caller's secret.
pub fn secret(caller: usize) -> String {
    format!("correct-horse-battery-{caller}")
}

#[expect(clippy::disallowed_methods, reason = "an orchestrator that is told no asks again after a while")]
fn breathe() {
    std::thread::sleep(std::time::Duration::from_millis(200));
}
