//! The dialects of `start`: what containerd sends on stdin, and what shims answer on stdout: we to containerd, and a
//! downstream shim to us. Pure.
//! containerd ≤ 2.2 sends nothing useful and takes a bare address; ≥ 2.3 sends `BootstrapParams` and takes it too.
//! A bare address means ttrpc and `containerd.task.v2.Task` in every version, and we serve that name always.

use std::path::Path;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;

/// Reads no more of stdin than this; real parameters are a few hundred bytes.
pub const MAX_PARAMS: u64 = 1 << 20;

/// Decodes stdin as `BootstrapParams`; only parameters that name our own call count, for other messages
/// (containerd ≤ 2.2 pipes an `Any`) decode as well.
pub fn params(stdin: &[u8], namespace: &str, id: &str) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(stdin).ok()?;
    (params.instance_id == id && params.namespace == namespace).then_some(params)
}

/// The reply that every containerd since 1.6 takes. It must not end in white space: 2.3.0 and older trim it.
pub fn reply(socket: &str) -> String {
    format!("unix://{socket}")
}

/// Where a shim listens, and which Task API it has there.
#[derive(Debug, PartialEq, Eq)]
pub struct Address {
    /// With its `unix://`.
    pub socket: String,
    /// 2 or 3.
    pub api: u32,
}

impl Address {
    /// Reads a reply: a bare address, JSON (containerd 1.7 to 2.2) or a `BootstrapResult` (since 2.3).
    pub fn parse(reply: &[u8]) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Json {
            version: u32,
            address: String,
            #[serde(default)]
            protocol: String,
        }
        const SCHEME: &str = "unix://";
        let text = String::from_utf8_lossy(reply);
        let (socket, api, protocol) = if text.trim_start().starts_with('{') {
            let json: Json = serde_json::from_str(&text).map_err(|e| format!("{text:?}: {e}"))?;
            (json.address, json.version, json.protocol)
        } else if text.starts_with(SCHEME) {
            (text.trim_end().to_owned(), 2, String::new())
        } else {
            let result = BootstrapResult::parse_from_bytes(reply).unwrap_or_default();
            (result.address, result.version as u32, result.protocol)
        };
        let absolute = socket.strip_prefix(SCHEME).is_some_and(|path| path.starts_with('/'));
        if !absolute || socket.contains(['\n', '\0']) {
            return Err(format!("{text:?} names no address"));
        }
        match (protocol.as_str(), api) {
            ("" | "ttrpc", 2 | 3) => Ok(Self { socket, api }),
            ("" | "ttrpc", _) => Err(format!("it has version {api} of the Task API; 2 and 3 are understood")),
            (other, _) => Err(format!("it speaks {other}, and only ttrpc is understood")),
        }
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        Path::new(self.socket.strip_prefix("unix://").unwrap_or(&self.socket))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_dialect_of_a_reply_is_read_and_nonsense_is_named() {
        let address = |socket: &str, api| Ok(Address { socket: socket.into(), api });
        let result =
            BootstrapResult { version: 3, address: "unix:///s".into(), protocol: "ttrpc".into(), ..Default::default() };
        for (reply, expected) in [
            (&b"unix:///run/s/1"[..], address("unix:///run/s/1", 2)),
            (b"unix:///run/s/1\n", address("unix:///run/s/1", 2)),
            (br#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#, address("unix:///s", 3)),
            (br#"{"version":2,"address":"unix:///s"}"#, address("unix:///s", 2)),
            (&result.write_to_bytes().unwrap(), address("unix:///s", 3)),
        ] {
            assert_eq!(Address::parse(reply), expected, "{reply:?}");
        }
        for (reply, expected) in [
            (&b""[..], "no address"),
            (b"panic: oh", "no address"),
            (b"unix://s", "no address"),
            (b"\xff\xff", "no address"),
            (b"{", "EOF"),
            (br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#, "grpc"),
            (br#"{"version":9,"address":"unix:///s"}"#, "version 9"),
        ] {
            let error = Address::parse(reply).unwrap_err();
            assert!(error.contains(expected), "{reply:?}: {error}");
        }
    }

    #[test]
    fn only_parameters_of_this_very_call_are_accepted() {
        let sent = BootstrapParams { instance_id: "c1".into(), namespace: "ns".into(), ..Default::default() };
        let bytes = sent.write_to_bytes().unwrap();
        assert!(params(&bytes, "ns", "c1").is_some());
        assert!(params(&bytes, "ns", "other").is_none());
        assert!(params(b"\xff\xff garbage", "ns", "c1").is_none());
        assert!(params(b"", "ns", "c1").is_none());
    }

    #[test]
    fn the_reply_is_one_bare_line() {
        assert_eq!(reply("/run/containerd/s/abc"), "unix:///run/containerd/s/abc");
    }

    proptest! {
        #[test]
        fn parameters_are_those_of_this_call_or_none(
            bytes in crate::arbitrary::bytes(),
            (id, namespace) in (crate::arbitrary::text(), crate::arbitrary::text()),
            (other, address) in (crate::arbitrary::text(), crate::arbitrary::text()),
        ) {
            if let Some(read) = params(&bytes, &namespace, &id) {
                prop_assert_eq!((&read.instance_id, &read.namespace), (&id, &namespace));
            }
            let sent = BootstrapParams {
                instance_id: id.clone(),
                namespace: namespace.clone(),
                containerd_ttrpc_address: address,
                ..Default::default()
            };
            let whole = sent.write_to_bytes().unwrap();
            prop_assert_eq!(params(&whole, &namespace, &id), Some(sent));
            prop_assert_eq!(params(&whole, &namespace, &other).is_some(), other == id);
            for cut in 0..whole.len() {
                let _ = params(&whole[..cut], &namespace, &id); // an error or a prefix, never a panic
            }
        }

        #[test]
        fn a_reply_is_a_socket_s_address_or_an_error(bytes in prop_oneof![
            crate::arbitrary::bytes(),
            crate::arbitrary::text().prop_map(|text| format!("unix://{text}").into_bytes()),
            crate::arbitrary::altered(serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}))
                .prop_map(|json| json.to_string().into_bytes()),
        ]) {
            if let Ok(Address { socket, api }) = Address::parse(&bytes) {
                prop_assert!(socket.starts_with("unix://") && (api == 2 || api == 3));
                prop_assert!(!socket.contains(['\n', '\0']), "{socket:?} is more than an address");
            }
        }

        #[test]
        fn an_address_is_the_same_in_every_dialect(path in "/[!-~]{1,60}", api in 2_i32..=3) {
            let address = format!("unix://{path}");
            let json = serde_json::json!({"version": api, "address": address, "protocol": "ttrpc"}).to_string();
            let result = BootstrapResult {
                version: api, address: address.clone(), protocol: "ttrpc".into(), ..Default::default()
            };
            let expected = Address { socket: address, api: api as u32 };
            prop_assert_eq!(expected.path(), Path::new(&path));
            prop_assert_eq!(&Address::parse(json.as_bytes()), &Ok(Address { socket: expected.socket.clone(), ..expected }));
            prop_assert_eq!(&Address::parse(&result.write_to_bytes().unwrap()), &Ok(Address { socket: expected.socket.clone(), ..expected }));
            let bare = reply(&path);
            prop_assert_eq!(Address::parse(bare.as_bytes()), Ok(Address { socket: expected.socket, api: 2 }));
        }
    }
}
