//! A decision allocates nothing. Alone in its binary: it counts with the allocator of the whole program.

use allocation_counter::measure;
use egress::policy::{CompiledPolicy, Document, Flow, Fqdn, Protocol, Target};

#[test]
fn a_decision_allocates_nothing() {
    let text = r#"
        [[rules]]
        destination = "*.example.com"
        ports = [443]
        action = "Allow"
        [[rules]]
        destination = "a.b.example.com"
        ports = [80]
        action = "Deny"
        [[rules]]
        destination = "0.0.0.0/0"
        action = "Allow"
        [[rules]]
        destination = "10.0.0.0/8"
        action = "RequireAuthz"
        allow_special = true
    "#;
    let policy = CompiledPolicy::new(Document::from_toml(text).unwrap().policy);
    let names = ["a.b.example.com", "x.example.com", "example.org", "metadata.google.internal"];
    let names = names.map(|name| Fqdn::parse(name).unwrap());
    let addresses = ["1.1.1.1", "10.0.0.1", "169.254.169.254", "198.18.0.1", "2606:4700::1111", "64:ff9b::a00:1"];
    let addresses = addresses.map(|address| address.parse().unwrap());
    let counted = measure(|| {
        for port in [80, 443] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for name in &names {
                    policy.check(&Flow { target: Target::Name(name), protocol, port });
                    policy.name(name);
                }
                for address in addresses {
                    policy.check(&Flow { target: Target::Address(address), protocol, port });
                    let _ = policy.may_dial(address, port);
                }
            }
        }
    });
    assert_eq!(counted.count_total, 0);
    // Else the counter does not count.
    assert!(measure(|| drop(std::hint::black_box(Box::new(1)))).count_total > 0);
}
