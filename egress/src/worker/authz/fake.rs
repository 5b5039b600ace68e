//! A decision point for tests, on loopback: it answers what it is told to, when it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Authz;
use super::authzen::Service;
use super::setup::{DecisionPoint, Limits, Setup};

/// Answers every question with `answer`, as often as `gate` lets it; an answer that is empty cuts the connection.
pub struct Pdp {
    pub url: String,
    pub connected: AtomicUsize,
    pub asked: AtomicUsize,
    pub question: Mutex<(String, Value)>,
    answer: Mutex<String>,
    pub gate: Semaphore,
}

impl Pdp {
    pub async fn start() -> Arc<Self> {
        let (listener, pdp) = Self::listen("http", "127.0.0.1").await;
        let serving = pdp.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connected.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        pdp
    }

    pub async fn listen(scheme: &str, host: &str) -> (TcpListener, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let (connected, asked, question) = Default::default();
        let (answer, gate) = (Mutex::new(says("true")), Semaphore::new(Semaphore::MAX_PERMITS));
        (listener, Arc::new(Self { url, connected, asked, question, answer, gate }))
    }

    pub async fn serve(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            *self.question.lock().unwrap() = (head, serde_json::from_slice(&body).unwrap());
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            let answer = self.answer.lock().unwrap().clone();
            if stream.write_all(answer.as_bytes()).await.is_err() || !answer.contains("keep-alive") {
                return;
            }
        }
    }

    pub fn answers(&self, answer: impl Into<String>) {
        *self.answer.lock().unwrap() = answer.into();
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Questions wait until `gate` has permits again.
    pub fn close(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn setup(&self) -> Setup {
        let (url, addresses) = (self.url.clone(), vec![]);
        let limits = Limits { deadline: Duration::from_secs(60), ..Limits::default() };
        Setup { limits, point: DecisionPoint::AuthZen(Service { url, addresses, ca: None, token: None }) }
    }

    pub fn authz(&self) -> Authz {
        authz(self.setup())
    }
}

pub fn authz(setup: Setup) -> Authz {
    let authz = Authz::new();
    authz.set_up(setup).unwrap();
    authz
}

pub fn answer(status: &str, media: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: keep-alive\r\n\r\n{body}"
    )
}

pub fn says(decision: &str) -> String {
    answer("200 OK", "application/json", &format!(r#"{{"decision":{decision}}}"#))
}
