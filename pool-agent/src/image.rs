//! The name of an image, by tag or digest: printed as it was given, and in full for containerd. Pure.
//! Source: the distribution reference grammar (github.com/distribution/reference, `reference.go` and `normalize.go`).
//! Not here: whether there is such an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where an image is when its name does not say.
const HUB: &str = "docker.io";
/// What the hub's own images are below.
const LIBRARY: &str = "library/";
/// The hub's older name.
const OLD_HUB: &str = "index.docker.io";
/// The longest name with its registry, in bytes.
const NAME_BYTES: usize = 255;
/// The longest tag, in bytes.
pub(crate) const TAG_BYTES: usize = 128;
/// How much of a bad name an error repeats, in characters.
const SHOWN: usize = 120;

/// An image: `python:3.11`, `registry.example.org:5000/team/app@sha256:…`. Text: as it was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    given: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// What is no image's name, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image {name:?}: {why}; give NAME, NAME:TAG or NAME@sha256:DIGEST, such as python:3.11")]
pub struct BadImage {
    name: String,
    why: &'static str,
}

impl ImageRef {
    /// As containerd calls it, with registry, and with tag or digest: `docker.io/library/python:3.11`.
    pub fn full(&self) -> String {
        let Self { registry, repository, tag, digest, .. } = self;
        match (tag, digest) {
            (Some(tag), Some(digest)) => format!("{registry}/{repository}:{tag}@{digest}"),
            (None, Some(digest)) => format!("{registry}/{repository}@{digest}"),
            (Some(tag), None) => format!("{registry}/{repository}:{tag}"),
            (None, None) => format!("{registry}/{repository}:latest"),
        }
    }

    /// The registry: a host, maybe with a port; `docker.io` where none was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// What it is called at the registry, `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `sha256:…`, of a name that can mean one image only.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl FromStr for ImageRef {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, BadImage> {
        let bad = |why| BadImage { name: text.chars().take(SHOWN).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if !digest.is_none_or(is_digest) {
            return Err(bad("after @ stands sha256: and 64 digits of 0-9 a-f, or sha512: and 128"));
        }
        // A colon in front of the last slash is a registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return Err(bad("a tag is 1 to 128 letters, digits, _ . and -, the first neither . nor -"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry_like(first) => (first, path),
            _ => (HUB, name),
        };
        if !is_registry(registry) {
            return Err(bad("in front of the first / stands a registry that is no host, or no host and port"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("an image's name is in lower case"));
        }
        if !path.split('/').all(is_path_part) {
            return Err(bad("between slashes stand a-z and 0-9, joined by . _ __ or any number of -"));
        }
        let registry = if registry == OLD_HUB { HUB } else { registry };
        let repository = match registry == HUB && !path.contains('/') {
            true => format!("{LIBRARY}{path}"),
            false => path.to_owned(),
        };
        if registry.len() + 1 + repository.len() > NAME_BYTES {
            return Err(bad("more than 255 bytes"));
        }
        if registry == HUB && name == path && is_hex_id(path) {
            return Err(bad("64 digits of 0-9 a-f are the id of an image, not its name"));
        }
        Ok(Self {
            given: text.to_owned(),
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// Docker's rule: the first part is a registry if it could not be a part of a name at the hub.
fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let port = match rest {
                "" => None,
                rest => match rest.strip_prefix(':') {
                    Some(port) => Some(port),
                    None => return false,
                },
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (None, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// `path-component` of the grammar: runs of a-z 0-9, between two of them one of `.` `_` `__` or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .split(|b| alphanumeric(*b))
            .filter(|between| !between.is_empty())
            .all(|between| matches!(between, b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    match digest.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && is_hex(hex),
        Some(("sha512", hex)) => hex.len() == 128 && is_hex(hex),
        _ => false,
    }
}

fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.fmt(f)
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.given)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_prints_as_given_and_is_full_for_containerd() {
        let sha = format!("sha256:{}", "0f".repeat(32));
        for (given, full) in [
            ("python:3.11", "docker.io/library/python:3.11"),
            ("python", "docker.io/library/python:latest"),
            ("team/app:v1", "docker.io/team/app:v1"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/python:3", "docker.io/library/python:3"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b__c/d--e", "127.0.0.1:5000/a/b__c/d--e:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("gcr.io/x/y.z:T_a.g-1", "gcr.io/x/y.z:T_a.g-1"),
            ("Registry/app", "Registry/app:latest"),
            (&format!("python@{sha}"), &format!("docker.io/library/python@{sha}")),
            (&format!("python:3.11@{sha}"), &format!("docker.io/library/python:3.11@{sha}")),
        ] {
            let image: ImageRef = given.parse().expect(given);
            assert_eq!((image.to_string(), image.full()), (given.to_owned(), full.to_owned()));
        }
    }

    #[test]
    fn what_is_no_image_is_said_why() {
        for (bad, why) in [
            ("", "between slashes"),
            ("Python", "lower case"),
            ("python:", "a tag is"),
            ("python:.x", "a tag is"),
            (&format!("python:{}", "x".repeat(129)), "a tag is"),
            ("python@sha256:abc", "after @"),
            ("python@md5:d41d8cd98f00b204e9800998ecf8427e", "after @"),
            ("a//b", "between slashes"),
            ("a___b", "between slashes"),
            ("a._b", "between slashes"),
            ("-a", "between slashes"),
            ("../etc", "registry"),
            ("a/../b", "between slashes"),
            ("python 3", "between slashes"),
            ("https://docker.io/python", "registry"),
            ("host:port/app", "registry"),
            ("[::1/app", "registry"),
            ("[::1]x/app", "registry"),
            (&"0f".repeat(32), "id of an image"),
            (&format!("a/{}", "b".repeat(254)), "255"),
        ] {
            let error = bad.parse::<ImageRef>().expect_err(bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_full_name_is_a_name_of_the_same_image(given in r"([a-zA-Z.:0-9\[\]-]{1,12}/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,9})?") {
            if let Ok(image) = given.parse::<ImageRef>() {
                let full: ImageRef = image.full().parse().unwrap();
                prop_assert_eq!(full.full(), image.full());
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,80}") {
            let _ = text.parse::<ImageRef>();
        }
    }
}
