//! `agent`: who may have sandboxes on this node, as files in agents.d (`trust::identity::registry` says what is in them), and
//! the agents' side of it for trying things out: a key, a token.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use toml_edit::TomlError;
use trust::audit::Event;
use trust::clock::{Clock, SystemClock};
use trust::id::{AgentId, BackendName, PolicyName};
use trust::identity::mint::{AgentSecret, MintError};
use trust::identity::registry::{Entry, Registry, Status};
use trust::identity::source::{AgentKey, SourceError};
use trust::keys::jwks::{BadJwk, BadJwkSet, Jwk, JwkSet, PublicKey};
use zeroize::Zeroizing;

use super::output;
use crate::agents;
use crate::node::{Node, NodeError, Root};
use crate::record;

/// What can be done with agents.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Let an agent have sandboxes on this node
    Add(Add),
    /// List the agents
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let an agent have no new sandbox, from now on and for good
    Revoke {
        /// Which agent
        #[arg(value_name = "SPIFFE-ID")]
        id: AgentId,
    },
    /// Make a key for an agent: the private half into a file, the public half (a JWK) to stdout
    Keygen {
        /// The file for the private half; it must not be there yet
        file: PathBuf,
    },
    /// Print a token by which the agent proves itself once, for creto.dev/agent-token-file
    Token(Token),
}

/// Who is added.
#[derive(Debug, Args)]
pub struct Add {
    /// The agent's name
    #[arg(value_name = "SPIFFE-ID")]
    id: AgentId,
    /// Its public key: a JWK, a JWK Set or PEM; may be given several times
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// What may make its sandboxes; without: whatever the node has
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    backends: Option<Vec<BackendName>>,
    /// The network policy it has where none is asked for; without: it connects nowhere
    #[arg(long, value_name = "NAME")]
    policy: Option<PolicyName>,
}

/// What the token says.
#[derive(Debug, Args)]
pub struct Token {
    /// The agent's name
    #[arg(value_name = "SPIFFE-ID")]
    id: AgentId,
    /// Its private key, as keygen writes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The node it is for; without: this one
    #[arg(long, value_name = "AUD")]
    audience: Option<String>,
    /// What the agent's entry calls the key; without: its thumbprint
    #[arg(long)]
    kid: Option<String>,
    /// How long it is good for, at most 10m
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    lifetime: Duration,
}

/// Why agents could not be shown or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AgentError {
    #[error("agent {id} is in {} already: edit that file, or remove it first", path.display())]
    Exists { id: AgentId, path: PathBuf },
    #[error("no file in {} has the spiffe_id {id}{}", dir.display(), broken.as_ref().map(|why| format!("; one cannot be read: {why}")).unwrap_or_default())]
    Unknown { id: AgentId, dir: PathBuf, broken: Option<String> },
    #[error("the agents of this node")]
    Registry(#[from] SourceError),
    #[error("{}: this is a private key; give the public half, as keygen prints it", .0.display())]
    Private(PathBuf),
    #[error("{}: neither a JWK nor PEM", path.display())]
    NoKey {
        path: PathBuf,
        #[source]
        why: serde_json::Error,
    },
    #[error("{}", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        why: BadJwk,
    },
    #[error("{}", path.display())]
    Jwk {
        path: PathBuf,
        #[source]
        why: BadJwkSet,
    },
    #[error("{}: there is no Ed25519 key in it", .0.display())]
    NotEd25519(PathBuf),
    #[error("the keys of the agent: {0}")]
    Keys(String),
    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("{} was broken meanwhile", path.display())]
    Toml {
        path: PathBuf,
        #[source]
        why: TomlError,
    },
    #[error("{} is there already: name another file, or remove it first", .0.display())]
    FileExists(PathBuf),
    #[error("the agent's private key {}", path.display())]
    Secret {
        path: PathBuf,
        #[source]
        why: MintError,
    },
    #[error("the token")]
    Mint(#[from] MintError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("writing the answer")]
    Output(#[source] io::Error),
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    move |why| AgentError::File { doing, path: path.to_owned(), why }
}

pub(super) fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), AgentError> {
    match verb {
        Verb::Add(asked) => add(&asked, root, out),
        Verb::List { json } => list(&root.agents(), json, out),
        Verb::Revoke { id } => revoke(&id, root, out),
        Verb::Keygen { file } => keygen(&file, out),
        Verb::Token(asked) => token(&asked, root, out),
    }
}

