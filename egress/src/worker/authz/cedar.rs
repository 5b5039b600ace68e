//! The decision point that is built in: Cedar (docs.cedarpolicy.com) on policies, entities and a schema that are given as text.
//!
//! Every question is asked of Cedar as: principal `Agent::"spiffe://…"` (a sandbox without an agent:
//! `Workload::"namespace/id"`), action `Action::"connect"`, resource `Destination::"host:port"` with the attributes `host`,
//! `port`, and `name` or `ip`, in `Zone::"…"` for each zone that encloses the name; context `port`, `protocol`, `sandbox`,
//! `namespace`, `generation`, and `agent` where there is one. A policy that fails on a question refuses it, whatever the others
//! say: it might have been the one that forbids. `configs/authz/` has examples, docs/egress.md the table.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use serde::{Deserialize, Serialize};
use trust::chain::chain;

use super::answers::Answer;
use super::question::{Host, Question};
use super::{Undecided, Verdict};
use crate::policy::Fqdn;
use crate::protocol::SandboxKey;

/// So much of Cedar's complaints is repeated.
const SHOWN: usize = 5;

/// What Cedar decides by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Policies, in Cedar's language.
    pub policies: String,
    /// Entities, as Cedar's JSON: agents, their groups, groups of zones, …
    pub entities: Option<String>,
    /// The schema, in Cedar's language. Where it is given, policies, entities and questions must keep to it.
    pub schema: Option<String>,
}

/// Which text is wrong, and why.
#[derive(Debug, thiserror::Error)]
pub enum BadCedar {
    /// Not in Cedar's language.
    #[error("policies: {0}")]
    Policies(String),
    /// A policy with slots.
    #[error("policies: {0} is a template, which nothing links here: write policies")]
    Template(String),
    /// Not what the schema says.
    #[error("policies do not keep to the schema: {0}")]
    Invalid(String),
    /// Not Cedar's JSON, or not what the schema says.
    #[error("entities: {0}")]
    Entities(String),
    /// An entity that is made anew for each question.
    #[error("entities: {0}: a destination is made for each question; describe its zones instead")]
    Destination(String),
    /// Not in Cedar's language.
    #[error("schema: {0}")]
    Schema(String),
    /// No question could be asked.
    #[error("the schema does not fit the questions that are asked (docs/egress.md, Authz): {0}")]
    Questions(String),
}

/// The decision point.
pub struct Cedar {
    words: Words,
    policies: PolicySet,
    entities: Entities,
    schema: Option<Schema>,
    authorizer: Authorizer,
}

/// Our words in Cedar's.
struct Words {
    agent: EntityTypeName,
    workload: EntityTypeName,
    destination: EntityTypeName,
    zone: EntityTypeName,
    connect: EntityUid,
}

impl Words {
    fn new() -> Result<Self, Box<cedar_policy::ParseErrors>> {
        let [agent, workload, destination, zone] =
            ["Agent", "Workload", "Destination", "Zone"].map(EntityTypeName::from_str);
        Ok(Self {
            agent: agent?,
            workload: workload?,
            destination: destination?,
            zone: zone?,
            connect: EntityUid::from_str(r#"Action::"connect""#)?,
        })
    }
}

impl Cedar {
    /// Reads the texts; all of them must be right.
    pub fn load(texts: &Texts) -> Result<Self, BadCedar> {
        let words = Words::new().map_err(|error| BadCedar::Policies(error.to_string()))?;
        let schema = texts.schema.as_deref().map(schema).transpose()?;
        let policies =
            PolicySet::from_str(&texts.policies).map_err(|errors| BadCedar::Policies(some(errors.iter())))?;
        if let Some(template) = policies.templates().next() {
            return Err(BadCedar::Template(template.id().to_string()));
        }
        if let Some(schema) = &schema {
            let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::default());
            for warning in result.validation_warnings() {
                tracing::warn!(%warning, "authz policies");
            }
            if !result.validation_passed() {
                return Err(BadCedar::Invalid(some(result.validation_errors())));
            }
        }
        let entities = match &texts.entities {
            Some(json) => Entities::from_json_str(json, schema.as_ref()),
            None => Entities::from_entities([], schema.as_ref()),
        };
        let entities = entities.map_err(|error| BadCedar::Entities(chain(&error)))?;
        if let Some(given) = entities.iter().find(|entity| *entity.uid().type_name() == words.destination) {
            return Err(BadCedar::Destination(given.uid().to_string()));
        }
        let cedar = Self { words, policies, entities, schema, authorizer: Authorizer::new() };
        if cedar.schema.is_some() {
            for host in [Fqdn::parse("www.example.org").map(Host::Name), Ok(Host::Address([192, 0, 2, 1].into()))] {
                let host = host.map_err(|error| BadCedar::Questions(error.to_string()))?;
                cedar.ask(&typical(host)).map_err(BadCedar::Questions)?;
            }
        }
        Ok(cedar)
    }

