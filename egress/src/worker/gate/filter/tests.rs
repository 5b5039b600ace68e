use super::super::sniff::tests::{hello_to, hello_with, sni};
use super::*;

fn filter(ech: Ech) -> Filter {
    Filter::Sniffing(Expected { name: Fqdn::parse("a.example.com").unwrap(), port: 443, ech })
}

#[test]
fn tls_passes_only_to_the_name_that_was_asked_for() {
    let ech = (0xfe0d, vec![0; 40]);
    let named = |name: &str| hello_with(&[sni(&[name])]);
    for (what, hello, expected) in [
        ("the name", hello_to("a.example.com", true), Ok(())),
        ("in capitals", named("A.EXAMPLE.com"), Ok(())),
        ("another", hello_to("b.example.com", true), Err(Refusal::ServerName("b.example.com".to_owned()))),
        ("one below it", named("x.a.example.com"), Err(Refusal::ServerName("x.a.example.com".to_owned()))),
        ("with a NUL", named("a.example.com\0"), Err(Refusal::ServerName("a.example.com\0".to_owned()))),
        ("an address", named("192.0.2.1"), Err(Refusal::ServerName("192.0.2.1".to_owned()))),
        ("none", hello_to("a.example.com", false), Err(Refusal::NoServerName)),
        ("ECH", hello_with(&[sni(&["a.example.com"]), ech.clone()]), Err(Refusal::EncryptedHello)),
    ] {
        assert_eq!(filter(Ech::Refuse).pass(&hello), expected.map(|()| hello.len()), "{what}");
    }
    let hidden = hello_with(&[sni(&["a.example.com"]), ech.clone()]);
    assert_eq!(filter(Ech::AllowIfOuterNameMatches).pass(&hidden), Ok(hidden.len()));
    let other = hello_with(&[sni(&["b.example.com"]), ech]);
    assert!(filter(Ech::AllowIfOuterNameMatches).pass(&other).is_err());
}

#[test]
fn an_end_in_the_middle_of_what_looks_like_tls_or_http_is_refused() {
    let mut sniffing = filter(Ech::Refuse);
    assert_eq!(sniffing.pass(b"\x16\x03"), Ok(0));
    assert!(sniffing.ended(b"\x16\x03").is_err());
    assert!(filter(Ech::Refuse).ended(b"").is_ok());
}