fn add(asked: &Add, root: &Root, out: &mut dyn Write) -> Result<(), AgentError> {
    let (node, dir) = (Node::read(root)?, &root.agents()); // the node before anything changes: the record needs it
    let mut jwks = Vec::new();
    for path in &asked.keys {
        jwks.extend(public_keys(path)?);
    }
    let keys = AgentKey::of_jwks(jwks.iter().cloned()).map_err(AgentError::Keys)?;
    let exists = |path: PathBuf| AgentError::Exists { id: asked.id.clone(), path };
    if let Some((path, _)) = of_agent(&asked.id, dir)?.into_iter().next() {
        return Err(exists(path));
    }
    fs::create_dir_all(dir).map_err(file("making", dir))?;
    let path = dir.join(agents::file_name(&asked.id));
    let text = agents::text(&asked.id, asked.backends.as_deref(), asked.policy.as_ref(), &jwks);
    let fresh = written(dir, text.as_bytes(), 0o644).map_err(file("writing into", dir))?;
    match fresh.persist_noclobber(&path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(path)),
        Err(error) => return Err(file("writing", &path)(error.error)),
        Ok(_) => sync(dir).map_err(file("syncing", dir))?,
    }
    let keys = keys.iter().map(|key| key.kid.as_str().into()).collect();
    record::changed(root, &node, Some(&asked.id), Event::AgentAdded { keys });
    Ok(writeln!(out, "agent {} may have sandboxes here: {}", asked.id, path.display())?)
}

/// The public keys in a file of any of the forms that people have them in.
fn public_keys(path: &Path) -> Result<Vec<Jwk>, AgentError> {
    let bytes = Zeroizing::new(fs::read(path).map_err(file("reading", path))?); // it may be a private key by mistake
    let named = || path.to_owned();
    if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        if text.contains("PRIVATE KEY") {
            return Err(AgentError::Private(named()));
        }
        let key = PublicKey::from_pem(text).map_err(|why| AgentError::Pem { path: named(), why })?;
        return Ok(vec![Jwk { kid: None, ..key.to_jwk() }]);
    }
    let raw: Value = serde_json::from_slice(&bytes).map_err(|why| AgentError::NoKey { path: named(), why })?;
    let alone = raw.get("keys").is_none();
    let set = if alone { [b"{\"keys\":[", bytes.as_slice(), b"]}"].concat() } else { bytes.to_vec() };
    let keys = match JwkSet::parse(&Zeroizing::new(set)) {
        Err(BadJwkSet::Private(_)) => return Err(AgentError::Private(named())),
        set => set.map_err(|why| AgentError::Jwk { path: named(), why })?.keys,
    };
    if keys.is_empty() { Err(AgentError::NotEd25519(named())) } else { Ok(keys) }
}

/// A synced file beside its place; hidden, so that the registry does not read it.
fn written(dir: &Path, bytes: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let permissions = Permissions::from_mode(mode & 0o777);
    let mut fresh = tempfile::Builder::new().prefix(".new-").permissions(permissions).tempfile_in(dir)?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    Ok(fresh)
}

