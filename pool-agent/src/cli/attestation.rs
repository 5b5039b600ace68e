//! `attestation`: the signed statements about sandboxes. `get` and `list` show what is stored and believe nothing of it;
//! `verify` alone says what is proven.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use trust::attestation::predicate::Agent;
use trust::attestation::statement::Subject;
use trust::attestation::verify::{Expectations, Invalid, Previous, Verified, verify, verify_chain};
use trust::clock::{Clock, SystemClock};
use trust::digest::Digest;
use trust::id::{Namespace, SandboxId};
use trust::keys::KeyVersion;

use super::output;
use crate::attested::{Unread, decoded, summary};
use crate::keys::{PublishedError, published};
use crate::node::Root;
use crate::statements::{self, Kept, StatementsError};

/// What can be done with statements.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the sandboxes about which there are statements; nothing is verified
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a sandbox's current statement as it is stored: a DSSE envelope; nothing is verified
    Get {
        /// The sandbox's id
        id: SandboxId,
        /// The containerd namespace; without: whichever has the sandbox
        #[arg(long, value_name = "NS")]
        namespace: Option<Namespace>,
        /// Print what it says instead, with the envelope under .envelope
        #[arg(long)]
        json: bool,
    },
    /// Verify a statement, and say what is proven by it and what is not
    Verify(Verify),
}

