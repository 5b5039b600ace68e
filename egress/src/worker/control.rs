//! What the privileged half and the worker say to each other, over a socket pair: one JSON object a line.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Attempt;
use super::authz::setup::Setup;
use super::dns::{Change, DnsSettings, Given};
use super::gate;
use crate::policy::Document;
use crate::protocol::SandboxKey;

/// What a worker serves with. It reads no file: what stands in files comes with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// As whom it runs; not root.
    pub uid: u32,
    /// In which group.
    pub gid: u32,
    /// An empty directory, which becomes its root.
    pub root: PathBuf,
    /// How names are answered, and who is asked for addresses.
    pub dns: DnsSettings,
    /// How connections are carried.
    pub gate: gate::Settings,
    /// Who decides where a rule says RequireAuthz.
    pub authz: Setup,
}

/// What the worker is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// First of all, and once; its listening sockets come with it.
    Begin(Box<Settings>),
    /// The synthetic addresses that were in use in the worker before it. Acknowledged.
    Names {
        /// Counts orders.
        number: u64,
        /// All of them.
        given: Vec<Given>,
    },
    /// A sandbox has another policy, or is new. Acknowledged.
    Bind(Bind),
    /// A sandbox is gone: its flows end. Acknowledged.
    Unbind {
        /// Counts orders.
        number: u64,
        /// Which.
        sandbox: SandboxKey,
    },
    /// What the decision point granted to a sandbox is forgotten, and its flows that need a grant end. Acknowledged.
    Revoke {
        /// Counts orders.
        number: u64,
        /// Whose.
        sandbox: SandboxKey,
    },
    /// Another decision point. Acknowledged; a bad one is refused, and the old one stays.
    Authz {
        /// Counts orders.
        number: u64,
        /// Whom to ask from now on.
        setup: Box<Setup>,
    },
    /// How are things?
    Report {
        /// Counts orders.
        number: u64,
    },
}

/// A sandbox, and what holds for it from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Counts orders.
    pub number: u64,
    /// Which.
    pub sandbox: SandboxKey,
    /// For whom it works.
    pub agent: Option<String>,
    /// By what it is known.
    pub addresses: Vec<IpAddr>,
    /// What it may do: the whole policy.
    pub policy: Document,
    /// Which of its policies this is.
    pub generation: u64,
}

/// What the worker tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Notice {
    /// It serves, without privileges.
    Ready,
    /// An order was carried out, or why it was not.
    Acknowledged {
        /// Of the order.
        number: u64,
        /// Why not.
        error: Option<String>,
    },
    /// Another name has a synthetic address, or has none any more: for the next worker.
    Name(Change),
    /// What sandboxes tried.
    Attempts {
        /// In order.
        attempts: Vec<Attempt>,
        /// How many more there was no room for.
        lost: u64,
    },
    /// How things are.
    Report {
        /// Of the order.
        number: u64,
        /// Its metrics, as OpenMetrics text.
        metrics: String,
        /// The sandboxes that it does something for.
        busy: Vec<Busy>,
    },
}

/// What is done for a sandbox now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Busy {
    /// Which.
    pub sandbox: SandboxKey,
    /// Connections through the gate.
    pub flows: u64,
    /// Where it waits for the decision point.
    pub pending: Vec<String>,
}

impl Busy {
    /// Nothing is done for it.
    pub fn none(sandbox: &SandboxKey) -> Self {
        Self { sandbox: sandbox.clone(), flows: 0, pending: Vec::new() }
    }
}
