//! Why there is no sandbox: one enum for spawning, one for claiming. They print in the form of the operator's runbook,
//! `SpawnError::ImageNotFound("python:3.11")`; each has a code for programs (the end of the `type` of RFC 9457), an HTTP status and a
//! hint at what to do next. Pure. Not here: how a problem is written as a body (`api`).

use std::fmt;
use std::time::Duration;

use trust::id::PoolName;

use crate::image::ImageRef;
use crate::spec::Backend;
use crate::store::StoreError;

/// Why a sandbox was not made. A text in a variant says what was found; it is for people and holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No registry has it, nor does the node.
    ImageNotFound(ImageRef),
    /// It may be there, but does not come: the registry does not answer, or refuses us.
    ImageUnavailable(ImageRef, String),
    /// containerd, runsc or Kata is not there or does not answer.
    BackendUnavailable(String),
    /// An operator has drained it.
    BackendDrained(Backend),
    /// The node takes no more work: an operator has drained it.
    NodeDraining,
    /// Memory, disk or the number of sandboxes is used up.
    ResourceExhausted(String),
    /// The agent is unknown, revoked or not allowed this, or its token does not count.
    IdentityRejected(String),
    /// The network policy cannot be read or is not there.
    PolicyInvalid(String),
    /// A secret is not there, or not for this agent.
    SecretUnavailable(String),
    /// creto-egress does not answer, and without a fence nothing runs.
    EgressUnavailable(String),
    /// The network of the sandbox could not be made (CNI).
    NetworkUnavailable(String),
    /// It was made, and its command does not start.
    StartFailed(String),
    /// It started, and its readiness probe was not met or it ended too early.
    NotReady(String),
    /// Another sandbox has the name or id.
    NameTaken(String),
    /// It took too long.
    Timeout {
        /// So long.
        waited: Duration,
        /// What was being done.
        step: String,
    },
    /// The agent ended while it was being made.
    Interrupted,
    /// The agent's own records.
    Store(#[source] StoreError),
}

/// Why no member was claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// None became free in time.
    Timeout {
        /// So long.
        waited: Duration,
        /// Members that were ready at the end, and did not fit or went to others.
        ready: usize,
    },
    /// None is ready, and the caller would not wait.
    Empty(PoolName),
    /// There is no such pool.
    PoolNotFound(PoolName),
    /// An operator drains the pool, its backend or the node.
    Draining(PoolName),
    /// The agent is unknown, revoked or not allowed this, or its token does not count.
    IdentityRejected(String),
    /// The network policy cannot be read or is not there.
    PolicyInvalid(String),
    /// A secret is not there, or not for this agent.
    SecretUnavailable(String),
    /// creto-egress does not answer; the member has been destroyed.
    EgressUnavailable(String),
    /// Neither could the member be claimed any more, nor any that was tried in its place: creto-egress has lost their fences, or their shims are
    /// gone. They have been destroyed.
    MemberLost(String),
    /// The member could not be bound to its new identity; it has been destroyed.
    BindFailed(String),
    /// The idempotency key was used before, for another claim than this.
    KeyReused(String),
    /// The pool was empty, and the cold spawn in its place failed.
    Spawn(#[source] SpawnError),
    /// The agent's own records.
    Store(#[source] StoreError),
}

/// An error's row: for programs, for HTTP, for people.
struct Row(&'static str, u16, &'static str);

// What both may come to.
const IDENTITY_REJECTED: Row = Row(
    "identity-rejected",
    403,
    "check the agent: creto-runtime-cli agent list; and that its token is fresh and for this node",
);
const POLICY_INVALID: Row = Row("policy-invalid", 422, "check the policy: creto-runtime-cli network-policy lint");
const SECRET_UNAVAILABLE: Row =
    Row("secret-unavailable", 422, "check [secrets] in runtime.toml, and that the secret is this agent's");
const EGRESS_UNAVAILABLE: Row = Row("egress-unavailable", 503, "start it: systemctl start creto-egress");
/// What to do where the agent's records are not to be had.
pub const STORE_HINT: &str = "check the agent's database: creto-runtime-cli health; with etcd: etcdctl endpoint health";
const STORE_UNAVAILABLE: Row = Row("store-unavailable", 503, STORE_HINT);

impl SpawnError {
    /// Stable, for programs: the end of the `type` of RFC 9457, and the cause by which a pool's attempts are counted.
    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// HTTP's.
    pub fn status(&self) -> u16 {
        self.row().1
    }

    /// What to do next, for people.
    pub fn hint(&self) -> &'static str {
        self.row().2
    }

    fn row(&self) -> Row {
        match self {
            Self::ImageNotFound(_) => Row(
                "image-not-found",
                404,
                "check the image's name and tag, or import it: ctr -n creto images import FILE",
            ),
            Self::ImageUnavailable(..) => Row(
                "image-unavailable",
                502,
                "check that the registry answers, and the credentials in ~/.docker/config.json",
            ),
            Self::BackendUnavailable(_) => Row(
                "backend-unavailable",
                503,
                "check containerd and the runtime: systemctl status containerd; creto-runtime-cli health",
            ),
            Self::BackendDrained(_) => Row(
                "backend-drained",
                503,
                "choose another runtime, or enable it: creto-runtime-cli enable --runtime NAME",
            ),
            Self::NodeDraining => Row(
                "node-draining",
                503,
                "use another node, or end the drain of this one: creto-runtime-cli enable --node",
            ),
            Self::ResourceExhausted(_) => Row(
                "resource-exhausted",
                503,
                "terminate sandboxes, shrink pools or add memory: creto-runtime-cli list --sort-by memory_usage --descending",
            ),
            Self::IdentityRejected(_) => IDENTITY_REJECTED,
            Self::PolicyInvalid(_) => POLICY_INVALID,
            Self::SecretUnavailable(_) => SECRET_UNAVAILABLE,
            Self::EgressUnavailable(_) => EGRESS_UNAVAILABLE,
            Self::NetworkUnavailable(_) => {
                Row("network-unavailable", 503, "check the CNI configuration and plugins of the node")
            }
            Self::StartFailed(_) => {
                Row("start-failed", 422, "check the command, its working directory and its user against the image")
            }
            Self::NotReady(_) => {
                Row("not-ready", 422, "check the readiness probe, and the sandbox's output: creto-runtime-cli logs ID")
            }
            Self::NameTaken(_) => Row("name-taken", 409, "choose another name, or terminate the sandbox that has it"),
            Self::Timeout { .. } => {
                Row("timeout", 504, "try again; where it stays slow, look at the node's load: creto-runtime-cli top")
            }
            Self::Interrupted => Row("interrupted", 503, "try again: creto-runtime.service was restarted meanwhile"),
            Self::Store(_) => STORE_UNAVAILABLE,
        }
    }
}

