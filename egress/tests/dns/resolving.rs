//! What the gate's resolver makes of what upstreams say.

use std::net::IpAddr;
use std::num::NonZeroU32;

use egress::worker::dns::{BadUpstream, ResolveError, Transport, Upstream, UpstreamSettings};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::node::{fqdn, policy};
use super::resolver::{CountingResolver, Says};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn public() -> Vec<IpAddr> {
    vec![ip("93.184.216.34"), ip("2606:2800:220:1::1")]
}

fn settings(resolver: &CountingResolver, transport: Transport) -> UpstreamSettings {
    UpstreamSettings {
        servers: vec![resolver.by(transport)],
        roots_pem: resolver.certificate_pem.clone(),
        ..UpstreamSettings::default()
    }
}

async fn resolve(resolver: &CountingResolver, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let upstream = Upstream::new(&settings(resolver, Transport::Udp)).unwrap();
    upstream.resolve(&fqdn(name), 443, &policy()).await.map(|resolved| resolved.addresses)
}

#[tokio::test]
async fn both_families_are_asked_for_and_alternate() {
    let resolver = CountingResolver::start(|_, _, _| {
        Says::Addresses(["93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"].map(ip).to_vec())
    })
    .await;
    let found = resolve(&resolver, "api.example.com").await.unwrap();
    assert_eq!(found, ["2606:2800:220:1::1", "93.184.216.34", "93.184.216.35"].map(ip));
}

#[tokio::test]
async fn an_alias_is_followed_and_the_name_that_was_asked_counts() {
    let resolver = CountingResolver::start(|_, _, _| Says::Alias("edge.cdn.example.org", public())).await;
    let found = resolve(&resolver, "api.example.com").await.unwrap();
    assert_eq!(found.len(), 2, "the policy does not allow the alias's name, and need not");
}

