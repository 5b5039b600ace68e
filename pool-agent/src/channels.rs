//! What a client and a process in a sandbox say to each other over one WebSocket: Kubernetes' `v5.channel.k8s.io`. A message is
//! binary; its first byte is the channel, the rest is the channel's. Both sides use this file. Pure.
//! Source: k8s.io/apimachinery `pkg/util/remotecommand/constants.go`, k8s.io/client-go `tools/remotecommand`; KEP-4006.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The WebSocket's subprotocol.
pub const PROTOCOL: &str = "v5.channel.k8s.io";

/// To the process.
pub const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The `reason` of a command that ended with another code than 0.
const NON_ZERO: &str = "NonZeroExitCode";
/// The `reason` of the cause whose message is that code.
const EXIT_CODE: &str = "ExitCode";

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// For the process to read.
    Stdin(Bytes),
    /// The process wrote it. With a terminal, all that it writes.
    Stdout(Bytes),
    /// The process wrote it.
    Stderr(Bytes),
    /// The last message: how it ended.
    End(End),
    /// The client's terminal has this size.
    Resize(Size),
    /// Nothing more comes on this channel.
    Close(u8),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this code; 128 and the signal's number where a signal ended it.
    Exited(u8),
    /// It could not be run, or was lost.
    Failed(String),
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A message that is none of the protocol's.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// There is no first byte.
    #[error("an empty message")]
    Empty,
    /// The first byte is no channel's.
    #[error("channel {0} is none of {PROTOCOL}")]
    Channel(u8),
    /// The rest is not what the channel carries.
    #[error("what came on channel {0}")]
    Json(u8, #[source] serde_json::Error),
    /// A Close names no channel.
    #[error("no channel is named to be closed")]
    Close,
    /// An end that says neither how nor why.
    #[error("an end without an exit code from 0 to 255: {0}")]
    End(String),
}

/// metav1.Status, as much of it as matters.
#[derive(Serialize, Deserialize)]
struct Status {
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Serialize, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Frame {
    /// As it is sent.
    pub fn encode(&self) -> Bytes {
        let json = |channel: u8, value: Result<Vec<u8>, serde_json::Error>| {
            message(channel, &value.unwrap_or_default()) // texts and numbers: it does not fail
        };
        match self {
            Self::Stdin(bytes) => message(STDIN, bytes),
            Self::Stdout(bytes) => message(STDOUT, bytes),
            Self::Stderr(bytes) => message(STDERR, bytes),
            Self::End(end) => json(END, serde_json::to_vec(&Status::of(end))),
            Self::Resize(size) => json(RESIZE, serde_json::to_vec(size)),
            Self::Close(channel) => message(CLOSE, &[*channel]),
        }
    }

    /// As it came.
    pub fn decode(mut bytes: Bytes) -> Result<Self, BadFrame> {
        if bytes.is_empty() {
            return Err(BadFrame::Empty);
        }
        let rest = bytes.split_off(1);
        match bytes[0] {
            STDIN => Ok(Self::Stdin(rest)),
            STDOUT => Ok(Self::Stdout(rest)),
            STDERR => Ok(Self::Stderr(rest)),
            END => {
                let status: Status = serde_json::from_slice(&rest).map_err(|e| BadFrame::Json(END, e))?;
                status.end().map(Self::End)
            }
            RESIZE => serde_json::from_slice(&rest).map(Self::Resize).map_err(|e| BadFrame::Json(RESIZE, e)),
            CLOSE => rest.first().copied().map(Self::Close).ok_or(BadFrame::Close),
            other => Err(BadFrame::Channel(other)),
        }
    }
}

fn message(channel: u8, rest: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + rest.len());
    bytes.put_u8(channel);
    bytes.put_slice(rest);
    bytes.freeze()
}

