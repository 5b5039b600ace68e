//! Claim: a sandbox's DNS question is answered in at most 1 ms at the 99th percentile, over a socket; what it costs to find the
//! answer does not grow with the policy or with the sandboxes' names in use. Measured runs: docs/benchmarks.md.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is its own reader, and may panic")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use egress::policy::{Action, CompiledPolicy, Destination, Fqdn, Policy, Protocol, Rule};
use egress::protocol::SandboxKey;
use egress::worker::dns::{Dns, DnsSettings, Limits, Names, Sockets, serve};
use egress::worker::{Attempt, Attempts, Binding, Bindings, Effective};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::watch;

struct Unheard;

impl Attempts for Unheard {
    fn tell(&self, attempt: Attempt) {
        black_box(attempt);
    }
}

/// A policy of `rules` names and as many zones.
fn policy(rules: usize) -> CompiledPolicy {
    let rule = |n: usize, destination| Rule {
        id: n.to_string(),
        destination,
        ports: Vec::new(),
        protocol: None,
        action: Action::Allow,
        allow_special: false,
    };
    let names = (0..rules).map(|n| rule(n, Destination::Name(fqdn(&format!("host-{n}.example.com")))));
    let zones = (0..rules).map(|n| rule(n, Destination::Zone(fqdn(&format!("zone-{n}.example.net")))));
    CompiledPolicy::new(Policy { rules: names.chain(zones).collect() })
}

fn fqdn(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

/// A DNS without limits that bite, with one sandbox at 127.0.0.1 that has `in_use` names.
fn dns(rules: usize, in_use: usize) -> Arc<Dns> {
    let (most, all) = (NonZeroU32::new(1_000_000).unwrap(), NonZeroUsize::MAX);
    let limits = Limits {
        questions_per_second: NonZeroU32::new(1_000_000_000).unwrap(),
        questions_burst: most,
        new_names_per_minute: most,
        new_names_burst: most,
        names: all,
        ..Limits::default()
    };
    let settings = DnsSettings { limits, ..DnsSettings::default() };
    let (sender, effective) = watch::channel(Some(Arc::new(Effective { policy: policy(rules), generation: 1 })));
    std::mem::forget(sender);
    let sandbox = SandboxKey { namespace: "k8s.io".to_owned(), id: "a".repeat(64) };
    let bindings = Arc::new(Bindings::default());
    let binding = Arc::new(Binding { sandbox, agent: None, effective });
    bindings.put(&[IpAddr::V4(Ipv4Addr::LOCALHOST)], &binding);
    let dns = Arc::new(Dns::new(bindings, Names::new(&settings, |_| ()), Arc::new(Unheard), settings));
    for n in 0..in_use {
        dns.answer(
            Ipv4Addr::LOCALHOST.into(),
            &question(&format!("n{n}.zone-0.example.net."), RecordType::A),
            Protocol::Udp,
        );
    }
    dns
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.set_edns(Edns::new());
    message.to_vec().unwrap()
}

fn questions() -> [(&'static str, Vec<u8>); 4] {
    [
        ("allowed", question("host-0.example.com.", RecordType::A)),
        ("no_data", question("host-0.example.com.", RecordType::AAAA)),
        ("denied", question("a.long.name.of.nobody.example.org.", RecordType::A)),
        ("tunnel", question("c2VjcmV0.example.org.", RecordType::TXT)),
    ]
}

fn answer(c: &mut Criterion) {
    for (rules, in_use) in [(10, 10), (1_000, 10), (10, 100_000)] {
        let dns = dns(rules, in_use);
        for (what, message) in questions() {
            c.bench_function(&format!("egress/dns/answer/{what}/{rules}_rules/{in_use}_names"), |b| {
                b.iter(|| dns.answer(Ipv4Addr::LOCALHOST.into(), black_box(&message), Protocol::Udp))
            });
        }
    }
}

/// Over UDP on loopback: one question at a time, as a program waits for its answer.
#[expect(clippy::print_stderr, reason = "criterion prints no percentiles")]
fn over_udp(c: &mut Criterion) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    let dns = dns(1_000, 1_000);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(dns, Sockets { udp: vec![socket], tcp: Vec::new() }))
    });
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.connect(at).unwrap();
    let ask = |message: &[u8]| {
        let mut buffer = [0; 512];
        client.send(message).unwrap();
        client.recv(&mut buffer).unwrap()
    };
    for (what, message) in questions() {
        c.bench_function(&format!("egress/dns/over_udp/{what}"), |b| b.iter(|| ask(black_box(&message))));
        let mut taken: Vec<Duration> = (0..20_000)
            .map(|_| {
                let start = Instant::now();
                ask(&message);
                start.elapsed()
            })
            .collect();
        taken.sort();
        let at = |share: usize| taken[taken.len() * share / 1000];
        eprintln!(
            "egress/dns/over_udp/{what}: p50 {:?}, p99 {:?} (claim: at most 1 ms), p99.9 {:?}",
            at(500),
            at(990),
            at(999)
        );
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = answer, over_udp
}
criterion_main!(benches);
