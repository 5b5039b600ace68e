//! What a sandbox may connect to: the model, how it is written, and `check`, which decides.

mod addresses;
mod canonical;
mod check;
mod compile;
mod destination;
mod edit;
mod load;
mod model;
mod name;
mod parse;
mod replace;
mod special;

pub use check::{CompiledPolicy, Decision, Flow, Reason, Target, Verdict};
pub use destination::BadDestination;
pub use edit::{EditError, add_rule, remove_rule};
pub use load::{LoadError, Policies};
pub use model::{Action, AddressRule, Destination, Policy, PortRange, Protocol, Rule};
pub use name::{BadName, Fqdn};
pub use parse::{BadField, BadPolicy, Document, MAX_RULES, WrittenPort, WrittenRule};
pub use replace::ReplaceError;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