fn sync(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// The files that speak of an agent.
fn of_agent(id: &AgentId, dir: &Path) -> Result<Vec<(PathBuf, Entry)>, AgentError> {
    let files = Registry::new(dir).list()?.into_iter();
    Ok(files.filter_map(|(path, entry)| Some((path, entry.ok()?))).filter(|(_, entry)| entry.agent.id == *id).collect())
}

fn list(dir: &Path, json: bool, out: &mut dyn Write) -> Result<(), AgentError> {
    let files = Registry::new(dir).list()?;
    if json {
        let all = files.iter().map(|(path, entry)| match entry {
            Ok(Entry { agent, status }) => json!({"spiffeId": agent.id, "status": status, "backends": agent.backends,
                "defaultPolicy": agent.default_policy, "file": path,
                "keys": agent.keys.iter().map(|key| json!({"kid": key.kid, "x": key.key.x()})).collect::<Vec<_>>()}),
            Err(why) => json!({"file": path, "error": why}),
        });
        return Ok(output::json(out, &all.collect::<Vec<_>>())?);
    }
    let rows = files.iter().map(|(path, entry)| match entry {
        Ok(Entry { agent, status }) => vec![
            agent.id.to_string(),
            word(*status).into(),
            agent.keys.iter().map(|key| key.kid.as_str()).collect::<Vec<_>>().join(","),
            output::or_dash(
                agent
                    .backends
                    .as_ref()
                    .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            ),
            output::or_dash(agent.default_policy.as_ref()),
            path.display().to_string(),
        ],
        // The registry's warning on stderr says what is wrong with it.
        Err(_) => vec!["-".into(), "NOT TAKEN".into(), "-".into(), "-".into(), "-".into(), path.display().to_string()],
    });
    Ok(output::table(out, &["SPIFFE ID", "STATUS", "KEYS", "BACKENDS", "POLICY", "FILE"], rows)?)
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Enabled => "enabled",
        Status::Disabled => "disabled",
        Status::Revoked => "revoked",
    }
}

fn revoke(id: &AgentId, root: &Root, out: &mut dyn Write) -> Result<(), AgentError> {
    let (node, dir) = (Node::read(root)?, &root.agents());
    let files = of_agent(id, dir)?;
    if files.is_empty() {
        let broken = Registry::new(dir).list()?.into_iter().find_map(|(_, entry)| entry.err());
        return Err(AgentError::Unknown { id: id.clone(), dir: dir.to_owned(), broken });
    }
    for (path, _) in &files {
        let text = fs::read_to_string(path).map_err(file("reading", path))?;
        let mode = fs::metadata(path).map_err(file("looking at", path))?.permissions().mode();
        let text = agents::revoked(&text).map_err(|why| AgentError::Toml { path: path.clone(), why })?;
        let fresh = written(dir, text.as_bytes(), mode).map_err(file("writing into", dir))?;
        fresh.persist(path).map_err(|error| file("replacing", path)(error.error))?;
    }
    sync(dir).map_err(file("syncing", dir))?;
    if files.iter().any(|(_, entry)| entry.status != Status::Revoked) {
        record::changed(root, &node, Some(id), Event::AgentRevoked {});
    }
    Ok(writeln!(out, "agent {id} gets no new sandbox; those that run go on until they are stopped, with no new token")?)
}

fn keygen(path: &Path, out: &mut dyn Write) -> Result<(), AgentError> {
    let made = |why| AgentError::Secret { path: path.to_owned(), why };
    let secret = AgentSecret::generate().map_err(made)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let pem = secret.to_pem().map_err(made)?;
    let fresh = written(dir, pem.as_bytes(), 0o600).map_err(file("writing into", dir))?;
    match fresh.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(AgentError::FileExists(path.to_owned()));
        }
        Err(error) => return Err(file("writing", path)(error.error)),
        Ok(_) => sync(dir).map_err(file("syncing", dir))?,
    }
    Ok(output::json(out, &secret.public_key().to_jwk())?)
}

fn token(asked: &Token, root: &Root, out: &mut dyn Write) -> Result<(), AgentError> {
    let path = &asked.key;
    let pem = Zeroizing::new(fs::read(path).map_err(file("reading", path))?);
    let secret = AgentSecret::from_pem(std::str::from_utf8(&pem).unwrap_or_default())
        .map_err(|why| AgentError::Secret { path: path.clone(), why })?;
    let audience = match &asked.audience {
        Some(audience) => audience.clone(),
        None => Node::read(root)?.audience,
    };
    let now = SystemClock.timestamp();
    let token = secret.token(&asked.id, &audience, asked.kid.as_deref(), now, asked.lifetime)?;
    Ok(writeln!(out, "{token}")?)
}
