//! The node agent's API on its socket, as an orchestrator asks it: one question, and its answer or what became of the connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::Node;

/// A claim that waits may take so long.
const LONGEST: Duration = Duration::from_secs(150);

impl Node {
    /// Asks; the status and the body of the answer. An error is a connection that was not there, or broke before its answer.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.path("creto/run/pool-agent.sock"))?;
        stream.set_read_timeout(Some(LONGEST))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: creto\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("no whole answer: {answer:?}"));
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
        Ok((status, serde_json::from_str(body).map_err(|_| broken())?))
    }
}
