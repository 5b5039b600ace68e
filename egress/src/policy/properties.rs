//! What holds for any policy and any flow. Names, networks and ports come from few, so that rules meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const ADDRESSES: [&str; 44] = [
    "1.1.1.1",
    "1.1.1.2",
    "1.1.2.0",
    "8.8.8.8",
    "0.0.0.0",
    "10.0.0.0",
    "10.255.255.255",
    "11.0.0.0",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "168.63.129.17",
    "169.254.169.254",
    "169.254.169.255",
    "169.254.0.23",
    "172.16.0.1",
    "192.0.0.192",
    "192.168.1.1",
    "198.17.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.20.0.0",
    "198.51.100.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::ffff:1.1.1.1",
    "::1:0:0:0",
    "64:ff9b::1.1.1.1",
    "64:ff9b:1::1",
    "64:ff9b:2::",
    "2001::1",
    "2001:1::1",
    "2001:200::1",
    "2001:db8::1",
    "2002::1",
    "2606:4700::1111",
    "2606:4700::1112",
    "fd00:ec2::254",
    "fd00:ec2::255",
    "fe80::1",
];

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        20 => select(&ADDRESSES[..]).prop_map(|text| text.parse().unwrap()),
        1 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        1 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    let any_length = || (address(), any::<u8>());
    let cut = |(address, length): (IpAddr, u8)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (longest + 1)).unwrap()
    };
    prop_oneof![
        4 => any_length().prop_map(move |any| cut(any).trunc()),
        1 => any_length().prop_map(cut), // with bits beyond its length
        2 => address().prop_map(IpNet::from),
        1 => select(vec!["0.0.0.0/0", "::/0"]).prop_map(|text| text.parse().unwrap()),
    ]
}

fn name() -> impl Strategy<Value = Fqdn> {
    prop_oneof![
        9 => proptest::collection::vec(select(vec!["a", "b", "bb"]), 1..5).prop_map(|labels| labels.join(".")),
        1 => Just("metadata.google.internal".to_owned()),
    ]
    .prop_map(|text| Fqdn::parse(&text).unwrap())
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        1 => name().prop_map(Destination::Name),
        1 => prop_oneof![9 => name(), 1 => Just(Fqdn::parse("google.internal").unwrap())].prop_map(Destination::Zone),
        2 => net().prop_map(Destination::Net),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0..8_u16, 1 => Just(u16::MAX), 1 => Just(u16::MAX - 1)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports = (port(), port()).prop_map(|(one, other)| one.min(other)..=one.max(other));
    let action = select(vec![Action::Allow, Action::Allow, Action::RequireAuthz, Action::Deny]);
    (destination(), proptest::collection::vec(ports, 0..3), proptest::option::of(protocol()), action, any::<bool>())
        .prop_map(|(destination, ports, protocol, action, allow_special)| {
            let id = String::new();
            Rule { id, destination, ports, protocol, action, allow_special }
        })
}

fn policy() -> impl Strategy<Value = Policy> {
    proptest::collection::vec(rule(), 0..12).prop_map(|mut rules| {
        (1..).zip(&mut rules).for_each(|(place, rule): (usize, &mut Rule)| rule.id = place.to_string());
        Policy { rules }
    })
}

/// A flow to somewhere, or to the edge of a network of the policy.
#[derive(Clone, Debug)]
struct Try {
    name: Fqdn,
    address: IpAddr,
    edge: Option<(Index, u8)>,
    protocol: Protocol,
    port: u16,
}

