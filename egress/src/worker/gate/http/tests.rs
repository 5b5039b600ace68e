use proptest::prelude::*;

use super::*;

fn requests(port: u16) -> Requests {
    Requests::to(Fqdn::parse("a.example.com").unwrap(), port)
}

#[test]
fn a_request_passes_only_to_the_host_that_the_flow_is_for() {
    for (head, passes) in [
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nHost: a.example.com\r\n\r\n", true),
        ("\r\nGET / HTTP/1.1\r\nHost: A.Example.COM.\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nhOST:\ta.example.com:8080 \r\n\r\n", true),
        ("GET http://a.example.com/x HTTP/1.1\r\nHost: a.example.com\r\n\r\n", true),
        ("GET http://a.example.com:8080?x HTTP/1.1\r\nHost: a.example.com\r\n\r\n", true),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example.com\r\n\r\n", true),
        ("GET /?u=http://b.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com.evil.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com:81\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com:+8080\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com, b.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com@b.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: ａ.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: 203.0.113.7\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\nHost: b.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\nHost: a.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\n Host: b.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost : b.example.com\r\nHost: a.example.com\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: b.example.com\rHost: a.example.com\r\n\r\n", false),
        ("GET http://b.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET http://a.example.com@b.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET http://a.example.com\\@b.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET ftp://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET b.example.com HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("CONNECT a.example.com:8080 HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET  / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", false),
        ("GET / HTTP/1.2\r\nHost: a.example.com\r\n\r\n", false),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\nUpgrade: h2c\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: +1\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n", false),
        ("POST / HTTP/1.0\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        let passed = requests(8080).pass(head.as_bytes());
        assert_eq!(passed.is_ok(), passes, "{head:?}: {passed:?}");
        if let Ok(passed) = passed {
            assert_eq!(passed, head.len(), "{head:?}");
        }
    }
}

const POST: &str = "POST /a HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "POST /b HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n";
const OTHER: &str = "GET /c HTTP/1.1\r\nHost: b.example.com\r\n\r\n";

#[test]
fn a_later_request_to_another_host_is_found_behind_any_body() {
    for first in [POST, CHUNKED, "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"] {
        let mut all = requests(80);
        assert_eq!(all.pass(first.as_bytes()), Ok(first.len()), "{first:?}");
        assert_eq!(all.pass(OTHER.as_bytes()), Err(Refusal::Host("b.example.com".to_owned())), "{first:?}");
        let whole = [first, OTHER].concat();
        assert!(requests(80).pass(whole.as_bytes()).is_err(), "{whole:?}");
    }
}

#[test]
fn bodies_that_servers_measure_in_different_ways_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in
        ["\r\n", ";\r\n", "g\r\n", "5\nhello\r\n", "1;a\nb\r\nx\r\n", "1\r\nxy\r\n", "-1\r\n", "0x5\r\nhello\r\n"]
    {
        let whole = [head, body].concat();
        assert!(matches!(requests(80).pass(whole.as_bytes()), Err(Refusal::Malformed(_))), "{body:?}");
    }
}

#[test]
fn after_an_upgrade_nothing_passes_until_the_server_has_agreed() {
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for (answer, agreed) in [("HTTP/1.1 101 Switching", true), ("HTTP/1.1 200 OK", false), ("SSH", false)] {
        let mut all = requests(80);
        let whole = [upgrade, OTHER].concat();
        assert_eq!(all.pass(whole.as_bytes()), Ok(upgrade.len()));
        assert!(all.awaits_answer());
        let told = (0..=answer.len()).find(|end| all.answered(&answer.as_bytes()[..*end]));
        assert!(told.is_some(), "{answer:?}");
        assert_eq!(all.pass(OTHER.as_bytes()).is_ok(), agreed, "{answer:?}");
    }
}

#[test]
fn only_the_first_request_can_end_http() {
    let mut all = requests(80);
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a.example.com\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(all.pass(POST.as_bytes()), Ok(POST.len()));
    assert_eq!(all.pass(upgrade.as_bytes()), Ok(upgrade.len()));
    assert!(!all.awaits_answer());
    assert!(all.pass(OTHER.as_bytes()).is_err());
}

#[test]
fn no_head_is_waited_for_without_end() {
    let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
    assert!(matches!(requests(80).pass(head.as_bytes()), Err(Refusal::Malformed(_))));
    let many = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(MAX_FIELDS + 1));
    assert!(matches!(requests(80).pass(many.as_bytes()), Err(Refusal::Malformed(_))));
}

proptest! {
    #[test]
    fn how_requests_are_cut_changes_nothing(
        parts in prop::collection::vec(prop_oneof![Just(POST), Just(CHUNKED), Just(OTHER), Just("\r\n"), Just("x")], 1..5),
        cuts in prop::collection::vec(1usize..40, 1..200),
    ) {
        let whole = parts.concat().into_bytes();
        let mut at_once = requests(80);
        let expected = at_once.pass(&whole);
        let (mut cut, mut passed, mut shown) = (requests(80), 0, 0);
        let mut cuts = cuts.into_iter().cycle();
        let got = loop {
            if shown == whole.len() {
                break Ok(passed);
            }
            shown = (shown + cuts.next().unwrap()).min(whole.len());
            match cut.pass(&whole[passed..shown]) {
                Ok(more) => passed += more,
                Err(refusal) => break Err(refusal),
            }
        };
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn nothing_that_a_stranger_writes_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), post in any::<bool>()) {
        let mut all = requests(80);
        if post {
            prop_assert!(all.pass(&CHUNKED.as_bytes()[..75]).is_ok());
        }
        if let Ok(passed) = all.pass(&bytes) {
            prop_assert!(passed <= bytes.len());
        }
    }
}
