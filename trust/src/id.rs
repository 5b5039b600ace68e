//! Names: what may be one, and that they cannot be mixed up. A value that exists is valid.
//!
//! SPIFFE IDs follow the SPIFFE-ID specification §2 by the crate `spiffe`; two things it lets pass are refused here: upper
//! case, which it folds, and more than 2048 bytes. So one identity has exactly one text.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use spiffe::SpiffeId;

/// A SPIFFE ID may be this long, in bytes (SPIFFE-ID §2.3).
const SPIFFE_ID_BYTES: usize = 2048;
/// The path segment under which an agent's sandboxes are named; so no agent may be named like one.
const SANDBOX: &str = "sandbox";
/// Segments of a SPIFFE ID's path are neither empty nor `.` nor `..`.
const SPIFFE_ID: Grammar =
    Grammar::of(r"^spiffe://[a-z0-9._-]{1,255}(/(\.{0,2}[A-Za-z0-9_-]|\.{3})[A-Za-z0-9._-]*)+$", SPIFFE_ID_BYTES);
/// The same, of what is named under [`SANDBOX`].
const SANDBOX_SPIFFE_ID: Grammar = Grammar::of(
    r"^spiffe://[a-z0-9._-]{1,255}(/(\.{0,2}[A-Za-z0-9_-]|\.{3})[A-Za-z0-9._-]*)*/sandbox/(\.{0,2}[A-Za-z0-9_-]|\.{3})[A-Za-z0-9._-]*$",
    SPIFFE_ID_BYTES,
);
/// How much of a bad value an error repeats, in characters.
const SHOWN: usize = 80;

/// A text that is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?}: {rule}")]
pub struct BadId {
    kind: &'static str,
    value: String,
    rule: String,
}

impl BadId {
    fn new(kind: &'static str, value: &str, rule: impl fmt::Display) -> Self {
        let value = match value.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value.to_owned(),
        };
        Self { kind, value, rule: rule.to_string() }
    }
}

/// What a name looks like, for whoever describes it to others. A test holds it to what parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grammar {
    /// What it must fit: a regular expression of ECMA 262.
    pub pattern: &'static str,
    /// What it must not fit, if anything.
    pub never: Option<&'static str>,
    /// Its longest, in bytes; it is ASCII.
    pub longest: usize,
}

impl Grammar {
    const fn of(pattern: &'static str, longest: usize) -> Self {
        Self { pattern, never: None, longest }
    }

    /// Letters and digits, separated by single `.`, `_` or `-`.
    const fn words(longest: usize) -> Self {
        Self::of("^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", longest)
    }
}