/// What is to be verified, and against what.
#[derive(Debug, Args)]
pub struct Verify {
    /// A file, `-` for stdin, or else the id of a sandbox on this node
    #[arg(value_name = "FILE|ID|-")]
    what: String,
    /// The containerd namespace it must be about
    #[arg(long, value_name = "NS")]
    namespace: Option<Namespace>,
    /// The sandbox it must be about; given an id to verify, that one
    #[arg(long, value_name = "ID")]
    sandbox_id: Option<SandboxId>,
    /// The one key that may have signed it, such as v1; named, an earlier key counts too
    #[arg(long, value_name = "VERSION")]
    key_version: Option<KeyVersion>,
    /// The keys that are trusted, a jwks.json; without: this node's own
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// The image manifest it must be about
    #[arg(long, value_name = "DIGEST")]
    image_digest: Option<Digest>,
    /// The config.json it must be about
    #[arg(long, value_name = "DIGEST")]
    config_digest: Option<Digest>,
    /// The network policy it must be about
    #[arg(long, value_name = "DIGEST")]
    policy_digest: Option<Digest>,
    /// Verify all of the sandbox's statements, from the first on, as one unbroken chain
    #[arg(long)]
    chain: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a statement could not be shown, or is not valid.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AttestationError {
    #[error(transparent)]
    Statements(#[from] StatementsError),
    #[error("{0} is neither a file nor the id of a sandbox")]
    Neither(String),
    #[error("reading stdin")]
    Stdin(#[source] io::Error),
    #[error("a chain is a sandbox's: give --chain with its id")]
    ChainOfFile,
    #[error("--sandbox-id is {wanted}, but {given} is to be verified")]
    OtherId { given: SandboxId, wanted: SandboxId },
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error(transparent)]
    Keys(#[from] PublishedError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("writing the answer")]
    Output(#[source] io::Error),
}

impl From<io::Error> for AttestationError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

pub(super) fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), AttestationError> {
    match verb {
        Verb::List { json } => list(root, json, out),
        Verb::Get { id, namespace, json } => {
            let envelope = statements::find(&root.attestations(), &id, namespace.as_ref())?.current()?;
            if json {
                return Ok(output::json(out, &decoded(&envelope)?)?);
            }
            out.write_all(&envelope)?;
            Ok(writeln!(out)?)
        }
        Verb::Verify(asked) => verify_one(asked, root, out),
    }
}

fn list(root: &Root, json: bool, out: &mut dyn Write) -> Result<(), AttestationError> {
    let all = statements::list(&root.attestations())?;
    let all = all.iter().map(summary);
    if json {
        return Ok(output::json(out, &all.collect::<Vec<_>>())?);
    }
    let rows = all.map(|said| {
        let (agent, error) = (said.works_for().map(ToString::to_string), said.error);
        vec![
            said.namespace.to_string(),
            said.id.to_string(),
            output::or_dash(said.issued_at),
            output::or_dash(said.valid_until),
            output::or_dash(error.or(agent)),
        ]
    });
    Ok(output::table(out, &["NAMESPACE", "SANDBOX", "ISSUED", "VALID UNTIL", "AGENT (NOT VERIFIED)"], rows)?)
}

fn agent(agent: &Agent) -> String {
    match agent {
        Agent::Token { id } | Agent::Operator { id } => id.to_string(),
        Agent::None {} => "-".into(),
    }
}

/// What is verified, as it was found.
enum Found {
    Alone(Vec<u8>),
    OfSandbox(Kept),
}

fn find(what: &str, namespace: Option<&Namespace>, root: &Root) -> Result<Found, AttestationError> {
    if what == "-" {
        return statements::bounded(io::stdin().lock()).map(Found::Alone).map_err(AttestationError::Stdin);
    }
    let path = Path::new(what);
    if path.exists() && !path.is_dir() {
        return Ok(Found::Alone(statements::read(path)?));
    }
    let id = what.parse().map_err(|_| AttestationError::Neither(what.to_owned()))?;
    Ok(Found::OfSandbox(statements::find(&root.attestations(), &id, namespace)?))
}

fn verify_one(asked: Verify, root: &Root, out: &mut dyn Write) -> Result<(), AttestationError> {
    let (_, trusted) = published(&asked.trust_root.unwrap_or_else(|| root.jwks()))?;
    let subjects = [
        (Subject::Image, asked.image_digest),
        (Subject::Config, asked.config_digest),
        (Subject::Policy, asked.policy_digest),
    ];
    let mut expected = Expectations {
        sandbox: asked.sandbox_id,
        namespace: asked.namespace,
        subjects: subjects.into_iter().filter_map(|(subject, digest)| Some((subject, digest?))).collect(),
        previous: Previous::Any,
        key_version: asked.key_version,
    };
    let now = SystemClock.timestamp();
    let verified = match find(&asked.what, expected.namespace.as_ref(), root)? {
        Found::Alone(_) if asked.chain => return Err(AttestationError::ChainOfFile),
        Found::Alone(bytes) => verify(&bytes, &trusted, now, &expected),
        Found::OfSandbox(kept) => {
            if let Some(wanted) = expected.sandbox.take_if(|wanted| *wanted != kept.id) {
                return Err(AttestationError::OtherId { given: kept.id, wanted });
            }
            (expected.sandbox, expected.namespace) = (Some(kept.id.clone()), Some(kept.namespace.clone()));
            let current = kept.current()?;
            if asked.chain {
                let files = kept.files()?;
                let all = files.iter().map(|file| statements::read(file)).collect::<Result<Vec<_>, _>>()?;
                match verify_chain(&all, &trusted, now, &expected) {
                    Ok(Some(verified)) => Ok(verified),
                    Ok(None) => verify(&current, &trusted, now, &expected), // never: there is a current one
                    Err(invalid) => Err(invalid),
                }
            } else {
                verify(&current, &trusted, now, &expected)
            }
        }
    };
    match verified {
        Ok(verified) => Ok(print(&verified, asked.json, out)?),
        Err(invalid) => {
            if asked.json {
                output::json(out, &json!({"valid": false, "reason": invalid.reason.to_string()}))?;
            }
            Err(invalid.into())
        }
    }
}

fn print(verified: &Verified, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let (proven, not_proven) = (lines(&verified.proven), lines(&verified.not_proven));
    let said = verified.statement.predicate();
    if json {
        return output::json(
            out,
            &json!({"valid": true, "statementDigest": verified.digest, "proven": proven, "notProven": not_proven,
                "predicate": said}),
        );
    }
    writeln!(out, "Valid. Proven:")?;
    for line in proven {
        writeln!(out, "  + {}", output::plain(&line))?;
    }
    writeln!(out, "The signer says:")?;
    let sandbox = &said.sandbox;
    writeln!(out, "  · sandbox {} in namespace {}, for agent {}", sandbox.id, sandbox.namespace, agent(&said.agent))?;
    let (backend, platform) = (&said.backend, output::plain(&said.backend.platform));
    writeln!(out, "  · made by {} ({platform}), whose program is {}", backend.name, backend.binary)?;
    writeln!(out, "  · on node {}, boot {}", said.node.id, said.node.boot_id)?;
    writeln!(out, "Not proven:")?;
    for line in not_proven {
        writeln!(out, "  - {}", output::plain(&line))?;
    }
    Ok(())
}

fn lines(of: &[impl fmt::Display]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}
