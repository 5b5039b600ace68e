use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// The bytes that a real client sends first.
pub fn hello_to(name: &'static str, sni: bool) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni;
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A hello with these extensions, in one record.
pub fn hello_with(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let all: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| {
            let length = data.len() as u16;
            [kind.to_be_bytes().to_vec(), length.to_be_bytes().to_vec(), data.clone()].concat()
        })
        .collect();
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    in_records(&message, 1 << 14)
}

/// A handshake message cut into records of at most so many bytes.
fn in_records(message: &[u8], most: usize) -> Vec<u8> {
    message
        .chunks(most)
        .flat_map(|part| [vec![22, 3, 1], (part.len() as u16).to_be_bytes().to_vec(), part.to_vec()].concat())
        .collect()
}

/// A server_name extension.
pub fn sni(names: &[&str]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [vec![0], (name.len() as u16).to_be_bytes().to_vec(), name.as_bytes().to_vec()].concat())
        .collect();
    (0, [(list.len() as u16).to_be_bytes().to_vec(), list].concat())
}

fn tls(name: Option<&str>, encrypted: bool) -> Sniffed {
    Sniffed::Tls(Hello { server_name: name.map(str::to_owned), encrypted })
}

/// At every cut before the end more is needed; from the end on it is this, whatever follows.
fn says_only_at_its_end(bytes: &[u8], sniffed: &Sniffed) {
    for cut in 0..bytes.len() {
        assert_eq!(sniff(&bytes[..cut]), Sniffed::NeedMore, "after {cut} of {} bytes", bytes.len());
    }
    assert_eq!(sniff(bytes), *sniffed);
    assert_eq!(sniff(&[bytes, b"\x14\x03\x03\0\x01\x01GET / HTTP/1.1"].concat()), *sniffed);
}

#[test]
fn a_real_clients_name_is_read_however_it_is_cut_into_segments() {
    says_only_at_its_end(&hello_to("api.example.com", true), &tls(Some("api.example.com"), false));
    says_only_at_its_end(&hello_to("api.example.com", false), &tls(None, false));
    says_only_at_its_end(&hello_to("192.0.2.1", true), &tls(None, false));
}

#[test]
fn a_hello_is_read_however_it_is_cut_into_records() {
    let whole = hello_to("api.example.com", true);
    for most in [1, 2, 3, 4, 5, 100, 511] {
        says_only_at_its_end(&in_records(&whole[5..], most), &tls(Some("api.example.com"), false));
    }
}

#[test]
fn what_a_hello_says_of_the_name() {
    let grease = (0x0a0a, vec![0]);
    let ech = (0xfe0d, vec![0; 40]);
    let broken_alpn = (16, vec![0xff, 0xff, 1]);
    for (what, extensions, expected) in [
        ("none", vec![], tls(None, false)),
        ("a name", vec![sni(&["a.example"])], tls(Some("a.example"), false)),
        ("GREASE around it", vec![grease.clone(), sni(&["a.example"]), grease], tls(Some("a.example"), false)),
        ("behind one that is broken", vec![broken_alpn, sni(&["a.example"])], tls(Some("a.example"), false)),
        ("ECH", vec![sni(&["a.example"]), ech.clone()], tls(Some("a.example"), true)),
        ("ECH alone", vec![ech], tls(None, true)),
        ("ESNI", vec![(0xffce, vec![1])], tls(None, true)),
        ("padded to 8 KiB", vec![(21, vec![0; 8192]), sni(&["a.example"])], tls(Some("a.example"), false)),
    ] {
        assert_eq!(sniff(&hello_with(&extensions)), expected, "{what}");
    }
}

#[test]
fn a_hello_that_servers_could_read_in_two_ways_is_refused() {
    let good = hello_with(&[sni(&["a.example"])]);
    let mut long_list = sni(&["a.example"]);
    long_list.1.push(0);
    let mut short_list = sni(&["a.example"]);
    short_list.1[1] -= 1;
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let beside = [&in_records(&[&good[5..], &good[5..]].concat(), 1 << 14)[..]].concat();
    for (what, bytes) in [
        ("two names", hello_with(&[sni(&["a.example", "b.example"])])),
        ("two extensions", hello_with(&[sni(&["a.example"]), sni(&["a.example"])])),
        ("no name in it", hello_with(&[sni(&[])])),
        ("an empty extension", hello_with(&[(0, vec![])])),
        ("a name that is not ASCII", hello_with(&[sni(&["ä.example"])])),
        ("a byte after the list", hello_with(&[long_list])),
        ("a list that is too short", hello_with(&[short_list])),
        ("another hello beside it", beside),
        ("an alert first", [b"\x15\x03\x01\0\x02\x01\0", &good[..]].concat()),
        ("a change_cipher_spec first", [b"\x14\x03\x01\0\x01\x01", &good[..]].concat()),
        ("an empty record first", [b"\x16\x03\x01\0\0", &good[..]].concat()),
        ("a ServerHello", with(5, 2)),
        ("a record that is too long", with(3, 0x41)),
        ("a message that is too long", with(6, 1)),
        ("no record after the first", [&in_records(&good[5..], 9)[..14], b"HTTP/1.1"].concat()),
    ] {
        assert!(matches!(sniff(&bytes), Sniffed::Malformed(_)), "{what}: {:?}", sniff(&bytes));
    }
}

#[test]
fn what_a_client_speaks() {
    for (bytes, expected) in [
        (&b""[..], Sniffed::NeedMore),
        (b"G", Sniffed::NeedMore),
        (b"GET / HTT", Sniffed::NeedMore),
        (b"GET / HTTP/", Sniffed::Http),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", Sniffed::Http),
        (b" \tGET\t/ http/1.1\r\n", Sniffed::Http),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniffed::Http),
        (b"CONNECT a:1 HTTP/1.1\r\n", Sniffed::Http),
        (b"GET /\r\n", Sniffed::Opaque), // HTTP/0.9 names no host
        (b"NICK me\r\n", Sniffed::Opaque),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Sniffed::Opaque),
        (b"PING\r\n", Sniffed::Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Sniffed::Opaque),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Sniffed::Opaque),
        (b"AMQP\0\0\x09\x01", Sniffed::Opaque),
        (b"\x16", Sniffed::NeedMore),
        (b"\x16\x05", Sniffed::Opaque),
        (b"\x17\x03\x03", Sniffed::Malformed(Malformed("no TLS handshake record where one was due"))),
    ] {
        assert_eq!(sniff(bytes), expected, "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn no_beginning_is_waited_for_without_end() {
    for bytes in [vec![b'A'; MAX_HEAD], vec![b'\n'; MAX_HEAD], in_records(&hello_with(&[(21, vec![0; 8000])])[5..], 1)]
    {
        assert!(matches!(sniff(&bytes), Sniffed::Malformed(_)));
    }
}

/// Bytes that look like something: the beginnings matter, and what random bytes never hit upon.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(hello_with(&[sni(&["a.example"])])),
        (1usize..60).prop_map(|most| in_records(&hello_with(&[(21, vec![0; 99]), sni(&["a.example"])])[5..], most)),
        Just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(vec![0x16, 3, 1]),
        Just(vec![0x16, 3, 3, 0, 4, 1, 0, 0, 0]),
    ];
    prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_final_answer_is_never_changed_by_more_bytes(bytes in likely()) {
        let mut last = Sniffed::NeedMore;
        for end in 0..=bytes.len() {
            let now = sniff(&bytes[..end]);
            prop_assert!(last == Sniffed::NeedMore || last == now, "{last:?} became {now:?} after {end} bytes");
            last = now;
        }
    }
}
