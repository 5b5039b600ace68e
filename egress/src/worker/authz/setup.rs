//! Which decision point the worker is to ask: all that it must know, for it reads no files and resolves no names. Made by the
//! privileged half (`settings`).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{answers, authzen, breaker, cedar};

/// All that the worker needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// Times and counts.
    pub limits: Limits,
    /// Whom to ask.
    pub point: DecisionPoint,
}

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecisionPoint {
    /// Nobody: whatever needs a decision is refused.
    #[default]
    None,
    /// Cedar policies, evaluated here.
    Cedar(cedar::Texts),
    /// A service that speaks AuthZEN.
    AuthZen(authzen::Service),
}

impl DecisionPoint {
    /// As `kind` in the table.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cedar(_) => "cedar",
            Self::AuthZen(_) => "authzen",
        }
    }
}

/// Times and counts, the same for every decision point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// One question, all in all.
    pub deadline: Duration,
    /// A grant counts for this long: so long may the decision point's change of mind take.
    pub ttl: Duration,
    /// A refusal does.
    pub negative_ttl: Duration,
    /// After so many failures in a row the decision point is left alone …
    pub breaker_failures: u32,
    /// … for this long.
    pub breaker_open: Duration,
}

impl Default for Limits {
    /// 2 s a question, 30 s a grant, 5 s a refusal; 5 failures, 5 s.
    fn default() -> Self {
        let [deadline, ttl, negative_ttl, breaker_open] = [2, 30, 5, 5].map(Duration::from_secs);
        Self { deadline, ttl, negative_ttl, breaker_failures: 5, breaker_open }
    }
}

impl Limits {
    /// How long answers count.
    pub fn times(&self) -> answers::Times {
        answers::Times { granted: self.ttl, refused: self.negative_ttl }
    }

    /// When the breaker opens, and for how long.
    pub fn breaker(&self) -> breaker::Limits {
        breaker::Limits { failures: self.breaker_failures, open: self.breaker_open }
    }
}

/// A bearer token (RFC 6750). Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    /// Itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
