//! What annotations may say, and what a pod settles for its further containers.

use super::*;
use crate::settings::{EgressSettings, GvisorSettings, KATA};

fn parse(key: &str, value: &str, settings: &Settings) -> Result<SandboxRequest, String> {
    let spec = json!({"annotations": {key: value, "other": "kept"}});
    SandboxRequest::parse(&spec, settings).map_err(|e| e.to_string())
}

fn ask(key: &str, value: &str, settings: &Settings) -> Result<Maker, String> {
    parse(key, value, settings)?.maker(settings).map_err(|e| e.to_string())
}

#[test]
fn annotations_are_known_and_allowed_or_named() {
    let none = Settings::default();
    let silent = SandboxRequest::parse(&json!({}), &none).unwrap();
    assert_eq!(silent.maker(&none).unwrap(), Maker::Gvisor(None));
    assert_eq!(ask(BACKEND, "gvisor", &none).unwrap(), Maker::Gvisor(None));
    assert_eq!(ask(BACKEND, "kata", &none).unwrap().name(), "kata");
    for (key, value, expected) in [
        (BACKEND, "qemu", "allowed: gvisor, kata"),
        (BACKEND, "runc", "allowed: gvisor, kata"),
        ("creto.dev/backned", "gvisor", "creto.dev/backned"),
        (AGENT, "spiffe://Example.org/a", "creto.dev/agent"),
        (PROFILE, "lax", "default, strict"),
        (SECRETS, "env:x", "file:NAME"),
        (NETWORK_POLICY, "a/b", "policy name"),
        (NETWORK_POLICY, "{\"rules\": [{}]}", "rule 1: destination: missing"),
        (NETWORK_POLICY, " {", "creto.dev/network-policy"),
        (CLAIMABLE, "yes", "give \"true\""),
        (RUNSC_PATH, "runsc", "absolute"),
        (RUNSC_PATH, "/bin/sh", "runsc_dirs"),
        ("dev.gvisor.flag.debug", "true", "annotation dev.gvisor.flag.debug: "),
        ("dev.gvisor.spec.mount.v.share", "shared", "omit it"),
    ] {
        let error = ask(key, value, &none).unwrap_err();
        assert!(error.contains(expected), "{key}={value}: {error}");
    }
}

#[test]
fn the_operator_bounds_who_may_choose_a_network_policy() {
    let asks = |value: &str, annotation: PolicyChoice| {
        let settings = Settings { egress: EgressSettings { annotation }, ..Settings::default() };
        parse(NETWORK_POLICY, value, &settings)
    };
    let inline = "{\"rules\": []}";
    for (value, choice, good) in [
        ("web", PolicyChoice::Any, true),
        (inline, PolicyChoice::Any, true),
        ("web", PolicyChoice::Named, true),
        (inline, PolicyChoice::Named, false),
        ("web", PolicyChoice::None, false),
        (inline, PolicyChoice::None, false),
    ] {
        let asked = asks(value, choice);
        assert_eq!(asked.is_ok(), good, "{value} {choice:?}");
        assert!(asked.err().is_none_or(|error| error.contains("egress.annotation")));
    }
}

