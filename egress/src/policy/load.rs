//! The node's policies: a directory (`/etc/creto/policies.d`) with one file `NAME.toml` each, and what they include. This and
//! `replace` are the only modules of the policy library that touch files.
//!
//! A policy that includes others has their rules too: all together, without an order, so a Deny of one holds against an Allow
//! of another for the same destination. What is included by two ways counts once. Included rules carry their policy's name
//! before their id (`base/1`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use trust::custody::guarded;
use trust::id::{BadId, PolicyName};

use super::check::CompiledPolicy;
use super::model::{Policy, Rule};
use super::parse::{BadField, BadPolicy, Document, MAX_ID, MAX_RULES};
use crate::protocol::PolicyRef;

/// The policy of agents that have none of their own. It needs no file: without one nothing passes.
pub const DEFAULT_POLICY: &str = "default";
/// No file is larger, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// Includes are followed so far: a policy, what it includes, what that includes, ….
pub const MAX_DEPTH: usize = 8;
/// One policy is made of no more files.
pub const MAX_FILES: usize = 64;

/// The directory.
#[derive(Clone, Debug)]
pub struct Policies {
    dir: PathBuf,
}

/// Why there is no such policy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// What was asked for is no name.
    #[error(transparent)]
    Name(#[from] BadId),
    /// There is no such file.
    #[error("no policy {name}{chain}: write {path}", chain = via(.chain))]
    Unknown {
        /// Which.
        name: PolicyName,
        /// Where it would stand.
        path: PathBuf,
        /// Who included it, the outermost first.
        chain: Vec<PolicyName>,
    },
    /// A file that cannot be read or must not be believed.
    #[error("{path}{chain}: {why}", chain = via(.chain))]
    File {
        /// Which.
        path: PathBuf,
        /// Who included it, the outermost first.
        chain: Vec<PolicyName>,
        /// What is wrong with it.
        why: String,
    },
    /// A file that says no policy.
    #[error("{path}{chain}: {why}", chain = via(.chain))]
    Policy {
        /// Which.
        path: PathBuf,
        /// Who included it, the outermost first.
        chain: Vec<PolicyName>,
        /// What is wrong with it.
        why: BadPolicy,
    },
    /// A policy given inline that is none.
    #[error("the policy given inline: {0}")]
    Inline(BadPolicy),
    /// Policies that include each other.
    #[error("{chain} includes itself: take one of these includes out", chain = arrows(.0))]
    Cycle(Vec<PolicyName>),
    /// Includes without end.
    #[error("{chain}: includes more than {MAX_DEPTH} deep: name what is needed directly", chain = arrows(.0))]
    TooDeep(Vec<PolicyName>),
    /// Too much included.
    #[error("more than {MAX_FILES} policies in one: join some of them")]
    TooManyFiles,
    /// All files are fine, and together they are not.
    #[error("with all that it includes: {0}")]
    Merged(BadPolicy),
}

fn via(chain: &[PolicyName]) -> String {
    if chain.is_empty() { String::new() } else { format!(" (included by {})", arrows(chain)) }
}

fn arrows(chain: &[PolicyName]) -> String {
    chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(" → ")
}

/// What has been gathered so far.
#[derive(Default)]
struct Gathered {
    rules: Vec<Rule>,
    read: BTreeSet<PolicyName>,
    chain: Vec<PolicyName>,
}

