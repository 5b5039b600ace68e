//! What strangers write, for the targets of `fuzz/`: each function takes any bytes as one of our parsers gets them, and
//! panics where what that parser promises does not hold. Not in what is shipped (feature `fuzzing`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use egress::protocol::PolicyRef;
use serde_json::{Value, json};

use crate::args::{Args, is_identifier};
use crate::backend::gvisor::urpc;
use crate::bootstrap::{self, Address};
use crate::bundle;
use crate::harden::{BackendKind, Build, Policy, Profile, given::given, harden, summary};
use crate::rebind;
use crate::request::{SandboxRequest, Settled};
use crate::settings::{GVISOR, IsolationSettings, KATA, Settings, UnsupportedSysctls};

/// A command line, its words parted by NUL: a call names no directories but its own.
pub fn argv(bytes: &[u8]) {
    let words = bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    if let Ok(Args::Start(call) | Args::Delete(call) | Args::Serve(call)) = Args::parse(words) {
        for name in [&call.namespace, &call.id] {
            assert!(is_identifier(name) && !name.contains('/') && !name.contains("..") && name.len() <= 76);
        }
    }
}

/// containerd's parameters, and a downstream shim's reply: only those of our own call count, only a socket is an address.
pub fn bootstrap(bytes: &[u8]) {
    if let Some(params) = bootstrap::params(bytes, "default", "c1") {
        assert_eq!((params.namespace.as_str(), params.instance_id.as_str()), ("default", "c1"));
    }
    if let Ok(address) = Address::parse(bytes) {
        assert!(address.socket.starts_with("unix://") && matches!(address.api, 2 | 3));
        assert!(!address.socket.contains(['\0', '\n']) && address.path().is_absolute());
    }
}

/// A bundle's config.json: an absolute root, and hardened it gives nothing that it did not give, and stays so.
pub fn config_json(bytes: &[u8]) {
    let Ok(spec) = bundle::parse(bytes, Path::new("/bundle")) else { return };
    assert!(bundle::root(&spec).is_absolute());
    summary(&spec);
    for profile in [Profile::Default, Profile::Strict] {
        for kind in [BackendKind::Gvisor, BackendKind::Machine, BackendKind::HostKernel] {
            let policy = Policy {
                profile,
                kind,
                build: Build::default(),
                isolation: IsolationSettings::default(),
                sysctls: UnsupportedSysctls::Refuse,
            };
            let Ok(once) = harden(spec.clone(), policy) else { continue };
            assert!(given(&once).is_subset(&given(&spec)), "{profile:?} {kind:?}: {once}");
            let twice = harden(once.clone(), policy);
            assert!(twice.as_ref().is_ok_and(|twice| *twice == once), "{profile:?} {kind:?}: {once} becomes {twice:?}");
        }
    }
}

/// The annotations `creto.dev/*`, a line `KEY=VALUE` each: the operator's choice of backends is all there is, and a pod
/// agrees with itself.
pub fn annotations(bytes: &[u8]) {
    let lines = std::str::from_utf8(bytes).unwrap_or_default().lines().filter_map(|line| line.split_once('='));
    let annotations: BTreeMap<_, _> = lines.map(|(key, value)| (format!("creto.dev/{key}"), value)).collect();
    let Ok(settings) = Settings::parse("[delegates.runc]\nshim = \"containerd-shim-runc-v2\"", "") else {
        panic!("these settings are good")
    };
    let Ok(request) = SandboxRequest::parse(&json!({ "annotations": annotations }), &settings) else { return };
    if let Ok(maker) = request.maker(&settings) {
        assert!([GVISOR, KATA, "runc"].contains(&maker.name()));
        let none = PolicyRef::Inline(json!({"rules": []}));
        let network_policy = request.network_policy.as_ref().unwrap_or(&none);
        let (agent, secrets) = (request.agent.as_ref(), request.secrets.as_slice());
        let claimable = request.claimable;
        assert!(!claimable || (agent.is_none() && secrets.is_empty() && *network_policy == none));
        assert!(request.agrees(&Settled { maker: &maker, agent, secrets, network_policy, claimable }).is_ok());
    }
}

/// runtime.toml: whole, or an error that names its origin.
pub fn runtime_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Settings::parse(text, "origin") {
        Ok(settings) => {
            assert!(settings.knows(&settings.backend) && settings.knows(KATA));
            for (name, delegate) in &settings.delegates {
                assert!(is_identifier(name) && name != GVISOR);
                assert!(delegate.shim.is_absolute() || delegate.shim.components().count() == 1);
            }
        }
        Err(error) => assert!(error.to_string().starts_with("origin: "), "{error}"),
    }
}

/// What a sandbox answers on its control socket: it ends at one place however it is cut, and only what says so is a
/// success.
pub fn urpc_reply(bytes: &[u8]) {
    let whole = urpc::end(&[bytes]);
    let (front, back) = bytes.split_at(bytes.first().map_or(0, |byte| usize::from(*byte)).min(bytes.len()));
    assert_eq!(urpc::end(&[front, back]), whole);
    let value = serde_json::from_slice::<Value>(bytes);
    if value.as_ref().is_ok_and(Value::is_object) {
        let rest = whole.map(|end| &bytes[end..]);
        assert!(rest.is_some_and(|rest| rest.trim_ascii().is_empty()), "the whole object is read, and nothing more");
    }
    if let Ok(number) = urpc::parse::<i32>("m", bytes) {
        let value = value.unwrap_or_default();
        assert_eq!((&value["success"], &value["result"]), (&json!(true), &json!(number)));
    }
}

/// A claim, as it comes over the shim's socket: whole, or the request's own fault; what it names leads nowhere else.
pub fn rebind(bytes: &[u8]) {
    match rebind::claim(bytes) {
        Ok((_, asked)) => {
            for name in [asked.claim.to_string(), asked.pool.to_string()] {
                assert!(!name.is_empty() && !name.contains('/') && !name.contains(".."), "{name}");
            }
        }
        Err(error) => assert_eq!(error.code() as i32, 3, "INVALID_ARGUMENT: {error}"),
    }
}