#[test]
fn a_container_of_a_pod_gets_the_pods_sandbox_or_is_told_what_it_is() {
    let settings = Settings { backend: KATA.into(), ..Settings::default() };
    let gvisor = Maker::Gvisor(None);
    static POLICY: PolicyRef = PolicyRef::Named(String::new());
    fn pod<'a>(maker: &'a Maker, agent: Option<&'a AgentId>, secrets: &'a [SecretRef]) -> Settled<'a> {
        Settled { maker, agent, secrets, network_policy: &POLICY, claimable: false }
    }
    SandboxRequest::default().agrees(&pod(&gvisor, None, &[])).unwrap(); // the default does not matter where nothing was asked for
    parse(BACKEND, "gvisor", &settings).unwrap().agrees(&pod(&gvisor, None, &[])).unwrap();
    let error = parse(BACKEND, "kata", &settings).unwrap().agrees(&pod(&gvisor, None, &[])).unwrap_err().to_string();
    assert!(error.contains("kata") && error.contains("has gvisor"), "{error}");
    let canary = SandboxRequest { runsc: Some("/opt/runsc".into()), ..Default::default() };
    canary.agrees(&pod(&Maker::Gvisor(Some("/opt/runsc".into())), None, &[])).unwrap();
    assert!(canary.agrees(&pod(&gvisor, None, &[])).unwrap_err().to_string().contains("the runsc in PATH"));
    let agents = ["a", "b"].map(|name| format!("spiffe://example.org/{name}"));
    let asked = parse(AGENT, &agents[0], &settings).unwrap();
    asked.agrees(&pod(&gvisor, Some(&agents[0].parse().unwrap()), &[])).unwrap();
    for other in [None, Some(agents[1].parse().unwrap())] {
        assert!(asked.agrees(&pod(&gvisor, other.as_ref(), &[])).unwrap_err().to_string().contains(AGENT));
    }
    let asked = parse(SECRETS, "file:a", &settings).unwrap();
    asked.agrees(&pod(&gvisor, None, &asked.secrets)).unwrap();
    SandboxRequest::default().agrees(&pod(&gvisor, None, &asked.secrets)).unwrap();
    for other in [vec![], vec![SecretRef::File("b".into())], vec![SecretRef::Command("a".into())]] {
        assert!(asked.agrees(&pod(&gvisor, None, &other)).unwrap_err().to_string().contains(SECRETS));
    }
    assert!(canary.maker(&settings).unwrap_err().to_string().contains("the backend is kata"));
    let asked = parse(NETWORK_POLICY, "web", &settings).unwrap();
    let error = asked.agrees(&pod(&gvisor, None, &[])).unwrap_err().to_string();
    assert!(error.contains(NETWORK_POLICY) && error.contains("web"), "{error}");
    let asked = parse(CLAIMABLE, "true", &settings).unwrap();
    let error = asked.agrees(&pod(&gvisor, None, &[])).unwrap_err().to_string();
    assert!(error.contains(CLAIMABLE), "{error}");
    asked.agrees(&Settled { claimable: true, ..pod(&gvisor, None, &[]) }).unwrap();
}

#[test]
fn what_waits_to_be_claimed_brings_nothing_of_anybodys() {
    let settings = Settings::default();
    for (key, value, good) in [
        ("other", "x", true),
        (NETWORK_POLICY, "{\"rules\": []}", true),
        (PROFILE, "strict", true),
        (NETWORK_POLICY, "web", false),
        (NETWORK_POLICY, r#"{"rules": [{"destination": "a.example", "action": "Allow"}]}"#, false),
        (AGENT, "spiffe://example.org/a", false),
        (AGENT_TOKEN_FILE, "/token", false),
        (SECRETS, "file:a", false),
    ] {
        let spec = json!({"annotations": {CLAIMABLE: "true", key: value}});
        let asked = SandboxRequest::parse(&spec, &settings).map_err(|e| e.to_string());
        assert_eq!(asked.is_ok(), good, "{key}={value}: {asked:?}");
        assert!(asked.err().is_none_or(|error| error.contains(key) && error.contains("comes with the claim")));
    }
}

#[test]
fn a_token_is_read_from_a_file_and_nothing_is_said_of_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "a.b.c\n").unwrap();
    let settings = Settings::default();
    let read = |path: &str| parse(AGENT_TOKEN_FILE, path, &settings).unwrap().token().map_err(|e| e.to_string());
    assert_eq!(read(path.to_str().unwrap()).unwrap().unwrap().as_str(), "a.b.c");
    let fifo = dir.path().join("fifo"); // which nobody ever writes to
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (huge, text) = (dir.path().join("huge"), dir.path().join("text"));
    std::fs::write(&huge, "x".repeat(token::MAX_BYTES + 1)).unwrap();
    std::fs::write(&text, b"\xff").unwrap();
    let others = [dir.path(), Path::new("/nonexistent"), Path::new("/dev/zero"), &fifo, &huge, &text];
    for other in others {
        assert_eq!(read(other.to_str().unwrap()).unwrap().unwrap().as_str(), "", "{other:?}");
    }
    assert!(read("relative").unwrap_err().ends_with("relative is no absolute path"));
}

#[test]
fn a_canary_comes_from_the_operators_directories_only() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let canary = inside.path().join("runsc");
    std::fs::write(&canary, "").unwrap();
    std::fs::write(outside.path().join("sh"), "").unwrap();
    std::os::unix::fs::symlink(outside.path().join("sh"), inside.path().join("link")).unwrap();
    let gvisor = GvisorSettings { runsc_dirs: vec![inside.path().to_owned()], ..Default::default() };
    let settings = Settings { gvisor, ..Default::default() };
    let path = |name: &str| inside.path().join(name).display().to_string();
    let real = canary.canonicalize().unwrap();
    assert_eq!(ask(RUNSC_PATH, &path("runsc"), &settings).unwrap(), Maker::Gvisor(Some(real)));
    for bad in ["link", "missing", "../../bin/sh"] {
        assert!(ask(RUNSC_PATH, &path(bad), &settings).unwrap_err().contains("runsc_dirs"), "{bad}");
    }
}
