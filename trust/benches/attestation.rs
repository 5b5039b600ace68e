//! Claim: signing a statement takes at most 100 µs and verifying one at most 200 µs, on one core; an envelope has at most
//! 4 KiB. Both must not grow with the number of keys in the trust root. Measured runs: docs/benchmarks.md.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is its own reader, and may panic")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use trust::attestation::predicate::{Agent, Backend, Fence, Hardening, Image, Launch, Limits, Mounts, Node, Sandbox};
use trust::attestation::verify::{Expectations, verify};
use trust::attestation::{Observed, issue};
use trust::clock::{Clock, SystemClock};
use trust::digest::Digest;
use trust::id::AgentId;
use trust::keys::Keyring;
use trust::keys::jwks::TrustRoot;

const HOUR: Duration = Duration::from_secs(3600);

/// A sandbox as containerd's CRI makes it.
fn observed() -> Observed {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let agent: AgentId = "spiffe://agents.example.org/teams/data/research-assistant".parse().unwrap();
    Observed {
        config: digest("config"),
        policy: digest("policy"),
        sandbox: Sandbox { id: "a".repeat(64).parse().unwrap(), namespace: "k8s.io".parse().unwrap() },
        agent: Agent::Token { id: agent },
        backend: Backend { name: "gvisor".parse().unwrap(), binary: digest("runsc"), platform: "systrap".into() },
        node: Node {
            id: "node-7.eu-central.example.org".parse().unwrap(),
            boot_id: "0a8d6f7e-3c1b-4f5a-9e2d-7b6c5d4e3f2a".parse().unwrap(),
            kernel: "6.18.0-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.18.1-1 (2026-11-02)".into(),
        },
        fence: Some(Fence { mechanism: "nftables".into(), digest: digest("ruleset") }),
        hardening: Hardening {
            capabilities: (0..14).map(|n| format!("CAP_NUMBER_{n:02}")).collect(),
            no_new_privileges: true,
            host_network: false,
            seccomp: true,
            masked_paths: 12,
            readonly_paths: 6,
            mounts: Mounts { readonly_root: false, total: 11, host: 4, host_writable: 1 },
            limits: Limits { memory_bytes: Some(2 << 30), cpu_millis: Some(2000), pids: Some(512) },
        },
        image: Image::Containerd {
            name: "registry.example.org/agents/research-assistant:2026.11".into(),
            digest: digest("image"),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        },
        launch: Launch::Claimed {
            pool: "agent-executor-pool".parse().unwrap(),
            generation: Some("3f9a1c".parse().unwrap()),
            claim: "7b6a1f0e-1d2c-4b3a-9e8f-0a1b2c3d4e5f".parse().unwrap(),
        },
    }
}

#[expect(clippy::print_stderr, reason = "a size is no time, so criterion does not print it")]
fn attestation(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &SystemClock).unwrap();
    let (signer, now) = (keyring.signer().unwrap(), SystemClock.timestamp());
    let sign = || issue(observed(), Some(Digest::of(b"previous")), &signer, now, HOUR).unwrap();
    let envelope = sign().to_json().unwrap();
    eprintln!("attestation/envelope: {} bytes (claim: at most 4096)", envelope.len());

    c.bench_function("attestation/sign", |b| b.iter(|| black_box(sign()).to_json().unwrap()));
    c.bench_function("attestation/read_key_and_sign", |b| {
        b.iter(|| issue(observed(), None, &keyring.signer().unwrap(), now, HOUR).unwrap())
    });
    for keys in [1, 100] {
        (keyring.list().unwrap().len()..keys).for_each(|_| drop(keyring.rotate(&SystemClock, HOUR).unwrap()));
        let root = TrustRoot::parse(keyring.jwks().unwrap().as_bytes()).unwrap();
        c.bench_function(&format!("attestation/verify/{keys}_keys"), |b| {
            b.iter(|| verify(black_box(envelope.as_bytes()), &root, now, &Expectations::default()).unwrap())
        });
    }
}

criterion_group!(benches, attestation);
criterion_main!(benches);
