//! The node's control plane, for whoever embeds it, for the daemon `creto-pool-agent` and for the client `creto-runtime-cli`.
//!
//! An orchestrator opens a node and works with its four services: [`SandboxManager`], [`WarmPoolManager`], [`EgressController`],
//! [`AttestationService`]. Beside them it needs `trust` and `egress`, whose words they speak, and root on the node.
//!
//! ```no_run
//! use creto_runtime::Runtime;
//! use creto_runtime::api::types::{ClaimRequest, SpawnRequest};
//! use creto_runtime::claim::Caller;
//! use creto_runtime::node::Root;
//! use creto_runtime::spec::SandboxSpec;
//! use trust::sandbox_api::Proven;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::open(Root::new(None)).await?; // /etc/creto, /var/lib/creto, /run/creto
//! runtime.recover().await;
//! let node = runtime.clone();
//! tokio::spawn(async move { node.run().await }); // pools are kept warm, what has expired ends
//!
//! // A sandbox of its own, cold.
//! let agent = Some("spiffe://example.org/agents/researcher".parse()?);
//! let spec = SandboxSpec { command: vec!["python3".into(), "-i".into()], ..SandboxSpec::of("python:3.11".parse()?) };
//! let spawned = runtime.sandboxes.spawn(SpawnRequest { spec, name: None, agent: None }, agent.clone()).await?;
//!
//! // A member of a pool, warm.
//! let caller = Caller { agent, proven: Proven::Operator };
//! let pool = runtime.pools.get(&"demo".parse()?).await?;
//! let claimed = runtime.pools.claim(&pool, &ClaimRequest::default(), &caller).await?;
//! println!("{} after {} µs", claimed.sandbox.id, claimed.took.total);
//!
//! // What it is, proven; and another policy, with which it is attested anew.
//! let verified = runtime.attestations.verify_history(&claimed.sandbox.id).await?;
//! println!("statement {}, valid until {}", verified.digest, verified.statement.predicate().valid_until);
//! runtime.egress.set_policy(&claimed.sandbox.id, "web".parse()?).await?;
//! runtime.sandboxes.terminate(&spawned.id.to_string(), creto_runtime::ending::Manner::Graceful).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Top-down: [`cli`] asks and prints · [`daemon`] is the agent from its start to its end, and [`api`] what it answers over HTTP ·
//! [`runtime`] opens a node: [`sandboxes`] spawns, lists and ends sandboxes; [`pools`] keeps members warm, and [`claim`] hands one over ·
//! [`making`], [`ending`] and [`running`] are what both do with one sandbox, and [`readiness`] whether it is ready · [`spawn`] makes one out
//! of an image, by [`containerd`] and [`network`] (CNI), and [`shim`] speaks to it · [`store`] keeps the records, [`pool`] decides what a pool needs, and [`error`] says what went wrong.
//! The rest is what a node has: its name and places ([`node`]), agents, statements ([`attested`]: what they say), keys, policies, the record
//! ([`ledger`]). What is proven, kept and signed is the business of `trust`; what may be connected to, that of `egress`.
#![forbid(unsafe_code)]

pub mod cli;

pub mod api;
pub mod daemon;

pub mod runtime;

pub mod attestations;
pub mod claim;
pub mod egress_controller;
pub mod pools;
pub mod sandboxes;
pub mod warming;

pub mod admission;
pub mod audit;
mod causes;
pub mod ending;
pub mod events;
pub mod exec;
pub mod idle;
pub mod logs;
pub mod making;
pub mod ports;
mod pulling;
pub mod readiness;
pub mod recovery;
pub mod running;
pub mod usage;

pub mod config;
pub mod metrics;
pub mod telemetry;

pub mod spawn;

pub mod containerd;
pub mod network;
mod own_thread;
pub mod shim;

pub mod channels;
pub mod error;
pub mod pool;
pub mod store;

pub mod image;
pub mod labels;
mod object;
pub mod quantity;
pub mod sandbox;
mod schema;
pub mod span;
pub mod spec;

pub mod agents;
pub mod attested;
pub mod keys;
pub mod ledger;
pub mod node;
pub mod policies;
pub mod record;
pub mod statements;

pub use attestations::AttestationService;
pub use egress_controller::EgressController;
pub use pools::WarmPoolManager;
pub use runtime::Runtime;
pub use sandboxes::SandboxManager;
