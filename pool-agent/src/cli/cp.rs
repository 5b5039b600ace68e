//! `cp`: files and directories into a sandbox and out of one, as tar; `-` is a tar at stdin or stdout.
//!
//! What comes out of a sandbox was written by whoever is in it: it is unpacked into a fresh directory, from which no name and no
//! link leads out (the crate `tar` sees to that), and then moved to its place as a whole.

use std::fs;
use std::io::{self, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use trust::id::SandboxId;

use super::agent_api::{Agent, AgentApiError, block_on, with_query};
use super::chunks;
use crate::node::Root;
use crate::spec::{AbsolutePath, BadSpec};

/// What the body is.
const TAR: &str = "application/x-tar";

/// From where to where.
#[derive(Debug, Args)]
pub struct Cp {
    /// What is copied: FILE, ID:PATH, or - for a tar at stdin
    #[arg(value_name = "FROM")]
    from: Place,
    /// Where to: FILE, ID:PATH (with a / at its end: into that directory), or - for a tar at stdout
    #[arg(value_name = "TO")]
    to: Place,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a sandbox, from its root; into the directory of this name, where it ends with a slash.
    There {
        /// The sandbox.
        id: SandboxId,
        /// The path.
        path: AbsolutePath,
    },
    /// On this machine.
    Here(PathBuf),
    /// Stdin or stdout.
    Stream,
}

/// Why nothing was copied, or not all.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CpError {
    #[error("one of the two is in a sandbox, as ID:PATH, and the other is not")]
    Ends,
    #[error("{path} names nothing to copy: give a file or a directory below it")]
    Root { path: String },
    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("there is a directory {} already: remove it first, or copy into another", .0.display())]
    Exists(PathBuf),
    #[error("creto-pool-agent sent no {0}")]
    Missing(String),
    #[error(transparent)]
    Agent(#[from] AgentApiError),
}

impl FromStr for Place {
    type Err = String;

    /// A file whose name has a colon is given as `./a:b`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let Some((id, path)) = text.split_once(':').filter(|(id, _)| !id.contains('/')) else {
            return Ok(Self::Here(text.into()));
        };
        let id = id.parse().map_err(|e| format!("{e}; or write ./{text} if a file is meant"))?;
        let path = path.parse().map_err(|e: BadSpec| e.to_string())?;
        Ok(Self::There { id, path })
    }
}

pub(super) fn run(asked: Cp, root: &Root, out: &mut dyn Write) -> Result<(), CpError> {
    let api = Agent::of(root);
    match (asked.from, asked.to) {
        (Place::There { id, path }, Place::Stream) => Ok(block_on(api.copy(&files(&id, path.as_str()), out))?),
        (Place::There { id, path }, Place::Here(to)) => fetch(&api, &id, path.as_str(), &to),
        (Place::Stream, Place::There { id, path }) => {
            Ok(block_on(async { api.upload(&files(&id, path.as_str()), TAR, chunks::stdin()).await })?)
        }
        (Place::Here(from), Place::There { id, path }) => send(&api, &from, &id, path.as_str()),
        _ => Err(CpError::Ends),
    }
}

fn files(id: &SandboxId, path: &str) -> String {
    with_query(&format!("/v1/sandboxes/{id}/files"), [("path", path)])
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CpError {
    move |why| CpError::File { doing, path: path.to_owned(), why }
}

/// The directory that something is in there, and its name.
fn split(path: &str) -> Result<(&str, &str), CpError> {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some((dir, name)) if name != "." => Ok((if dir.is_empty() { "/" } else { dir }, name)),
        _ => Err(CpError::Root { path: path.to_owned() }),
    }
}

fn send(api: &Agent, from: &Path, id: &SandboxId, path: &str) -> Result<(), CpError> {
    let meta = fs::symlink_metadata(from).map_err(file("reading", from))?;
    let own_name = || from.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let (dir, name) = match path.ends_with('/') {
        true => (path, own_name().ok_or_else(|| CpError::Root { path: from.display().to_string() })?),
        false => split(path).map(|(dir, name)| (dir, name.to_owned()))?,
    };
    let from = from.to_owned();
    let chunks = chunks::written_by(move |out| {
        let mut tar = tar::Builder::new(out);
        tar.follow_symlinks(false);
        match meta.is_dir() {
            true => tar.append_dir_all(&name, &from)?,
            false => tar.append_path_with_name(&from, &name)?,
        }
        tar.finish()
    });
    Ok(block_on(async { api.upload(&files(id, dir), TAR, chunks).await })?)
}

fn fetch(api: &Agent, id: &SandboxId, path: &str, to: &Path) -> Result<(), CpError> {
    let (_, name) = split(path)?;
    let place = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let beside = place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fresh =
        tempfile::Builder::new().prefix(".creto-cp-").tempdir_in(beside).map_err(file("writing into", beside))?;
    let (tar, mut pipe) = io::pipe().map_err(file("unpacking into", beside))?;
    let dir = fresh.path().to_owned();
    let unpacked = std::thread::spawn(move || unpack(tar, &dir));
    let copied = block_on(api.copy(&files(id, path), &mut pipe));
    drop(pipe); // the end of what is unpacked
    let unpacked = unpacked.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    match (copied, unpacked) {
        // Unpacking has ended first, and knows why.
        (Err(AgentApiError::Output(_)) | Ok(()), Err(why)) => Err(file("unpacking into", beside)(why)),
        (copied, _) => Ok(copied?),
    }?;
    let there = fresh.path().join(name);
    if fs::symlink_metadata(&there).is_err() {
        return Err(CpError::Missing(path.to_owned()));
    }
    match fs::rename(&there, &place) {
        Err(why) if matches!(why.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::IsADirectory) => {
            Err(CpError::Exists(place))
        }
        moved => moved.map_err(file("writing", &place)),
    }
}

fn unpack(tar: PipeReader, dir: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(BufReader::new(tar));
    archive.set_overwrite(false);
    archive.unpack(dir)?;
    // What is behind the end of a tar belongs to it: whoever sends it must not see us go.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_sandboxes_or_ours() {
        let there = |id: &str, path: &str| Place::There { id: id.parse().unwrap(), path: path.parse().unwrap() };
        for (text, place) in [
            ("-", Place::Stream),
            ("box-1:/etc/passwd", there("box-1", "/etc/passwd")),
            ("box-1:/a:b/", there("box-1", "/a:b/")),
            ("a.txt", Place::Here("a.txt".into())),
            ("./a:b", Place::Here("./a:b".into())),
            ("/x/a:b", Place::Here("/x/a:b".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for (bad, why) in
            [("box-1:etc", "begins with /"), ("box-1:/../x", ".."), ("a b:/x", "./a b:/x"), (":/x", "./:/x")]
        {
            let error = bad.parse::<Place>().expect_err(bad);
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn what_has_no_name_is_not_copied() {
        for (path, parts) in [("/a", ("/", "a")), ("/a/b", ("/a", "b")), ("/a/b//", ("/a", "b"))] {
            assert_eq!(split(path).unwrap(), parts, "{path}");
        }
        for path in ["/", "//", "/a/."] {
            assert!(split(path).is_err(), "{path}");
        }
    }
}
