//! What a fence costs in the kernel: to put up and take down where there are 500, a packet beside one sandbox and beside 500,
//! and bytes a second to an address that the policy allows, beside none. Needs root: namespaces of its own.
//! Goals: docs/benchmarks.md (attach ≤ 10 ms p99 at 500; a packet the same; ≥ 95 % of the throughput without a fence).

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[allow(dead_code)] // what the tests need more of it
#[path = "../tests/fence/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use egress::daemon::fence::Change;
use egress::daemon::netns::Port;
use egress::daemon::ruleset::Slot;
use egress::policy::{Action, AddressRule};
use egress::protocol::Interface;
use lab::{Lab, ask, fences};

const ROUND_TRIPS: usize = 20_000;
const TOTAL: usize = 2 << 30;

fn allow(net: &str) -> AddressRule {
    let net = net.parse().unwrap();
    AddressRule { rule: "1".into(), net, ports: vec![], protocol: None, action: Action::Allow }
}

fn interfaces(ports: &[Port]) -> Vec<Interface> {
    ports.iter().map(|port| port.interface.clone()).collect()
}

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn took<T>(work: impl FnOnce() -> T) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// The median and p99.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("p50 {:?} p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100])
}

fn round_trips(stream: &TcpStream) -> String {
    quantiles((0..ROUND_TRIPS).map(|_| took(|| ask(stream.try_clone().unwrap()).unwrap())).collect())
}

/// Gigabytes a second from a host of the internet to the sandbox.
fn throughput(lab: &Lab, host: &TcpListener) -> f64 {
    let host = host.try_clone().unwrap();
    let send = thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        let block = vec![7; 1 << 18];
        (0..TOTAL / block.len()).for_each(|_| stream.write_all(&block).unwrap());
    });
    let mut client = lab.within("a", || TcpStream::connect("203.0.113.2:9000").unwrap());
    let (begun, mut block, mut got) = (Instant::now(), vec![0; 1 << 18], 0);
    while got < TOTAL {
        got += match client.read(&mut block).unwrap() {
            0 => panic!("{got} bytes of {TOTAL}"),
            some => some,
        };
    }
    send.join().unwrap();
    got as f64 / begun.elapsed().as_secs_f64() / 1e9
}

fn main() {
    let mut lab = Lab::new(true);
    let a = lab.ptp("a", 99);
    lab.serve("203.0.113.2:80");
    let host = lab.within("internet", || TcpListener::bind("203.0.113.2:9000").unwrap());
    let fences = fences();
    let rules: Vec<_> =
        (0..10).map(|net| allow(&format!("198.51.{net}.0/24"))).chain([allow("203.0.113.2/32")]).collect();
    for round in 1..=3 {
        let without = throughput(&lab, &host);
        fences.attach(slot(1), &a, &rules).unwrap();
        let with = throughput(&lab, &host);
        fences.detach(slot(1), &interfaces(&a)).unwrap();
        println!(
            "{round}: no fence {without:.2} GB/s, allowed by address {with:.2} GB/s: {:.0} %",
            100.0 * with / without
        );
    }
    fences.attach(slot(1), &a, &rules).unwrap();
    let stream = lab.within("a", || TcpStream::connect("203.0.113.2:80").unwrap());
    round_trips(&stream);
    println!("round trip beside 1: {}", round_trips(&stream));
    let copies: Vec<_> = (2..=500).map(|number| lab.copies(&a, number)).collect();
    let stands = |number: u16| fences.attach(slot(number), &copies[usize::from(number) - 2], &rules).unwrap();
    let attach = |number: u16| took(|| stands(number));
    println!("attach, the first hundred: {}", quantiles((2..=101).map(attach).collect()));
    (102..=400).for_each(|number| _ = attach(number));
    println!("attach, the last hundred of 500: {}", quantiles((401..=500).map(attach).collect()));
    // As a claim does it.
    let change = |number: u16| {
        let ports = copies[usize::from(number) - 2].clone();
        Change { slot: slot(number), ports, rules: rules.clone(), frame: stands(number).frame }
    };
    let changes: Vec<_> = (2..=101).map(change).collect();
    let put = |changes: &[Change]| took(|| fences.change(changes).into_iter().for_each(|done| _ = done.unwrap()));
    println!("another policy, of 500: {}", quantiles(changes.chunks(1).map(put).collect()));
    println!("other policies for 20 at once, of 500: {}", quantiles(changes.chunks(20).map(put).collect()));
    println!("round trip beside 500: {}", round_trips(&stream));
    println!(
        "detach, of 500: {}",
        quantiles(
            (2..=500)
                .map(|number| {
                    let interfaces = interfaces(&copies[usize::from(number) - 2]);
                    took(|| fences.detach(slot(number), &interfaces).unwrap())
                })
                .collect()
        )
    );
}
