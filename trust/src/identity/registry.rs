//! Agents from a directory on the node, one TOML file each:
//!
//! ```toml
//! spiffe_id = "spiffe://example.org/agents/research"
//! status = "enabled"              # or "disabled", "revoked"
//! backends = ["gvisor"]           # absent: whatever the node has
//! default_policy = "web-only"     # absent: nowhere
//! [[keys]]                        # JWKs; several while keys are rotated
//! kty = "OKP"
//! crv = "Ed25519"
//! x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
//! kid = "2026-11"                 # absent: the thumbprint
//! ```
//! Files are read again when they change; a look-up costs one stat a file. What cannot be read is never replaced by what was
//! there before, so whoever breaks the file of an agent has shut it out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::source::{Agent, AgentKey, AgentSource, SourceError};
use crate::custody::guarded;
use crate::id::{AgentId, BackendName, PolicyName};
use crate::keys::jwks::Jwk;

/// No file is larger, in bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// A file that changed this shortly before it was read may change again without showing it: file times are coarse.
const COARSE: Duration = Duration::from_millis(100);

/// The directory, and what was last read of it.
pub struct Registry {
    dir: PathBuf,
    read: Mutex<HashMap<PathBuf, File>>,
}

/// A file as it was read.
struct File {
    seen: Seen,
    /// Whether `seen` is sure to change when the file does.
    settled: bool,
    content: Result<Entry, String>,
}

/// What tells that a file has changed.
#[derive(PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// A file, and what it says or why it is not taken.
pub type Listed = (PathBuf, Result<Entry, String>);

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who, and what it may have.
    pub agent: Agent,
    /// Whether it may have it now.
    pub status: Status,
}

/// Whether an agent gets sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does.
    #[default]
    Enabled,
    /// Not for a while.
    Disabled,
    /// Never again.
    Revoked,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    spiffe_id: AgentId,
    #[serde(default)]
    status: Status,
    backends: Option<Vec<BackendName>>,
    default_policy: Option<PolicyName>,
    #[serde(default)]
    keys: Vec<TomlKey>,
}

/// A JWK as people write it: what RFC 7517 would have us ignore is more likely a slip of the pen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TomlKey {
    kty: String,
    crv: String,
    x: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
}

impl Registry {
    /// Of this directory (`/etc/creto/agents.d`), which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), read: Mutex::default() }
    }

    /// The agent, by what the files say now.
    pub fn find(&self, id: &AgentId) -> Result<Agent, SourceError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read).map_err(|e| SourceError::Broken(format!("{}: {e}", self.dir.display())))?;
        let mut found: Option<(&PathBuf, &Entry)> = None;
        for (path, file) in read.iter() {
            let Ok(entry) = &file.content else { continue };
            if entry.agent.id != *id {
                continue;
            }
            if let Some((other, _)) = found.replace((path, entry)) {
                let (first, second) = (other.min(path).clone(), other.max(path).clone());
                return Err(SourceError::Twice { id: id.clone(), first, second });
            }
        }
        match found {
            Some((path, entry)) => match entry.status {
                Status::Enabled => Ok(entry.agent.clone()),
                Status::Disabled => Err(SourceError::Disabled(id.clone(), path.display().to_string())),
                Status::Revoked => Err(SourceError::Revoked(id.clone(), path.display().to_string())),
            },
            None => Err(self.missing(id, &read)),
        }
    }

    /// What every file says now, or why it is not taken; by path.
    pub fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read).map_err(|e| SourceError::Broken(format!("{}: {e}", self.dir.display())))?;
        let mut files: Vec<_> = read.iter().map(|(path, file)| (path.clone(), file.content.clone())).collect();
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(files)
    }

    /// A file that cannot be read may be the agent's.
    fn missing(&self, id: &AgentId, read: &HashMap<PathBuf, File>) -> SourceError {
        let mut broken: Vec<&String> = read.values().filter_map(|file| file.content.as_ref().err()).collect();
        broken.sort();
        match broken.first() {
            Some(why) => SourceError::Broken(format!("agent {id} is in no readable file; {why}")),
            None => SourceError::Unknown(id.clone(), format!("no file in {} has this spiffe_id", self.dir.display())),
        }
    }

    /// Reads what is new or has changed, and forgets what is gone.
    fn refresh(&self, read: &mut HashMap<PathBuf, File>) -> io::Result<()> {
        let mut files = HashMap::new();
        let listing = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                read.clear();
                return Ok(());
            }
            listing => listing?,
        };
        guarded(&fs::metadata(&self.dir)?).map_err(io::Error::other)?;
        for entry in listing {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension() != Some(OsStr::new("toml")) {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed under our hands
                metadata => metadata?,
            };
            let seen = Seen::of(&metadata);
            let file = match read.remove(&path) {
                Some(file) if file.settled && file.seen == seen => file,
                _ => {
                    let content = load(&path, &metadata);
                    if let Err(why) = &content {
                        tracing::warn!(%why, "an agent's file is not taken");
                    }
                    File { settled: seen.settled(SystemTime::now()), seen, content }
                }
            };
            files.insert(path, file);
        }
        *read = files;
        Ok(())
    }
}

