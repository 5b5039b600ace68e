//! What sandboxes get to hear, and that nothing of it leaves the node.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use egress::policy::{Fqdn, Protocol, Verdict};
use egress::worker::dns::{DnsSettings, Limits, Reply, Server, Transport, Upstream, UpstreamSettings};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::Resolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use proptest::prelude::*;

use super::node::{Node, OURS, STRANGER, THEIRS, fqdn, hear, policy, question, receive, sandbox, send};
use super::resolver::{CountingResolver, Says};

fn synthetic(message: &Message) -> Ipv4Addr {
    match &message.answers[..] {
        [record] => match record.data {
            RData::A(address) => address.0,
            _ => panic!("{message:?}"),
        },
        _ => panic!("{message:?}"),
    }
}

#[tokio::test]
async fn nothing_that_a_sandbox_asks_leaves_the_node() {
    let resolver = CountingResolver::start(|_, _, _| Says::Addresses(vec!["93.184.216.34".parse().unwrap()])).await;
    let servers = vec![Server { address: resolver.udp_and_tcp, transport: Transport::Udp }];
    let upstream = UpstreamSettings { servers, ..UpstreamSettings::default() };
    let gate = Upstream::new(&upstream).unwrap();
    let node = Node::start(DnsSettings { upstream, ..DnsSettings::default() });

    let kinds = [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::NULL, RecordType::MX, RecordType::SRV];
    for name in ["api.example.com.", "a.example.net.", "evil.example.org.", "c2VjcmV0.tunnel.example.org.", "."] {
        for kind in kinds.into_iter().chain([RecordType::CNAME, RecordType::ANY, RecordType::HTTPS, RecordType::PTR]) {
            node.ask(OURS, name, kind).await;
        }
    }
    let flood = node.socket(THEIRS, Ipv4Addr::LOCALHOST).await;
    for n in 0..2000 {
        let tunnel = question(&format!("chunk-{n}.tunnel.example.net."), RecordType::A);
        flood.send(&tunnel.to_vec().unwrap()).await.unwrap();
    }
    node.ask(OURS, "api.example.com.", RecordType::A).await; // answered after the flood
    assert_eq!(resolver.asked(), [], "a sandbox's question was passed on");

    // The resolver is there and counts: it hears of the name that is connected to.
    gate.resolve(&fqdn("api.example.com"), 443, &policy()).await.unwrap();
    let names: Vec<_> = resolver.asked().into_iter().map(|(name, _, _)| name).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name == "api.example.com"), "{names:?}");
}

#[tokio::test]
async fn an_allowed_name_has_an_address_that_is_that_sandboxs_own() {
    let node = Node::start(DnsSettings::default());
    let ours = synthetic(&node.ask(OURS, "api.example.com.", RecordType::A).await);
    let again = synthetic(&node.ask(OURS, "API.example.COM.", RecordType::A).await);
    let theirs = synthetic(&node.ask(THEIRS, "api.example.com.", RecordType::A).await);
    assert_eq!(ours, again);
    assert_ne!(ours, theirs);
    assert_eq!(ours.octets()[..2], [198, 18 | (ours.octets()[1] & 1)]);
    assert_eq!(*node.names.hold(&sandbox(OURS), ours).unwrap().name(), fqdn("api.example.com"));
    assert!(node.names.hold(&sandbox(THEIRS), ours).is_none());

    // Its name is told to that sandbox alone.
    let [a, b, c, d] = ours.octets();
    let pointer = format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
    let name = node.ask(OURS, &pointer, RecordType::PTR).await;
    assert!(matches!(&name.answers[0].data, RData::PTR(to) if to.0.to_ascii() == "api.example.com."), "{name:?}");
    let refused = node.ask(THEIRS, &pointer, RecordType::PTR).await;
    assert_eq!((refused.metadata.response_code, refused.answers.len()), (ResponseCode::Refused, 0));

    // Detached, it has none.
    node.dns.forget(&sandbox(OURS));
    assert!(node.names.hold(&sandbox(OURS), ours).is_none());
}

#[tokio::test]
async fn a_new_policy_holds_for_the_next_question() {
    let node = Node::start(DnsSettings::default());
    let code = async |name| node.ask(OURS, name, RecordType::A).await.metadata.response_code;
    assert_eq!(code("api.example.com.").await, ResponseCode::NoError);
    node.set(Some(egress::policy::CompiledPolicy::new(egress::policy::Policy::default())));
    assert_eq!(code("api.example.com.").await, ResponseCode::Refused);
    node.set(None);
    assert_eq!(code("api.example.com.").await, ResponseCode::Refused);
    assert_eq!(
        node.ask(STRANGER, "api.example.com.", RecordType::A).await.metadata.response_code,
        ResponseCode::Refused
    );
}

