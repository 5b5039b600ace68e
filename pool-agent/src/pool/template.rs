//! What a pool is asked to be: what its members are made of, and how many there should be. Pure.

use std::num::NonZeroU16;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::clock::Timestamp;
use trust::id::PoolName;

use crate::sandbox::Generation;
use crate::schema::Span;
use crate::spec::{AbsolutePath, Backend, BadSpec, SandboxSpec};

/// No pool has more ready members: a larger number is a mistake.
pub const MOST_READY: u32 = 10_000;

/// No pool has so many minutes' claims waiting.
pub const MOST_HEADROOM: f64 = 1000.0;

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// What its members are made of.
    pub template: Template,
    /// How many there should be.
    pub scaling: Scaling,
    /// Nothing is claimed from it any more, and what waits in it is taken down.
    #[serde(default)]
    pub draining: bool,
    /// Where it comes from.
    pub origin: Origin,
    /// When it was made.
    pub created_at: Timestamp,
    /// Grows with each change; the store's, 0 before it is there.
    #[serde(default)]
    pub revision: u64,
}

impl Pool {
    /// Of its template: what members of another were made by is stale.
    pub fn generation(&self) -> Generation {
        self.template.generation()
    }
}

/// Where a pool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A file of pools.d; it is there as long as the file is.
    File,
    /// The API.
    Api,
}

/// What members are made of. Whatever changes here makes those that wait stale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", try_from = "WrittenTemplate")]
pub struct Template {
    /// A member, before a claim says what it asks for. Its policy is not in force until then: members wait with deny-all.
    pub spec: SandboxSpec,
    /// What runs before the claim.
    pub mode: Mode,
    /// When a member of a pool with [`Mode::Run`] is ready; without, as soon as it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenTemplate {
    /// A member, before a claim says what it asks for. Its policy is not in force until then: members wait with deny-all.
    #[serde(deserialize_with = "crate::object::only")]
    spec: SandboxSpec,
    /// What runs before the claim.
    #[serde(default)]
    mode: Mode,
    /// When a member in which something runs is ready; without, as soon as it runs.
    readiness: Option<Readiness>,
}

impl TryFrom<WrittenTemplate> for Template {
    type Error = BadSpec;

    fn try_from(WrittenTemplate { spec, mode, readiness }: WrittenTemplate) -> Result<Self, BadSpec> {
        Self { spec, mode, readiness }.checked()
    }
}

impl Template {
    /// The same, if its parts fit; for whoever has changed something in it.
    pub fn checked(mut self) -> Result<Self, BadSpec> {
        self.readiness = self.readiness.map(Readiness::checked).transpose()?;
        if self.readiness.is_some() && self.mode == Mode::Hold {
            return Err(BadSpec(
                "readiness: nothing runs that could be asked; give mode = \"run\", or leave it out".into(),
            ));
        }
        if self.spec.runsc_path.is_some() && self.spec.backend != Backend::Gvisor {
            return Err(BadSpec("runsc_path: only with the backend gvisor".into()));
        }
        Ok(self)
    }

    /// Of all that is in it.
    pub fn generation(&self) -> Generation {
        // Equal texts have equal bytes, and a template has nothing that JSON cannot write. Two orders of an inline policy's keys
        // may count as two templates: members are then made anew, which does no harm.
        Generation::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// What runs in a member before the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing of the workload: the claim's command starts with the claim.
    #[default]
    Hold,
    /// The command itself, such as a server that is slow to start.
    Run,
}

/// When a member that runs is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Readiness {
    /// What is asked.
    pub probe: Probe,
    /// So long after an answer it is asked again.
    #[serde(with = "crate::span", default = "Readiness::interval")]
    #[schemars(with = "Span")]
    pub interval: Duration,
    /// An answer that takes longer is none.
    #[serde(with = "crate::span", default = "Readiness::timeout")]
    #[schemars(with = "Span")]
    pub timeout: Duration,
    /// After so long a member is given up.
    #[serde(with = "crate::span", default = "Readiness::deadline")]
    #[schemars(with = "Span")]
    pub deadline: Duration,
}

