//! Networks as people wire them: `ctr run --cni` with the bridge and ptp plugins, which act between Create and Start.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::network::{Network, refs};
use crate::leak_table::{POLICY, backend};

/// `ctr` with this network configuration, in a mount namespace in which /etc/cni/net.d and /opt/cni/bin are the test's.
fn run_with_cni(network: &Network, conflist: &Value, words: &[Value]) -> Vec<Value> {
    let conf = network.node.path("cni");
    fs::create_dir_all(&conf).unwrap();
    fs::write(conf.join("10-test.conflist"), conflist.to_string()).unwrap();
    let words: Vec<String> = words.iter().map(Value::to_string).collect();
    let options = network.options_without_network("web");
    let options: Vec<&str> = ["--rm", "--cni"].into_iter().chain(refs(&options)).collect();
    let command: Vec<&str> =
        ["/usr/bin/python3", "/probe.py"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let ctr = network.node.ctr_command(&network.node.run_args("c", &options, &command));
    let line: Vec<String> = std::iter::once(ctr.get_program())
        .chain(ctr.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
        .collect();
    let plugins =
        ["/usr/lib/cni", "/opt/cni/bin"].into_iter().find(|dir| fs::metadata(format!("{dir}/bridge")).is_ok());
    let plugins = plugins.expect("the CNI plugins are not installed: run scripts/setup system");
    let script = format!(
        "set -e; mkdir -p {dir}/up {dir}/work {dir}/optup {dir}/optwork; \
         mount -t tmpfs tmpfs {dir}/up; mkdir {dir}/up/etc {dir}/up/w {dir}/up/opt {dir}/up/ow; \
         mount -t overlay overlay -o lowerdir=/etc,upperdir={dir}/up/etc,workdir={dir}/up/w /etc; \
         mount -t overlay overlay -o lowerdir=/opt,upperdir={dir}/up/opt,workdir={dir}/up/ow /opt; \
         mkdir -p /etc/cni/net.d /opt/cni/bin; mount --bind {conf} /etc/cni/net.d; mount --bind {plugins} /opt/cni/bin; exec {line}",
        dir = network.node.path("").display(),
        conf = conf.display(),
        line = line.join(" "),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}\n{out}");
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {out} {err}"))).collect()
}

fn ipam(network: &Network, subnet: &str) -> Value {
    let dir = network.node.path("ipam");
    json!({"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": dir, "routes": [{"dst": "0.0.0.0/0"}]})
}

fn holds(network: &Network, plugin: Value, what: &str) {
    let conflist = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]});
    let tries = [
        json!(["by_name", "open.creto.net", 443]),
        json!(["tcp", "93.184.215.18", 9000, "hello"]),
        json!(["tcp", "93.184.215.15", 443, "hello"]),
        json!(["dns", "shut.creto.net"]),
    ];
    let answers = run_with_cni(network, &conflist, &tries);
    let ok = |n: usize| answers[n]["ok"].as_str().unwrap_or_default().to_owned();
    assert!(ok(0).contains("tls open.creto.net") && ok(1).contains("hello"), "{what}: {answers:?}");
    assert!(answers[2].get("failed").is_some() && ok(3) == "REFUSED", "{what}: {answers:?}");
}

#[test]
fn the_bridge_and_ptp_plugins_are_fenced_with_and_without_bridge_filtering() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    network.internet.netns.ip("route add 10.88.0.0/16 via 81.2.69.1");
    for filtered in ["0", "1"] {
        if fs::metadata("/proc/sys/net/bridge").is_ok() {
            network.host.sysctl("net.bridge.bridge-nf-call-iptables", filtered);
        }
        let bridge =
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam(&network, "10.88.1.0/24")});
        holds(&network, bridge, &format!("bridge, nf-call {filtered}"));
    }
    holds(&network, json!({"type": "ptp", "ipam": ipam(&network, "10.88.2.0/24")}), "ptp");
    network.node.assert_nothing_left();
}