#[tokio::test]
async fn what_is_denied_is_told_with_the_rule_that_does() {
    let node = Node::start(DnsSettings::default());
    for (name, kind) in [
        ("api.example.com.", RecordType::A),
        ("api.example.com.", RecordType::AAAA),
        ("secret.example.net.", RecordType::A),
        ("Data.Tunnel.example.org.", RecordType::TXT),
        ("api.example.com.evil.example.org.", RecordType::A),
        ("9.9.9.9.in-addr.arpa.", RecordType::PTR),
    ] {
        node.ask(OURS, name, kind).await;
    }
    let told = node.told.all();
    let told: Vec<_> = told.iter().map(|(to, why)| (to.as_str(), why.as_str())).collect();
    assert_eq!(
        told,
        [
            ("secret.example.net", "rule never: the rule says so"),
            ("data.tunnel.example.org", "no answer of type TXT (16) is given"),
            ("api.example.com.evil.example.org", "no rule allows it (answered NXDOMAIN)"),
        ]
    );
}

#[tokio::test]
async fn a_client_that_speaks_edns_hears_why() {
    let node = Node::start(DnsSettings::default());
    let socket = node.socket(OURS, Ipv4Addr::LOCALHOST).await;
    let mut asked = question("evil.example.org.", RecordType::A);
    asked.set_edns(Edns::new().set_max_payload(4096).clone());
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let edns = hear(&socket).await.edns.unwrap();
    let Some(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(15, why)) = edns.option(15.into()).cloned() else {
        panic!("{edns:?}")
    };
    assert_eq!(why, [&[0, 15][..], b"no rule allows it"].concat());
}

#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    let node = Node::start(DnsSettings::default());
    // The server is bound to all addresses, and left alone the kernel would answer from 127.0.0.1.
    for at in [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 3, 2, 1)] {
        let socket = node.socket(OURS, at).await;
        socket.send(&question("api.example.com.", RecordType::A).to_vec().unwrap()).await.unwrap();
        synthetic(&hear(&socket).await);
    }
}

#[tokio::test]
async fn by_tcp_questions_are_answered_in_order() {
    let node = Node::start(DnsSettings::default());
    let mut stream = node.connect(OURS).await;
    let asked: Vec<_> = (0..50).map(|n| question(&format!("host-{n}.example.net."), RecordType::A)).collect();
    for message in &asked {
        send(&mut stream, &message.to_vec().unwrap()).await;
    }
    for message in &asked {
        let answer = receive(&mut stream).await.unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        synthetic(&answer);
    }
}

/// hickory-resolver as a program in a sandbox would use it.
#[tokio::test]
async fn a_resolver_that_is_not_ours_understands_it_by_udp_and_by_tcp() {
    let node = Node::start(DnsSettings::default());
    for mut connection in [ConnectionConfig::udp(), ConnectionConfig::tcp()] {
        (connection.port, connection.bind_addr) = (node.port, Some((OURS, 0).into()));
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let client = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
        let found: Vec<IpAddr> = client.lookup_ip("api.example.com.").await.unwrap().iter().collect();
        assert!(matches!(found[..], [IpAddr::V4(address)] if address.octets()[0] == 198), "{found:?}");
        assert!(client.lookup_ip("evil.example.org.").await.is_err());
        assert!(client.lookup("api.example.com.", RecordType::TXT).await.is_err());
    }
}

fn any_name() -> impl Strategy<Value = Name> {
    let label = prop_oneof![
        4 => prop::sample::select(vec!["api", "secret", "a", "example", "com", "net", "org", "localhost"])
            .prop_map(|label| label.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..20),
    ];
    prop::collection::vec(label, 0..6).prop_filter_map("too long", |labels| Name::from_labels(labels).ok())
}

#[test]
fn whatever_is_asked_an_address_is_had_by_an_allowed_name_alone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _here = runtime.enter();
    let most = NonZeroU32::new(1_000_000).unwrap();
    let limits = Limits { questions_burst: most, new_names_burst: most, ..Limits::default() };
    let node = Node::start(DnsSettings { limits, ..DnsSettings::default() });
    let policy = policy();
    proptest!(|(name in any_name(), kind in prop_oneof![Just(1), Just(28), any::<u16>()], tail in prop::collection::vec(any::<u8>(), 0..40))| {
        let mut asked = Message::query();
        asked.add_query(Query::query(name.clone(), RecordType::from(kind)));
        let bytes = [asked.to_vec().unwrap(), tail].concat();
        let Reply::Send(reply) = node.dns.answer(OURS.into(), &bytes, Protocol::Udp) else { panic!("no reply") };
        prop_assert!(reply.len() <= 512);
        let reply = Message::from_vec(&reply).unwrap();
        let allowed = Fqdn::parse(&name.to_ascii()).is_ok_and(|name| policy.name(&name).verdict == Verdict::Allow);
        for record in &reply.answers {
            match record.data {
                RData::A(address) if address.is_loopback() => prop_assert!(name.is_localhost()),
                RData::A(address) => prop_assert!(allowed && kind == 1 && address.octets()[0] == 198),
                RData::AAAA(address) => prop_assert!(name.is_localhost() && address.is_loopback()),
                ref other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(!(allowed && kind == 1) || reply.answers.len() == 1, "an allowed name has no address");
    });
}
