//! The fence holds, with real packets. Needs root, ip(8), nft(8), python3. Every test is a node in namespaces of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod lab;

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use egress::daemon::fence::{Audit, Change, FenceError, Fences, Stands};
use egress::daemon::netns::{self, NetnsError, Network, Port};
use egress::daemon::ruleset::Slot;
use egress::policy::{Action, AddressRule, PortRange, Protocol};
use egress::protocol::Interface;
use lab::{Lab, PATIENCE, Reached, ask, fences, run};
use socket2::SockRef;

fn rule(net: &str, ports: &[PortRange], protocol: Option<Protocol>, action: Action) -> AddressRule {
    AddressRule { rule: net.into(), net: net.parse().unwrap(), ports: ports.to_vec(), protocol, action }
}

fn allow(net: &str) -> AddressRule {
    rule(net, &[], None, Action::Allow)
}

fn interfaces(ports: &[Port]) -> Vec<Interface> {
    ports.iter().map(|port| port.interface.clone()).collect()
}

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn yes(address: &str) -> Reached {
    Reached::Yes(address.parse().unwrap())
}

#[test]
fn a_sandbox_reaches_what_its_policy_allows_and_nothing_else() {
    for bridge_netfilter in [false, true] {
        std::thread::spawn(move || reach(bridge_netfilter)).join().unwrap(); // a node each
    }
}

fn reach(bridge_netfilter: bool) {
    let mut lab = Lab::new(bridge_netfilter);
    let (a, b, c) = (lab.bridged("a", 2), lab.bridged("b", 3), lab.ptp("c", 99));
    for address in ["0.0.0.0:80", "0.0.0.0:8443", "203.0.113.2:9999", "203.0.113.3:9999", "[2001:db8::2]:80"] {
        lab.serve(address);
    }
    for address in ["10.88.0.1:22", "[fd00:88::1]:22", "10.99.0.1:22", "203.0.113.1:22"] {
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || lab::answer(&listener));
    }
    let listener = lab.within("b", || TcpListener::bind("[::]:80").unwrap());
    std::thread::spawn(move || lab::answer(&listener));
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), yes("10.88.0.2"), "the lab itself works");
    assert_eq!(lab.tcp("a", "10.88.0.3:80"), yes("10.88.0.2"), "the lab itself works");
    let fences = fences();
    let rules = [
        rule("203.0.113.4/32", &[], None, Action::Deny),
        rule("203.0.113.2/32", &[80..=80, 8000..=8999], Some(Protocol::Tcp), Action::Allow),
        rule("203.0.113.3/32", &[9999..=9999], Some(Protocol::Udp), Action::Allow),
        allow("2001:db8::/64"),
        allow("10.0.0.0/8"), // even so: no other sandbox, no host service
    ];
    fences.attach(slot(1), &a, &rules).unwrap();
    fences.attach(slot(2), &b, &[]).unwrap();
    fences.attach(slot(0x3fff), &c, &rules).unwrap();
    for (who, own4, own6) in [("a", "10.88.0.2", "fd00:88::2"), ("c", "10.99.0.99", "fd00:99::99")] {
        let tcp = |to, expected| {
            let begun = Instant::now();
            assert_eq!(lab.tcp(who, to), expected, "{who}: TCP {to}, {bridge_netfilter}");
            assert!(begun.elapsed() < PATIENCE);
        };
        tcp("203.0.113.2:80", yes(own4));
        tcp("203.0.113.2:8443", yes(own4));
        tcp("203.0.113.2:9999", Reached::Refused);
        tcp("203.0.113.3:80", Reached::Refused);
        tcp("203.0.113.4:80", Reached::Refused);
        tcp("192.0.2.1:80", Reached::Refused);
        tcp("[2001:db8::2]:80", yes(own6));
        tcp("[2001:db9::2]:80", Reached::Refused);
        tcp("10.88.0.1:22", Reached::Refused);
        tcp("[fd00:88::1]:22", Reached::Refused);
        tcp("10.99.0.1:22", Reached::Refused);
        tcp("203.0.113.1:22", Reached::Refused);
        assert_eq!(lab.udp(who, "203.0.113.3:9999"), yes(own4), "{who}");
        assert_eq!(lab.udp(who, "203.0.113.2:9999"), Reached::Refused, "{who}");
        assert_eq!(lab.udp(who, "198.18.0.1:443"), Reached::Refused, "{who}");
        assert_ne!(lab.udp(who, "10.88.0.1:9999"), yes(own4), "{who}");
    }
    // On the bridge a neighbour's address is not even asked for; by the routed path it is refused.
    assert!(!matches!(lab.silent("a", "10.88.0.3:80"), Reached::Yes(_)));
    assert_eq!(lab.tcp("c", "10.88.0.3:80"), Reached::Refused);
    assert_eq!(lab.tcp("c", "[fd00:88::3]:80"), Reached::Refused);
    // Nobody connects in, but the host.
    let inward = |to: &'static str| lab.silent("internet", to);
    assert_eq!(inward("10.88.0.3:80"), Reached::Silence);
    assert_eq!(inward("[fd00:88::3]:80"), Reached::Silence);
    assert_eq!(ask(TcpStream::connect("10.88.0.3:80").unwrap()).unwrap(), yes("10.88.0.1"));
}

