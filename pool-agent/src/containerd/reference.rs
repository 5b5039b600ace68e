//! Image names: what people write → what containerd stores. `python:3.11` is `docker.io/library/python:3.11`.
//! Source: the grammar of the distribution project (distribution/reference), OCI distribution spec 1.1.

/// The registry of names without one.
const HUB: &str = "docker.io";
/// Longer names are refused; the distribution project's limit.
const LONGEST: usize = 255;

/// A name that no image can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image name {name:?}: {why}; write it as [REGISTRY/]NAME[:TAG][@sha256:DIGEST]")]
pub struct BadReference {
    /// What was written.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The full name of an image, with registry, and with tag or digest.
pub fn normalise(name: &str) -> Result<String, BadReference> {
    let bad = |why| BadReference { name: name.to_owned(), why };
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(bad("its digest is not sha256: and 64 hex digits"));
    }
    // A colon after the last slash begins the tag; one before it is a port's.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(bad("its tag is not one"));
    }
    let (registry, path) = match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
        _ => (HUB, path.to_owned()),
    };
    let registry = if registry == "index.docker.io" { HUB } else { registry };
    let path = if registry == HUB && !path.contains('/') { format!("library/{path}") } else { path };
    if !is_registry(registry) {
        return Err(bad("its registry is no host"));
    }
    if path.len() > LONGEST || !path.split('/').all(is_component) {
        return Err(bad(
            "a part of its path is empty, or has other characters than a-z, 0-9 and separators (. _ __ -)",
        ));
    }
    let tag = tag.or(if digest.is_none() { Some("latest") } else { None });
    let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
    Ok(format!("{registry}/{path}{tag}{digest}"))
}

fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128 && bytes.next().is_some_and(word) && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port.strip_prefix(':')),
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Lower-case words between single separators: `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(word) && bytes.last().is_some_and(word);
    let separator = |part: &[u8]| matches!(part, b"." | b"_" | b"__") || part.iter().all(|byte| *byte == b'-');
    ends && bytes.split(word).filter(|part| !part.is_empty()).all(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_what_containerd_stores() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        for (written, stored) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.11", "docker.io/library/python:3.11"),
            ("acme/agent:v1", "docker.io/acme/agent:v1"),
            ("docker.io/python:3.11", "docker.io/library/python:3.11"),
            ("index.docker.io/acme/agent", "docker.io/acme/agent:latest"),
            ("ghcr.io/acme/a/b:1.0-rc.1", "ghcr.io/acme/a/b:1.0-rc.1"),
            ("localhost/agent", "localhost/agent:latest"),
            ("localhost:5000/agent", "localhost:5000/agent:latest"),
            ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x"),
            ("[::1]:5000/agent:x", "[::1]:5000/agent:x"),
            ("test.creto.dev/busybox:1", "test.creto.dev/busybox:1"),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f:latest"),
            (&format!("python@{digest}"), &format!("docker.io/library/python@{digest}")),
            (&format!("python:3@{digest}"), &format!("docker.io/library/python:3@{digest}")),
        ] {
            assert_eq!(normalise(written).as_deref(), Ok(stored), "{written}");
            assert_eq!(normalise(stored).as_deref(), Ok(stored), "{stored} once more");
        }
    }

    #[test]
    fn what_cannot_be_an_image_is_named() {
        for written in [
            "",
            ":",
            "python:",
            "python:-a",
            "Python",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a\n",
            "../a",
            "a/../b",
            "a..b",
            "-a",
            "a@sha256:00",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "host.name:0/a",
            "host.name:x/a",
            "[::1/a",
            "a___b",
            &"a".repeat(256),
            &format!("a:{}", "t".repeat(129)),
        ] {
            let error = normalise(written).expect_err(written);
            assert!(error.to_string().contains("TAG"), "{error}");
        }
    }
}
