//! The dialects of `start`: what containerd sends on stdin, and what we answer on stdout. Pure.
//! containerd ≤ 2.2 sends nothing useful and takes a bare address; ≥ 2.3 sends `BootstrapParams` and takes it too.
//! A bare address means ttrpc and `containerd.task.v2.Task` in every version, and we serve that name always.

use containerd_shim_protos::bootstrap_api::BootstrapParams;
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