#[test]
fn names_and_what_wants_a_decision_come_to_us_with_the_sandboxs_address() {
    for bridge_netfilter in [false, true] {
        std::thread::spawn(move || redirects(bridge_netfilter)).join().unwrap();
    }
}

fn redirects(bridge_netfilter: bool) {
    let mut lab = Lab::new(bridge_netfilter);
    let (a, c) = (lab.bridged("a", 2), lab.ptp("c", 99));
    let gate = TcpListener::bind("[::]:5301").unwrap();
    let dns_tcp = TcpListener::bind("[::]:5300").unwrap();
    let dns_udp = UdpSocket::bind("[::]:5300").unwrap();
    dns_udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let fences = fences();
    let rules = [
        rule("203.0.113.3/32", &[], None, Action::Allow),
        rule("203.0.113.0/24", &[443..=443], None, Action::RequireAuthz),
        rule("2001:db8::/64", &[443..=443], None, Action::RequireAuthz),
    ];
    fences.attach(slot(7), &a, &rules).unwrap();
    fences.attach(slot(8), &c, &rules).unwrap();
    for (who, own4, own6) in [("a", "10.88.0.2", "fd00:88::2"), ("c", "10.99.0.99", "fd00:99::99")] {
        let arrives = |listener: &TcpListener, to: &str, own: &str| {
            let to = to.parse().unwrap();
            let client = lab.within(who, || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
            let (stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip().to_canonical(), own.parse::<IpAddr>().unwrap());
            drop(client);
            stream
        };
        for to in ["198.18.3.4:443", "198.19.255.255:1", "203.0.113.2:443"] {
            let stream = arrives(&gate, to, own4);
            let original = SockRef::from(&stream).original_dst_v4().unwrap();
            assert_eq!(original.as_socket().unwrap().to_string(), to);
        }
        let stream = arrives(&gate, "[2001:db8::2]:443", own6);
        let original = SockRef::from(&stream).original_dst_v6().unwrap();
        assert_eq!(original.as_socket().unwrap().to_string(), "[2001:db8::2]:443");
        arrives(&dns_tcp, "203.0.113.2:53", own4);
        arrives(&dns_tcp, "[2001:db8::2]:53", own6);
        for (server, own) in [("192.0.2.53:53", own4), ("[2001:db8::53]:53", own6)] {
            lab.within(who, || {
                let socket = UdpSocket::bind("[::]:0").unwrap();
                let server = server.parse::<std::net::SocketAddr>().unwrap();
                let socket = if server.is_ipv4() { UdpSocket::bind("0.0.0.0:0").unwrap() } else { socket };
                socket.connect(server).unwrap();
                socket.send(b"question").unwrap();
                let (_, from) = dns_udp.recv_from(&mut [0; 64]).unwrap();
                assert_eq!(from.ip().to_canonical(), own.parse::<IpAddr>().unwrap());
                dns_udp.send_to(b"answer", from).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 6);
            });
        }
        // Asked for directly, our own ports are closed like any other of the host's; a decision on UDP is never asked for.
        assert_eq!(lab.tcp(who, "10.88.0.1:5301"), Reached::Refused);
        assert_eq!(lab.tcp(who, "10.88.0.1:5300"), Reached::Refused);
        assert_eq!(lab.udp(who, "203.0.113.2:443"), Reached::Refused);
    }
}