/// What all names can do; `$check` reads them, `$grammar` tells others what it takes.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident($inner:ty), $kind:literal, $grammar:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// What it looks like.
            pub const GRAMMAR: Grammar = $grammar;
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let check: fn(&str, usize) -> Result<$inner, String> = $check;
                check(text, Self::GRAMMAR.longest).map(Self).map_err(|rule| BadId::new($kind, text, rule))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// A containerd container id. It names directories, sockets and SPIFFE path segments: `..`, `/` and "" are none.
    SandboxId(String), "sandbox id", Grammar::words(76), words
}
name! {
    /// A containerd namespace; the same grammar as a container id (containerd `pkg/identifiers`).
    Namespace(String), "containerd namespace", Grammar::words(76), words
}
name! {
    /// A node, as its operator calls it; fit for a SPIFFE path segment.
    NodeId(String), "node id", Grammar::words(253), words
}
name! {
    /// What makes a sandbox, such as `gvisor`.
    BackendName(String), "backend", Grammar::words(64), words
}
name! {
    /// A network policy of the node's, `policies.d/<name>.toml`.
    PolicyName(String), "policy name", Grammar::words(128), words
}
name! {
    /// A pool of sandboxes that wait to be claimed.
    PoolName(String), "pool name", Grammar::words(63), words
}
name! {
    /// Which template of its pool a sandbox was made from, as the pool's owner calls it.
    PoolGeneration(String), "pool generation", Grammar::words(76), words
}
name! {
    /// A sandbox as people call it, beside its id.
    SandboxName(String), "sandbox name", Grammar::words(63), words
}
name! {
    /// One claim of a sandbox, named by whoever claims: a claim that is made again under its name is the same.
    ClaimId(String), "claim id", Grammar::words(76), words
}
name! {
    /// One run of a kernel: the UUID in /proc/sys/kernel/random/boot_id.
    BootId(String), "boot id", Grammar::of("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 36), uuid
}
name! {
    /// A key's RFC 7638 SHA-256 thumbprint, base64url.
    KeyId(String), "key id", Grammar::of("^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$", 43), thumbprint
}
name! {
    /// The trust domain of a SPIFFE ID, such as `example.org`.
    TrustDomain(String), "trust domain", Grammar::of("^[a-z0-9._-]{1,255}$", 255), trust_domain
}
name! {
    /// An agent's SPIFFE ID. It has a path (a bare trust domain names nobody), and is no sandbox's.
    AgentId(SpiffeId), "SPIFFE ID", Grammar { never: Some("/sandbox/[^/]*$"), ..SPIFFE_ID }, |text, longest| {
        let id = spiffe_id(text, longest)?;
        let mut segments = id.path().rsplit('/');
        match (segments.next(), segments.next()) {
            (Some(""), None) => Err("has no path: name an agent, such as spiffe://example.org/agents/a".into()),
            (_, Some(SANDBOX)) => Err(format!("…/{SANDBOX}/NAME is a sandbox's own name: give the agent's")),
            _ => Ok(id),
        }
    }
}
name! {
    /// The SPIFFE ID of what runs in a sandbox: `spiffe://DOMAIN/AGENT PATH/sandbox/ID`, or without an agent
    /// `spiffe://DOMAIN/node/NODE/sandbox/ID`.
    WorkloadId(SpiffeId), "workload SPIFFE ID", SANDBOX_SPIFFE_ID, |text, longest| {
        let id = spiffe_id(text, longest)?;
        match id.path().rsplit('/').nth(1) {
            Some(SANDBOX) => Ok(id),
            _ => Err(format!("does not end in /{SANDBOX}/ID")),
        }
    }
}

impl TrustDomain {
    /// A domain that is nobody's: `.internal` is kept for private use (ICANN, 2024).
    pub fn local() -> Self {
        Self("creto.internal".into())
    }
}

impl AgentId {
    /// Its sandbox `id`. Fails only where the whole gets too long.
    pub fn sandbox(&self, id: &SandboxId) -> Result<WorkloadId, BadId> {
        format!("{self}/{SANDBOX}/{id}").parse()
    }
}

impl NodeId {
    /// The node itself, as issuer of tokens: `spiffe://DOMAIN/node/NODE`.
    pub fn spiffe_id(&self, domain: &TrustDomain) -> String {
        format!("spiffe://{domain}/node/{self}")
    }

    /// A sandbox of this node that works for no agent.
    pub fn sandbox(&self, domain: &TrustDomain, id: &SandboxId) -> Result<WorkloadId, BadId> {
        format!("{}/{SANDBOX}/{id}", self.spiffe_id(domain)).parse()
    }
}

impl KeyId {
    /// A thumbprint is the hash of a key's required members.
    pub fn from_digest(digest: &crate::digest::Digest) -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode(digest.as_bytes()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Letters and digits, separated by single `.`, `_` or `-`.
fn words(text: &str, longest: usize) -> Result<String, String> {
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
    match text.len() <= longest && text.split(['.', '_', '-']).all(word) {
        true => Ok(text.to_owned()),
        false => Err(format!("give 1 to {longest} letters and digits; between two of them one . _ or -")),
    }
}

fn uuid(text: &str, longest: usize) -> Result<String, String> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fits = |(at, b): (usize, u8)| if matches!(at, 8 | 13 | 18 | 23) { b == b'-' } else { digit(b) };
    match text.len() == longest && text.bytes().enumerate().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("not a UUID in lower case".into()),
    }
}

fn thumbprint(text: &str, _: usize) -> Result<String, String> {
    match BASE64_URL_SAFE_NO_PAD.decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(text.to_owned()),
        _ => Err("not the base64url of a SHA-256 (RFC 7638)".into()),
    }
}

fn trust_domain(text: &str, _: usize) -> Result<String, String> {
    let domain = spiffe_id(&format!("spiffe://{text}"), SPIFFE_ID_BYTES)?;
    if domain.path().is_empty() { Ok(text.to_owned()) } else { Err("has a path".into()) }
}

