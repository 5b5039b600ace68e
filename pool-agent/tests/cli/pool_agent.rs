//! What answers at a node's socket as creto-pool-agent does: bodies made of the real types, and processes that do what their command
//! says. It is for the client's words; the agent itself is tested end to end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use creto_runtime::api::problem::Problem;
use creto_runtime::api::types::{SandboxView, Sandboxes, Usage};
use creto_runtime::channels::{End, Frame, PROTOCOL, STDIN};
use creto_runtime::sandbox::{Phase, Sandbox};
use creto_runtime::spec::SandboxSpec;
use serde::Serialize;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::node::{HOUR, Node, ago};

/// One question, and the answer to it.
type Answers = BTreeMap<String, (StatusCode, Vec<u8>)>;

pub struct PoolAgent {
    shared: Arc<Shared>,
    _until: oneshot::Sender<()>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<Answers>,
    /// Of each sandbox; without one it is an `echo`.
    main_command: Mutex<Vec<String>>,
    asked: Mutex<Vec<(String, Vec<u8>)>>,
    /// What it does not answer yet.
    held: Mutex<BTreeSet<String>>,
}

impl PoolAgent {
    /// At a node's socket, until it is dropped.
    pub fn at(node: &Node) -> Self {
        let socket = node.path("run/pool-agent.sock");
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let (until, ended) = oneshot::channel::<()>();
        let (bound, listens) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&socket).unwrap();
                bound.send(()).unwrap();
                tokio::select! {
                    served = async { axum::serve(listener, router).await } => served.unwrap(),
                    _ = ended => {}
                }
            });
        });
        listens.recv().unwrap();
        Self { shared, _until: until }
    }

    /// `question` is `METHOD /path`, without what is asked for behind it.
    pub fn answers(&self, question: &str, answer: &impl Serialize) -> &Self {
        self.answers_as(question, StatusCode::OK, &serde_json::to_vec(answer).unwrap())
    }

    pub fn answers_as(&self, question: &str, status: StatusCode, body: &[u8]) -> &Self {
        self.shared.answers.lock().unwrap().insert(question.to_owned(), (status, body.to_vec()));
        self
    }

    /// Until it is let go, a question is not answered.
    pub fn holds(&self, question: &str) -> &Self {
        self.shared.held.lock().unwrap().insert(question.to_owned());
        self
    }

    pub fn lets_go(&self, question: &str) {
        self.shared.held.lock().unwrap().remove(question);
    }

    pub fn refuses(&self, question: &str, problem: &Problem) -> &Self {
        let status = StatusCode::from_u16(problem.status).unwrap();
        self.answers_as(question, status, &serde_json::to_vec(problem).unwrap())
    }

    /// What a sandbox itself runs.
    pub fn runs(&self, command: &str) -> &Self {
        *self.shared.main_command.lock().unwrap() = vec![command.to_owned()];
        self
    }

    /// What it was asked since it was asked here, `METHOD /path?query`.
    pub fn asked(&self) -> Vec<String> {
        self.asked_with_bodies().into_iter().map(|(question, _)| question).collect()
    }

    pub fn asked_with_bodies(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap())
    }

    /// The one body that came, as JSON.
    pub fn body(&self) -> Value {
        let asked = self.asked_with_bodies();
        assert_eq!(asked.len(), 1, "{asked:?}");
        serde_json::from_slice(&asked[0].1).unwrap()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let question = format!("{} {}", parts.method, parts.uri);
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default().to_vec(); // whoever sends may break off
    shared.asked.lock().unwrap().push((question.clone(), bytes));
    let plain = question.split('?').next().unwrap();
    while shared.held.lock().unwrap().contains(plain) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found = shared.answers.lock().unwrap().get(plain).cloned();
    if let Some((status, body)) = found {
        return (status, Body::from(body)).into_response();
    }
    let command = match plain.ends_with("/attach") {
        true => shared.main_command.lock().unwrap().clone(),
        false => commands(&question),
    };
    let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &()).await else {
        let problem = Problem::new(StatusCode::NOT_FOUND, "not-found", format!("nothing answers {plain}"));
        return problem.into_response();
    };
    upgrade.protocols([PROTOCOL]).on_upgrade(async move |socket| process(socket, &command).await)
}

fn commands(question: &str) -> Vec<String> {
    let query = question.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// A process that does what the first word of its command says.
async fn process(mut socket: WebSocket, command: &[String]) {
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["echo"] => {
            say(&mut socket, Frame::Stdout(Bytes::from_static(b"out\n"))).await;
            say(&mut socket, Frame::Stderr(Bytes::from_static(b"err\n"))).await;
            say(&mut socket, Frame::End(End::Exited(0))).await;
        }
        ["exit", code] => say(&mut socket, Frame::End(End::Exited(code.parse().unwrap()))).await,
        ["fail"] => say(&mut socket, Frame::End(End::Failed("fail: no such file in the image".into()))).await,
        ["cut"] => {}
        ["babble"] => socket.send(Message::Binary(Bytes::from_static(b"\x09"))).await.unwrap(),
        ["sleep"] => {
            say(&mut socket, Frame::Stdout(Bytes::from_static(b"asleep\n"))).await;
            while next(&mut socket).await.is_some() {}
        }
        ["cat"] => {
            while let Some(frame) = next(&mut socket).await {
                match frame {
                    Frame::Stdin(bytes) => say(&mut socket, Frame::Stdout(bytes)).await,
                    Frame::Close(STDIN) => return say(&mut socket, Frame::End(End::Exited(0))).await,
                    other => panic!("{other:?}"),
                }
            }
        }
        // Says what the terminal does, until the key q.
        ["terminal"] => {
            while let Some(frame) = next(&mut socket).await {
                let text = match frame {
                    Frame::Resize(size) => format!("<{}x{}>", size.width, size.height),
                    Frame::Stdin(keys) if &*keys == b"q" => return say(&mut socket, Frame::End(End::Exited(3))).await,
                    Frame::Stdin(keys) => format!("<{}>", keys.escape_ascii()),
                    other => panic!("{other:?}"),
                };
                say(&mut socket, Frame::Stdout(text.into())).await;
            }
        }
        ref other => panic!("{other:?}"),
    }
}

async fn say(socket: &mut WebSocket, frame: Frame) {
    let _ = socket.send(Message::Binary(frame.encode())).await; // the client may have gone
}

async fn next(socket: &mut WebSocket) -> Option<Frame> {
    match socket.recv().await?.ok()? {
        Message::Binary(bytes) => Some(Frame::decode(bytes).unwrap()),
        _ => None,
    }
}

/// A sandbox that was made an hour ago.
pub fn sandbox(id: &str, phase: Phase) -> Sandbox {
    let mut spec = SandboxSpec::of("python:3.11".parse().unwrap());
    spec.network_policy = Some("research".parse().unwrap());
    spec.resource_limits.memory_bytes = Some("512Mi".parse().unwrap());
    let mut sandbox = Sandbox::wished(id.parse().unwrap(), "node-1".parse().unwrap(), None, spec, ago(HOUR));
    sandbox.phase = phase;
    sandbox
}

pub fn view(id: &str, phase: Phase, usage: Option<(f64, u64)>) -> SandboxView {
    let usage = usage.map(|(cpu_percent, memory_bytes)| Usage { cpu_percent, memory_bytes });
    SandboxView { sandbox: sandbox(id, phase), usage }
}

pub fn sandboxes(sandboxes: Vec<SandboxView>) -> Sandboxes {
    Sandboxes { sandboxes }
}
