//! What the gate decides before it listens, and what ends a flow later.

use super::*;

#[tokio::test]
async fn what_is_denied_is_reset_at_once_without_a_byte_read_or_a_packet_sent() {
    let to = |address: &str| Some(address.parse().unwrap());
    let net = |action| policy_for(Destination::Net("203.0.113.1/32".parse().unwrap()), action, 443, 1);
    for (what, with, why) in [
        (
            "a denied port",
            Differently { original: to("198.18.0.7:444"), ..Differently::default() },
            "no rule allows it",
        ),
        (
            "a denied name",
            Differently { effective: policy(Action::Deny, 443, 1), ..Differently::default() },
            "the rule says so",
        ),
        (
            "another's address",
            Differently { original: to("198.18.0.8:443"), ..Differently::default() },
            "no name of this sandbox",
        ),
        ("no nat", Differently { original: None, ..Differently::default() }, "not brought here by the fence"),
        ("an address", Differently { original: to("203.0.113.1:443"), ..Differently::default() }, "no rule allows it"),
        (
            "an address by rule",
            Differently {
                original: to("203.0.113.1:443"),
                effective: net(Action::RequireAuthz),
                ..Differently::default()
            },
            "the decision point refused it",
        ),
        (
            "too many",
            Differently { settings: Settings { per_sandbox: 0, ..Settings::default() }, ..Differently::default() },
            "too many connections",
        ),
    ] {
        let world = World::new(with).await;
        is_reset(&mut world.connect().await).await;
        world.was_denied_last(why, what);
        world.reached_nobody();
    }
}

#[tokio::test]
async fn a_connection_from_no_sandbox_is_reset() {
    let world = World::new(Differently { known: false, ..Differently::default() }).await;
    is_reset(&mut world.connect().await).await;
    assert_eq!(world.outcomes(), []);
    assert_eq!(world.metrics.connections.get_or_create(&metrics::Outcome { outcome: "no_sandbox" }).get(), 1);
}

#[tokio::test]
async fn a_name_with_forbidden_addresses_alone_is_refused() {
    let world = World::new(Differently { has_address: false, ..Differently::default() }).await;
    let mut client = world.connect().await;
    client.write_all(&hello_to(NAME, true)).await.unwrap();
    is_reset(&mut client).await;
    world.was_denied("203.0.113.1 is private");
}

#[tokio::test]
async fn an_address_goes_to_that_address_whatever_is_said() {
    let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = host.local_addr().unwrap();
    let destination = Destination::Net("127.0.0.1/32".parse().unwrap());
    let effective = policy_for(destination, Action::RequireAuthz, there.port(), 1);
    let world =
        World::new(Differently { effective, decides: Decides::Yes, original: Some(there), ..Differently::default() })
            .await;
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: any\r\n\r\n").await.unwrap();
    let (mut server, _) = host.accept().await.unwrap();
    hears(&mut server, b"GET / HTTP/1.1\r\nHost: any\r\n\r\n").await;
    assert_eq!(world.outcomes(), [Outcome::AuthzRequired, Outcome::Allowed]);
}

#[tokio::test]
async fn a_rule_that_wants_a_decision_gets_one_before_anybody_is_dialled() {
    let effective = || policy(Action::RequireAuthz, 443, 1);
    let world =
        World::new(Differently { effective: effective(), decides: Decides::Yes, ..Differently::default() }).await;
    let (_client, mut host) = world.connected(&hello_to(NAME, true)).await;
    assert_eq!(host.read_u8().await.unwrap(), 22);
    assert_eq!(world.outcomes(), [Outcome::AuthzRequired, Outcome::Allowed]);

    let world = World::new(Differently { effective: effective(), ..Differently::default() }).await;
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n").await.unwrap();
    let mut told = String::new();
    client.read_to_string(&mut told).await.unwrap();
    assert!(told.contains(r#""reason":"authz""#), "{told}");
    world.reached_nobody();
}

#[tokio::test]
async fn a_flow_is_cut_as_soon_as_the_policy_does_not_allow_it_any_more() {
    for (next, why) in [
        (Some(policy(Action::Deny, 443, 2)), "the rule says so"),
        (Some(policy(Action::Allow, 80, 2)), "no rule allows it"),
        (Some(policy(Action::RequireAuthz, 443, 2)), "the decision point refused it"),
        (None, "not attached"),
    ] {
        let world = World::new(Differently::default()).await;
        let (mut client, mut host) = world.connected(&hello_to(NAME, true)).await;
        // A download under way, of which the client takes nothing: both sockets are full.
        let sending = tokio::spawn(async move { while host.write_all(&[0; 65536]).await.is_ok() {} });
        client.read_exact(&mut [0; 1_000_000]).await.unwrap();
        world.policies.send_replace(next);
        is_reset(&mut client).await;
        sending.await.unwrap(); // at the host's end it is an error too
        let outcomes = world.outcomes();
        assert_eq!(outcomes[0], Outcome::Allowed);
        assert!(matches!(outcomes.last(), Some(Outcome::Denied(reason)) if reason.contains(why)), "{outcomes:?}");
    }
}

#[tokio::test]
async fn a_flow_that_the_next_policy_allows_too_goes_on() {
    let world = World::new(Differently { decides: Decides::Yes, ..Differently::default() }).await;
    let hello = hello_to(NAME, true);
    let (mut client, mut host) = world.connected(&hello).await;
    hears(&mut host, &hello).await;
    for (generation, action) in [(2, Action::Allow), (3, Action::RequireAuthz), (4, Action::Allow)] {
        world.policies.send_replace(Some(policy(action, 443, generation)));
        client.write_all(b"ping").await.unwrap();
        hears(&mut host, b"ping").await;
        host.write_all(b"pong").await.unwrap();
        hears(&mut client, b"pong").await;
    }
}

impl World {
    fn was_denied_last(&self, why: &str, what: &str) {
        let outcomes = self.outcomes();
        assert!(
            matches!(outcomes.last(), Some(Outcome::Denied(reason)) if reason.contains(why)),
            "{what}: {outcomes:?}"
        );
    }
}