impl ClaimError {
    /// Stable, for programs: the end of the `type` of RFC 9457.
    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// HTTP's.
    pub fn status(&self) -> u16 {
        self.row().1
    }

    /// What to do next, for people.
    pub fn hint(&self) -> &'static str {
        self.row().2
    }

    fn row(&self) -> Row {
        match self {
            Self::Timeout { .. } => Row(
                "claim-timeout",
                504,
                "look why none is ready: creto-runtime-cli pool stats POOL; pool logs POOL --phase Warming; or raise --min-ready",
            ),
            Self::Empty(_) => Row("pool-empty", 503, "wait or spawn cold (on empty: wait, cold), or raise --min-ready"),
            Self::PoolNotFound(_) => Row("pool-not-found", 404, "list the pools: creto-runtime-cli pool list"),
            Self::Draining(_) => Row(
                "pool-draining",
                503,
                "use another pool or node, or end the drain: creto-runtime-cli pool enable POOL, enable --runtime NAME, enable --node",
            ),
            Self::IdentityRejected(_) => IDENTITY_REJECTED,
            Self::PolicyInvalid(_) => POLICY_INVALID,
            Self::SecretUnavailable(_) => SECRET_UNAVAILABLE,
            Self::EgressUnavailable(_) => EGRESS_UNAVAILABLE,
            Self::BindFailed(_) => {
                Row("bind-failed", 503, "claim again; where it goes on, look at the log of creto-runtime.service")
            }
            Self::MemberLost(_) => Row(
                "member-lost",
                503,
                "claim again: the pool makes others; where it goes on, look at the logs of creto-egress and creto-runtime",
            ),
            Self::KeyReused(_) => Row(
                "idempotency-key-reused",
                422,
                "use a new idempotency key for each claim, and the same one only to repeat it",
            ),
            Self::Spawn(error) => error.row(),
            Self::Store(_) => STORE_UNAVAILABLE,
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpawnError::")?;
        match self {
            Self::ImageNotFound(image) => write!(f, "ImageNotFound({:?})", image.to_string()),
            Self::ImageUnavailable(image, why) => write!(f, "ImageUnavailable({:?}): {why}", image.to_string()),
            Self::BackendUnavailable(why) => write!(f, "BackendUnavailable({why:?})"),
            Self::BackendDrained(backend) => write!(f, "BackendDrained({:?})", backend.name()),
            Self::NodeDraining => f.write_str("NodeDraining"),
            Self::ResourceExhausted(why) => write!(f, "ResourceExhausted({why:?})"),
            Self::IdentityRejected(why) => write!(f, "IdentityRejected({why:?})"),
            Self::PolicyInvalid(why) => write!(f, "PolicyInvalid({why:?})"),
            Self::SecretUnavailable(why) => write!(f, "SecretUnavailable({why:?})"),
            Self::EgressUnavailable(why) => write!(f, "EgressUnavailable({why:?})"),
            Self::NetworkUnavailable(why) => write!(f, "NetworkUnavailable({why:?})"),
            Self::StartFailed(why) => write!(f, "StartFailed({why:?})"),
            Self::NotReady(why) => write!(f, "NotReady({why:?})"),
            Self::NameTaken(name) => write!(f, "NameTaken({name:?})"),
            Self::Timeout { waited, step } => write!(f, "Timeout (waited {}, {step})", shown(*waited)),
            Self::Interrupted => f.write_str("Interrupted"),
            Self::Store(_) => f.write_str("Store"),
        }
    }
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimError::")?;
        match self {
            Self::Timeout { waited, ready: 0 } => write!(f, "Timeout (waited {}, no ready sandboxes)", shown(*waited)),
            Self::Timeout { waited, ready } => {
                write!(f, "Timeout (waited {}, none of {ready} ready sandboxes fits or was free)", shown(*waited))
            }
            Self::Empty(pool) => write!(f, "Empty({:?})", pool.to_string()),
            Self::PoolNotFound(pool) => write!(f, "PoolNotFound({:?})", pool.to_string()),
            Self::Draining(pool) => write!(f, "Draining({:?})", pool.to_string()),
            Self::IdentityRejected(why) => write!(f, "IdentityRejected({why:?})"),
            Self::PolicyInvalid(why) => write!(f, "PolicyInvalid({why:?})"),
            Self::SecretUnavailable(why) => write!(f, "SecretUnavailable({why:?})"),
            Self::EgressUnavailable(why) => write!(f, "EgressUnavailable({why:?})"),
            Self::MemberLost(why) => write!(f, "MemberLost({why:?})"),
            Self::BindFailed(why) => write!(f, "BindFailed({why:?})"),
            Self::KeyReused(key) => write!(f, "KeyReused({key:?})"),
            Self::Spawn(_) => f.write_str("Spawn"),
            Self::Store(_) => f.write_str("Store"),
        }
    }
}

