//! A network's configuration (a conflist) and what plugins are told and answer. Pure.
//! Source: CNI specification 1.0.0, sections 1 (configuration), 3 (execution) and 5 (results).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Versions whose results have `ips` as a list, as we read them.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network, as it is configured: its plugins, in the order of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Conflist {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// A text that is no conflist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConflist {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// A member that is missing or something else.
    #[error("`{member}`: {rule}")]
    Member {
        /// Which.
        member: String,
        /// What it should be.
        rule: &'static str,
    },
}

/// What plugins are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Wire it.
    Add,
    /// Take it back.
    Del,
}

impl Verb {
    /// As `CNI_COMMAND` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

impl Conflist {
    /// Out of the text of a `.conflist` file.
    pub fn parse(text: &str) -> Result<Self, BadConflist> {
        let value: Value = serde_json::from_str(text).map_err(|error| BadConflist::Json(error.to_string()))?;
        Self::try_from(value)
    }

    /// The network that is a namespace's own `lo`, up.
    pub fn loopback() -> Self {
        let plugin = Map::from_iter([("type".to_owned(), json!("loopback"))]);
        Self { name: "creto-lo".into(), version: "1.0.0".into(), plugins: vec![plugin] }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Each plugin in turn: its program, and its configuration but for the previous result. DEL goes backwards.
    pub fn steps(&self, verb: Verb) -> Vec<(&str, Value)> {
        let step = |plugin: &'_ Map<String, Value>| {
            let mut config = plugin.clone();
            config.insert("name".into(), json!(self.name));
            config.insert("cniVersion".into(), json!(self.version));
            config.remove("capabilities"); // the runtime's to read; we pass no `runtimeConfig`
            Value::Object(config)
        };
        let mut steps: Vec<_> = self
            .plugins
            .iter()
            .map(|plugin| (plugin.get("type").and_then(Value::as_str).unwrap_or_default(), step(plugin)))
            .collect();
        if verb == Verb::Del {
            steps.reverse();
        }
        steps
    }
}

impl TryFrom<Value> for Conflist {
    type Error = BadConflist;

    fn try_from(value: Value) -> Result<Self, BadConflist> {
        let bad = |member: &str, rule| BadConflist::Member { member: member.to_owned(), rule };
        let text = |member: &str| value.get(member).and_then(Value::as_str).map(str::to_owned);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let name = text("name").filter(|name| {
            name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && name.bytes().all(plain)
        });
        let name = name.ok_or_else(|| bad("name", "give the network a name of letters, digits, '_', '.' and '-'"))?;
        let version = text("cniVersion").filter(|version| VERSIONS.contains(&version.as_str()));
        let version = version.ok_or_else(|| bad("cniVersion", "say \"1.0.0\" (0.3.0 to 1.1.0 are understood)"))?;
        let list = value.get("plugins").and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| bad("plugins", "list at least one plugin, as {\"type\": \"bridge\", …}"))?;
        let mut plugins = Vec::new();
        for (at, plugin) in list.iter().enumerate() {
            let fits = |kind: &&str| !kind.is_empty() && kind.bytes().all(plain) && !kind.starts_with('.');
            let plugin = plugin.as_object().filter(|of| of.get("type").and_then(Value::as_str).filter(fits).is_some());
            let plugin = plugin.ok_or_else(|| bad(&format!("plugins[{at}].type"), "name the plugin's program"))?;
            plugins.push(plugin.clone());
        }
        Ok(Self { name, version, plugins })
    }
}

impl From<Conflist> for Value {
    fn from(of: Conflist) -> Self {
        json!({"name": of.name, "cniVersion": of.version, "plugins": of.plugins})
    }
}

/// What a result says of the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wired {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whom it asks for names.
    pub nameservers: Vec<IpAddr>,
}

/// Reads a result. Without `dns` the gateways are asked: creto-egress answers for whichever server.
pub fn addresses(result: &Value) -> Wired {
    let items = |pointer: &str| result.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let address = |value: &Value| value.as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let of = |member: &str| items("/ips").iter().filter_map(|ip| address(ip.get(member)?)).collect::<Vec<_>>();
    let said: Vec<IpAddr> = items("/dns/nameservers").iter().filter_map(address).collect();
    Wired { addresses: of("address"), nameservers: if said.is_empty() { of("gateway") } else { said } }
}

impl Wired {
    /// The text of its resolv.conf.
    pub fn resolv_conf(&self) -> String {
        self.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect()
    }

    /// The text of its hosts file.
    pub fn hosts(&self, name: &str) -> String {
        let own = self.addresses.iter().map(|address| format!("{address} {name}\n"));
        std::iter::once("127.0.0.1 localhost\n::1 localhost\n".to_owned()).chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_conflist_is_named() {
        for (text, named) in [
            ("{", "not JSON"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#, "`name`"),
            (r#"{"name":"../x","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#, "`name`"),
            (r#"{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"bridge"}]}"#, "`cniVersion`"),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#, "`plugins`"),
            (r#"{"name":"n","cniVersion":"1.0.0","type":"bridge"}"#, "`plugins`"),
            (
                r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},{"type":"../sh"}]}"#,
                "`plugins[1].type`",
            ),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":["bridge"]}"#, "`plugins[0].type`"),
        ] {
            let error = Conflist::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn plugins_are_told_their_own_members_and_the_networks() {
        let text = r#"{"name":"n","cniVersion":"1.0.0","plugins":[
            {"type":"bridge","bridge":"b0","capabilities":{"ips":true}},{"type":"tuning","sysctl":{}}]}"#;
        let conflist = Conflist::parse(text).unwrap();
        let bridge = ("bridge", json!({"name": "n", "cniVersion": "1.0.0", "type": "bridge", "bridge": "b0"}));
        let tuning = ("tuning", json!({"name": "n", "cniVersion": "1.0.0", "type": "tuning", "sysctl": {}}));
        assert_eq!(conflist.steps(Verb::Add), [bridge.clone(), tuning.clone()]);
        assert_eq!(conflist.steps(Verb::Del), [tuning, bridge]);
        assert_eq!(Conflist::try_from(Value::from(conflist.clone())), Ok(conflist), "what is kept is read back");
    }

    #[test]
    fn a_result_says_the_addresses_and_whom_to_ask() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let two = json!([
            {"address": "10.89.0.2/16", "gateway": "10.89.0.1", "interface": 2}, {"address": "fd89::2/64"}
        ]);
        for (result, addresses, servers) in [
            (json!({"ips": two}), vec![ip("10.89.0.2"), ip("fd89::2")], vec![ip("10.89.0.1")]),
            (
                json!({"ips": two, "dns": {"nameservers": ["192.0.2.53"]}}),
                vec![ip("10.89.0.2"), ip("fd89::2")],
                vec![ip("192.0.2.53")],
            ),
            (json!({"ips": [{"address": "no"}]}), vec![], vec![]),
            (json!(null), vec![], vec![]),
        ] {
            assert_eq!(super::addresses(&result), Wired { addresses, nameservers: servers }, "{result}");
        }
        let wired = Wired { addresses: vec![ip("10.89.0.2")], nameservers: vec![ip("10.89.0.1")] };
        assert_eq!(wired.resolv_conf(), "nameserver 10.89.0.1\n");
        assert_eq!(wired.hosts("c1"), "127.0.0.1 localhost\n::1 localhost\n10.89.0.2 c1\n");
    }

    #[test]
    fn the_configurations_that_we_ship_are_ones() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/cni");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            Conflist::parse(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            seen += 1;
        }
        assert_eq!(seen, 2);
    }
}
