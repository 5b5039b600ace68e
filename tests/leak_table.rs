//! What an untrusted workload tries in order to get out, and what of it is seen on the wire: nothing but what its policy
//! allows, by name through the gate and by address through the kernel; the same under gVisor and under runc. docs/egress.md
//! prints the table.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::netns::Netns;
use crate::harness::network::{NODE, Network, ROUTER, address, mac};
use crate::harness::parts::Containerd;
use crate::harness::wire::Wire;
use crate::harness::{Setup, wait_until};

/// What the sandbox under attack may do.
pub const POLICY: &str = r#"
[[rules]]
id = "open"
destination = "open.creto.net"
ports = [80, 443, 8080]
action = "Allow"
[[rules]]
id = "zone"
destination = "*.zone.creto.net"
ports = [443]
action = "Allow"
[[rules]]
id = "cdn"
destination = "a.cdn.creto.net"
ports = [80, 443]
action = "Allow"
[[rules]]
id = "traps"
destination = "metadata.creto.net"
ports = [80]
action = "Allow"
[[rules]]
destination = "mapped.creto.net"
ports = [80]
action = "Allow"
[[rules]]
destination = "inside.creto.net"
ports = [80]
action = "Allow"
[[rules]]
destination = "rebound.creto.net"
ports = [80]
action = "Allow"
[[rules]]
id = "asked"
destination = "asked.creto.net"
ports = [443]
action = "RequireAuthz"
[[rules]]
id = "echo"
destination = "93.184.215.18"
ports = [9000]
action = "Allow"
"#;

/// The sandbox's number, and that of its neighbour.
const SANDBOX: u8 = 10;
const NEIGHBOUR: u8 = 11;

/// A backend's settings.
pub fn backend(name: &str) -> Setup {
    let settings = match name {
        "runc" => {
            let shim = Containerd::default().bin().join("containerd-shim-runc-v2");
            format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n")
        }
        _ => String::new(),
    };
    Setup { settings, ..Setup::default() }
}

fn failed(answer: &Value) -> bool {
    answer.get("failed").is_some()
}

/// A TLS 1.2 ClientHello in one record, in hex, for this name (RFC 5246, RFC 6066); with an `encrypted_client_hello` (RFC 9849) on request.
fn client_hello(name: &str, ech: bool) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sized = |body: &str| format!("{:04x}{body}", body.len() / 2);
    let extension = |number: &str, body: &str| format!("{number}{}", sized(body));
    let mut extensions = extension("0000", &sized(&format!("00{}", sized(&hex(name.as_bytes())))));
    extensions += &extension("000a", &sized("001d0017"));
    extensions += &extension("000d", &sized("040308040401"));
    if ech {
        extensions +=
            &extension("fe0d", &format!("000001000107{}{}", sized(&"22".repeat(32)), sized(&"33".repeat(16))));
    }
    let ciphers = sized("c02bc02fc02cc030");
    let body = format!("0303{}00{ciphers}0100{}", "11".repeat(32), sized(&extensions));
    format!("160301{}", sized(&format!("01{:06x}{body}", body.len() / 2)))
}

/// It was refused, not left hanging.
fn refused_at_once(answer: &Value) -> bool {
    answer["failed"].as_str().is_some_and(|why| why != "timeout") && answer["ms"].as_f64().unwrap() < 1500.0
}

/// The gate says no, in HTTP.
fn forbidden(answer: &Value) -> bool {
    let said = answer["ok"].as_str().unwrap_or_default();
    said.starts_with("got HTTP/1.1 403") && said.contains("application/problem+json")
}

struct Attack<'a> {
    network: &'a Network,
    netns: &'a Netns,
    rows: Vec<(String, bool, String)>,
}

impl Attack<'_> {
    /// Tries from inside the sandbox; `holds` judges the answers.
    #[track_caller]
    fn inside(&mut self, row: &str, tries: &[Value], holds: impl Fn(&Value) -> bool) {
        let answers = self.network.probe("c", tries);
        self.note(row, answers.iter().all(holds), format!("{tries:?}: {answers:?}"));
    }

    /// Tries as root in the sandbox's namespace, past the sandbox itself.
    #[track_caller]
    fn beside(&mut self, row: &str, tries: &[Value], holds: impl Fn(&Value) -> bool) {
        let answers = self.network.probe_as_root(self.netns, tries);
        self.note(row, answers.iter().all(holds), format!("{tries:?}: {answers:?}"));
    }

    fn note(&mut self, row: &str, holds: bool, seen: String) {
        self.rows.push((row.to_owned(), holds, seen));
    }

    /// All rows hold.
    #[track_caller]
    fn judge(self) {
        #[expect(clippy::print_stdout, reason = "the table, for whoever runs this with --nocapture")]
        for (row, holds, seen) in &self.rows {
            println!("{} | {row} | {}", if *holds { "holds" } else { "BROKEN" }, &seen[..seen.len().min(600)]);
        }
        let broken: Vec<_> = self.rows.iter().filter(|(_, holds, _)| !holds).collect();
        assert!(broken.is_empty(), "{} of {} rows leak or break: {broken:#?}", broken.len(), self.rows.len());
    }
}

