//! A decision costs the same however many rules there are: p99 ≤ 10 µs with 1,000 of them. Measured runs: docs/benchmarks.md.

#![allow(clippy::print_stdout, reason = "a bench is its own reader")]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use egress::policy::{Action, CompiledPolicy, Destination, Flow, Fqdn, Policy, Protocol, Rule, Target};

fn name(text: &str) -> Fqdn {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// A third hosts, a third zones, a third networks that lie in each other.
fn sample(rules: u32) -> CompiledPolicy {
    let destination = |n: u32| match n % 3 {
        0 => Destination::Name(name(&format!("host{n}.team{}.example.com", n % 50))),
        1 => Destination::Zone(name(&format!("zone{n}.team{}.example.com", n % 50))),
        _ => {
            let [_, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
            let net = ipnet::Ipv4Net::new([20 + (n % 8) as u8, b, c, d].into(), 8 + (n % 25) as u8);
            Destination::Net(net.unwrap_or_else(|error| panic!("{error}")).trunc().into())
        }
    };
    let rule = |n: u32| Rule {
        id: n.to_string(),
        destination: destination(n),
        ports: vec![443..=443, 8000..=8080],
        protocol: None,
        action: [Action::Allow, Action::Allow, Action::RequireAuthz, Action::Deny][n as usize % 4],
        allow_special: false,
    };
    CompiledPolicy::new(Policy { rules: (0..rules).map(rule).collect() })
}

fn names(rules: u32) -> Vec<(&'static str, Fqdn)> {
    let longest = format!("{}b.example.com", "a.".repeat(119));
    vec![
        ("host", name(&format!("host{}.team{}.example.com", rules / 3 * 3, rules / 3 * 3 % 50))),
        ("zone", name("a.b.zone1.team1.example.com")),
        ("unknown", name("www.example.org")),
        ("longest", name(&longest)),
    ]
}

fn addresses() -> [(&'static str, IpAddr); 4] {
    let address = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    [
        ("address", address("21.130.3.4")),
        ("unknown_address", address("1.1.1.1")),
        ("metadata", address("169.254.169.254")),
        ("ipv6", address("2606:4700::1111")),
    ]
}

fn flows<'a>(names: &'a [(&'static str, Fqdn)]) -> Vec<(&'static str, Flow<'a>)> {
    let by_name = names.iter().map(|(kind, name)| (*kind, Target::Name(name)));
    let by_address = addresses().into_iter().map(|(kind, address)| (kind, Target::Address(address)));
    let flow = |(kind, target)| (kind, Flow { target, protocol: Protocol::Tcp, port: 443 });
    by_name.chain(by_address).map(flow).collect()
}

fn check_by_number_of_rules(c: &mut Criterion) {
    for rules in [1, 100, 1_000, 10_000] {
        let (policy, names) = (sample(rules), names(rules));
        for (kind, flow) in flows(&names) {
            c.bench_function(&format!("egress/check/{kind}/{rules}"), |b| b.iter(|| policy.check(black_box(&flow))));
        }
    }
}

/// The slowest of each hundred calls, timed one by one over all kinds of flows; reading the clock twice is part of it.
/// Criterion times batches, which have no p99.
fn check_one_by_one(_: &mut Criterion) {
    let (policy, names) = (sample(1_000), names(1_000));
    let flows = flows(&names);
    let timed = |n: usize| {
        let flow = &flows[n % flows.len()].1;
        let start = Instant::now();
        black_box(policy.check(black_box(flow)));
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..1_000_000).map(timed).collect();
    times.sort_unstable();
    let share = |of_a_thousand: usize| times[times.len() / 1000 * of_a_thousand];
    println!("egress/check/one_by_one/1000: p50 {:?}, p99 {:?}, p99.9 {:?}", share(500), share(990), share(999));
}

fn the_rest(c: &mut Criterion) {
    c.bench_function("egress/parse_name", |b| b.iter(|| Fqdn::parse(black_box("api.team7.example.com"))));
    for rules in [1_000, 10_000] {
        let policy = sample(rules);
        c.bench_function(&format!("egress/compile/{rules}"), |b| {
            b.iter(|| CompiledPolicy::new(policy.policy().clone()))
        });
        c.bench_function(&format!("egress/address_rules/{rules}"), |b| b.iter(|| policy.address_rules()));
        c.bench_function(&format!("egress/digest/{rules}"), |b| b.iter(|| policy.digest()));
    }
}

criterion_group!(benches, check_by_number_of_rules, check_one_by_one, the_rest);
criterion_main!(benches);
