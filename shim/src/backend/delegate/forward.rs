//! Calls to a downstream shim: the Task API over ttrpc, under the name that it serves, each with a deadline.

use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc::{self, Code, proto::Request};

use crate::bootstrap::Address;
use crate::error::TaskError;

/// For calls that a shim answers from what it knows.
pub const PROMPT: Duration = Duration::from_secs(10);
/// For one that may boot a machine.
pub const BOOT: Duration = Duration::from_secs(120);
/// For one that runs as long as the workload.
pub const FOR_EVER: Duration = Duration::ZERO;

/// A downstream shim that answers.
#[derive(Clone)]
pub struct Downstream {
    backend: String,
    client: Client,
    service: &'static str,
}

impl Downstream {
    /// Connects.
    pub async fn connect(backend: &str, address: &Address) -> Result<Self, TaskError> {
        let client = Client::connect(&address.socket).await;
        let client = client.map_err(|e| TaskError::host(format!("connecting to {backend}'s shim"), e))?;
        // The two differ in the package's name only.
        let service = if address.api < 3 { "containerd.task.v2.Task" } else { "containerd.task.v3.Task" };
        Ok(Self { backend: backend.to_owned(), client, service })
    }

    /// One call; a patience of zero waits for ever.
    pub async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        patience: Duration,
    ) -> Result<A, TaskError> {
        let unknown = |e: &dyn std::fmt::Display| self.failed(Code::UNKNOWN, method, &e.to_string());
        let request = Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            timeout_nano: patience.as_nanos() as i64,
            payload: request.write_to_bytes().map_err(|e| unknown(&e))?,
            ..Default::default()
        };
        match self.client.request(request).await {
            Ok(response) => A::parse_from_bytes(&response.payload).map_err(|e| unknown(&e)),
            Err(ttrpc::Error::RpcStatus(status)) => Err(self.failed(status.code(), method, &status.message)),
            Err(error) => {
                Err(TaskError::Gone(format!("{}'s shim, asked to {method}", self.backend), error.to_string()))
            }
        }
    }

    fn failed(&self, code: Code, method: &str, text: &str) -> TaskError {
        let text = words(text);
        // Kata says Internal (v4.1) where the program is not in the image.
        let missing = code == Code::INTERNAL && text.starts_with("the file ") && text.ends_with(" was not found");
        let code = if missing { Code::NOT_FOUND } else { code };
        tracing::debug!(backend = self.backend, method, ?code, text, "the downstream shim refuses");
        TaskError::Downstream { code, text: format!("{}'s shim: {text}", self.backend) }
    }
}

/// The words of an error for its reader: Kata's agent appends a stack of its own.
fn words(text: &str) -> &str {
    text.split("\n\nStack backtrace").next().unwrap_or(text).trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_passed_on_without_the_stack_below_it() {
        for (given, expected) in [
            ("the file x was not found\n\nStack backtrace:\n   0: anyhow", "the file x was not found"),
            ("OCI runtime create failed: no\nsuch thing\n", "OCI runtime create failed: no\nsuch thing"),
            ("", ""),
        ] {
            assert_eq!(words(given), expected);
        }
    }
}
