//! How often something may be asked over TCP: by each address without a token that counts, by each agent with its tokens. Who asks too
//! often is told when to come again. Root, at the socket, is not limited. Pure, but for a clock that is handed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use trust::id::AgentId;
use trust::rate::{Bucket, Rate};

use super::problem::Problem;
use crate::config::Rates;

/// Of so many at most is known what they owe; beyond that strangers share what is left to one.
const MOST: usize = 10_000;

/// What may be asked.
#[derive(Debug)]
pub struct Limits {
    peers: Buckets<IpAddr>,
    agents: Buckets<AgentId>,
}

/// Of one kind of caller.
#[derive(Debug)]
struct Buckets<K> {
    rate: Option<Rate>,
    most: usize,
    known: Mutex<(HashMap<K, Bucket>, Bucket)>,
}

impl Limits {
    /// By the settings.
    pub fn new(rates: &Rates) -> Self {
        Self {
            peers: Buckets::new(rates.anonymous, rates.anonymous_burst, MOST),
            agents: Buckets::new(rates.agent, rates.agent_burst, MOST),
        }
    }

    /// A request that brings no token that counts.
    pub fn anonymous(&self, peer: IpAddr, now: Instant) -> Result<(), Problem> {
        self.peers.take(&network(peer), now).map_err(|wait| too_often("this address asks", wait))
    }

    /// Whether an agent may ask for something; its token is not looked at yet, so nothing is taken.
    pub fn may_ask(&self, agent: &AgentId, now: Instant) -> Result<(), Problem> {
        self.agents.look(agent, now).map_err(|wait| too_often("this agent asks", wait))
    }

    /// An agent has asked for something, by a token that counts.
    pub fn asked(&self, agent: &AgentId, now: Instant) {
        let _ = self.agents.take(agent, now); // it was let in already
    }
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(a_second: u32, burst: u32, most: usize) -> Self {
        let rate = NonZeroU32::new(a_second)
            .map(|count| Rate::new(count, Duration::from_secs(1), NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN)));
        Self { rate, most, known: Mutex::default() }
    }

    fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        self.with(key, now, |bucket, rate| bucket.take(rate, now))
    }

    fn look(&self, key: &K, now: Instant) -> Result<(), Duration> {
        self.with(key, now, |bucket, rate| bucket.wait(rate, now).is_zero())
    }

    fn with(&self, key: &K, now: Instant, is_within: impl Fn(&mut Bucket, &Rate) -> bool) -> Result<(), Duration> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (each, others) = &mut *known;
        if each.len() >= self.most && !each.contains_key(key) {
            each.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = match each.len() < self.most || each.contains_key(key) {
            true => each.entry(key.clone()).or_default(),
            false => others,
        };
        if is_within(bucket, rate) { Ok(()) } else { Err(bucket.wait(rate, now)) }
    }
}

/// Whoever has one address of a /64 has all of them (RFC 6177); an IPv4 address is one however it is written.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

fn too_often(who: &str, wait: Duration) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", format!("{who} too often"))
        .hint("come again after Retry-After; the node's operator decides: [api.rate] in pool-agent.toml")
        .again_after(wait)
}

/// What anybody may ask for: a token that comes with it is not looked at. All other requests need one that counts.
pub fn is_open(method: &Method, path: &str) -> bool {
    let of_a_sandbox = path.strip_prefix("/v1/sandboxes/").is_some_and(|rest| rest.contains('/'));
    (method == Method::GET || method == Method::HEAD) && !of_a_sandbox
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(anonymous: u32, agent: u32) -> Limits {
        Limits::new(&Rates { anonymous, anonymous_burst: 2, agent, agent_burst: 2 })
    }

    #[test]
    fn each_address_has_its_own_and_a_subnet_is_one() {
        let (limits, now) = (limits(10, 0), Instant::now());
        for (peer, passes) in [
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("2001:db8::1", true),
            ("2001:db8::2", true),
            ("2001:db8::ffff:3", false),
            ("2001:db8:0:1::1", true),
        ] {
            assert_eq!(limits.anonymous(peer.parse().unwrap(), now).is_ok(), passes, "{peer}");
        }
        let refused = limits.anonymous("10.0.0.1".parse().unwrap(), now).unwrap_err();
        assert_eq!((refused.status, &*refused.code, refused.retry_after), (429, "rate-limited", Some(1)));
        assert!(limits.anonymous("10.0.0.1".parse().unwrap(), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn nobody_uses_up_what_is_an_agents_by_naming_it() {
        let (limits, now) = (limits(0, 10), Instant::now());
        let [a, b]: [AgentId; 2] = ["a", "b"].map(|name| format!("spiffe://example.org/{name}").parse().unwrap());
        for _ in 0..100 {
            assert!(limits.may_ask(&a, now).is_ok(), "a token that does not count is none of the agent's");
        }
        limits.asked(&a, now);
        limits.asked(&a, now);
        assert!(limits.may_ask(&a, now).is_err() && limits.may_ask(&b, now).is_ok());
        assert!((0..1000).all(|_| limits.anonymous("10.0.0.1".parse().unwrap(), now).is_ok()), "0 is no limit");
    }

    #[test]
    fn however_many_strangers_come_what_is_kept_of_them_is_bounded() {
        let (buckets, now) = (Buckets::new(1, 1, 3), Instant::now());
        assert!((0..3).all(|stranger| buckets.take(&stranger, now).is_ok()));
        assert!(buckets.take(&3, now).is_ok() && buckets.take(&4, now).is_err(), "they share one");
        assert!(buckets.take(&0, now).is_err(), "who was there before is known");
        assert!(buckets.take(&5, now + Duration::from_secs(2)).is_ok(), "those that owe nothing are forgotten");
        assert!(buckets.known.lock().unwrap().0.len() <= 3);
    }

    #[test]
    fn what_anybody_may_look_at_is_told_from_what_needs_a_token() {
        for (method, path, open) in [
            (Method::GET, "/health", true),
            (Method::GET, "/v1/sandboxes", true),
            (Method::GET, "/v1/sandboxes/a", true),
            (Method::GET, "/v1/warm-pools/a/logs", true),
            (Method::GET, "/v1/sandboxes/a/logs", false),
            (Method::GET, "/v1/sandboxes/a/exec", false),
            (Method::POST, "/v1/sandboxes", false),
            (Method::DELETE, "/v1/sandboxes/a", false),
        ] {
            assert_eq!(is_open(&method, path), open, "{method} {path}");
        }
    }
}
