//! What a sandbox may connect to: the model, how it is written, and `check`, which decides.

mod check;
mod model;
mod name;

pub use check::{CompiledPolicy, Decision, Flow, Reason, Target, Verdict};
pub use model::{Action, AddressRule, Destination, Policy, PortRange, Protocol, Rule};
pub use name::{BadName, Fqdn};
