//! `GET /v1/audit`: the record, searched as `creto-runtime-cli audit search` does. The operator sees all; an agent, by its token, what
//! concerns itself: a record says what somebody's sandboxes did and where they tried to connect to.

use std::time::SystemTime;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use trust::audit::Event;
use trust::audit::ledger::{Found, LedgerError, Query};
use trust::id::{AgentId, SandboxId};

use super::auth::{Via, Who};
use super::input::Asked;
use super::problem::Problem;
use super::route::{Access, Route, get};
use super::{Api, blocking};
use crate::ledger::{OpenError, Opened, Placed, When, open};
use crate::node::Root;
use crate::spec::Backend;

/// Records in an answer where nobody says how many.
const RECORDS: u32 = 100;
/// The most.
const MOST: u32 = 1000;

/// `GET /v1/audit`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Records {
    /// The newest that fit, oldest first.
    pub records: Vec<Placed>,
    /// Ask with this as `before` for those in front of them; none where there are none.
    pub before: Option<u64>,
    /// Positions that would fit and whose records cannot be read: they were tampered with.
    pub unreadable: Vec<u64>,
    /// Why what still waits in the spools is not in this answer.
    pub not_drained: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Which {
    /// Events of this name; EgressAttempt: connections, whatever they came to.
    #[serde(default)]
    #[schemars(schema_with = "event_names")]
    event: Option<String>,
    /// Connections to this address, or to this name and all names below it.
    destination: Option<String>,
    /// Events of this sandbox.
    sandbox_id: Option<SandboxId>,
    /// Events of this agent; over TCP the token's own.
    agent: Option<AgentId>,
    /// Not before this: a time such as 2026-11-24T21:36:24Z, or how long ago, such as 1h.
    #[schemars(with = "Option<When>")]
    since: Option<String>,
    /// Before this.
    #[schemars(with = "Option<When>")]
    until: Option<String>,
    /// In front of this position.
    before: Option<u64>,
    /// No more than so many, the newest; 100 where nothing is said.
    #[schemars(range(min = 1, max = MOST))]
    limit: Option<u32>,
}

fn event_names(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = Event::NAMES.into_iter().chain([Event::EGRESS_ATTEMPT.0]).collect();
    json_schema!({ "type": "string", "enum": names })
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/audit", search)
            .named("searchAudit", "What is in the record; all that is given must fit.")
            .may(Access::Agent)
            .query::<Which>()
            .answers::<Records>(StatusCode::OK, "What was found.")
            .problems(&[(503, "ledger-unavailable")]),
    ]
}

async fn search(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
    Asked(asked): Asked<Which>,
) -> Result<Json<Records>, Problem> {
    let query = asked.query(SystemTime::now())?;
    let agent = match api.auth.who(via, &headers, Backend::Gvisor).await? {
        Who::Operator => asked.agent,
        own @ Who::Agent(_) => own.caller(asked.agent)?.agent,
    };
    let (root, query) = (api.ports.root.clone(), Query { agent: agent.map(|agent| agent.to_string()), ..query });
    Ok(Json(blocking(move || find(&root, &query)).await??))
}

fn find(root: &Root, query: &Query) -> Result<Records, OpenError> {
    let Opened { ledger, drained, .. } = open(root, SystemTime::now())?;
    let Found { entries, unreadable } = ledger.search(query)?;
    let unreadable: Vec<u64> = unreadable.into_iter().map(|place| place.position).collect();
    let first = entries.iter().map(|entry| entry.position).chain(unreadable.iter().copied()).min();
    let full = Some(entries.len() + unreadable.len()) == query.limit.and_then(|limit| limit.try_into().ok());
    Ok(Records {
        records: entries.into_iter().map(Placed::from).collect(),
        before: first.filter(|first| full && *first > 0),
        unreadable,
        not_drained: drained.err().map(|error: LedgerError| trust::chain::chain(&error)),
    })
}

impl Which {
    /// Whoever asks: that is added.
    fn query(&self, now: SystemTime) -> Result<Query, Problem> {
        let bad = |why: String| Problem::new(StatusCode::BAD_REQUEST, "invalid-query", why);
        let known = |event: &&String| Event::NAMES.contains(&event.as_str()) || *event == Event::EGRESS_ATTEMPT.0;
        if let Some(event) = self.event.as_ref().filter(|event| !known(event)) {
            return Err(bad(format!("event {event:?} is none: give one of {}", Event::NAMES.join(", "))));
        }
        let limit = self.limit.unwrap_or(RECORDS);
        if !(1..=MOST).contains(&limit) {
            return Err(bad(format!("limit {limit}: give 1 to {MOST}")));
        }
        let time = |name: &str, text: &Option<String>| -> Result<Option<u64>, Problem> {
            let when = text.as_ref().map(|text| text.parse::<When>()).transpose();
            Ok(when.map_err(|e| bad(format!("{name}: {e}")))?.map(|when| when.millis(now)))
        };
        Ok(Query {
            event: self.event.clone(),
            sandbox: self.sandbox_id.as_ref().map(ToString::to_string),
            agent: None,
            destination: self.destination.clone(),
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            before: self.before,
            limit: Some(limit.into()),
        })
    }
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ledger-unavailable", trust::chain::chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Uri;
    use trust::audit::{About, Audit, Limits, Spool};

    use super::*;

    fn asked(query: &str) -> Result<Which, String> {
        let uri: Uri = format!("/v1/audit?{query}").parse().unwrap();
        axum::extract::Query::try_from_uri(&uri).map(|axum::extract::Query(which)| which).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        for good in ["", "event=EgressAttempt&since=1h&until=2026-11-24T21:36:24Z", "limit=1000&before=7&sandboxId=a"] {
            asked(good).unwrap().query(SystemTime::now()).unwrap();
        }
        for bad in ["event=Nothing", "limit=0", "limit=1001", "since=soon"] {
            let problem = asked(bad).unwrap().query(SystemTime::now()).unwrap_err();
            assert_eq!((problem.status, &*problem.code), (400, "invalid-query"), "{bad}");
        }
        for bad in ["sandbox=a", "agent=a", "limit=-1", "before=a", "limit=1&limit=2"] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_record_is_read_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()));
        std::fs::create_dir_all(root.lib()).unwrap();
        let spool = Spool::new(&root.spool(), "cli", "node-1", Limits::default()).unwrap();
        (0..5).for_each(|_| spool.record(&About::default(), Event::AgentRevoked {}));
        drop(spool);
        let page = |before: Option<u64>| find(&root, &Query { limit: Some(2), before, ..Query::default() }).unwrap();
        let (mut before, mut seen) = (None, Vec::new());
        loop {
            let found = page(before);
            seen.splice(0..0, found.records.iter().map(|placed| placed.position));
            assert!(found.unreadable.is_empty() && found.not_drained.is_none());
            before = found.before;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }
}