fn spiffe_id(text: &str, longest: usize) -> Result<SpiffeId, String> {
    if text.len() > longest {
        return Err(format!("{} bytes; at most {longest}", text.len()));
    }
    let id = SpiffeId::new(text).map_err(|e| e.to_string())?;
    if id.to_string() != text {
        return Err(format!("scheme and trust domain are lower case: {id}"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spiffe_ids_are_strict() {
        let (domain, path) = ("d".repeat(255), "p".repeat(2048 - "spiffe://d/".len()));
        for good in [
            "spiffe://example.org/agents/research",
            "spiffe://example.org/A-1_b.c/...",
            "spiffe://1.2.3.4/x",
            "spiffe://a_b-c/sandbox",
            &format!("spiffe://{domain}/a"),
            &format!("spiffe://d/{path}"),
        ] {
            assert_eq!(good.parse::<AgentId>().unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("", "empty"),
            ("example.org/a", "scheme"),
            ("https://example.org/a", "scheme"),
            ("SPIFFE://example.org/a", "lower case"),
            ("spiffe://Example.org/a", "lower case: spiffe://example.org/a"),
            ("spiffe:/example.org/a", "scheme"),
            ("spiffe:///a", "trust domain"),
            ("spiffe://example.org", "no path"),
            ("spiffe://example.org/", "trailing slash"),
            ("spiffe://example.org/a/", "trailing slash"),
            ("spiffe://example.org//a", "empty segment"),
            ("spiffe://example.org/a/../b", "dot segment"),
            ("spiffe://example.org/./a", "dot segment"),
            ("spiffe://example.org/a%2Fb", "segment characters"),
            ("spiffe://example.org/a%2fsandbox%2fb", "segment characters"),
            ("spiffe://example%2Eorg/a", "trust domain may only"),
            ("spiffe://example.org:443/a", "trust domain may only"),
            ("spiffe://user@example.org/a", "trust domain may only"),
            ("spiffe://[::1]/a", "trust domain may only"),
            ("spiffe://exämple.org/a", "trust domain may only"),
            ("spiffe://example.org/a?b", "segment characters"),
            ("spiffe://example.org/a#b", "segment characters"),
            ("spiffe://example.org/a b", "segment characters"),
            ("spiffe://example.org/a\n", "segment characters"),
            (" spiffe://example.org/a", "scheme"),
            ("spiffe://example.org/a/sandbox/b", "sandbox's own name"),
            (&format!("spiffe://{domain}d/a"), "255"),
            (&format!("spiffe://d/{path}p"), "2049 bytes"),
            (&format!("spiffe://d/{}", "a/".repeat(1500) + "a"), "3012 bytes"),
        ] {
            let error = bad.parse::<AgentId>().expect_err(bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
            assert!(error.len() < 400, "an error repeats little of what it refuses");
        }
    }

    #[test]
    fn other_names_are_strict_too() {
        fn good<T: FromStr>(text: &str) -> bool {
            text.parse::<T>().is_ok()
        }
        let long = "x".repeat(77);
        for (text, is_id) in [
            ("a", true),
            ("a-b_c.9", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a--b", false),
            (&long, false),
        ] {
            assert_eq!(good::<SandboxId>(text), is_id, "{text}");
            assert_eq!(good::<Namespace>(text), is_id, "{text}");
        }
        assert!(good::<BootId>("0a8d6f7e-3c1b-4f5a-9e2d-7b6c5d4e3f2a"));
        assert!(
            !good::<BootId>("0A8D6F7E-3C1B-4F5A-9E2D-7B6C5D4E3F2A")
                && !good::<BootId>("0a8d6f7e3c1b4f5a9e2d7b6c5d4e3f2a")
        );
        assert!(good::<KeyId>("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k") && !good::<KeyId>("v1"));
        assert!(
            good::<TrustDomain>("example.org") && !good::<TrustDomain>("example.org/a") && !good::<TrustDomain>("A")
        );
    }

    #[test]
    fn a_workload_is_named_under_its_agent_or_its_node() {
        let (agent, id): (AgentId, SandboxId) =
            ("spiffe://example.org/agents/a".parse().unwrap(), "box-1".parse().unwrap());
        assert_eq!(agent.sandbox(&id).unwrap().to_string(), "spiffe://example.org/agents/a/sandbox/box-1");
        assert_eq!(TrustDomain::local().to_string().parse(), Ok(TrustDomain::local()));
        let (node, domain): (NodeId, TrustDomain) = ("node-7".parse().unwrap(), "example.org".parse().unwrap());
        assert_eq!(node.sandbox(&domain, &id).unwrap().to_string(), "spiffe://example.org/node/node-7/sandbox/box-1");
        let long: AgentId = format!("spiffe://d/{}", "p".repeat(2030)).parse().unwrap();
        assert!(long.sandbox(&id).is_err());
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_it_was(text in r"(spiffe|SPIFFE)://[a-zA-Z0-9._:@%-]{0,12}(/[a-zA-Z0-9._%~?#-]{0,6}){0,4}") {
            if let Ok(id) = text.parse::<AgentId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn what_the_grammar_makes_parses(text in r"spiffe://[a-z0-9._-]{1,40}(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,8}){1,6}") {
            prop_assume!(!text.contains("/sandbox/"));
            prop_assert_eq!(text.parse::<AgentId>().unwrap().to_string(), text);
        }

        #[test]
        fn nothing_panics(text in ".{0,100}") {
            let _ = (text.parse::<AgentId>(), text.parse::<SandboxId>(), text.parse::<BootId>(), text.parse::<KeyId>());
        }
    }
}