impl Try {
    fn address(&self, policy: &Policy) -> IpAddr {
        let nets = policy.rules.iter().filter_map(|rule| match &rule.destination {
            Destination::Net(net) => Some(*net),
            _ => None,
        });
        let nets: Vec<IpNet> = nets.collect();
        let Some((which, edge)) = self.edge.filter(|_| !nets.is_empty()) else { return self.address };
        let net = which.get(&nets);
        let (first, last) = (net.network(), net.broadcast());
        let step = |address: IpAddr, by: i8| match address {
            IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from(u32::from(v4).wrapping_add_signed(by.into()))),
            IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from(u128::from(v6).wrapping_add_signed(by.into()))),
        };
        [first, last, step(first, -1), step(last, 1)][usize::from(edge) % 4]
    }
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one = (name(), address(), proptest::option::of(any::<(Index, u8)>()), protocol(), port());
    let one = one.prop_map(|(name, address, edge, protocol, port)| Try { name, address, edge, protocol, port });
    proptest::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_compiled_policy_decides_as_the_reference(policy in policy(), tries in tries()) {
        let compiled = CompiledPolicy::new(policy.clone());
        for one in tries {
            let address = one.address(&policy);
            for target in [Target::Name(&one.name), Target::Address(address)] {
                let flow = Flow { target, protocol: one.protocol, port: one.port };
                prop_assert_eq!(compiled.check(&flow), reference::check(&policy, &flow), "{:?}", flow);
            }
        }
    }

    #[test]
    fn the_kernels_list_decides_as_check(policy in policy(), tries in tries()) {
        let compiled = CompiledPolicy::new(policy.clone());
        let rules = compiled.address_rules();
        for one in tries {
            let address = one.address(&policy);
            let flow = Flow { target: Target::Address(address), protocol: one.protocol, port: one.port };
            let kernel = reference::first_match(&rules, address, one.protocol, one.port);
            prop_assert_eq!(kernel, compiled.check(&flow).verdict, "{:?} {:#?}", flow, rules);
        }
    }

    #[test]
    fn a_name_gets_the_mildest_of_what_its_ports_get(policy in policy(), name in name()) {
        let compiled = CompiledPolicy::new(policy.clone());
        let ports = (0..10).chain([u16::MAX - 2, u16::MAX - 1, u16::MAX]);
        let flow = |port| Flow { target: Target::Name(&name), protocol: Protocol::Tcp, port };
        let mildness = |verdict| [Verdict::Allow, Verdict::RequireAuthz, Verdict::Deny].iter().position(|one| *one == verdict);
        let mildest = ports.map(|port| mildness(reference::check(&policy, &flow(port)).verdict)).min();
        prop_assert_eq!(Some(mildness(compiled.name(&name).verdict)), mildest);
    }

    #[test]
    fn a_deny_of_the_very_destination_wins(policy in policy(), one in tries()) {
        let one = &one[0];
        let address = one.address(&policy);
        for (target, destination) in [
            (Target::Name(&one.name), Destination::Name(one.name.clone())),
            (Target::Address(address), Destination::Net(address.into())),
        ] {
            let mut policy = policy.clone();
            let ports = std::iter::once(one.port..=one.port).collect();
            let id = "deny".into();
            policy.rules.push(Rule { id, destination, ports, protocol: None, action: Action::Deny, allow_special: false });
            let flow = Flow { target, protocol: one.protocol, port: one.port };
            prop_assert_eq!(CompiledPolicy::new(policy).check(&flow).verdict, Verdict::Deny);
        }
    }

    #[test]
    fn the_order_of_rules_counts_for_nothing(
        (policy, shuffled) in policy().prop_flat_map(|policy| (Just(policy.rules.clone()), Just(policy.rules).prop_shuffle())),
        tries in tries(),
    ) {
        let (policy, shuffled) = (Policy { rules: policy }, Policy { rules: shuffled });
        let (one, other) = (CompiledPolicy::new(policy.clone()), CompiledPolicy::new(shuffled));
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(one.address_rules(), other.address_rules());
        for try_ in tries {
            prop_assert_eq!(one.name(&try_.name), other.name(&try_.name));
            for target in [Target::Name(&try_.name), Target::Address(try_.address(&policy))] {
                let flow = Flow { target, protocol: try_.protocol, port: try_.port };
                prop_assert_eq!(one.check(&flow), other.check(&flow));
            }
        }
    }

    #[test]
    fn policies_of_one_digest_decide_alike(one in policy(), other in policy(), tries in tries()) {
        // The other says the same in other words: rules twice, ports apart, bits beyond a prefix.
        let mut same = one.clone();
        for rule in &one.rules {
            let ports = rule.ports.iter().flat_map(|range| [*range.start()..=*range.end(), *range.end()..=*range.end()]);
            same.rules.push(Rule { ports: ports.rev().collect(), ..rule.clone() });
        }
        prop_assert_eq!(canonical::text(&one), canonical::text(&same));
        let (one, same, other) = (CompiledPolicy::new(one), CompiledPolicy::new(same), CompiledPolicy::new(other));
        for try_ in tries {
            let flow = Flow { target: Target::Address(try_.address(one.policy())), protocol: try_.protocol, port: try_.port };
            prop_assert_eq!(one.check(&flow).verdict, same.check(&flow).verdict);
            if one.digest() == other.digest() {
                prop_assert_eq!(one.check(&flow).verdict, other.check(&flow).verdict);
            }
        }
    }

    #[test]
    fn no_policy_leads_a_name_to_a_special_address(policy in policy(), one in tries()) {
        let compiled = CompiledPolicy::new(policy.clone());
        for one in &one {
            let address = one.address(&policy);
            let flow = Flow { target: Target::Address(address), protocol: Protocol::Tcp, port: one.port };
            let decided = reference::check(&policy, &flow);
            let bare = Policy { rules: vec![] };
            let public = reference::check(&bare, &flow).reason == Reason::NoRule
                && reference::check(&everything(), &flow).verdict == Verdict::Allow;
            let denied = decided.verdict == Verdict::Deny && decided.reason == Reason::Rule;
            if public {
                prop_assert_eq!(compiled.may_dial(address, one.port).is_err(), denied, "{}", address);
            } else if address.is_ipv4() {
                prop_assert_eq!(compiled.may_dial(address, one.port), Err(Reason::Special), "{}", address);
            }
        }
    }

    #[test]
    fn what_is_printed_is_read_back(mut policy in policy(), include in proptest::collection::vec("[a-z]{1,8}", 0..3)) {
        // Not every rule that can be made can be written: ports from 0, UDP by name, a zone open to everybody.
        policy.rules.retain(|rule| parse::read(parse::write(rule, 0), 0).is_ok());
        let document = Document { include: include.iter().map(|name| name.parse().unwrap()).collect(), policy };
        prop_assert_eq!(Document::from_toml(&document.to_toml()), Ok(document.clone()));
        let json = document.to_json().unwrap();
        prop_assert_eq!(Document::from_json(json.as_bytes()), Ok(document.clone()));
        prop_assert_eq!(Document::from_json_value(&serde_json::from_str(&json).unwrap()), Ok(document));
    }

    #[test]
    fn garbage_is_refused_and_no_more(text in "\\PC{0,80}|(\\[\\[rules\\]\\]\n|action|destination|= ?|\"[*a-z0-9./:-]{0,12}\"|\n|\\[|\\]|ports|[0-9]{1,6}){0,20}") {
        let _ = Document::from_toml(&text);
        let _ = Document::from_json(text.as_bytes());
        let _ = text.parse::<Destination>();
    }
}

fn everything() -> Policy {
    let all = ["0.0.0.0/0", "::/0"].map(|net| Rule {
        id: net.into(),
        destination: Destination::Net(net.parse().unwrap()),
        ports: vec![],
        protocol: None,
        action: Action::Allow,
        allow_special: false,
    });
    Policy { rules: all.into() }
}
