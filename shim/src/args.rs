//! The command line: Go's flag syntax as containerd speaks it, into a typed call. Pure.
//! Source: containerd `pkg/shim`, docs/architecture.md "life of a create".

use std::ffi::OsString;
use std::path::PathBuf;

use crate::{image, nhi};

/// What is said of a name that is none.
pub const IDENTIFIER: &str = "is not a containerd identifier (1 to 76 of A-Z a-z 0-9 joined by single . _ -)";

/// What the caller wants of this process.
#[derive(Debug, PartialEq, Eq)]
pub enum Args {
    /// `start`: bring up (or find) the pod's shim and print its address.
    Start(Call),
    /// `delete`: remove what a dead shim left.
    Delete(Call),
    /// No action: serve the pod; our own re-exec of `start`.
    Serve(Call),
    /// `image`: our own child, which asks containerd.
    Image,
    /// `agent`: our own child, which asks a creto-nhi service.
    Agent,
    /// `-info`: describe the runtime to containerd ≥ 2.2.
    Info,
    /// `-v`: version for people.
    Version,
}

/// The flags of one call by containerd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// containerd namespace.
    pub namespace: String,
    /// Container id.
    pub id: String,
    /// containerd's gRPC address; part of the socket's name.
    pub address: String,
    /// Bundle directory; the current directory where the flag is absent.
    pub bundle: Option<PathBuf>,
    /// containerd runs with debug logging.
    pub debug: bool,
}

