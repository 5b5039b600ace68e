//! The options that containerd passes with Create, in the three types that clients send.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::rt::skip_field_for_tag;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, CodedOutputStream, Message};
use containerd_shim_protos::shim::oci;

use crate::error::TaskError;
use crate::settings::Settings;

/// What Create's options say, beside the settings.
#[derive(Clone, Debug, Default)]
pub struct TaskOptions {
    /// The shim moves into this control group, a path below the hierarchy's root.
    pub shim_cgroup: Option<PathBuf>,
    /// Who owns the workload's stdio, so that it can open `/dev/stdout` again.
    pub io_owner: Option<(u32, u32)>,
    /// `linux.cgroupsPath` is systemd's `slice:prefix:name`.
    pub systemd_cgroup: bool,
    /// runc's options as they came, for a downstream shim that takes them.
    pub of_runc: Option<Any>,
}

/// Reads Create's options. `runtimeoptions.v1.Options` (containerd `api/types/runtimeoptions`), which CRI sends, name a
/// runtime.toml or are one, instead of the node's; `containerd.runc.v1.Options` come from ctr and nerdctl, and from CRI
/// for pods with a user namespace; containerd 1.7's client sends `containerd.linux.runc.CreateOptions`.
pub fn read(any: Option<&Any>, node: &Path) -> Result<(Settings, TaskOptions), TaskError> {
    let invalid = |e| TaskError::Invalid(format!("task options: {e}"));
    let Some(any) = any else { return Ok((Settings::of_node(node)?, TaskOptions::default())) };
    // Some clients send a type's full address.
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "" => Ok((Settings::of_node(node)?, TaskOptions::default())),
        "containerd.runc.v1.Options" => {
            let options = oci::Options::parse_from_bytes(&any.value).map_err(invalid)?;
            let options = TaskOptions { of_runc: Some(any.clone()), ..TaskOptions::of_runc(options)? };
            Ok((Settings::of_node(node)?, options))
        }
        "containerd.linux.runc.CreateOptions" => {
            Ok((Settings::of_node(node)?, TaskOptions::of_linux_runtime(&any.value).map_err(invalid)?))
        }
        "runtimeoptions.v1.Options" => {
            let (path, body) = config(&any.value).map_err(invalid)?;
            let settings = match (path.as_str(), body.is_empty()) {
                ("", true) => Settings::of_node(node)?,
                ("", false) => {
                    let text = String::from_utf8(body)
                        .map_err(|e| TaskError::Invalid(format!("task options: config_body: {e}")))?;
                    Settings::parse(&text, "task options: config_body")?
                }
                (path, true) => Settings::read(Path::new(path))?,
                (_, false) => {
                    let why = "task options: config_path and config_body are both given; give one";
                    return Err(TaskError::Invalid(why.into()));
                }
            };
            Ok((settings, TaskOptions::default()))
        }
        other => Err(TaskError::Invalid(format!(
            "task options of type {other}: give containerd.runc.v1.Options or runtimeoptions.v1.Options"
        ))),
    }
}

impl TaskOptions {
    /// What of runc's options has a meaning here. NoPivotRoot, NoNewKeyring and Root have none: a sandbox has its own
    /// kernel, and a state directory of its own.
    fn of_runc(options: oci::Options) -> Result<Self, TaskError> {
        if !options.binary_name.is_empty() {
            return Err(TaskError::Invalid(format!(
                "task options: binary_name {:?} names another runtime; to choose a runsc set gvisor.runsc_path in runtime.toml",
                options.binary_name
            )));
        }
        let owner = (options.io_uid, options.io_gid);
        Ok(Self {
            shim_cgroup: (!options.shim_cgroup.is_empty()).then(|| options.shim_cgroup.into()),
            io_owner: (owner != (0, 0)).then_some(owner),
            systemd_cgroup: options.systemd_cgroup,
            of_runc: None,
        })
    }

    /// ShimCgroup (9), IoUid (10) and IoGid (11) of containerd 1.x's `linux/runctypes`; its other fields are runc's own.
    fn of_linux_runtime(bytes: &[u8]) -> Result<Self, containerd_shim_protos::protobuf::Error> {
        const SHIM_CGROUP: u32 = 9 << 3 | 2;
        const IO_UID: u32 = 10 << 3;
        const IO_GID: u32 = 11 << 3;
        let mut stream = CodedInputStream::from_bytes(bytes);
        let (mut cgroup, mut owner) = (String::new(), (0, 0));
        while let Some(tag) = stream.read_raw_tag_or_eof()? {
            match tag {
                SHIM_CGROUP => cgroup = stream.read_string()?,
                IO_UID => owner.0 = stream.read_uint32()?,
                IO_GID => owner.1 = stream.read_uint32()?,
                other => skip_field_for_tag(other, &mut stream)?,
            }
        }
        let shim_cgroup = (!cgroup.is_empty()).then(|| cgroup.into());
        Ok(Self { shim_cgroup, io_owner: (owner != (0, 0)).then_some(owner), ..Self::default() })
    }
}

// Fields of `runtimeoptions.v1.Options`; the protos crate does not have this message.
const TYPE_URL: u32 = 1 << 3 | 2;
const CONFIG_PATH: u32 = 2 << 3 | 2;
const CONFIG_BODY: u32 = 3 << 3 | 2;

/// `runtimeoptions.v1.Options` that name a configuration, for a downstream shim.
pub fn runtime_options(config_path: &Path) -> Any {
    let path = config_path.as_os_str().as_encoded_bytes();
    let mut value = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut value);
    // Writing into memory cannot fail.
    let _ = stream.write_raw_varint32(CONFIG_PATH).and_then(|()| stream.write_bytes_no_tag(path));
    let _ = stream.flush();
    drop(stream);
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() }
}

