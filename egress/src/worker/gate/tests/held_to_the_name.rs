//! What a client says is held to the name that it asked for.

use super::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n";
const OTHER: &[u8] = b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n";

#[tokio::test]
async fn tls_to_another_name_is_reset_and_reaches_nobody() {
    let cut = hello_to(NAME, true);
    for (hello, why) in [
        (hello_to("b.example.com", true), "TLS to another name"),
        (hello_to(NAME, false), "without a server_name"),
        ([&cut[..60], &cut[..]].concat(), ""),
    ] {
        let world = World::new(Differently::default()).await;
        let mut client = world.connect().await;
        client.write_all(&hello).await.unwrap();
        client.shutdown().await.unwrap();
        is_reset(&mut client).await;
        world.was_denied(why);
        world.reached_nobody();
    }
}

#[tokio::test]
async fn http_to_another_host_is_told_why_and_reaches_nobody() {
    let world = World::new(Differently::default()).await;
    let mut client = world.connect().await;
    client.write_all(OTHER).await.unwrap();
    let mut told = String::new();
    client.read_to_string(&mut told).await.unwrap();
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).unwrap(),
        serde_json::json!({
            "type": "https://creto.dev/problems/egress-refused",
            "title": "The sandbox's egress policy refuses it",
            "status": 403,
            "detail": "HTTP to another host: \"b.example.com\"",
            "reason": "host",
            "destination": "a.example.com:443",
            "generation": 1,
        })
    );
    world.reached_nobody();
}

#[tokio::test]
async fn a_later_request_to_another_host_does_not_arrive() {
    let world = World::new(Differently::default()).await;
    let (mut client, mut host) = world.connected(GET).await;
    hears(&mut host, GET).await;
    host.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    hears(&mut client, b"HTTP/1.1 204 No Content\r\n\r\n").await;
    client.write_all(&[GET, OTHER].concat()).await.unwrap();
    is_reset(&mut client).await;
    let mut heard = Vec::new();
    let _ = host.read_to_end(&mut heard).await; // what was on its way may be lost with the reset
    assert!(GET.starts_with(&heard), "{}", heard.escape_ascii());
}

#[tokio::test]
async fn after_an_upgrade_that_the_server_agreed_to_anything_passes() {
    let upgrade = b"GET / HTTP/1.1\r\nHost: a.example.com\r\nUpgrade: websocket\r\n\r\n";
    for (answer, passes) in
        [(&b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..], true), (b"HTTP/1.1 200 OK\r\n\r\n", false)]
    {
        let world = World::new(Differently::default()).await;
        let (mut client, mut host) = world.connected(&[&upgrade[..], OTHER].concat()).await;
        hears(&mut host, upgrade).await;
        host.write_all(answer).await.unwrap();
        match passes {
            true => hears(&mut host, OTHER).await,
            false => is_reset(&mut host).await,
        }
        drop(client.shutdown().await);
    }
}

#[tokio::test]
async fn a_server_may_speak_first_and_a_client_is_held_to_the_name_all_the_same() {
    let hello = hello_to("b.example.com", true);
    for (says, passes) in [(&b"EHLO me\r\n"[..], true), (&hello[..], false), (OTHER, false), (GET, true)] {
        let settings = Settings { silence: Duration::ZERO, ..Differently::default().settings };
        let world = World::new(Differently { settings, ..Differently::default() }).await;
        let (mut client, mut host) = world.connected(b"").await;
        host.write_all(b"220 ready\r\n").await.unwrap();
        hears(&mut client, b"220 ready\r\n").await;
        client.write_all(says).await.unwrap();
        match passes {
            true => hears(&mut host, says).await,
            false => {
                is_reset(&mut host).await;
                is_reset(&mut client).await;
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_a_head_is_refused() {
    let hello = hello_to(NAME, true);
    for silence in [NEVER, Duration::ZERO] {
        for said in [&hello[..1], &hello[..100], &GET[..3]] {
            let settings = Settings { head: Duration::from_millis(20), silence, ..Differently::default().settings };
            let world = World::new(Differently { settings, ..Differently::default() }).await;
            let mut client = world.connect().await;
            client.write_all(said).await.unwrap();
            is_reset(&mut client).await;
            assert!(matches!(world.outcomes().last(), Some(Outcome::Denied(why)) if why.contains("too long")));
        }
    }
}