#[tokio::test]
async fn forbidden_addresses_are_left_out_and_if_nothing_is_left_it_says_so() {
    for (addresses, allowed) in [
        (vec!["10.0.0.1", "93.184.216.34", "169.254.169.254"], Some("93.184.216.34")),
        (vec!["169.254.169.254"], None),
        (vec!["127.0.0.1", "::1"], None),
        (vec!["::ffff:169.254.169.254", "fd00:ec2::254"], None),
        (vec!["198.18.0.1"], None),
    ] {
        let says = Says::Addresses(addresses.iter().map(|text| ip(text)).collect());
        let resolver = CountingResolver::start(move |_, _, _| says.clone()).await;
        match (resolve(&resolver, "api.example.com").await, allowed) {
            (Ok(found), Some(allowed)) => assert_eq!(found, [ip(allowed)], "{addresses:?}"),
            (Err(ResolveError::AllForbidden { .. }), None) => {}
            (other, _) => panic!("{addresses:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_turns_private_at_the_second_look_is_forbidden_then() {
    let resolver = CountingResolver::start(|_, _, before| match before {
        0 => Says::Addresses(vec![ip("93.184.216.34")]),
        _ => Says::Addresses(vec![ip("192.168.0.1")]),
    })
    .await;
    let upstream = Upstream::new(&settings(&resolver, Transport::Udp)).unwrap();
    let (name, policy) = (fqdn("api.example.com"), policy());
    assert!(upstream.resolve(&name, 443, &policy).await.is_ok());
    // Its TTL is 0, but an answer may be kept to the end of its second.
    let second = loop {
        match upstream.resolve(&name, 443, &policy).await {
            Ok(resolved) => assert_eq!(resolved.addresses, [ip("93.184.216.34")]),
            Err(error) => break error,
        }
    };
    assert!(matches!(second, ResolveError::AllForbidden { first, .. } if first == ip("192.168.0.1")), "{second:?}");
}

#[tokio::test]
async fn each_failure_is_told_for_what_it_is() {
    let resolver = CountingResolver::start(|name, _, _| match name {
        "missing.example.net" => Says::NoSuchName,
        "empty.example.net" => Says::Addresses(Vec::new()),
        "broken.example.net" => Says::Failure,
        _ => Says::Nothing,
    })
    .await;
    let error = async |name| resolve(&resolver, name).await.unwrap_err();
    assert!(matches!(error("missing.example.net").await, ResolveError::NoSuchName));
    assert!(matches!(error("empty.example.net").await, ResolveError::NoAddress));
    let broken = error("broken.example.net").await;
    assert!(matches!(broken, ResolveError::Answered(ResponseCode::ServFail)), "{broken:?}");

    let impatient = UpstreamSettings {
        try_millis: NonZeroU32::new(50).unwrap(),
        deadline_millis: NonZeroU32::new(200).unwrap(),
        ..settings(&resolver, Transport::Udp)
    };
    let silent = Upstream::new(&impatient).unwrap().resolve(&fqdn("silent.example.net"), 443, &policy()).await;
    assert!(matches!(silent, Err(ResolveError::Timeout)), "{silent:?}");
}

#[tokio::test]
async fn a_family_that_is_never_answered_does_not_hold_up_the_other() {
    for silent in [RecordType::A, RecordType::AAAA] {
        let resolver = CountingResolver::start(move |_, kind, _| match kind == silent {
            true => Says::Nothing,
            false => Says::Addresses(public()),
        })
        .await;
        // One try takes longer than all may take: waiting for it would end in a time-out.
        let patient = UpstreamSettings {
            try_millis: NonZeroU32::new(60_000).unwrap(),
            deadline_millis: NonZeroU32::new(20_000).unwrap(),
            ..settings(&resolver, Transport::Udp)
        };
        let found = Upstream::new(&patient).unwrap().resolve(&fqdn("api.example.com"), 443, &policy()).await.unwrap();
        assert_eq!(found.addresses.len(), 1, "without {silent}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_asked_for_again_by_tcp() {
    let resolver = CountingResolver::start(|_, _, _| Says::TooLong(public())).await;
    assert_eq!(resolve(&resolver, "api.example.com").await.unwrap().len(), 2);
    let by: Vec<_> = resolver.asked().into_iter().map(|(_, _, by)| by).collect();
    assert!(by.contains(&"udp") && by.contains(&"tcp"), "{by:?}");
}

#[tokio::test]
async fn a_tls_upstream_is_asked_only_if_it_proves_its_name() {
    let resolver = CountingResolver::start(|_, _, _| Says::Addresses(public())).await;
    let ask = async |name: &str| {
        let upstream = Upstream::new(&settings(&resolver, Transport::Tls(name.to_owned()))).unwrap();
        upstream.resolve(&fqdn("api.example.com"), 443, &policy()).await
    };
    let other = ask("other.test").await;
    assert!(matches!(other, Err(ResolveError::Unreachable(_))), "{other:?}");
    assert!(resolver.asked().is_empty(), "a question went to who did not prove its name");
    assert_eq!(ask("dns.test").await.unwrap().addresses.len(), 2);
    assert!(resolver.asked().iter().all(|(_, _, by)| *by == "tls"), "{:?}", resolver.asked());
}

#[tokio::test]
async fn what_is_wrong_with_the_settings_is_said() {
    let resolver = CountingResolver::start(|_, _, _| Says::Nothing).await;
    let tls = |name: &str| settings(&resolver, Transport::Tls(name.to_owned()));
    let refused = |settings: UpstreamSettings| Upstream::new(&settings).err();
    assert!(matches!(refused(UpstreamSettings::default()), Some(BadUpstream::NoServers)));
    assert!(matches!(refused(tls("not a name")), Some(BadUpstream::ServerName(_))));
    let no_roots = UpstreamSettings { roots_pem: String::new(), ..tls("dns.test") };
    assert!(matches!(refused(no_roots), Some(BadUpstream::Roots(_))));
}