#[async_trait]
impl AgentSource for Registry {
    async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError> {
        self.find(id)
    }
}

impl Seen {
    /// The status change time is the kernel's alone to set, unlike the modification time.
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), bytes: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }

    fn settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(seconds.try_into().unwrap_or_default(), nanoseconds.try_into().unwrap_or_default());
        now.duration_since(SystemTime::UNIX_EPOCH + changed).is_ok_and(|ago| ago > COARSE)
    }
}

/// An error names the file and the key in it.
fn load(path: &Path, metadata: &Metadata) -> Result<Entry, String> {
    let named = |why: String| format!("{}: {why}", path.display());
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(named(format!("not a file of at most {MAX_BYTES} bytes")));
    }
    guarded(metadata).map_err(named)?;
    let text = fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    parse(&text).map_err(named)
}

fn parse(text: &str) -> Result<Entry, String> {
    let toml: Toml = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    let jwk = |TomlKey { kty, crv, x, kid, alg, usage }| {
        let (crv, x) = (Some(crv), Some(x));
        Jwk { kty, crv, x, kid, alg, usage, ..Jwk::default() }
    };
    let keys = AgentKey::of_jwks(toml.keys.into_iter().map(jwk))?;
    let Toml { spiffe_id: id, status, backends, default_policy, .. } = toml;
    Ok(Entry { agent: Agent { id, keys, backends, default_policy }, status })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn id(name: &str) -> AgentId {
        format!("spiffe://example.org/agents/{name}").parse().unwrap()
    }

    fn file(name: &str, more: &str) -> String {
        format!("spiffe_id = \"{}\"\n{more}\n[[keys]]\nkty = \"OKP\"\ncrv = \"Ed25519\"\nx = \"{X}\"\n", id(name))
    }

    #[test]
    fn an_agent_is_what_its_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let text = file("a", "backends = [\"gvisor\"]\ndefault_policy = \"web-only\"");
        fs::write(dir.path().join("a.toml"), text + "kid = \"2026\"\n").unwrap();
        let agent = Registry::new(dir.path()).find(&id("a")).unwrap();
        assert_eq!(agent.keys[0].kid, "2026");
        assert_eq!(agent.backends, Some(vec!["gvisor".parse().unwrap()]));
        assert_eq!(agent.default_policy, Some("web-only".parse().unwrap()));
        assert!(matches!(Registry::new(dir.path()).find(&id("b")), Err(SourceError::Unknown(..))));
        assert!(matches!(Registry::new("/nonexistent").find(&id("a")), Err(SourceError::Unknown(..))));
    }

    #[test]
    fn a_mistake_is_named_by_file_and_key() {
        for (text, why) in [
            (file("a", "bakcends = []"), "bakcends"),
            (file("a", "status = \"on\""), "status"),
            (file("a", "backends = [\"../x\"]"), "backends"),
            (file("a", "default_policy = \"a/b\""), "default_policy"),
            (file("a", "").replace("spiffe_id", "id"), "id"),
            (file("a", "").replace("example.org", "Example.org"), "lower case"),
            (file("a", "").replace("OKP", "RSA"), "keys[0]: kty"),
            (file("a", "") + "d = \"AAAA\"\n", "unknown field `d`"),
            (file("a", "") + file("a", "").split_once('\n').unwrap().1, "keys[1]: kid"),
            ("\u{0}".into(), "expected"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("agent.toml");
            fs::write(&path, &text).unwrap();
            let error = Registry::new(dir.path()).find(&id("a")).expect_err(why).to_string();
            assert!(error.contains(why) && error.contains(path.to_str().unwrap()), "{text}: {error}");
        }
    }

    #[test]
    fn a_change_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, path) = (Registry::new(dir.path()), dir.path().join("a.toml"));
        let find = || registry.find(&id("a"));
        type Outcome = fn(&Result<Agent, SourceError>) -> bool;
        let steps: [(&str, &dyn Fn(), Outcome); 8] = [
            ("nothing", &|| (), |r| matches!(r, Err(SourceError::Unknown(..)))),
            ("added", &|| fs::write(&path, file("a", "")).unwrap(), Result::is_ok),
            ("disabled", &|| fs::write(&path, file("a", "status = \"disabled\"")).unwrap(), |r| {
                matches!(r, Err(SourceError::Disabled(..)))
            }),
            ("revoked", &|| fs::write(&path, file("a", "status = \"revoked\" ")).unwrap(), |r| {
                matches!(r, Err(SourceError::Revoked(..)))
            }),
            ("back", &|| fs::write(&path, file("a", "status = \"enabled\"")).unwrap(), Result::is_ok),
            ("broken", &|| fs::write(&path, "status =").unwrap(), |r| matches!(r, Err(SourceError::Broken(_)))),
            ("back", &|| fs::write(&path, file("a", "")).unwrap(), Result::is_ok),
            ("removed", &|| fs::remove_file(&path).unwrap(), |r| matches!(r, Err(SourceError::Unknown(..)))),
        ];
        for (step, act, expected) in steps {
            act();
            let found = find();
            assert!(expected(&found), "{step}: {found:?}");
        }
    }

    #[test]
    fn a_file_is_read_again_only_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), file("a", "")).unwrap();
        let registry = Registry::new(dir.path());
        registry.find(&id("a")).unwrap();
        // As if it had been read long after its last change: then the same times mean the same file.
        registry.read.lock().unwrap().values_mut().for_each(|file| {
            file.settled = true;
            file.content.as_mut().unwrap().agent.default_policy = Some("from-memory".parse().unwrap());
        });
        assert_eq!(registry.find(&id("a")).unwrap().default_policy, Some("from-memory".parse().unwrap()));
        let now = SystemTime::now();
        let since = |ago: Duration| now.duration_since(SystemTime::UNIX_EPOCH).unwrap() - ago;
        for (ago, settled) in [(Duration::from_secs(1), true), (Duration::from_millis(1), false)] {
            let at = since(ago);
            let seen = Seen { inode: 1, bytes: 1, changed: (at.as_secs() as i64, i64::from(at.subsec_nanos())) };
            assert_eq!(seen.settled(now), settled, "{ago:?}");
        }
    }

    #[test]
    fn two_files_with_one_agent_are_an_error_of_that_agent_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (name, agent) in [("1.toml", "a"), ("2.toml", "a"), ("3.toml", "b"), (".4.toml", "b"), ("5.toml~", "b")] {
            fs::write(dir.path().join(name), file(agent, "")).unwrap();
        }
        let registry = Registry::new(dir.path());
        let error = registry.find(&id("a")).unwrap_err().to_string();
        assert!(error.contains("1.toml") && error.contains("2.toml"), "{error}");
        registry.find(&id("b")).unwrap();
        let listed = registry.list().unwrap();
        let names = listed.iter().map(|(path, entry)| (path.file_name().unwrap(), entry.as_ref().unwrap().status));
        assert!(names.eq(["1.toml", "2.toml", "3.toml"].map(|name| (OsStr::new(name), Status::Enabled))));
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, file("a", "")).unwrap();
        let registry = Registry::new(dir.path());
        for (loose, mode, strict) in [(path.as_path(), 0o664, 0o644), (dir.path(), 0o777, 0o755)] {
            fs::set_permissions(loose, Permissions::from_mode(mode)).unwrap();
            let error = registry.find(&id("a")).unwrap_err().to_string();
            assert!(error.contains("go-w"), "{error}");
            fs::set_permissions(loose, Permissions::from_mode(strict)).unwrap();
        }
        registry.find(&id("a")).unwrap();
    }
}