    /// Decides. Nothing is waited for; docs/benchmarks.md says how long it takes.
    pub fn decide(&self, question: &Question) -> Answer {
        let (request, entities) = self.ask(question).map_err(Undecided::Failed)?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        let diagnostics = response.diagnostics();
        if diagnostics.errors().next().is_some() {
            return Err(Undecided::Failed(some(diagnostics.errors())));
        }
        let policies = || diagnostics.reason().map(|id| self.name(id)).collect::<Vec<_>>();
        tracing::debug!(sandbox = %question.sandbox, decision = ?response.decision(), policies = ?policies(), "cedar");
        match response.decision() {
            Decision::Allow => Ok(Verdict::Granted),
            Decision::Deny => Ok(Verdict::Refused),
        }
    }

    /// As its annotation `@id` says, else as Cedar counts it.
    fn name<'a>(&'a self, id: &'a PolicyId) -> &'a str {
        self.policies.annotation(id, "id").unwrap_or(id.as_ref())
    }

    /// The question in Cedar's words, and the entities with its destination among them.
    fn ask(&self, question: &Question) -> Result<(Request, Entities), String> {
        let Question { sandbox, agent, host, port, generation } = question;
        let uid = |kind: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id));
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let number = RestrictedExpression::new_long;
        let name = sandbox.to_string();
        let principal = match agent {
            Some(agent) => uid(&self.words.agent, agent),
            None => uid(&self.words.workload, &name),
        };

        let resource = uid(&self.words.destination, &question.destination());
        let own = match host {
            Host::Name(name) => ("name", text(name.as_str())),
            Host::Address(address) => ("ip", RestrictedExpression::new_ip(address.to_string())),
        };
        let attributes = [("host", text(&host.to_string())), ("port", number(i64::from(*port))), own];
        let attributes: HashMap<_, _> = attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let zones: HashSet<_> = host.zones().map(|zone| uid(&self.words.zone, zone)).collect();
        let destination = Entity::new(resource.clone(), attributes, zones).map_err(|error| chain(&error))?;
        let entities = self.entities.clone().add_entities([destination], self.schema.as_ref());
        let entities = entities.map_err(|error| chain(&error))?;

        let mut context = vec![
            ("port", number(i64::from(*port))),
            ("protocol", text("tcp")),
            ("sandbox", text(&name)),
            ("namespace", text(&sandbox.namespace)),
            ("generation", number(i64::try_from(*generation).unwrap_or(i64::MAX))),
        ];
        context.extend(agent.as_deref().map(|agent| ("agent", text(agent))));
        let context = Context::from_pairs(context.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let context = context.map_err(|error| chain(&error))?;
        let request = Request::new(principal, self.words.connect.clone(), resource, context, self.schema.as_ref());
        Ok((request.map_err(|error| chain(&error))?, entities))
    }
}

fn schema(text: &str) -> Result<Schema, BadCedar> {
    let (schema, warnings) = Schema::from_cedarschema_str(text).map_err(|error| BadCedar::Schema(chain(&error)))?;
    for warning in warnings {
        tracing::warn!(%warning, "authz schema");
    }
    Ok(schema)
}

/// A question like all others: if the schema has no room for it, it has none for any.
fn typical(host: Host) -> Question {
    let sandbox = SandboxKey { namespace: "default".into(), id: "s".into() };
    Question { sandbox, agent: Some("spiffe://example.org/a".into()), host, port: 443, generation: 1 }
}

/// The first few of many complaints.
fn some<E: std::error::Error>(errors: impl Iterator<Item = E>) -> String {
    errors.take(SHOWN).map(|error| chain(&error)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
