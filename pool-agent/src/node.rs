//! Which node this is, and where its things lie: the same roots and the same runtime.toml as the shim's.
//! Not here: what else is in runtime.toml (the shim reads and checks it).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use egress::paths::Paths;
use serde::Deserialize;
use trust::id::{BadId, NodeId};
use trust::identity::service::{HttpSettings, Source};

/// What uname(2) calls the node name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Where a node's things lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(Paths);

impl Root {
    /// Below `moved` (`lib`, `etc` and `run` in it), else where they are installed.
    pub fn new(moved: Option<&Path>) -> Self {
        Self(Paths::new(moved))
    }

    /// What outlives a reboot, the keys among it.
    pub fn lib(&self) -> &Path {
        self.0.lib()
    }

    /// The public keys, for everybody to read.
    pub fn jwks(&self) -> PathBuf {
        self.0.lib().join("jwks.json")
    }

    /// The statements about sandboxes, by namespace and id.
    pub fn attestations(&self) -> PathBuf {
        self.0.lib().join("attestations")
    }

    /// Audit records that wait for the ledger.
    pub fn spool(&self) -> PathBuf {
        self.0.spool()
    }

    /// The audit ledger.
    pub fn ledger(&self) -> PathBuf {
        self.0.lib().join("audit.db")
    }

    /// The node's agents, a file each.
    pub fn agents(&self) -> PathBuf {
        self.0.etc().join("agents.d")
    }

    /// The network policies, a file each.
    pub fn policies(&self) -> PathBuf {
        self.0.policies()
    }

    /// Where creto-egress answers.
    pub fn egress_socket(&self) -> PathBuf {
        self.0.socket()
    }

    /// Where creto-pool-agent answers.
    pub fn agent_socket(&self) -> PathBuf {
        self.0.run().join("pool-agent.sock")
    }

    /// Which process is the node's agent: it has locked this.
    pub fn agent_lock(&self) -> PathBuf {
        self.0.run().join("pool-agent.lock")
    }

    /// What a reboot empties.
    pub fn run(&self) -> &Path {
        self.0.run()
    }

    /// What the node agent keeps, where no etcd does.
    pub fn database(&self) -> PathBuf {
        self.0.lib().join("creto.db")
    }

    /// The node agent's settings.
    pub fn agent_config(&self) -> PathBuf {
        self.0.etc().join("pool-agent.toml")
    }

    /// The pools, a file each.
    pub fn pools(&self) -> PathBuf {
        self.0.etc().join("pools.d")
    }

    /// The operator's settings.
    pub fn settings(&self) -> PathBuf {
        self.0.etc().join("runtime.toml")
    }
}

/// What this node calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Whom agents' tokens must be for.
    pub audience: String,
    /// Who is asked about agents; the node's own registry where there is none.
    pub service: Option<HttpSettings>,
}

/// Why the node's name is not known.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// runtime.toml is there, but cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        why: io::Error,
    },
    /// runtime.toml does not say what it should.
    #[error("{}: {why}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// The key, and what is wrong with it.
        why: String,
    },
    /// The kernel does not say.
    #[error("asking the kernel its name")]
    Host(#[source] io::Error),
    /// A host may have a name that is none for a node.
    #[error("the host's name cannot be the node's: set identity.node in runtime.toml")]
    Name(#[source] BadId),
}

#[derive(Default, Deserialize)]
struct Settings {
    #[serde(default)]
    identity: Identity,
}

#[derive(Default, Deserialize)]
struct Identity {
    node: Option<NodeId>,
    audience: Option<String>,
    #[serde(default)]
    source: Source,
    http: Option<HttpSettings>,
}

impl Node {
    /// As runtime.toml says, else by the host's name, as the shim does it.
    pub fn read(root: &Root) -> Result<Self, NodeError> {
        let path = root.settings();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(why) => return Err(NodeError::Read { path, why }),
            Ok(text) => text,
        };
        let invalid = |why: String| NodeError::Settings { path: path.clone(), why };
        let settings = toml::from_str(&text);
        let Settings { identity: Identity { node, audience, source, http } } =
            settings.map_err(|e| invalid(e.to_string().trim_end().to_owned()))?;
        let service = HttpSettings::of(source, http.as_ref()).map_err(invalid)?.cloned();
        let id = match node {
            Some(id) => id,
            None => {
                let host = fs::read_to_string(HOSTNAME).map_err(NodeError::Host)?;
                host.trim_end().parse().map_err(NodeError::Name)?
            }
        };
        Ok(Self { audience: audience.unwrap_or_else(|| format!("creto:{id}")), id, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_who_runtime_toml_says() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()));
        let host = fs::read_to_string(HOSTNAME).unwrap().trim_end().to_owned();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (text, id, audience) in [
            (None, &*host, format!("creto:{host}")),
            (Some("backend = \"gvisor\""), &host, format!("creto:{host}")),
            (Some("[identity]\nnode = \"node-7\"\nanonymous = \"deny\""), "node-7", "creto:node-7".into()),
            (Some("[identity]\nnode = \"node-7\"\naudience = \"here\""), "node-7", "here".into()),
        ] {
            if let Some(text) = text {
                fs::write(root.settings(), text).unwrap();
            }
            assert_eq!(
                Node::read(&root).unwrap(),
                Node { id: id.parse().unwrap(), audience, service: None },
                "{text:?}"
            );
        }
        fs::write(
            root.settings(),
            "[identity]\nsource = \"http\"\n[identity.http]\nurl = \"https://nhi\"\ntimeout = \"3s\"",
        )
        .unwrap();
        let service = Node::read(&root).unwrap().service.unwrap();
        assert_eq!((&*service.url, service.timeout.as_secs()), ("https://nhi", 3));
        for (text, why) in [
            ("[identity]\nnode = \"a/b\"", "node id"),
            ("[identity]\nsource = \"http\"", "[identity.http]"),
            ("identity = 1", "identity"),
            ("[", "runtime.toml"),
        ] {
            fs::write(root.settings(), text).unwrap();
            let error = Node::read(&root).expect_err(why).to_string();
            assert!(error.contains(why) && error.contains("runtime.toml"), "{error}");
        }
    }
}