impl Readiness {
    /// Asked four times a second, and given up after a minute.
    pub fn of(probe: Probe) -> Self {
        Self { probe, interval: Self::interval(), timeout: Self::timeout(), deadline: Self::deadline() }
    }

    /// The same, if it can be.
    fn checked(self) -> Result<Self, BadSpec> {
        let bad = |why: &str| Err(BadSpec(format!("readiness.{why}")));
        match &self.probe {
            Probe::Exec(command) if command.is_empty() => return bad("exec: name a program"),
            Probe::Exec(_) | Probe::Tcp(_) | Probe::File(_) => {}
        }
        if self.interval < Duration::from_millis(10) {
            return bad("interval: give 10ms or more, or members do nothing but answer");
        }
        if self.timeout.is_zero() || self.deadline.is_zero() {
            return bad("timeout and readiness.deadline: give more than nothing, or no member is ever ready");
        }
        Ok(self)
    }

    fn interval() -> Duration {
        Duration::from_millis(250)
    }

    fn timeout() -> Duration {
        Duration::from_secs(5)
    }

    fn deadline() -> Duration {
        Duration::from_secs(60)
    }
}

/// What a member is asked, from inside it: nothing gets in through the fence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// A command in it ends with 0.
    Exec(Vec<String>),
    /// Something in it accepts connections.
    Tcp(NonZeroU16),
    /// A file in it is there.
    File(AbsolutePath),
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exec(command) => write!(f, "exec {command:?}"),
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::File(path) => write!(f, "file {path}"),
        }
    }
}

/// How many members there should be. Changes of it make none stale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, try_from = "WrittenScaling")]
pub struct Scaling {
    /// So many wait at least.
    pub min_ready: u32,
    /// So many wait at most.
    pub max_ready: u32,
    /// None waits longer, where another can be made.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub max_age: Option<Duration>,
    /// Between the two by demand.
    pub auto_scaling: AutoScaling,
    /// So many are made at once at most, so that a pool does not slow down the node.
    pub max_warming: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenScaling {
    /// So many wait at least.
    #[schemars(range(max = MOST_READY))]
    min_ready: u32,
    /// So many wait at most, and no fewer than at least.
    #[schemars(range(max = MOST_READY))]
    max_ready: u32,
    /// None waits longer, where another can be made; 10s or more.
    #[serde(default, with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    max_age: Option<Duration>,
    /// Between the two by demand.
    #[serde(default, deserialize_with = "crate::object::only")]
    auto_scaling: AutoScaling,
    /// So many are made at once at most.
    #[serde(default = "Scaling::max_warming")]
    #[schemars(range(min = 1))]
    max_warming: u32,
}

impl TryFrom<WrittenScaling> for Scaling {
    type Error = BadSpec;

    fn try_from(written: WrittenScaling) -> Result<Self, BadSpec> {
        let WrittenScaling { min_ready, max_ready, max_age, auto_scaling, max_warming } = written;
        Self { min_ready, max_ready, max_age, auto_scaling, max_warming }.checked()
    }
}

impl Scaling {
    /// Of a pool that does not say.
    pub const MAX_WARMING: u32 = 4;

    /// So many, whatever the demand.
    pub fn fixed(min_ready: u32, max_ready: u32) -> Result<Self, BadSpec> {
        let (auto_scaling, max_warming) = (AutoScaling::default(), Self::MAX_WARMING);
        Self { min_ready, max_ready, max_age: None, auto_scaling, max_warming }.checked()
    }