/// Why the command line makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadArgs {
    /// A flag that takes a value stands last.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// Not a flag of a shim.
    #[error("unknown flag -{0}; a containerd shim takes -namespace, -id, -address, -bundle, -publish-binary, -debug")]
    Unknown(String),
    /// Not an action of a shim.
    #[error("unknown action {0:?}; actions are start and delete")]
    Action(String),
    /// A flag that every action needs.
    #[error("flag -{0} is required")]
    Missing(&'static str),
    /// The value cannot name directories and sockets.
    #[error("flag -{flag}: {value:?} {IDENTIFIER}")]
    Identifier { flag: &'static str, value: String },
    /// The command line is not UTF-8.
    #[error("argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
}

impl Args {
    /// Parses the arguments after the program's name.
    pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Self, BadArgs> {
        let mut call = Call::default();
        let (mut info, mut version, mut action) = (false, false, None);
        let mut argv = argv.into_iter();
        while let Some(word) = argv.next() {
            let word = word.into_string().map_err(BadArgs::NotUtf8)?;
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|f| !f.is_empty())
            else {
                action = Some(word);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let on = inline.as_deref().is_none_or(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"));
            match name {
                "debug" => call.debug = on,
                "info" => info = on,
                "v" | "version" => version = on,
                "namespace" | "id" | "address" | "bundle" | "publish-binary" | "socket" => {
                    let value = match inline {
                        Some(value) => value,
                        None => argv
                            .next()
                            .ok_or_else(|| BadArgs::NoValue(name.to_owned()))?
                            .into_string()
                            .map_err(BadArgs::NotUtf8)?,
                    };
                    match name {
                        "namespace" => call.namespace = value,
                        "id" => call.id = value,
                        "address" => call.address = value,
                        "bundle" if !value.is_empty() => call.bundle = Some(value.into()),
                        _ => {} // the publisher binary is the old way to send events; the socket flag is unused by containerd
                    }
                }
                other => return Err(BadArgs::Unknown(other.to_owned())),
            }
        }
        if version {
            return Ok(Self::Version);
        }
        if info {
            return Ok(Self::Info);
        }
        let action = match action.as_deref() {
            Some(image::ACTION) => return Ok(Self::Image),
            Some(nhi::ACTION) => return Ok(Self::Agent),
            None => Self::Serve,
            Some("start") => Self::Start,
            Some("delete") => Self::Delete,
            Some(other) => return Err(BadArgs::Action(other.to_owned())),
        };
        for (flag, value) in [("namespace", &call.namespace), ("id", &call.id)] {
            if value.is_empty() {
                return Err(BadArgs::Missing(flag));
            }
            if !is_identifier(value) {
                return Err(BadArgs::Identifier { flag, value: value.clone() });
            }
        }
        Ok(action(call))
    }
}

/// containerd's rule for ids and namespaces (`pkg/identifiers`): they name directories and sockets here.
pub fn is_identifier(text: &str) -> bool {
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric());
    text.len() <= 76 && text.split(['.', '_', '-']).all(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<Args, BadArgs> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_spelling_of_go_flags_is_understood() {
        let call = Call { namespace: "ns".into(), id: "c1".into(), address: "/run/c.sock".into(), ..Call::default() };
        for (line, expected) in [
            ("-namespace ns -id c1 -address /run/c.sock start", Args::Start(call.clone())),
            ("--namespace=ns --id=c1 --address=/run/c.sock delete", Args::Delete(call.clone())),
            ("-namespace ns -address /run/c.sock -publish-binary /bin/x -id c1", Args::Serve(call.clone())),
            (
                "-namespace ns -id c1 -address /run/c.sock -debug start",
                Args::Start(Call { debug: true, ..call.clone() }),
            ),
            ("-debug=false -namespace ns -id c1 -address /run/c.sock start", Args::Start(call)),
            ("image", Args::Image),
            ("agent", Args::Agent),
            ("-info", Args::Info),
            ("-v", Args::Version),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let long = format!("-namespace ns -id {} start", "a".repeat(77));
        for (line, expected) in [
            ("-namespace", "needs a value"),
            ("-bogus x start", "unknown flag -bogus"),
            ("-namespace ns -id c1 restart", "unknown action"),
            ("-id c1 start", "-namespace is required"),
            ("-namespace ns -id ../c1 start", "not a containerd identifier"),
            ("-namespace ns -id a/b start", "not a containerd identifier"),
            (&long, "not a containerd identifier"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_command_line_a_call_names_only_directories_of_its_own(
            argv in prop::collection::vec(
                prop_oneof![
                    crate::arbitrary::text(),
                    prop::sample::select(vec!["-namespace", "--id", "-address=", "start", "delete", "-v=0", "-debug", "ns", "-"])
                        .prop_map(str::to_owned),
                ]
                .prop_map(OsString::from),
                0..8,
            )
        ) {
            if let Ok(Args::Start(call) | Args::Delete(call) | Args::Serve(call)) = Args::parse(argv) {
                for name in [&call.namespace, &call.id] {
                    prop_assert!(is_identifier(name) && !name.contains('/') && !name.contains("..") && name.len() <= 76);
                }
            }
        }

        #[test]
        fn what_go_would_write_is_read_back_in_whatever_order(
            id in crate::arbitrary::identifier(),
            namespace in crate::arbitrary::identifier(),
            address in "/[ -~]{0,30}",
            spellings in prop::array::uniform3((any::<bool>(), any::<bool>())),
            order in Just([0, 1, 2]).prop_shuffle(),
        ) {
            prop_assume!(id.len() <= 76 && namespace.len() <= 76);
            let flags = [("id", &id), ("namespace", &namespace), ("address", &address)];
            let mut argv = Vec::new();
            for flag in order {
                let ((name, value), (twice, inline)) = (flags[flag], spellings[flag]);
                let dashes = if twice { "--" } else { "-" };
                match inline {
                    true => argv.push(format!("{dashes}{name}={value}")),
                    false => argv.extend([format!("{dashes}{name}"), value.clone()]),
                }
            }
            argv.push("delete".into());
            let call = Call { namespace, id, address, ..Call::default() };
            prop_assert_eq!(Args::parse(argv.into_iter().map(OsString::from)), Ok(Args::Delete(call)));
        }
    }
}