/// Ethernet: to, from, type; then what follows.
fn frame(to: &str, from: &str, kind: &str, rest: &str) -> Value {
    json!(["frame", "eth0", format!("{}{}{kind}{rest}", to.replace(':', ""), from.replace(':', ""))])
}

/// A UDP packet over IPv4 to port 9000, as hex, without checksums that matter to us (UDP's may be 0).
fn udp_packet(from: [u8; 4], to: [u8; 4]) -> String {
    let mut header = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(from);
    header.extend(to);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend([0x23, 0x28, 0x23, 0x28, 0, 9, 0, 0, b'x']);
    header.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An ARP packet: `operation` 1 asks, 2 answers.
fn arp(operation: u8, sender_mac: &str, sender: [u8; 4], target: [u8; 4]) -> String {
    let address = |address: [u8; 4]| address.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (mac, sender, target) = (sender_mac.replace(':', ""), address(sender), address(target));
    format!("000108000604000{operation}{mac}{sender}000000000000{target}")
}

fn leak_table(name: &str) {
    let network = Network::with(backend(name), &[("web", POLICY)], "");
    let (netns, neighbour) = (network.join(SANDBOX), network.join(NEIGHBOUR));
    // Servers that are not for sandboxes: the host's, and a neighbour's without a fence of its own.
    let hosts = network.host.inside(|| ["0.0.0.0:7000", "[::]:7001"].map(|at| TcpListener::bind(at).unwrap()));
    let neighbours = neighbour.inside(|| TcpListener::bind("0.0.0.0:7000").unwrap());
    let beside = Wire::tap(&neighbour);
    network.run_in(&netns, "c", "web");
    let mut attack = Attack { network: &network, netns: &netns, rows: Vec::new() };
    let (open, shut, echo) = ("93.184.215.14", "93.184.215.15", "93.184.215.18");

    // What is allowed works: else nothing below would mean anything.
    let got = |part: &'static str| move |answer: &Value| answer["ok"].as_str().is_some_and(|text| text.contains(part));
    attack.inside("an allowed name over TLS", &[json!(["by_name", "open.creto.net", 443])], got("tls open.creto.net"));
    attack.inside("an allowed name over HTTP", &[json!(["by_name", "open.creto.net", 80])], got("http open.creto.net"));
    attack.inside("an allowed address, TCP", &[json!(["tcp", echo, 9000, "hello"])], got("got hello"));
    attack.inside("an allowed address, UDP", &[json!(["udp", echo, 9000])], got("got hello"));
    attack.inside("an allowed address, UDP in fragments", &[json!(["fragments", echo, 9000])], got("got xxx"));

    let tcp = |to: &str, port: u16| json!(["tcp", to, port, "hello"]);
    attack.inside("another address", &[tcp(shut, 443), tcp(shut, 80)], refused_at_once);
    attack.inside("an allowed name's own address", &[tcp(open, 443), tcp(open, 80)], refused_at_once);
    attack.inside("an allowed address, another port", &[tcp(echo, 443)], refused_at_once);
    attack.inside("IPv6: global, unique local", &[tcp("2a02:26f0::1", 443), tcp("fd00:ec2::254", 80)], failed);
    attack.inside("UDP", &[json!(["udp", "8.8.8.8", 9000]), json!(["udp", shut, 9000])], failed);
    attack.inside("QUIC: UDP to 443", &[json!(["udp", open, 443]), json!(["udp", "198.18.0.9", 443])], failed);
    attack.inside("ICMP", &[json!(["ping", "8.8.8.8"]), json!(["ping", "2a02:26f0::1"])], failed);
    attack.inside("UDP in fragments", &[json!(["fragments", shut, 9000])], failed);
    attack.inside("a neighbour", &[tcp(&address(NEIGHBOUR), 7000), tcp("fd89::b", 7000)], failed);
    attack.inside("the host's ports", &[tcp(ROUTER, 7000), tcp(NODE, 7000), tcp("fd89::1", 7001)], refused_at_once);
    attack.inside("the DNS and gate ports themselves", &[tcp(ROUTER, 852), tcp(ROUTER, 854), tcp(NODE, 854)], failed);
    let metadata = ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"];
    attack.inside("the metadata service", &metadata.map(|at| tcp(at, 80)), failed);
    let traps = ["metadata", "mapped", "inside"].map(|name| json!(["by_name", format!("{name}.creto.net"), 80]));
    attack.inside("a private address by an allowed name", &traps, forbidden);
    network.internet.answer_instead("rebound.creto.net", &[&[shut], &["10.99.0.1"], &["10.99.0.1"]]);
    let rebound = json!(["by_name", "rebound.creto.net", 80]);
    attack.inside("rebinding: the second answer is private", &[rebound.clone(), rebound], |_| true); // the wire tells

    // Names.
    let dns = |name: &str, kind: &str, server: &str, over: &str| json!(["dns", name, kind, server, over]);
    let refused = |answer: &Value| answer["ok"] == "REFUSED";
    let synthetic = |name: &str| -> String {
        let answer = network.probe("c", &[dns(name, "A", ROUTER, "udp")]).remove(0);
        answer["ok"].as_str().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    let (cdn, open_at) = (synthetic("a.cdn.creto.net"), synthetic("open.creto.net"));
    let before = network.internet.queries().len();
    attack.inside("a denied name", &[dns("shut.creto.net", "A", ROUTER, "udp")], refused);
    attack.inside("a denied name over TCP", &[dns("shut.creto.net", "A", "8.8.8.8", "tcp")], refused);
    attack.inside("a denied name of another resolver", &[dns("shut.creto.net", "A", "8.8.8.8", "udp")], refused);
    attack.inside("DNS over IPv6", &[dns("shut.creto.net", "A", "fd89::1", "udp")], |a| refused(a) || failed(a));
    attack.inside("DNS over TLS", &[tcp("8.8.8.8", 853), tcp("9.9.9.9", 853)], refused_at_once);
    attack.inside("DNS over HTTPS", &[tcp("8.8.8.8", 443), dns("dns.google", "A", ROUTER, "udp")], |a| {
        refused(a) || failed(a)
    });
    let kinds = ["TXT", "MX", "SRV", "ANY", "CNAME"];
    let open_kinds = kinds.map(|kind| dns("secret.zone.creto.net", kind, ROUTER, "udp"));
    let empty = |answer: &Value| matches!(answer["ok"].as_str(), Some("REFUSED" | "NOERROR"));
    attack.inside("tunnels in other types of an allowed zone", &open_kinds, empty);
    attack.inside(
        "AAAA and HTTPS of an allowed name",
        &["AAAA", "HTTPS"].map(|kind| dns("open.creto.net", kind, ROUTER, "udp")),
        empty,
    );
    attack.inside("a tunnel in the labels of a denied zone", &[json!(["flood", "shut.creto.net", 200])], |a| {
        a["ok"] == 0
    });
    attack.inside("a tunnel in the labels of an allowed zone", &[json!(["flood", "zone.creto.net", 400])], |a| {
        a["ok"].as_u64().is_some_and(|answered| answered < 400)
    });
    let asked: Vec<String> = network.internet.queries().split_off(before);
    let held = asked.is_empty();
    attack.note("no question of a sandbox reaches a resolver", held, format!("{asked:?}"));

    // One address, two names: names hold where addresses do not.
    attack.inside(
        "the allowed one of two names at an address",
        &[json!(["tls", cdn, "a.cdn.creto.net"])],
        got("tls a.cdn"),
    );
    attack.inside("the other one", &[json!(["tls", cdn, "b.cdn.creto.net"])], failed);
    attack.inside("no SNI", &[json!(["tls", cdn, ""])], failed);
    attack.inside("SNI of another allowed name", &[json!(["tls", cdn, "open.creto.net"])], failed);
    let hello = |ech| json!(["hello", cdn, 443, [client_hello("a.cdn.creto.net", ech)]]);
    attack.inside("a ClientHello made by hand", &[hello(false)], got("got 1603"));
    attack.inside("the same with ECH", &[hello(true)], failed);
    attack.inside("Host of another name", &[json!(["http", cdn, "b.cdn.creto.net"])], forbidden);
    attack.inside("an allowed name, another port", &[tcp(&open_at, 22), tcp(&open_at, 853)], refused_at_once);
    attack.inside(
        "a synthetic address that was never given",
        &[tcp("198.18.77.77", 443), tcp("198.19.255.254", 443)],
        refused_at_once,
    );
    attack.inside(
        "a name that needs a decision, and nobody decides",
        &[json!(["by_name", "asked.creto.net", 443])],
        failed,
    );

    // Past the sandbox: whoever has broken out of it into its namespace.
    let (own, other, router) = (mac(SANDBOX), mac(NEIGHBOUR), "02:00:00:00:00:01");
    let internet = [8, 8, 8, 8];
    let own_ip = [10, 89, 0, SANDBOX];
    let spoofed = [
        frame(router, &own, "0800", &udp_packet([10, 89, 0, NEIGHBOUR], internet)),
        frame(router, &own, "0800", &udp_packet([10, 89, 0, 77], [93, 184, 215, 18])),
        frame(router, &own, "0800", &udp_packet([1, 2, 3, 4], internet)),
        frame(router, &other, "0800", &udp_packet(own_ip, [93, 184, 215, 18])),
        frame(router, "02:00:00:00:00:99", "0800", &udp_packet(own_ip, internet)),
    ];
    attack.beside("spoofed IP and MAC addresses", &spoofed, |_| true);
    let vlan = format!("00050800{}", udp_packet(own_ip, internet));
    attack.beside("VLAN tags", &[frame(router, &own, "8100", &vlan), frame(router, &own, "88a8", &vlan)], |_| true);
    let lies = [
        frame("ff:ff:ff:ff:ff:ff", &own, "0806", &arp(2, &own, [10, 89, 0, 1], [10, 89, 0, NEIGHBOUR])),
        frame(&other, &own, "0806", &arp(2, &own, [10, 89, 0, 1], [10, 89, 0, NEIGHBOUR])),
        frame("ff:ff:ff:ff:ff:ff", &own, "0806", &arp(1, &own, [10, 89, 0, 1], [10, 89, 0, 77])),
    ];
    attack.beside("ARP spoofing", &lies, |_| true);
    attack.beside(
        "frames straight to a neighbour",
        &[frame(&other, &own, "0800", &udp_packet(own_ip, [10, 89, 0, NEIGHBOUR]))],
        |_| true,
    );
    let claims = beside.frames(0x0806, &[10, 89, 0, 1, 0, 0]); // sender 10.89.0.1, target MAC 0…
    attack.note("no lie about the router reaches a neighbour", claims == 0, format!("{claims} frames"));
    let heard = beside.saw(|packet| packet.to.to_string() == address(NEIGHBOUR));
    attack.note("nothing reaches a neighbour", heard.is_empty(), format!("{heard:?}"));

    // The wire has the last word.
    let leaked = network.leaked();
    let allowed = |packet: &crate::harness::wire::Packet| {
        packet.to.to_string() == echo && packet.from.to_string() == address(SANDBOX)
    };
    let leaked: Vec<_> = leaked.into_iter().filter(|packet| !allowed(packet)).collect();
    attack.note(
        "the wire has no packet of a sandbox but to the allowed address",
        leaked.is_empty(),
        format!("{leaked:?}"),
    );
    for to in ["169.254.169.254", "10.99.0.1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"] {
        let seen = network.wire.to(to);
        attack.note(&format!("the wire has nothing to {to}"), seen.is_empty(), format!("{seen:?}"));
    }
    let strays: Vec<_> =
        network.internet.visits().into_iter().filter(|visit| visit.said == "b.cdn.creto.net").collect();
    attack.note("nobody speaks to the other tenant", strays.is_empty(), format!("{strays:?}"));
    attack.judge();
    drop((hosts, neighbours));

    let denied = || network.node.cli_json(&["audit", "search", "--event", "EgressDenied", "--sandbox-id", "c"]);
    wait_until("the record of it", || denied().as_array().is_some_and(|all| !all.is_empty()));
    let named =
        |to: &str| denied().as_array().unwrap().iter().any(|event| event["event"]["connection"]["destination"] == to);
    wait_until("what was denied by name", || named("shut.creto.net"));
    wait_until("what was denied by address", || named(shut));
    network.node.remove("c");
    wait_until("the fence's end", || {
        network.node.cli_json(&["network-policy", "list", "--sandboxes"]).as_array().is_some_and(Vec::is_empty)
    });
    let rules = network.host.command("nft").args(["list", "ruleset"]).output().unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(!rules.contains(&format!("sb{SANDBOX}")) && !rules.contains(&address(SANDBOX)), "left: {rules}");
    network.node.assert_nothing_left();
}

#[test]
fn nothing_leaks_from_gvisor() {
    leak_table("gvisor");
}

#[test]
fn nothing_leaks_from_runc() {
    leak_table("runc");
}
