//! `GET /v1/sandboxes/{id}/exec` and `…/attach`: a WebSocket with the subprotocol that Kubernetes speaks, `v5.channel.k8s.io`: binary
//! messages, whose first byte is the channel. [`crate::exec`] does the work.

use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::sync::mpsc;
use trust::id::SandboxId;

use super::Api;
use super::auth::Via;
use super::input::At;
use super::problem::Problem;
use super::route::{Access, Route, get};
use super::sandboxes::LOOKED_UP;
use crate::channels::{End, Frame, PROTOCOL};
use crate::exec::{self, ExecError, Session};
use crate::logs::Position;
use crate::running::Command;
use crate::sandbox::Sandbox;
use crate::spec::{AbsolutePath, Backend, User};

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

/// What may come of it where something is run in a sandbox.
pub const EXEC: [(u16, &str); 3] = [(409, "sandbox-not-running"), (422, "exec-failed"), (500, "exec-failed")];

pub fn routes() -> Vec<Route> {
    let told = |route: Route| {
        let told = route.may(Access::Agent).parameter::<String>("id", "The sandbox's id, or its name.");
        let told = told.answers_nothing(StatusCode::SWITCHING_PROTOCOLS, "A WebSocket, v5.channel.k8s.io.");
        told.problems(&LOOKED_UP).problems(&[(400, "no-websocket")])
    };
    vec![
        told(get("/v1/sandboxes/{id}/exec", exec))
            .named("exec", "Runs a command in a sandbox, its streams over a WebSocket.")
            .parameter::<Vec<String>>("command", "A word of the command; as often as it has words.")
            .parameter::<bool>("tty", "Whether it has a terminal.")
            .parameter::<bool>("stdin", "Whether it reads.")
            .parameter::<Vec<String>>("env", "NAME=VALUE, as often as wanted.")
            .parameter::<AbsolutePath>("cwd", "Where it runs.")
            .parameter::<User>("user", "As whom it runs.")
            .problems(&EXEC)
            .problems(&[(400, "no-command")]),
        told(get("/v1/sandboxes/{id}/attach", attach))
            .named("attach", "A sandbox's own output and its command's end, over a WebSocket."),
    ]
}

/// Whoever did not ask for a WebSocket is told so before anything is done for it.
fn asked_for(upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Result<WebSocketUpgrade, Problem> {
    upgrade.map_err(|e| {
        Problem::new(StatusCode::BAD_REQUEST, "no-websocket", e.body_text())
            .hint("this path is a WebSocket with the subprotocol v5.channel.k8s.io: creto-runtime-cli exec")
    })
}

async fn exec(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = asked_for(upgrade)?;
    let sandbox = allowed(&api, via, &headers, &id).await?;
    let Asked { command, terminal, stdin } = Asked::parse(query.as_deref())?;
    let session = Session::start(&api.ports, &sandbox, &command, terminal, stdin).await?;
    Ok(upgraded(upgrade, |from, to| session.run(from, to)))
}

async fn attach(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = asked_for(upgrade)?;
    let id = has_written(&api, via, &headers, &id).await?;
    Ok(upgraded(upgrade, |_, to| async move {
        let _in_use = api.ports.sessions.begin(&id);
        exec::attached(&api.ports, &id, Position::default(), to, Frame::Stdout).await
    }))
}

/// A sandbox whose output whoever asks may see. A command may have ended before anybody could ask, and its sandbox with it: root is
/// told what is kept.
pub async fn has_written(api: &Api, via: Via, headers: &HeaderMap, id: &str) -> Result<SandboxId, Problem> {
    let ended =
        id.parse::<SandboxId>().ok().filter(|id| matches!(via, Via::Socket) && api.ports.exits.of(id).is_some());
    match ended {
        Some(id) => Ok(id),
        None => Ok(allowed(api, via, headers, id).await?.id),
    }
}

/// A sandbox that whoever asks may have to do with.
pub async fn allowed(api: &Api, via: Via, headers: &HeaderMap, id: &str) -> Result<Sandbox, Problem> {
    let who = api.auth.who(via, headers, Backend::Gvisor).await?;
    let sandbox = api.sandboxes.find(id).await?;
    who.may(&sandbox)?;
    Ok(sandbox)
}

fn upgraded<F, R>(upgrade: WebSocketUpgrade, run: F) -> Response
where
    F: FnOnce(mpsc::Receiver<Frame>, mpsc::Sender<Frame>) -> R + Send + 'static,
    R: Future<Output = Result<u32, ExecError>> + Send + 'static,
{
    upgrade.protocols([PROTOCOL]).max_message_size(LONGEST).on_upgrade(move |socket| carry(socket, run))
}

/// Until the process has ended, or the client has gone: then the process goes with it.
async fn carry<F, R>(mut socket: WebSocket, run: F)
where
    F: FnOnce(mpsc::Receiver<Frame>, mpsc::Sender<Frame>) -> R + Send + 'static,
    R: Future<Output = Result<u32, ExecError>> + Send + 'static,
{
    let (say, from_client) = mpsc::channel(WAITING);
    let (to_client, mut said) = mpsc::channel(WAITING);
    let mut running = tokio::spawn(run(from_client, to_client));
    let mut waiting = None; // for room: what the process writes is carried meanwhile, or both would wait for each other
    let ended = loop {
        tokio::select! {
            Some(frame) = said.recv() => {
                if send(&mut socket, &frame).await.is_err() {
                    running.abort();
                    return;
                }
            }
            ended = &mut running => break ended,
            Ok(room) = say.reserve(), if waiting.is_some() => {
                if let Some(frame) = waiting.take() {
                    room.send(frame);
                }
            }
            message = socket.recv(), if waiting.is_none() => match message {
                Some(Ok(Message::Binary(bytes))) => match Frame::decode(bytes) {
                    Ok(frame) => waiting = Some(frame),
                    Err(error) => tracing::debug!(%error, "a message is left out"),
                },
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    running.abort();
                    return;
                }
            },
        }
    };
    while let Ok(frame) = said.try_recv() {
        if send(&mut socket, &frame).await.is_err() {
            return;
        }
    }
    let end = match ended {
        Ok(Ok(status)) => End::Exited(u8::try_from(status).unwrap_or(u8::MAX)),
        Ok(Err(error)) => End::Failed(trust::chain::chain(&error)),
        Err(error) => End::Failed(error.to_string()),
    };
    let _ = send(&mut socket, &Frame::End(end)).await; // it may have gone meanwhile
    let _ = socket.send(Message::Close(None)).await;
}

async fn send(socket: &mut WebSocket, frame: &Frame) -> Result<(), axum::Error> {
    socket.send(Message::Binary(frame.encode())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_runs() {
        let asked = Asked::parse(Some(
            "command=sh&command=-c&command=echo%20%26&tty=true&stdin&env=A%3Db%3Dc&cwd=%2Ftmp&user=7",
        ))
        .unwrap();
        assert_eq!(asked.command.args, ["sh", "-c", "echo &"]);
        assert_eq!(asked.command.env["A"], "b=c");
        assert!(asked.terminal && asked.stdin && asked.command.user.is_some());
        for (query, why) in
            [("tty=maybe", "true or false"), ("env=A", "NAME=VALUE"), ("cwd=tmp", "begins with /"), ("x=1", "command")]
        {
            let problem = Asked::parse(Some(query)).expect_err(why);
            assert!(problem.detail.contains(why), "{problem}");
        }
    }
}