    /// The same, if it can be; for whoever has changed something in it.
    pub fn checked(self) -> Result<Self, BadSpec> {
        let bad = |why: String| Err(BadSpec(why));
        let Self { min_ready, max_ready, max_warming, .. } = self;
        if max_ready > MOST_READY {
            return bad(format!("max_ready {max_ready}: at most {MOST_READY}"));
        }
        if min_ready > max_ready {
            return bad(format!(
                "min_ready {min_ready} is more than max_ready {max_ready}: raise the one or lower the other"
            ));
        }
        if max_warming == 0 {
            return bad("max_warming 0: then none is ever made; give 1 or more".into());
        }
        if self.max_age.is_some_and(|age| age < Duration::from_secs(10)) {
            return bad("max_age: give 10s or more, or members are replaced faster than they are made".into());
        }
        let headroom = self.auto_scaling.headroom;
        if !(headroom.is_finite() && (0.0..=MOST_HEADROOM).contains(&headroom)) {
            return bad(format!("auto_scaling.headroom {headroom}: give a number of 0 to 1000"));
        }
        Ok(self)
    }

    fn max_warming() -> u32 {
        Self::MAX_WARMING
    }
}

/// How the number of ready members follows the claims.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoScaling {
    /// Whether it does; if not, `min_ready` wait.
    #[serde(default)]
    pub enabled: bool,
    /// So many minutes' claims wait.
    #[serde(default = "AutoScaling::headroom")]
    #[schemars(range(min = 0.0, max = MOST_HEADROOM))]
    pub headroom: f64,
}

impl AutoScaling {
    fn headroom() -> f64 {
        1.5
    }
}

impl Default for AutoScaling {
    fn default() -> Self {
        Self { enabled: false, headroom: Self::headroom() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool() -> Pool {
        Pool {
            name: "demo".parse().unwrap(),
            template: Template {
                spec: SandboxSpec::of("python:3.11".parse().unwrap()),
                mode: Mode::Hold,
                readiness: None,
            },
            scaling: Scaling::fixed(3, 5).unwrap(),
            draining: false,
            origin: Origin::Api,
            created_at: Timestamp::from_unix(0),
            revision: 0,
        }
    }

    #[test]
    fn the_generation_changes_with_the_template_and_not_with_the_scaling() {
        let before = pool();
        let mut scaled = before.clone();
        scaled.scaling = Scaling::fixed(4, 50).unwrap();
        scaled.draining = true;
        scaled.revision = 7;
        assert_eq!(scaled.generation(), before.generation());
        let change: [fn(&mut Template); 5] = [
            |t| t.spec.image = "python:3.12".parse().unwrap(),
            |t| t.spec.resource_limits.memory_bytes = Some("1Gi".parse().unwrap()),
            |t| t.mode = Mode::Run,
            |t| t.spec.network = false,
            |t| t.spec.labels = serde_json::from_value(json!({ "a": "b" })).unwrap(),
        ];
        for (n, change) in change.iter().enumerate() {
            let mut other = before.clone();
            change(&mut other.template);
            assert_ne!(other.generation(), before.generation(), "change {n}");
            let read: Pool = serde_json::from_value(serde_json::to_value(&other).unwrap()).unwrap();
            assert_eq!((read.generation(), read), (other.generation(), other), "as kept in a store");
        }
    }

    #[test]
    fn what_cannot_be_scaled_is_refused() {
        for (scaling, why) in [
            (json!({ "minReady": 5, "maxReady": 3 }), "more than max_ready"),
            (json!({ "minReady": 5, "maxReady": 100_000 }), "at most 10000"),
            (json!({ "minReady": 1, "maxReady": 3, "maxWarming": 0 }), "none is ever made"),
            (json!({ "minReady": 1, "maxReady": 3, "maxAge": "1s" }), "10s or more"),
            (json!({ "minReady": 1, "maxReady": 3, "autoScaling": { "headroom": -1 } }), "0 to 1000"),
            (json!({ "minReady": 1, "maxReady": 3, "size": 4 }), "unknown field"),
        ] {
            let error = serde_json::from_value::<Scaling>(scaling).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        let least: Scaling = serde_json::from_value(json!({ "minReady": 0, "maxReady": 0 })).unwrap();
        assert_eq!((least.max_warming, least.auto_scaling.enabled), (4, false));
    }
}