/// A time for people: whole seconds, and milliseconds below one.
fn shown(time: Duration) -> humantime::FormattedDuration {
    let millis = if time < Duration::from_secs(1) { u64::from(time.subsec_millis()) } else { time.as_secs() * 1000 };
    humantime::format_duration(Duration::from_millis(millis))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn image() -> ImageRef {
        "python:3.11".parse().unwrap()
    }

    pub(crate) fn spawn_errors() -> Vec<SpawnError> {
        let why = || "why".to_owned();
        vec![
            SpawnError::ImageNotFound(image()),
            SpawnError::ImageUnavailable(image(), why()),
            SpawnError::BackendUnavailable(why()),
            SpawnError::BackendDrained(Backend::Kata),
            SpawnError::NodeDraining,
            SpawnError::ResourceExhausted(why()),
            SpawnError::IdentityRejected(why()),
            SpawnError::PolicyInvalid(why()),
            SpawnError::SecretUnavailable(why()),
            SpawnError::EgressUnavailable(why()),
            SpawnError::NetworkUnavailable(why()),
            SpawnError::StartFailed(why()),
            SpawnError::NotReady(why()),
            SpawnError::NameTaken(why()),
            SpawnError::Timeout { waited: Duration::from_secs(30), step: "image".into() },
            SpawnError::Interrupted,
            SpawnError::Store(StoreError::Damaged("row".into())),
        ]
    }

    #[test]
    fn they_print_in_the_runbooks_form() {
        for (error, text) in [
            (SpawnError::ImageNotFound(image()).to_string(), r#"SpawnError::ImageNotFound("python:3.11")"#),
            (SpawnError::BackendDrained(Backend::Gvisor).to_string(), r#"SpawnError::BackendDrained("gvisor")"#),
            (
                SpawnError::Timeout { waited: Duration::from_millis(30_900), step: "pulling the image".into() }
                    .to_string(),
                "SpawnError::Timeout (waited 30s, pulling the image)",
            ),
            (
                ClaimError::Timeout { waited: Duration::from_secs(30), ready: 0 }.to_string(),
                "ClaimError::Timeout (waited 30s, no ready sandboxes)",
            ),
            (
                ClaimError::Timeout { waited: Duration::from_micros(1500), ready: 3 }.to_string(),
                "ClaimError::Timeout (waited 1ms, none of 3 ready sandboxes fits or was free)",
            ),
            (ClaimError::PoolNotFound("demo".parse().unwrap()).to_string(), r#"ClaimError::PoolNotFound("demo")"#),
        ] {
            assert_eq!(error, text);
        }
    }

    #[test]
    fn each_has_a_code_of_its_own_a_failing_status_and_a_hint() {
        let errors = spawn_errors();
        let codes: BTreeSet<_> = errors.iter().map(SpawnError::code).collect();
        assert_eq!(codes.len(), errors.len(), "{codes:?}");
        for error in &errors {
            let kebab = |b: u8| b.is_ascii_lowercase() || b == b'-';
            assert!(error.code().bytes().all(kebab), "{}", error.code());
            assert!((400..600).contains(&error.status()) && !error.hint().is_empty(), "{error}");
        }
    }

    #[test]
    fn a_claim_that_spawned_in_vain_is_reported_as_the_spawn_is() {
        for error in spawn_errors() {
            let (code, status) = (error.code(), error.status());
            let claim = ClaimError::Spawn(error);
            assert_eq!((claim.code(), claim.status()), (code, status));
        }
    }
}
