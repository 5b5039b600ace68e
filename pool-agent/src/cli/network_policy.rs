//! `network-policy`: what sandboxes may connect to. Policies are files (`egress::policy` says what is in them); what holds for a
//! running sandbox is asked of creto-egress, which also is told when a file has changed.

mod change;

use std::io::{self, Write};

use clap::{Args, Subcommand, ValueEnum};
use egress::client::{Client, ClientError, DEADLINE};
use egress::policy::{
    self, Action, DEFAULT_POLICY, Destination, Document, LoadError, Policies, Policy, PortRange, Protocol,
    ReplaceError, Rule, Warning,
};
use egress::protocol::{Answer, Ask, Explain, Explained, Fence, Listed as Fenced, PolicyRef, SandboxKey};
use serde_json::json;
use trust::id::PolicyName;

use super::output;
use crate::node::Root;
use crate::policies::{self, ExplainError, ListError, Listed, host_and_port};

/// What can be done with network policies.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the node's policies, or its sandboxes with a fence around them
    List {
        /// The sandboxes, and what holds for them
        #[arg(long)]
        sandboxes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the rules of a policy with all that it includes, or those that hold for a sandbox
    Get {
        /// Which
        #[command(flatten)]
        of: Of,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what becomes of a connection, and why
    Test(Test),
    /// Add a rule, to a policy or to one running sandbox; it holds at once, for running sandboxes too
    AddRule(AddRule),
    /// Remove a rule; connections that it let through end at once
    RemoveRule {
        /// The rule's id, as `get` prints it
        id: String,
        /// Of which policy
        #[command(flatten)]
        of: Of,
    },
    /// Read all policies again, and the files of the decision point, and let them hold
    Reload,
    /// Forget what the decision point granted to a sandbox; its connections are asked about again
    Revoke {
        /// Which sandbox
        #[arg(long, value_name = "ID")]
        sandbox_id: String,
        /// containerd's namespace of the sandbox, where its id is in several
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// Look for what is allowed in policies and probably not meant
    Lint {
        /// Which policies; without: all of the node's
        names: Vec<PolicyName>,
    },
}

/// Which policy is meant: without either, the node's `default`.
#[derive(Debug, Args)]
pub struct Of {
    /// A policy of the node's
    #[arg(long, value_name = "NAME", conflicts_with = "sandbox_id")]
    policy: Option<PolicyName>,
    /// What holds for this sandbox
    #[arg(long, value_name = "ID")]
    sandbox_id: Option<String>,
    /// containerd's namespace of the sandbox, where its id is in several
    #[arg(long, value_name = "NAME", requires = "sandbox_id")]
    namespace: Option<String>,
}

/// A connection.
#[derive(Debug, Args)]
pub struct Test {
    /// Where it would go; without a port, to 443
    #[arg(long, value_name = "HOST[:PORT]")]
    destination: String,
    /// How
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Over,
    #[command(flatten)]
    of: Of,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A rule.
#[derive(Debug, Args)]
pub struct AddRule {
    /// A host name, a zone (*.example.com), an address or a network
    #[arg(long, value_name = "HOST|*.ZONE|IP|CIDR")]
    destination: String,
    /// What becomes of it
    #[arg(long, value_enum, ignore_case = true)]
    action: Does,
    /// Its ports, such as 443 or 8000-8080; without: all
    #[arg(long = "port", value_name = "PORT", value_delimiter = ',')]
    ports: Vec<String>,
    /// How; without: TCP, and for addresses UDP too
    #[arg(long, value_enum)]
    protocol: Option<Over>,
    /// How the rule is called; without: by its place
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Addresses only: private, link-local and other special ones too
    #[arg(long)]
    allow_special: bool,
    #[command(flatten)]
    of: Of,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Over {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Does {
    Allow,
    Deny,
    RequireAuthz,
}

/// Why nothing was said or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PolicyError {
    #[error(transparent)]
    Egress(#[from] ClientError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error("no sandbox {0} has a fence around it: it has no network, or does not run")]
    NoSandbox(String),
    #[error("sandbox {id} is in several namespaces: give --namespace, one of {}", namespaces.join(", "))]
    Several { id: String, namespaces: Vec<String> },
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("{0} warnings")]
    Warnings(usize),
    #[error("creto-egress answered something else: {0}")]
    Answer(String),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

/// Does what was asked for.
pub fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), PolicyError> {
    let policies = Policies::new(root.policies());
    match verb {
        Verb::List { sandboxes: true, json } => list_sandboxes(root, json, out),
        Verb::List { sandboxes: false, json } => list(root, &policies, json, out),
        Verb::Get { of, json } => get(root, &policies, &of, json, out),
        Verb::Test(test) => self::test(root, &policies, &test, out),
        Verb::AddRule(add) => change::add_rule(root, &policies, add, out),
        Verb::RemoveRule { id, of } => change::remove_rule(root, &policies, &id, &of, out),
        Verb::Reload => change::affected(root, out),
        Verb::Revoke { sandbox_id, namespace } => {
            let of = Of { policy: None, sandbox_id: Some(sandbox_id.clone()), namespace };
            let sandbox = sandbox(root, &of)?.ok_or(PolicyError::NoSandbox(sandbox_id))?;
            connect(root)?.done(Ask::Revoke(sandbox.clone()))?;
            Ok(writeln!(out, "revoked for sandbox {sandbox}")?)
        }
        Verb::Lint { names } => lint(&policies, names, out),
    }
}

fn connect(root: &Root) -> Result<Client, ClientError> {
    Client::connect(&root.egress_socket(), DEADLINE)
}

fn fences(root: &Root) -> Result<Vec<Fenced>, PolicyError> {
    match connect(root)?.ask(Ask::List)? {
        Answer::Fences(fences) => Ok(fences),
        other => Err(PolicyError::Answer(format!("{other:?}"))),
    }
}

fn list(root: &Root, policies: &Policies, json: bool, out: &mut dyn Write) -> Result<(), PolicyError> {
    let all = policies::list(policies)?;
    let fences = fences(root).ok(); // policies are there without a daemon too
    let users = |name: &PolicyName| -> Option<Vec<String>> {
        let named =
            |listed: &&Fenced| matches!(&listed.policy, PolicyRef::Named(policy) if *policy == name.to_string());
        Some(fences.as_ref()?.iter().filter(named).map(|listed| listed.fence.sandbox.to_string()).collect())
    };
    if json {
        let row = |Listed { name, rules, digest, error }: &Listed| json!({ "name": name, "rules": rules, "digest": digest, "error": error, "sandboxes": users(name) });
        return Ok(output::json(out, &all.iter().map(row).collect::<Vec<_>>())?);
    }
    let heading = ["POLICY", "RULES", "SANDBOXES", "ERROR"];
    let row = |Listed { name, rules, error, .. }: Listed| {
        let sandboxes = output::or_dash(users(&name).map(|users| users.len()));
        vec![name.to_string(), output::or_dash(rules), sandboxes, output::or_dash(error)]
    };
    Ok(output::table(out, &heading, all.into_iter().map(row))?)
}

fn list_sandboxes(root: &Root, json: bool, out: &mut dyn Write) -> Result<(), PolicyError> {
    let fences = fences(root)?;
    if json {
        return Ok(output::json(out, &fences)?);
    }
    let heading = ["NAMESPACE", "SANDBOX", "POLICY", "GENERATION", "OWN RULES", "FLOWS", "PENDING", "ADDRESSES"];
    let row = |Fenced { fence, policy, own_rules, flows, pending, .. }: Fenced| {
        let Fence { sandbox, interfaces, generation, .. } = fence;
        let addresses = interfaces.iter().flat_map(|interface| &interface.addresses).map(ToString::to_string);
        let policy = match policy {
            PolicyRef::Named(name) => name,
            PolicyRef::Inline(_) => "(inline)".into(),
        };
        vec![
            sandbox.namespace,
            sandbox.id,
            policy,
            generation.to_string(),
            own_rules.len().to_string(),
            flows.to_string(),
            output::or_dash(Some(pending.join(" ")).filter(|pending| !pending.is_empty())),
            addresses.collect::<Vec<_>>().join(" "),
        ]
    };
    Ok(output::table(out, &heading, fences.into_iter().map(row))?)
}

/// Which sandbox an id means.
fn sandbox(root: &Root, of: &Of) -> Result<Option<SandboxKey>, PolicyError> {
    let Some(id) = &of.sandbox_id else { return Ok(None) };
    if let Some(namespace) = &of.namespace {
        return Ok(Some(SandboxKey { namespace: namespace.clone(), id: id.clone() }));
    }
    let keys = fences(root)?.into_iter().map(|listed| listed.fence.sandbox).filter(|key| key.id == *id);
    let mut keys: Vec<_> = keys.collect();
    match keys.len() {
        1 => Ok(keys.pop()),
        0 => Err(PolicyError::NoSandbox(id.clone())),
        _ => {
            let namespaces = keys.into_iter().map(|key| key.namespace).collect();
            Err(PolicyError::Several { id: id.clone(), namespaces })
        }
    }
}

fn named(of: &Of) -> Result<PolicyName, PolicyError> {
    match &of.policy {
        Some(name) => Ok(name.clone()),
        None => DEFAULT_POLICY.parse().map_err(|e| PolicyError::Load(LoadError::Name(e))),
    }
}

fn get(root: &Root, policies: &Policies, of: &Of, json: bool, out: &mut dyn Write) -> Result<(), PolicyError> {
    let policy = match sandbox(root, of)? {
        None => policies.named(&named(of)?)?,
        Some(sandbox) => match connect(root)?.ask(Ask::Get(sandbox))? {
            Answer::Policy(document) => document.policy,
            other => return Err(PolicyError::Answer(format!("{other:?}"))),
        },
    };
    if json {
        return Ok(output::json(out, &Document { include: Vec::new(), policy })?);
    }
    let heading = ["ID", "ACTION", "DESTINATION", "PORTS", "PROTOCOL", ""];
    let row = |Rule { id, destination, ports, protocol, action, allow_special }: Rule| {
        let range = |range: &PortRange| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}-{}", range.start(), range.end()),
        };
        let ports: Vec<_> = ports.iter().map(range).collect();
        let ports = if ports.is_empty() { "any".to_owned() } else { ports.join(",") };
        let protocol = match (protocol, &destination) {
            (Some(Protocol::Udp), _) => "udp",
            (Some(Protocol::Tcp), _) | (None, Destination::Name(_) | Destination::Zone(_)) => "tcp",
            (None, Destination::Net(_)) => "any",
        };
        let special = if allow_special { "special addresses too" } else { "" };
        vec![id, action.to_string(), destination.to_string(), ports, protocol.into(), special.into()]
    };
    Ok(output::table(out, &heading, policy.rules.into_iter().map(row))?)
}

fn test(root: &Root, policies: &Policies, asked: &Test, out: &mut dyn Write) -> Result<(), PolicyError> {
    let (destination, port) = host_and_port(&asked.destination)?;
    let protocol = Protocol::from(asked.protocol);
    let (of, explained) = match sandbox(root, &asked.of)? {
        Some(sandbox) => {
            let of = format!("sandbox {sandbox}");
            let flow = Explain { sandbox, destination: destination.clone(), port, protocol };
            match connect(root)?.ask(Ask::Explain(flow))? {
                Answer::Explained(explained) => (of, explained),
                other => return Err(PolicyError::Answer(format!("{other:?}"))),
            }
        }
        None => {
            let name = named(&asked.of)?;
            let explained = policies::explain_by_name(policies, &name, &(destination.clone(), port), protocol)?;
            (format!("policy {name}"), explained)
        }
    };
    if asked.json {
        return Ok(output::json(out, &explained)?);
    }
    let Explained { verdict, rule, reason, generation, dns } = explained;
    writeln!(out, "{verdict}: {destination}:{port} by {of}")?;
    writeln!(out, "  rule        {}", output::plain(&output::or_dash(rule)))?;
    writeln!(out, "  reason      {}", output::plain(&reason))?;
    if generation > 0 {
        writeln!(out, "  generation  {generation}")?;
    }
    if let Some(dns) = dns {
        writeln!(out, "  DNS         {}", output::plain(&dns))?;
    }
    Ok(())
}

impl From<Does> for Action {
    fn from(does: Does) -> Self {
        match does {
            Does::Allow => Self::Allow,
            Does::Deny => Self::Deny,
            Does::RequireAuthz => Self::RequireAuthz,
        }
    }
}

impl From<Over> for Protocol {
    fn from(over: Over) -> Self {
        match over {
            Over::Tcp => Self::Tcp,
            Over::Udp => Self::Udp,
        }
    }
}

fn lint(policies: &Policies, names: Vec<PolicyName>, out: &mut dyn Write) -> Result<(), PolicyError> {
    let names = match names.is_empty() {
        false => names,
        true => policies::names(policies)?,
    };
    let mut warnings = 0;
    for name in names {
        let policy: Policy = policies.named(&name)?;
        for Warning { rule, what } in policy::lint(&policy) {
            writeln!(out, "{name}: rule {rule}: {what}")?;
            warnings += 1;
        }
    }
    match warnings {
        0 => Ok(writeln!(out, "nothing to say")?),
        some => Err(PolicyError::Warnings(some)),
    }
}