impl Policies {
    /// Of this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a policy, whether or not it is there.
    pub fn path(&self, name: &PolicyName) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    /// The names of all that are there, in order. What is not named like a policy is none.
    pub fn names(&self) -> io::Result<Vec<PolicyName>> {
        let listing = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing?,
        };
        let mut names = BTreeSet::new();
        for entry in listing {
            let path = entry?.path();
            let stem =
                path.file_stem().and_then(OsStr::to_str).filter(|_| path.extension() == Some(OsStr::new("toml")));
            names.extend(stem.and_then(|stem| stem.parse::<PolicyName>().ok()));
        }
        Ok(names.into_iter().collect())
    }

    /// A policy, ready to decide: by its name, or given inline; with all that it includes, as the files say now.
    pub fn resolve(&self, of: &PolicyRef) -> Result<CompiledPolicy, LoadError> {
        let policy = match of {
            PolicyRef::Named(name) => self.named(&name.parse()?)?,
            PolicyRef::Inline(json) => self.merged(Document::from_json_value(json).map_err(LoadError::Inline)?)?,
        };
        Ok(CompiledPolicy::new(policy))
    }

    /// A policy by name, with all that it includes.
    pub fn named(&self, name: &PolicyName) -> Result<Policy, LoadError> {
        self.merged_as(name, self.document(name)?)
    }

    /// The same, if its file said this.
    pub(super) fn merged_as(&self, name: &PolicyName, document: Document) -> Result<Policy, LoadError> {
        self.gather(Gathered { chain: vec![name.clone()], ..Gathered::default() }, document)
    }

    /// A policy that stands in no file, with all that it includes.
    pub fn merged(&self, document: Document) -> Result<Policy, LoadError> {
        self.gather(Gathered::default(), document)
    }

    /// What a policy's file says, without what it includes.
    pub fn document(&self, name: &PolicyName) -> Result<Document, LoadError> {
        self.read(name, &[])
    }

    fn gather(&self, mut gathered: Gathered, document: Document) -> Result<Policy, LoadError> {
        gathered.read.extend(gathered.chain.iter().cloned());
        gathered.rules = document.policy.rules;
        self.include(&mut gathered, &document.include)?;
        let mut ids = BTreeSet::new();
        let bad = |rule: &Rule, why| BadPolicy::Rule { rule: rule.id.clone(), field: "id", why: Box::new(why) };
        for rule in &gathered.rules {
            if rule.id.len() > MAX_ID {
                return Err(LoadError::Merged(bad(rule, BadField::Id(rule.id.clone()))));
            }
            if !ids.insert(&rule.id) {
                return Err(LoadError::Merged(bad(rule, BadField::Twice)));
            }
        }
        Ok(Policy { rules: gathered.rules })
    }

    fn include(&self, gathered: &mut Gathered, names: &[PolicyName]) -> Result<(), LoadError> {
        for name in names {
            let chain = || gathered.chain.iter().chain([name]).cloned().collect();
            if gathered.chain.contains(name) {
                return Err(LoadError::Cycle(chain()));
            }
            if gathered.chain.len() >= MAX_DEPTH {
                return Err(LoadError::TooDeep(chain()));
            }
            if gathered.read.contains(name) {
                continue;
            }
            if gathered.read.len() >= MAX_FILES {
                return Err(LoadError::TooManyFiles);
            }
            let document = self.read(name, &gathered.chain)?;
            gathered.read.insert(name.clone());
            let qualified = |rule: Rule| Rule { id: format!("{name}/{}", rule.id), ..rule };
            gathered.rules.extend(document.policy.rules.into_iter().map(qualified));
            if gathered.rules.len() > MAX_RULES {
                return Err(LoadError::Merged(BadPolicy::TooMany(gathered.rules.len())));
            }
            gathered.chain.push(name.clone());
            self.include(gathered, &document.include)?;
            gathered.chain.pop();
        }
        Ok(())
    }

    fn read(&self, name: &PolicyName, chain: &[PolicyName]) -> Result<Document, LoadError> {
        let path = self.path(name);
        let chain = chain.to_vec();
        let text = match self.text(name) {
            Ok(Some(text)) => text,
            Ok(None) if name.to_string() == DEFAULT_POLICY => return Ok(Document::default()),
            Ok(None) => return Err(LoadError::Unknown { name: name.clone(), path, chain }),
            Err(why) => return Err(LoadError::File { path, chain, why }),
        };
        Document::from_toml(&text).map_err(|why| LoadError::Policy { path, chain, why })
    }

    /// The text of a policy's file; none if there is no such file. Judged and read by one handle, so that it is one file.
    pub(super) fn text(&self, name: &PolicyName) -> Result<Option<String>, String> {
        let path = self.path(name);
        // Opening a FIFO would wait for a writer.
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(metadata) if !metadata.is_file() => return Err("not a file".into()),
            Ok(_) => {}
        }
        let dir = fs::metadata(&self.dir).map_err(|e| e.to_string())?;
        guarded(&dir).map_err(|why| format!("its directory {why}"))?;
        let file = File::open(&path).map_err(|e| e.to_string())?;
        guarded(&file.metadata().map_err(|e| e.to_string())?)?;
        let mut text = String::new();
        let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
        if bytes as u64 > MAX_BYTES { Err(format!("more than {MAX_BYTES} bytes")) } else { Ok(Some(text)) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn name(text: &str) -> PolicyName {
        text.parse().unwrap()
    }

    fn policies(files: &[(&str, String)]) -> (tempfile::TempDir, Policies) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let policies = Policies::new(dir.path());
        (dir, policies)
    }

    fn file(include: &[&str], hosts: &[&str]) -> String {
        let rules = hosts.iter().map(|host| format!("[[rules]]\ndestination = \"{host}\"\naction = \"Allow\"\n"));
        format!("include = {include:?}\n{}", rules.collect::<String>())
    }

    #[test]
    fn a_policy_has_the_rules_of_what_it_includes_once_and_by_their_names() {
        let (_dir, policies) = policies(&[
            ("top.toml", file(&["left", "right"], &["top.example"])),
            ("left.toml", file(&["base"], &["left.example"])),
            ("right.toml", file(&["base"], &["right.example"])),
            ("base.toml", file(&[], &["one.example", "two.example"])),
        ]);
        let ids = |policy: &Policy| policy.rules.iter().map(|rule| rule.id.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(ids(&policies.named(&name("top")).unwrap()), "1 left/1 base/1 base/2 right/1");
        let inline =
            PolicyRef::Inline(json!({"include": ["left"], "rules": [{"destination": "192.0.2.1", "action": "Deny"}]}));
        assert_eq!(ids(policies.resolve(&inline).unwrap().policy()), "1 left/1 base/1 base/2");
        let named = policies.resolve(&PolicyRef::Named("base".into())).unwrap();
        assert_eq!(ids(named.policy()), "1 2");
        assert_eq!(policies.names().unwrap(), ["base", "left", "right", "top"].map(name));
    }

    #[test]
    fn an_error_names_the_file_and_who_included_it() {
        let deep: Vec<_> = (0..9).map(|n| (format!("d{n}.toml"), file(&[&format!("d{}", n + 1)], &[]))).collect();
        let mut files: Vec<(&str, String)> = deep.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        files.extend([
            ("self.toml", file(&["self"], &[])),
            ("a.toml", file(&["b"], &[])),
            ("b.toml", file(&["a"], &[])),
            ("lost.toml", file(&["bad"], &[])),
            ("bad.toml", file(&["gone"], &["*"])),
            ("more.toml", file(&["gone"], &[])),
            ("typo.toml", "[[rule]]".into()),
            (
                "clash.toml",
                file(&["self-made"], &["x.example"]).replace("[[rules]]", "[[rules]]\nid = \"self-made/1\""),
            ),
            ("self-made.toml", file(&[], &["x.example"])),
            ("big.toml", " ".repeat(1 + MAX_BYTES as usize)),
        ]);
        let (dir, policies) = policies(&files);
        fs::create_dir(dir.path().join("dir.toml")).unwrap();
        for (of, whys) in [
            ("self", vec!["self → self", "itself"]),
            ("a", vec!["a → b → a", "itself"]),
            ("d0", vec!["d0 → d1 → d2", "d8", "deep"]),
            ("lost", vec!["bad.toml", "included by lost", "rule 1: destination", "whole Internet"]),
            ("more", vec!["no policy gone", "included by more", "gone.toml"]),
            ("nobody", vec!["no policy nobody", "nobody.toml"]),
            ("typo", vec!["typo.toml", "rule"]),
            ("clash", vec!["self-made/1", "another rule has it"]),
            ("big", vec!["big.toml", "1048576"]),
            ("dir", vec!["dir.toml", "not a file"]),
            ("../a", vec!["policy name"]),
            ("", vec!["policy name"]),
        ] {
            let error = policies.resolve(&PolicyRef::Named(of.into())).expect_err(of).to_string();
            assert!(whys.iter().all(|why| error.contains(why)), "{of}: {error}");
        }
        let error =
            policies.resolve(&PolicyRef::Inline(json!({"rules": [{"action": "Allow"}]}))).unwrap_err().to_string();
        assert!(error.contains("rule 1: destination: missing"), "{error}");
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        let (dir, policies) = policies(&[("a.toml", file(&[], &["x.example"]))]);
        let path = dir.path().join("a.toml");
        for (loose, mode, strict) in [(path.as_path(), 0o664, 0o644), (dir.path(), 0o777, 0o755)] {
            fs::set_permissions(loose, Permissions::from_mode(mode)).unwrap();
            let error = policies.named(&name("a")).unwrap_err().to_string();
            assert!(error.contains("a.toml") && error.contains("go-w"), "{error}");
            fs::set_permissions(loose, Permissions::from_mode(strict)).unwrap();
        }
        policies.named(&name("a")).unwrap();
    }
}
