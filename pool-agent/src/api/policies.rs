//! `/v1/policies`: the node's named network policies. They say where sandboxes can connect to, so over TCP an agent's token is needed;
//! an agent chooses one by its name for a sandbox, so any agent may read them.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use egress::policy::{Document, LoadError, Protocol};
use egress::protocol::Explained;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::id::PolicyName;

use super::auth::Via;
use super::input::{Asked, At};
use super::problem::Problem;
use super::route::{Access, Route, get};
use super::{Api, blocking};
use crate::policies::{self, ExplainError, ListError, Listed, host_and_port};
use crate::schema::PolicyDocument;
use crate::spec::Backend;

/// `GET /v1/policies`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Policies {
    /// By name.
    pub policies: Vec<Listed>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Connection {
    /// Where it would go: HOST, HOST:PORT, an address, ADDRESS:PORT or [ADDRESS]:PORT; without a port, to 443.
    destination: String,
    /// How; TCP where nothing is said.
    #[schemars(with = "Option<Protocol>")]
    protocol: Option<Protocol>,
}

pub(super) fn routes() -> Vec<Route> {
    let problems = [(400, "invalid-name"), (404, "policy-not-found"), (422, "policy-invalid")];
    vec![
        get("/v1/policies", list)
            .named("listPolicies", "The node's network policies.")
            .may(Access::Agent)
            .answers::<Policies>(StatusCode::OK, "The policies.")
            .problems(&[(500, "policies-unreadable")]),
        get("/v1/policies/{name}", one)
            .named("getPolicy", "The rules of a policy, with all that it includes.")
            .may(Access::Agent)
            .parameter::<PolicyName>("name", "The policy's name.")
            .answers::<PolicyDocument>(StatusCode::OK, "The policy.")
            .problems(&problems),
        get("/v1/policies/{name}/explanation", explain)
            .named("explainPolicy", "What a policy does with a connection, and why.")
            .may(Access::Agent)
            .parameter::<PolicyName>("name", "The policy's name.")
            .query::<Connection>()
            .answers::<Explained>(StatusCode::OK, "What becomes of it.")
            .problems(&problems),
    ]
}

fn named(name: &str) -> Result<PolicyName, Problem> {
    name.parse().map_err(|e: trust::id::BadId| Problem::new(StatusCode::BAD_REQUEST, "invalid-name", e))
}

async fn list(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
) -> Result<Json<Policies>, Problem> {
    api.auth.who(via, &headers, Backend::Gvisor).await?;
    Ok(Json(Policies { policies: blocking(move || policies::list(&api.ports.policies)).await?? }))
}

async fn one(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(name): At<String>,
    headers: HeaderMap,
) -> Result<Json<Document>, Problem> {
    api.auth.who(via, &headers, Backend::Gvisor).await?;
    let name = named(&name)?;
    let policy = blocking(move || api.ports.policies.named(&name)).await??;
    Ok(Json(Document { include: Vec::new(), policy }))
}

async fn explain(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(name): At<String>,
    headers: HeaderMap,
    Asked(Connection { destination, protocol }): Asked<Connection>,
) -> Result<Json<Explained>, Problem> {
    api.auth.who(via, &headers, Backend::Gvisor).await?;
    let (name, to) = (named(&name)?, host_and_port(&destination)?);
    let protocol = protocol.unwrap_or(Protocol::Tcp);
    let explained = blocking(move || policies::explain_by_name(&api.ports.policies, &name, &to, protocol)).await?;
    Ok(Json(explained?))
}

impl From<ListError> for Problem {
    fn from(error: ListError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "policies-unreadable", trust::chain::chain(&error))
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        match &error {
            LoadError::Unknown { name, chain, .. } if chain.is_empty() => {
                Self::new(StatusCode::NOT_FOUND, "policy-not-found", format!("there is no policy {name}"))
            }
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid", trust::chain::chain(&error)),
        }
    }
}

impl From<ExplainError> for Problem {
    fn from(error: ExplainError) -> Self {
        match error {
            ExplainError::Policy(error) => error.into(),
            bad @ ExplainError::Destination { .. } => Self::new(StatusCode::BAD_REQUEST, "invalid-query", bad),
        }
    }
}
