//! `/v1/attestations`: the signed statements about sandboxes, as they are kept. The operator sees all; an agent, by its token, those
//! about its own sandboxes: a statement says what somebody runs, on what, under which policy. Whoever reads one verifies it.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::attestation::dsse::Envelope;
use trust::id::{Namespace, SandboxId};

use super::auth::{Via, Who};
use super::input::{Asked, At};
use super::problem::Problem;
use super::route::{Access, Route, get};
use super::{Api, blocking};
use crate::attested::{Summary, summary};
use crate::spec::Backend;
use crate::statements::{self, StatementsError};

/// in-toto's, for DSSE envelopes.
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";

/// `GET /v1/attestations`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Attestations {
    /// By namespace and id.
    pub attestations: Vec<Summary>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Of this containerd namespace alone.
    namespace: Option<Namespace>,
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/attestations", list)
            .named("listAttestations", "The sandboxes about which there are statements; nothing is verified.")
            .may(Access::Agent)
            .query::<Which>()
            .answers::<Attestations>(StatusCode::OK, "What the current statements say in short.")
            .problems(&[(500, "statements-unreadable")]),
        get("/v1/attestations/{id}", one)
            .named("getAttestation", "A sandbox's current statement, as it is stored; nothing is verified.")
            .may(Access::Agent)
            .parameter::<SandboxId>("id", "The sandbox's id.")
            .query::<Which>()
            .answers_as::<Envelope>(ENVELOPE, StatusCode::OK, "A DSSE envelope around an in-toto statement.")
            .problems(&[(404, "attestation-not-found"), (409, "several-namespaces"), (500, "statements-unreadable")]),
    ]
}

fn sees(who: &Who, said: &Summary) -> bool {
    match who {
        Who::Operator => true,
        Who::Agent(agent) => said.works_for() == Some(agent),
    }
}

async fn list(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
    Asked(Which { namespace }): Asked<Which>,
) -> Result<Json<Attestations>, Problem> {
    let who = api.auth.who(via, &headers, Backend::Gvisor).await?;
    let root = api.ports.root.attestations();
    let all = blocking(move || {
        let all = statements::list(&root)?.into_iter();
        let wanted = all.filter(|kept| namespace.as_ref().is_none_or(|wanted| kept.namespace == *wanted));
        Ok(wanted.map(|kept| summary(&kept)).filter(|said| sees(&who, said)).collect())
    });
    let attestations = all.await?.map_err(|e: StatementsError| Problem::from(e))?;
    Ok(Json(Attestations { attestations }))
}

async fn one(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    Asked(Which { namespace }): Asked<Which>,
) -> Result<impl IntoResponse, Problem> {
    let who = api.auth.who(via, &headers, Backend::Gvisor).await?;
    let none =
        || Problem::new(StatusCode::NOT_FOUND, "attestation-not-found", format!("there is no statement about {id}"));
    let sandbox: SandboxId = id.parse().map_err(|_| none())?;
    let root = api.ports.root.attestations();
    let found = blocking(move || {
        let kept = statements::find(&root, &sandbox, namespace.as_ref())?;
        Ok((kept.current()?, summary(&kept)))
    });
    let (envelope, said) = found.await?.map_err(|e: StatementsError| Problem::from(e))?;
    match sees(&who, &said) {
        true => Ok(([(CONTENT_TYPE, ENVELOPE)], envelope)),
        false => Err(none()), // another's is told from none by nobody
    }
}

impl From<StatementsError> for Problem {
    fn from(error: StatementsError) -> Self {
        let (status, code) = match &error {
            StatementsError::None { id, .. } => {
                let why = format!("there is no statement about {id}"); // and not where it was looked for
                return Self::new(StatusCode::NOT_FOUND, "attestation-not-found", why);
            }
            StatementsError::Several { .. } => (StatusCode::CONFLICT, "several-namespaces"),
            StatementsError::Read { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "statements-unreadable"),
        };
        Self::new(status, code, trust::chain::chain(&error))
    }
}