/// Other policies, all at once: whose, around which ports, which rules, and what stands.
fn change(fences: &Fences, all: &[(u16, &[Port], &[AddressRule], Stands)]) -> Vec<Stands> {
    let change = |(number, ports, rules, stands): &(u16, &[Port], &[AddressRule], Stands)| Change {
        slot: slot(*number),
        ports: ports.to_vec(),
        rules: rules.to_vec(),
        frame: stands.frame,
    };
    fences.change(&all.iter().map(change).collect::<Vec<_>>()).into_iter().map(Result::unwrap).collect()
}

#[test]
fn of_several_policies_one_that_the_kernel_refuses_holds_up_no_other() {
    let mut lab = Lab::new(true);
    let (a, b) = (lab.bridged("a", 2), lab.bridged("b", 3));
    lab.serve("0.0.0.0:80");
    let fences = fences();
    let gone = fences.attach(slot(2), &b, &[]).unwrap();
    run("nft flush map inet creto redirects");
    run("nft delete chain inet creto s2-nat");
    let stands = fences.attach(slot(1), &a, &[]).unwrap();
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), Reached::Refused);
    let rules = [allow("203.0.113.2/32")];
    let of = |number, ports: &[Port], stands: Stands| Change {
        slot: slot(number),
        ports: ports.to_vec(),
        rules: rules.to_vec(),
        frame: stands.frame,
    };
    // Nor can it be put up anew.
    let done = fences.change(&[of(1, &a, stands), of(2, &vec![b[0].clone(); 9], gone)]);
    assert!(matches!(&done[..], [Ok(_), Err(FenceError::TooManyInterfaces(9))]), "{done:?}");
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), yes("10.88.0.2"));
}

#[test]
fn another_policy_cuts_the_flows_that_it_does_not_permit_both_ways_and_no_others() {
    let mut lab = Lab::new(true);
    let a = lab.bridged("a", 2);
    run("nft add table ip nat");
    run("nft add chain ip nat post { type nat hook postrouting priority 100 ; }");
    run("nft add rule ip nat post ip saddr 10.88.0.0/16 oifname up0 masquerade");
    let fences = fences();
    let stands = fences.attach(slot(1), &a, &[allow("203.0.113.2/32"), allow("203.0.113.3/32")]).unwrap();
    let listener = lab.within("internet", || TcpListener::bind("0.0.0.0:80").unwrap());
    let connect = |to: &str| {
        let to = to.parse().unwrap();
        let client = lab.within("a", || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), "203.0.113.1".parse::<IpAddr>().unwrap(), "behind the node's address");
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        (client, server)
    };
    let (cut, also_cut, kept) = (connect("203.0.113.2:80"), connect("203.0.113.2:80"), connect("203.0.113.3:80"));
    change(&fences, &[(1, &a, &[allow("203.0.113.3/32")], stands)]);
    use std::io::{Read, Write};
    let through = |(mut from, mut to): (&TcpStream, &TcpStream)| {
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).unwrap();
    };
    through((&kept.0, &kept.1));
    through((&kept.1, &kept.0));
    // Who sends is reset at once: the sandbox …
    (&cut.0).write_all(b"x").unwrap();
    assert!((&cut.0).read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    // … and the other end.
    (&also_cut.1).write_all(b"x").unwrap();
    assert!((&also_cut.1).read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), Reached::Refused);
}