impl Status {
    fn of(end: &End) -> Self {
        let status = |word: &str, message: String| Self {
            status: word.to_owned(),
            message,
            reason: String::new(),
            details: None,
        };
        match end {
            End::Exited(0) => status("Success", String::new()),
            End::Exited(code) => Self {
                reason: NON_ZERO.to_owned(),
                details: Some(Details { causes: vec![Cause { reason: EXIT_CODE.into(), message: code.to_string() }] }),
                ..status("Failure", format!("command terminated with non-zero exit code: {code}"))
            },
            End::Failed(why) => Self { reason: "InternalError".to_owned(), ..status("Failure", why.clone()) },
        }
    }

    fn end(self) -> Result<End, BadFrame> {
        if self.status == "Success" {
            return Ok(End::Exited(0));
        }
        if self.reason != NON_ZERO {
            let said = [self.message, self.reason].into_iter().find(|text| !text.is_empty());
            return Ok(End::Failed(said.unwrap_or_else(|| "it is not said why".to_owned())));
        }
        let causes = self.details.map(|details| details.causes).unwrap_or_default();
        let code = causes.into_iter().find(|cause| cause.reason == EXIT_CODE).map(|cause| cause.message);
        match code.as_deref().unwrap_or_default().parse() {
            Ok(code) => Ok(End::Exited(code)),
            Err(_) => Err(BadFrame::End(code.unwrap_or(self.message))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_those_of_kubernetes() {
        for (frame, bytes) in [
            (Frame::Stdin(Bytes::from_static(b"in")), b"\0in".as_slice()),
            (Frame::Stdout(Bytes::from_static(b"out")), b"\x01out"),
            (Frame::Stderr(Bytes::new()), b"\x02"),
            (Frame::End(End::Exited(0)), b"\x03{\"status\":\"Success\"}"),
            (
                Frame::End(End::Exited(7)),
                b"\x03{\"status\":\"Failure\",\"message\":\"command terminated with non-zero exit code: 7\",\
                \"reason\":\"NonZeroExitCode\",\"details\":{\"causes\":[{\"reason\":\"ExitCode\",\"message\":\"7\"}]}}",
            ),
            (
                Frame::End(End::Failed("no such file".into())),
                b"\x03{\"status\":\"Failure\",\"message\":\"no such file\",\"reason\":\"InternalError\"}",
            ),
            (Frame::Resize(Size { width: 80, height: 24 }), b"\x04{\"Width\":80,\"Height\":24}"),
            (Frame::Close(STDIN), b"\xff\0"),
        ] {
            assert_eq!(frame.encode(), bytes, "{frame:?}");
            assert_eq!(Frame::decode(Bytes::from_static(bytes)).unwrap(), frame);
        }
    }

    #[test]
    fn an_apiservers_own_status_is_read() {
        let bytes = b"\x03{\"metadata\":{},\"status\":\"Failure\",\"message\":\"m\",\"reason\":\"NonZeroExitCode\",\"code\":500,\
            \"details\":{\"name\":\"x\",\"causes\":[{\"reason\":\"Other\",\"message\":\"1\"},{\"reason\":\"ExitCode\",\"message\":\"137\"}]}}";
        assert_eq!(Frame::decode(Bytes::from_static(bytes)).unwrap(), Frame::End(End::Exited(137)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, why) in [
            (b"".as_slice(), "an empty message"),
            (b"\x05x", "channel 5"),
            (b"\x03", "channel 3"),
            (b"\x03{}", "channel 3"),
            (b"\x03{\"status\":\"Failure\",\"reason\":\"NonZeroExitCode\"}", "without an exit code"),
            (
                b"\x03{\"status\":\"Failure\",\"reason\":\"NonZeroExitCode\",\"details\":{\"causes\":[{\"reason\":\"ExitCode\",\"message\":\"256\"}]}}",
                "256",
            ),
            (b"\x04{\"Width\":-1,\"Height\":1}", "channel 4"),
            (b"\xff", "closed"),
        ] {
            let error = Frame::decode(Bytes::from_static(bytes)).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        /// What a stranger sends does no harm, and what was understood is said again in the same sense.
        #[test]
        fn whatever_comes_is_read_or_refused(bytes: Vec<u8>) {
            if let Ok(frame) = Frame::decode(bytes.into()) {
                prop_assert_eq!(Frame::decode(frame.encode()).unwrap(), frame);
            }
        }
    }
}
