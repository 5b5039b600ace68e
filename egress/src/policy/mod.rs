//! What a sandbox may connect to: the model, how it is written, and `check`, which decides.

mod addresses;
mod canonical;
mod check;
mod compile;
mod destination;
mod model;
mod name;
mod parse;
mod special;

pub use check::{CompiledPolicy, Decision, Flow, Reason, Target, Verdict};
pub use destination::BadDestination;
pub use model::{Action, AddressRule, Destination, Policy, PortRange, Protocol, Rule};
pub use name::{BadName, Fqdn};
pub use parse::{BadField, BadPolicy, Document, MAX_RULES};