/// The path and the text of a configuration.
fn config(bytes: &[u8]) -> Result<(String, Vec<u8>), containerd_shim_protos::protobuf::Error> {
    let mut stream = CodedInputStream::from_bytes(bytes);
    let (mut path, mut body) = Default::default();
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match tag {
            TYPE_URL => drop(stream.read_string()?),
            CONFIG_PATH => path = stream.read_string()?,
            CONFIG_BODY => body = stream.read_bytes()?,
            other => {
                let error = io::Error::new(io::ErrorKind::InvalidData, format!("unknown field {}", other >> 3));
                return Err(error.into());
            }
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Default::default() }
    }

    fn read_any(any: &Any) -> Result<(Settings, TaskOptions), String> {
        read(Some(any), Path::new("/nonexistent/runtime.toml")).map_err(|e| e.to_string())
    }

    /// A length-delimited protobuf field.
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8], value].concat()
    }

    #[test]
    fn runcs_options_are_honoured_or_refused() {
        let options = oci::Options { shim_cgroup: "/a".into(), io_uid: 7, no_pivot_root: true, ..Default::default() };
        let (_, got) = read_any(&any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())).unwrap();
        assert_eq!(got.shim_cgroup.as_deref(), Some(Path::new("/a")));
        assert_eq!(got.io_owner, Some((7, 0)));
        let options = oci::Options { binary_name: "crun".into(), ..Default::default() };
        let error = read_any(&any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())).unwrap_err();
        assert!(error.contains("crun") && error.contains("runsc_path"), "{error}");
    }

    #[test]
    fn the_options_of_containerd_1_7s_client_are_understood() {
        // no_pivot_root (1), a group, an owner, criu_work_path (12).
        let bytes = [&[1 << 3, 1][..], &field(9, b"/a"), &[10 << 3, 7, 11 << 3, 8], &field(12, b"/criu")].concat();
        let (_, got) = read_any(&any("containerd.linux.runc.CreateOptions", bytes)).unwrap();
        assert_eq!((got.shim_cgroup.as_deref(), got.io_owner), (Some(Path::new("/a")), Some((7, 8))));
        assert!(read_any(&any("containerd.linux.runc.CreateOptions", vec![0xff])).is_err());
    }

    #[test]
    fn a_path_for_a_downstream_shim_reads_back() {
        let any = runtime_options(Path::new("/etc/kata.toml"));
        assert_eq!(config(&any.value).unwrap(), ("/etc/kata.toml".to_owned(), vec![]));
    }

    #[test]
    fn cris_options_are_a_runtime_toml() {
        let body = field(3, b"[gvisor]\nrunsc_path = \"/opt/runsc\"");
        let (settings, _) = read_any(&any("runtimeoptions.v1.Options", body)).unwrap();
        assert_eq!(settings.gvisor.runsc_path, Some("/opt/runsc".into()));
        for (value, expected) in [
            (field(2, b"/nonexistent"), "/nonexistent"),
            ([field(2, b"/x"), field(3, b"y = 1")].concat(), "both"),
            (field(3, b"y = 1"), "unknown field `y`"),
            (field(9, b"y"), "unknown field 9"),
            (b"\xff\xff\xff".to_vec(), "task options"),
        ] {
            let error = read_any(&any("runtimeoptions.v1.Options", value)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = read_any(&any("x.Options", vec![])).unwrap_err();
        assert!(error.contains("x.Options") && error.contains("runtimeoptions.v1.Options"), "{error}");
    }

    proptest! {
        #[test]
        fn options_are_understood_or_refused_by_name(
            type_url in prop_oneof![
                prop::sample::select(vec![
                    "containerd.runc.v1.Options", "containerd.linux.runc.CreateOptions", "runtimeoptions.v1.Options", "",
                    "types.containerd.io/containerd.runc.v1.Options",
                ]).prop_map(str::to_owned),
                crate::arbitrary::text(),
            ],
            value in prop_oneof![
                crate::arbitrary::bytes(),
                (0_u8..24, 0_u8..6, crate::arbitrary::bytes()).prop_map(|(number, kind, mut rest)| {
                    rest.insert(0, number << 3 | kind);
                    rest
                }),
            ],
        ) {
            if let Err(error) = read_any(&any(&type_url, value)) {
                prop_assert!(error.starts_with("task options") || error.contains(": "), "{error}");
            }
        }

        #[test]
        fn a_configuration_s_path_is_read_as_it_is_written(path in "/[^\\x00]{0,40}") {
            let written = runtime_options(Path::new(&path));
            prop_assert_eq!(config(&written.value).unwrap(), (path, Vec::new()));
        }

        #[test]
        fn runc_s_options_keep_what_has_a_meaning(cgroup in "(/[a-z]{1,8}){0,3}", uid in prop::num::u32::ANY, gid in prop::num::u32::ANY, systemd in prop::bool::ANY) {
            let sent = oci::Options {
                shim_cgroup: cgroup.clone(), io_uid: uid, io_gid: gid, systemd_cgroup: systemd, ..Default::default()
            };
            let (_, read) = read_any(&any("containerd.runc.v1.Options", sent.write_to_bytes().unwrap())).unwrap();
            prop_assert_eq!(read.shim_cgroup, (!cgroup.is_empty()).then(|| PathBuf::from(&cgroup)));
            prop_assert_eq!(read.io_owner.unwrap_or_default(), (uid, gid));
            prop_assert_eq!(read.systemd_cgroup, systemd);
        }
    }
}
