//! What a sandbox may connect to: the model, how it is written, and `check`, which decides. docs/network-policy.md is for those
//! who write policies.
//!
//! Reading order: `model`, `check`, `special`, `compile`; `addresses` (the same for the kernel); then `name`, `destination` and
//! `written` and `parse` (how it is written), `canonical` (what is attested), `lint`, `load`, `edit`. All are pure but `load` and `replace`, which
//! read and write policies.d.

mod addresses;
mod canonical;
mod check;
mod compile;
mod destination;
mod edit;
mod lint;
mod load;
mod model;
mod name;
mod parse;
mod replace;
mod special;
mod written;

pub use check::{CompiledPolicy, Decision, Flow, Reason, Target, Verdict};
pub use destination::BadDestination;
pub use edit::{EditError, add_rule, remove_rule};
pub use lint::{Doubt, Warning, lint};
pub use load::{DEFAULT_POLICY, LoadError, Policies};
pub use model::{Action, AddressRule, Destination, Policy, PortRange, Protocol, Rule};
pub use name::{BadName, Fqdn};
pub use parse::{BadField, BadPolicy, Document, MAX_RULES};
pub use replace::ReplaceError;
pub use written::{WrittenPort, WrittenRule};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
