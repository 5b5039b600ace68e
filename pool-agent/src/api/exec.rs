//! `GET /v1/sandboxes/{id}/exec` and `…/attach`: a WebSocket with the subprotocol that Kubernetes speaks, `v5.channel.k8s.io`: binary
//! messages, whose first byte is the channel. [`crate::exec`] does the work.

use axum::Extension;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Api;
use super::auth::Via;
use super::problem::Problem;
use crate::exec::{ExecError, Ended, FromClient, Session, ToClient};
use crate::running::Command;
use crate::sandbox::Sandbox;
use crate::spec::Backend;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Messages that wait to be sent or written, each way.
const WAITING: usize = 64;
/// A client's message is at most so long, in bytes.
const LONGEST: usize = 1 << 20;

/// What stands in the query.
#[derive(Debug, Default)]
struct Asked {
    command: Command,
    terminal: bool,
    stdin: bool,
}

impl Asked {
    /// `command` and `env` come as often as they like.
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let bad = |why: String| Problem::new(StatusCode::BAD_REQUEST, "invalid-query", why);
        let yes = |key: &str, value: &str| match value {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(bad(format!("{key}={other}: give true or false"))),
        };
        let mut asked = Self::default();
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*key {
                "command" => asked.command.args.push(value.into_owned()),
                "tty" => asked.terminal = yes(&key, &value)?,
                "stdin" => asked.stdin = yes(&key, &value)?,
                "env" => {
                    let pair = value.split_once('=').filter(|(name, _)| !name.is_empty());
                    let (name, value) = pair.ok_or_else(|| bad(format!("env={value}: give NAME=VALUE")))?;
                    asked.command.env.insert(name.to_owned(), value.to_owned());
                }
                "cwd" => asked.command.cwd = Some(value.parse().map_err(|e| bad(format!("cwd: {e}")))?),
                "user" => asked.command.user = Some(value.parse().map_err(|e| bad(format!("user: {e}")))?),
                other => return Err(bad(format!("{other} is not known: command, tty, stdin, env, cwd, user are"))),
            }
        }
        Ok(asked)
    }
}

impl From<ExecError> for Problem {
    fn from(error: ExecError) -> Self {
        let (status, code) = match &error {
            ExecError::NotRunning(_) => (StatusCode::CONFLICT, "sandbox-not-running"),
            ExecError::NoCommand => (StatusCode::BAD_REQUEST, "no-command"),
            ExecError::Run(_) => (StatusCode::UNPROCESSABLE_ENTITY, "exec-failed"),
            ExecError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "exec-failed"),
        };
        Self::new(status, code, trust::chain::chain(&error))
    }
}

pub async fn exec(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    Path(id): Path<String>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let sandbox = allowed(&api, via, &headers, &id).await?;
    let Asked { command, terminal, stdin } = Asked::parse(query.as_deref())?;
    let session = Session::start(&api.ports, &sandbox, &command, terminal, stdin).await?;
    Ok(upgraded(upgrade, session))
}

pub async fn attach(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    Path(id): Path<String>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let sandbox = allowed(&api, via, &headers, &id).await?;
    let session = Session::attach(&api.ports, &sandbox).await?;
    Ok(upgraded(upgrade, session))
}

async fn allowed(api: &Api, via: Via, headers: &HeaderMap, id: &str) -> Result<Sandbox, Problem> {
    let who = api.auth.who(via, headers, Backend::Gvisor).await?;
    let sandbox = api.sandboxes.find(id).await?;
    who.may(&sandbox)?;
    Ok(sandbox)
}

fn upgraded(upgrade: WebSocketUpgrade, session: Session) -> Response {
    upgrade.protocols([PROTOCOL]).max_message_size(LONGEST).on_upgrade(move |socket| carry(socket, session))
}

