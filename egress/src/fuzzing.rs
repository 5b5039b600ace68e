//! What sandboxes and strangers write, for the targets of `fuzz/`: each function takes any bytes as one of our parsers gets them,
//! and panics where what that parser promises does not hold. Not in what is shipped (feature `fuzzing`).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use tokio::sync::watch;

use crate::policy::{CompiledPolicy, Document, Flow, Fqdn, Protocol, Target};
use crate::protocol::{Ask, SandboxKey};
use crate::worker::dns::{Dns, DnsSettings, Names, Reply};
use crate::worker::gate::{Requests, Sniffed, sniff};
use crate::worker::{Attempt, Attempts, Binding, Bindings, Effective};

const SANDBOX: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

struct Silence;

impl Attempts for Silence {
    fn tell(&self, _: Attempt) {}
}

/// The DNS of a sandbox that may ask for some names.
static DNS: LazyLock<(Dns, watch::Sender<Option<Arc<Effective>>>)> = LazyLock::new(|| {
    let text = "[[rules]]\ndestination = \"*.example.com\"\naction = \"Allow\"\n";
    let document = Document::from_toml(text).unwrap_or_default();
    let effective = Effective { policy: CompiledPolicy::new(document.policy), generation: 1 };
    let (sender, effective) = watch::channel(Some(Arc::new(effective)));
    let sandbox = SandboxKey { namespace: "default".into(), id: "c1".into() };
    let bindings = Arc::new(Bindings::default());
    bindings.put(&[SANDBOX], &Arc::new(Binding { sandbox, agent: None, effective }));
    let settings = DnsSettings::default();
    (Dns::new(bindings, Names::new(&settings, |_| ()), Arc::new(Silence), settings), sender)
});

/// A DNS message: answered with one that fits every datagram and has the same number, or not at all.
pub fn dns_message(bytes: &[u8]) {
    for over in [Protocol::Udp, Protocol::Tcp] {
        if let Reply::Send(reply) = DNS.0.answer(SANDBOX, bytes, over) {
            assert!((12..=512).contains(&reply.len()) && reply[..2] == bytes[..2] && reply[2] & 0x80 != 0);
        }
    }
}

/// What a client says first: what was told of its beginning is not taken back when more comes.
pub fn client_hello(bytes: &[u8]) {
    let mut told = None;
    for end in [bytes.len() / 3, bytes.len() / 2, bytes.len()] {
        let now = sniff(&bytes[..end]);
        if let Some(before) = told.replace(now.clone()) {
            assert!(before == Sniffed::NeedMore || std::mem::discriminant(&before) == std::mem::discriminant(&now));
        }
    }
}

/// Requests of HTTP/1: never more goes on than there is, and all at once as in pieces.
pub fn http_head(bytes: &[u8]) {
    let Ok(name) = Fqdn::parse("example.com") else { return };
    if let Ok(passed) = Requests::to(name, 80).pass(bytes) {
        assert!(passed <= bytes.len());
    }
}

/// A policy, as TOML or JSON: what is read is written and read back, and decides on anything.
pub fn policy(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let (toml, json) = (Document::from_toml(text), Document::from_json(bytes));
    for document in [toml.ok(), json.ok()].into_iter().flatten() {
        assert_eq!(Document::from_toml(&document.to_toml()).as_ref(), Ok(&document));
        let policy = CompiledPolicy::new(document.policy);
        let target = Target::Address(Ipv4Addr::new(192, 88, 99, 1).into());
        policy.check(&Flow { target, protocol: Protocol::Tcp, port: 443 });
        policy.address_rules();
        policy.digest();
    }
}

/// A line on egress.sock.
pub fn frame(bytes: &[u8]) {
    if let Ok(ask) = Ask::parse(bytes) {
        let _ = format!("{ask:?}");
    }
}