#[test]
fn tampering_is_found_attaching_again_mends_it_and_detaching_leaves_nothing() {
    let mut lab = Lab::new(true);
    let (a, b) = (lab.bridged("a", 2), lab.bridged("b", 3));
    let first = fences();
    let before = run("nft list ruleset");
    let stands = first.attach(slot(1), &a, &[allow("203.0.113.2/32")]).unwrap();
    let others = first.attach(slot(2), &b, &[]).unwrap();
    let (digest, other) = (stands.ruleset, others.ruleset);
    lab.serve("0.0.0.0:80");
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), yes("10.88.0.2"), "packets are counted, and counts are no tampering");
    assert_eq!(lab.tcp("a", "203.0.113.9:80"), Reached::Refused);
    drop(first);
    let fences = fences(); // a restart
    assert_eq!(fences.audit(slot(1), &interfaces(&a), digest).unwrap(), Audit::Intact);
    for (tampering, both) in [
        ("nft insert rule inet creto s1-policy accept", false),
        ("nft flush chain inet creto s1", false),
        ("nft flush chain netdev creto s1-dev0", false),
        ("nft delete chain netdev creto s1-dev0", false),
        ("nft flush map inet creto receivers4", true),
        ("nft insert rule inet creto forward accept", true),
        ("nft add chain netdev creto s1-dev0 { policy accept ; }", false),
        ("nft add table inet creto { flags dormant ; }", true),
    ] {
        run(tampering);
        assert!(matches!(fences.audit(slot(1), &interfaces(&a), digest).unwrap(), Audit::Tampered(_)), "{tampering}");
        assert_eq!(fences.audit(slot(2), &interfaces(&b), other).unwrap() != Audit::Intact, both, "{tampering}");
        let fences = lab::fences();
        fences.attach(slot(2), &b, &[]).unwrap();
        assert_eq!(fences.attach(slot(1), &a, &[allow("203.0.113.2/32")]).unwrap(), stands, "{tampering}");
    }
    // Nor does another policy take over what somebody has changed, of whichever of those that wait for one.
    for tampering in [
        "nft insert rule inet creto s1-policy accept",
        "nft insert rule inet creto s2-denied accept",
        "nft insert rule inet creto s1 accept",
        "nft insert rule netdev creto s1-dev0 accept",
        "nft delete chain netdev creto s1-dev0",
        "nft add chain netdev creto s1-dev0 { policy accept ; }",
        "nft add chain netdev creto s1-dev1 { type filter hook ingress device h2 priority -460 ; policy accept ; }",
        "nft flush map inet creto senders",
        "nft delete element inet creto receivers4 { 10.88.0.2 } ; add element inet creto receivers4 { 10.88.0.2 : goto s2 }",
    ] {
        run(tampering);
        let rules = [allow("203.0.113.2/32")];
        let both = change(&fences, &[(1, &a, &rules, stands), (2, &b, &[], others)]);
        assert_eq!(both, [stands, others], "{tampering}");
    }
    let [nothing] = change(&fences, &[(1, &a, &[], stands)])[..] else { panic!("one was changed") };
    assert!(
        nothing.ruleset != digest && nothing.frame == stands.frame,
        "its policy is another one, and the rest is as it was"
    );
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), Reached::Refused);
    // Whatever else leads to its chains goes with them.
    run("nft add element inet creto receivers4 { 10.88.0.77 : goto s1 }");
    for (number, ports) in [(1, &a[..]), (2, &b), (3, &[])] {
        fences.detach(slot(number), &interfaces(ports)).unwrap(); // 3 was never there
    }
    assert_eq!(run("nft list ruleset"), before);
    assert_eq!(lab.silent("a", "203.0.113.9:80"), Reached::Silence, "as before");
}