/// Until the process has ended, or the client has gone: then the process goes with it.
async fn carry(mut socket: WebSocket, session: Session) {
    let (say, from_client) = mpsc::channel(WAITING);
    let (to_client, mut said) = mpsc::channel(WAITING);
    let mut running = tokio::spawn(session.run(from_client, to_client));
    let ended = loop {
        tokio::select! {
            Some(part) = said.recv() => {
                let (channel, bytes) = match part {
                    ToClient::Stdout(bytes) => (STDOUT, bytes),
                    ToClient::Stderr(bytes) => (STDERR, bytes),
                };
                if socket.send(framed(channel, &bytes)).await.is_err() {
                    running.abort();
                    return;
                }
            }
            ended = &mut running => break ended,
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => match heard(&bytes) {
                    Some(heard) => drop(say.send(heard).await), // it has ended: nobody listens
                    None => tracing::debug!("a message that makes no sense is left out"),
                },
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    running.abort();
                    return;
                }
            },
        }
    };
    while let Ok(part) = said.try_recv() {
        let (channel, bytes) = match part {
            ToClient::Stdout(bytes) => (STDOUT, bytes),
            ToClient::Stderr(bytes) => (STDERR, bytes),
        };
        if socket.send(framed(channel, &bytes)).await.is_err() {
            return;
        }
    }
    let status = match ended {
        Ok(Ok(ended)) => status(&ended),
        Ok(Err(error)) => failure(&trust::chain::chain(&error)),
        Err(error) => failure(&error.to_string()),
    };
    let _ = socket.send(framed(ERROR, status.to_string().as_bytes())).await; // it may have gone meanwhile
    let _ = socket.send(Message::Close(None)).await;
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// What a client's message means; none where it means nothing.
fn heard(message: &[u8]) -> Option<FromClient> {
    let (channel, bytes) = message.split_first()?;
    match *channel {
        STDIN => Some(FromClient::Input(bytes.to_vec())),
        CLOSE if bytes == [STDIN] => Some(FromClient::EndOfInput),
        RESIZE => {
            let size: Value = serde_json::from_slice(bytes).ok()?;
            let side = |key: &str| size[key].as_u64().and_then(|side| u16::try_from(side).ok());
            Some(FromClient::Resize { columns: side("Width")?, rows: side("Height")? })
        }
        _ => None,
    }
}

/// `metav1.Status`, as `kubectl exec` reads it.
fn status(ended: &Ended) -> Value {
    match ended.status {
        0 => json!({ "metadata": {}, "status": "Success" }),
        code => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
    }
}

fn failure(why: &str) -> Value {
    json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": why, "code": 500 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_runs() {
        let asked = Asked::parse(Some("command=sh&command=-c&command=echo%20%26&tty=true&stdin&env=A%3Db%3Dc&cwd=%2Ftmp&user=7")).unwrap();
        assert_eq!(asked.command.args, ["sh", "-c", "echo &"]);
        assert_eq!(asked.command.env["A"], "b=c");
        assert!(asked.terminal && asked.stdin && asked.command.user.is_some());
        for (query, why) in [("tty=maybe", "true or false"), ("env=A", "NAME=VALUE"), ("cwd=tmp", "begins with /"), ("x=1", "command")] {
            let problem = Asked::parse(Some(query)).expect_err(why);
            assert!(problem.detail.contains(why), "{problem}");
        }
    }

    #[test]
    fn messages_are_read_as_kubernetes_writes_them() {
        for (message, meaning) in [
            (&b"\0hello"[..], Some(FromClient::Input(b"hello".to_vec()))),
            (&[255, 0], Some(FromClient::EndOfInput)),
            (&b"\x04{\"Width\":80,\"Height\":24}"[..], Some(FromClient::Resize { columns: 80, rows: 24 })),
            (&b"\x04{\"Width\":80}"[..], None),
            (&b"\x04{\"Width\":99999999,\"Height\":1}"[..], None),
            (&[255, 1], None),
            (&b"\x09x"[..], None),
            (&b""[..], None),
        ] {
            assert_eq!(heard(message), meaning, "{message:?}");
        }
        assert_eq!(status(&Ended { status: 0 })["status"], "Success");
        assert_eq!(status(&Ended { status: 7 })["details"]["causes"][0]["message"], "7");
    }
}
