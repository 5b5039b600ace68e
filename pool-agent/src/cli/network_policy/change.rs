//! Changes policies, and what holds for running sandboxes.

use std::io::{self, Write};

use egress::client::ClientError;
use egress::policy::{self, Action, Policies, Protocol, WrittenPort, WrittenRule};
use egress::protocol::{Answer, Ask, OwnRule, OwnRuleId, Reloaded};

use super::{AddRule, Of, PolicyError, connect, named, output, sandbox};
use crate::node::Root;

/// Adds a rule, to a policy's file or to one sandbox.
pub(super) fn add_rule(root: &Root, policies: &Policies, add: AddRule, out: &mut dyn Write) -> Result<(), PolicyError> {
    let rule = WrittenRule {
        id: add.id,
        destination: Some(add.destination),
        ports: Some(add.ports.into_iter().map(WrittenPort::Text).collect()).filter(|ports: &Vec<_>| !ports.is_empty()),
        protocol: add.protocol.map(|over| Protocol::from(over).to_string()),
        action: Some(Action::from(add.action).to_string()),
        allow_special: add.allow_special.then_some(true),
    };
    if let Some(sandbox) = sandbox(root, &add.of)? {
        let rule = serde_json::to_value(&rule).map_err(io::Error::from)?;
        let fence = connect(root)?.fence(Ask::AddRule(OwnRule { sandbox: sandbox.clone(), rule }))?;
        writeln!(out, "added for sandbox {sandbox}; generation {}", fence.generation)?;
        return Ok(());
    }
    let name = named(&add.of)?;
    let (rule, policy) = policies.replace(&name, |text| policy::add_rule(text, &rule))?;
    writeln!(out, "added to policy {name}: rule {}", rule.id)?;
    for warning in policy::lint(&policy).iter().filter(|warning| warning.rule == rule.id) {
        writeln!(out, "warning: {warning}")?;
    }
    affected(root, out)
}

/// Takes one away.
pub(super) fn remove_rule(
    root: &Root,
    policies: &Policies,
    id: &str,
    of: &Of,
    out: &mut dyn Write,
) -> Result<(), PolicyError> {
    if let Some(sandbox) = sandbox(root, of)? {
        let id = id.strip_prefix("own/").unwrap_or(id).to_owned();
        let fence = connect(root)?.fence(Ask::RemoveRule(OwnRuleId { sandbox: sandbox.clone(), id }))?;
        writeln!(out, "removed for sandbox {sandbox}; generation {}", fence.generation)?;
        return Ok(());
    }
    let name = named(of)?;
    let (rule, _) = policies.replace(&name, |text| policy::remove_rule(text, id))?;
    writeln!(out, "removed from policy {name}: {} {}", rule.action, rule.destination)?;
    affected(root, out)
}

/// Tells the daemon, and then for whom the change holds now.
pub(super) fn affected(root: &Root, out: &mut dyn Write) -> Result<(), PolicyError> {
    let told = connect(root).and_then(|mut daemon| daemon.ask(Ask::Reload));
    match told {
        Ok(Answer::Reloaded(Reloaded { changed, errors })) => {
            match changed.as_slice() {
                [] => writeln!(out, "no running sandbox is concerned")?,
                all => {
                    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                    writeln!(out, "holds now for {}", all.join(", "))?;
                }
            }
            for error in errors {
                writeln!(out, "warning: {}", output::plain(&error))?;
            }
            Ok(())
        }
        Ok(other) => Err(PolicyError::Answer(format!("{other:?}"))),
        Err(ClientError::Down { .. }) => {
            Ok(writeln!(out, "creto-egress does not run: running sandboxes keep what they have until it does")?)
        }
        Err(error) => Err(error.into()),
    }
}