#[test]
fn only_veth_pairs_into_our_namespace_can_be_fenced() {
    let lab = {
        let mut lab = Lab::new(false);
        lab.bridged("a", 2);
        lab
    };
    let name = lab.name("a");
    let refused = || match netns::look(lab.file("a")) {
        Err(NetnsError::NotFenceable { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    run("ip link add m0 link up0 type macvlan mode bridge");
    run(&format!("ip link set m0 netns {name}"));
    assert_eq!(refused(), "m0");
    run(&format!("ip -n {name} link del m0"));
    run(&format!("ip -n {name} tuntap add t0 mode tun"));
    assert_eq!(refused(), "t0");
    run(&format!("ip -n {name} link del t0"));
    // Into a third namespace, where the index of an interface may well be one that we have, too.
    run(&format!("ip link add v0 netns {name} type veth peer name v0 netns {}", lab.name("internet")));
    assert_eq!(refused(), "v0");
    run(&format!("ip -n {name} link del v0"));
    run(&format!("ip -n {name} link add v1 type veth peer name v2"));
    assert!(["v1", "v2"].contains(&refused().as_str()));
    run(&format!("ip -n {name} link del v1"));
    run(&format!("ip -n {name} link del eth0"));
    assert_eq!(netns::look(lab.file("a")).unwrap(), Network::Sealed);
}

/// Sends what a sandbox must not send, then one frame that it may; a listener on every other wire hears that one alone.
#[test]
fn forged_frames_end_at_the_sandboxs_own_wire() {
    for bridge_netfilter in [false, true] {
        std::thread::spawn(move || forge(bridge_netfilter)).join().unwrap();
    }
}

const HEAR: &str = r#"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind((WIRE, 0))
print("READY", flush=True)
while True:
    frame, where = s.recvfrom(65535)
    if where[2] == socket.PACKET_OUTGOING: continue
    if b"FORGED" in frame: print(frame[frame.index(b"FORGED"):].split(b".")[0].decode(), flush=True)
    if b"THE-END" in frame: break
"#;

const FORGE: &str = r#"
import socket, struct
def mac(text): return bytes.fromhex(text.replace(":", ""))
def sum16(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def udp4(src, dst, text, frag=0):
    body = struct.pack("!HHHH", 4000, 9999, 8 + len(text), 0) + text if frag & 0x1fff == 0 else text
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, frag, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return head[:10] + struct.pack("!H", sum16(head)) + head[12:] + body
def ip6(src, dst, proto, body, hops=255):
    a, b = socket.inet_pton(10, src), socket.inet_pton(10, dst)
    if proto == 58:
        body = body[:2] + b"\0\0" + body[4:]
        body = body[:2] + struct.pack("!H", sum16(a + b + struct.pack("!II", len(body), 58) + body)) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), proto, hops) + a + b + body
def udp6(src, dst, text):
    a, b = socket.inet_pton(10, src), socket.inet_pton(10, dst)
    body = struct.pack("!HHHH", 4000, 9999, 8 + len(text), 0) + text
    total = sum16(a + b + struct.pack("!II", len(body), 17) + body)
    return ip6(src, dst, 17, body[:6] + struct.pack("!H", total) + body[8:])
def arp(op, sha, spa, tpa, text):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, op, sha, socket.inet_aton(spa), b"\0" * 6, socket.inet_aton(tpa)) + text
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
own, gw, other, cast = mac(OWN), mac(GW), mac(OTHER), b"\xff" * 6
ours, theirs, out = OURS, THEIRS, "203.0.113.2"
count = 0
def send(dst, src, kind, body):
    global count; count += 1
    s.send(dst + src + struct.pack("!H", kind) + body)
def forged(what): return b"FORGED-" + what.encode() + b"." * 40
na = lambda target, text: struct.pack("!BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(10, target) + text
send(gw, own, 0x800, udp4("10.88.0.77", out, forged("ipv4-source")))
send(gw, own, 0x800, udp4("10.88.0.77", out, forged("ipv4-source-fragment"), 0x2000))
send(gw, own, 0x800, udp4("10.88.0.77", out, forged("ipv4-source-last-fragment"), 8))
send(gw, own, 0x800, udp4("127.0.0.1", "10.88.0.1", forged("loopback-source")))
send(gw, other, 0x800, udp4(ours, out, forged("source-mac")))
send(other, own, 0x800, udp4(ours, theirs, forged("neighbour")))
send(cast, own, 0x800, udp4(ours, "255.255.255.255", forged("broadcast")))
send(mac("01:00:5e:00:00:fb"), own, 0x800, udp4(ours, "224.0.0.251", forged("multicast")))
send(gw, own, 0x86dd, udp6("fd00:88::77", "2001:db8::2", forged("ipv6-source")))
send(mac("33:33:00:00:00:01"), own, 0x86dd, udp6("fd00:88::2", "ff02::1", forged("ipv6-multicast")))
send(gw, own, 0x8100, struct.pack("!HH", 5, 0x800) + udp4(ours, out, forged("vlan")))
send(gw, own, 0x8100, struct.pack("!HH", 0, 0x800) + udp4(ours, out, forged("vlan-0")))
send(gw, own, 0x88a8, struct.pack("!HHHH", 5, 0x8100, 6, 0x800) + udp4(ours, out, forged("qinq")))
send(cast, own, 0x806, arp(1, own, "10.88.0.77", "10.88.0.1", forged("arp-sender-ip")))
send(cast, own, 0x806, arp(2, own, "10.88.0.1", "10.88.0.1", forged("arp-is-gateway")))
send(cast, own, 0x806, arp(1, other, ours, "10.88.0.1", forged("arp-sender-mac")))
send(other, own, 0x806, arp(2, own, ours, theirs, forged("arp-to-neighbour")))
send(cast, own, 0x806, arp(1, own, ours, theirs, forged("arp-tells-neighbour")))
send(cast, own, 0x806, arp(1, own, ours, "10.88.0.1", forged("arp-padding")))
send(mac("33:33:00:00:00:01"), own, 0x86dd, ip6("fd00:88::2", "ff02::1", 58, b"\x86\0\0\0" + b"\x40\0\x07\x08" + b"\0" * 8 + forged("router")))
send(gw, own, 0x86dd, ip6("fd00:88::2", "fd00:88::1", 58, b"\x89" + b"\0" * 7 + forged("redirect-icmp" + " " * 30)))
send(gw, own, 0x86dd, ip6("fd00:88::2", "fd00:88::1", 58, na("fd00:88::1", forged("neighbour-advertisement"))))
send(mac("33:33:ff:00:00:03"), own, 0x86dd, ip6("fd00:88::2", "ff02::1:ff00:3", 58, struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(10, "fd00:88::3") + forged("ns-tells-neighbour")))
send(gw, own, 0x88cc, forged("lldp"))
send(gw, own, 0x0842, forged("unknown-type"))
# And what it may, to the gateway and for the neighbour's ear by way of it.
s.send(gw + own + b"\x08\x00" + udp4(ours, out, b"THE-END" + b"." * 40))
print(count)
"#;

fn forge(bridge_netfilter: bool) {
    let mut lab = Lab::new(bridge_netfilter);
    let (a, b) = (lab.bridged("a", 2), lab.bridged("b", 3));
    lab.serve("0.0.0.0:9999");
    // Each knows its gateway before, and the gateway it.
    for who in ["a", "b"] {
        assert!(matches!(lab.udp(who, "203.0.113.2:9999"), Reached::Yes(_)));
    }
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let program = format!(
        "OWN, GW, OTHER, OURS, THEIRS = {:?}, {:?}, {:?}, {:?}, {:?}\n{FORGE}",
        text(a[0].interface.mac),
        text(a[0].interface.gateway_mac),
        text(b[0].interface.mac),
        "10.88.0.2",
        "10.88.0.3",
    );
    let heard = || {
        let wires = [("b", "eth0"), ("internet", "eth0")];
        let mut listeners = wires.map(|(name, wire)| lab.python(name, &format!("WIRE = {wire:?}\n{HEAR}")));
        for listener in &mut listeners {
            listener.wait_for("READY");
        }
        assert_eq!(lab.python("a", &program).finish().trim(), "25", "all were sent");
        // The neighbour hears of the end from the host, which may speak to it.
        UdpSocket::bind("10.88.0.1:0").unwrap().send_to(b"THE-END", "10.88.0.3:9").unwrap();
        let lines = |said: String| said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        listeners.map(|listener| lines(listener.finish()))
    };
    let [neighbour, internet] = heard();
    assert!(neighbour.len() > 7 && internet.len() > 5, "without a fence: {neighbour:?} {internet:?}");
    run("ip neigh flush dev br0");
    let fences = fences();
    fences.attach(slot(1), &a, &[allow("0.0.0.0/0"), allow("::/0")]).unwrap();
    fences.attach(slot(2), &b, &[allow("0.0.0.0/0")]).unwrap();
    assert_eq!(heard(), [vec![] as Vec<String>, vec![]], "got through");
    // And none of it has changed where the node finds its sandboxes.
    for who in ["a", "b"] {
        assert!(matches!(lab.udp(who, "203.0.113.2:9999"), Reached::Yes(_)), "{who}");
    }
}

#[test]
fn five_hundred_sandboxes_stand_beside_each_other() {
    let mut lab = Lab::new(true);
    let a = lab.ptp("a", 99);
    lab.serve("203.0.113.2:80");
    let fences = fences();
    fences.attach(slot(1), &a, &[allow("203.0.113.2/32")]).unwrap();
    for number in 2..=500 {
        fences.attach(slot(number), &lab.copies(&a, number), &[allow("203.0.113.0/24")]).unwrap();
    }
    assert!(!fences.is_free(slot(500)).unwrap() && fences.is_free(slot(501)).unwrap());
    assert_eq!(lab.tcp("a", "203.0.113.2:80"), yes("10.99.0.99"));
    assert_eq!(lab.tcp("a", "203.0.113.3:80"), Reached::Refused);
    (1..=500).for_each(|number| fences.detach(slot(number), &interfaces(&a)).unwrap());
    assert!((1..=500).all(|number| fences.is_free(slot(number)).unwrap()));
}
