//! What the node agent says of its API is so: its answers fit its OpenAPI document, and schemathesis, which asks whatever the document
//! allows and forbids, finds no failure of the server's and no answer that the document does not know.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::harness::http::{Answer, over_socket, over_tcp, question};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::parts;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::Agent;
use crate::leak_table::{POLICY, backend};

/// The document, which tells of an answer whether it fits.
struct Document(Value);

impl Document {
    fn served(network: &Network) -> Self {
        let answer = over_tcp(network, &question("GET", "/openapi.json", "", ""));
        assert_eq!(answer.status, 200);
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/creto-runtime.openapi.json");
        let kept: Value = serde_json::from_slice(&fs::read(kept).unwrap()).unwrap();
        assert!(answer.json() == kept, "docs/creto-runtime.openapi.json is not what is served");
        Self(kept)
    }

    /// Whether this is an answer that an operation may give.
    #[track_caller]
    fn assert_fits(&self, operation: &str, answer: &Answer) {
        let paths = self.0["paths"].as_object().unwrap().values();
        let mut all = paths.flat_map(|path| path.as_object().unwrap().values());
        let said =
            all.find(|one| one["operationId"] == operation).unwrap_or_else(|| panic!("no operation {operation}"));
        let response = &said["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{operation}: {} is not in the document: {}", answer.status, answer.json());
        let Some(content) = response["content"].as_object() else {
            return assert!(answer.body.is_empty(), "{operation}: a body that nobody was told of");
        };
        let media = answer.header("content-type").unwrap_or_default();
        let schema = content.get(media).unwrap_or_else(|| panic!("{operation}: {media} is not in the document"));
        let Some(schema) = schema.get("schema") else { return };
        let body =
            if media.starts_with("text/") { json!(String::from_utf8_lossy(&answer.body)) } else { answer.json() };
        let whole = json!({ "allOf": [schema], "components": self.0["components"] });
        jsonschema::validate(&whole, &body).unwrap_or_else(|e| panic!("{operation}: {e}: {body}"));
    }
}

#[test]
fn each_answer_is_as_the_document_says() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let owner = Agent::register(&network.node, "a", 1);
    let document = Document::served(&network);
    let ask = |operation: &str, method: &str, path: &str, body: &str| {
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let answer = over_socket(&network, &question(method, path, kind, body));
        document.assert_fits(operation, &answer);
        answer
    };
    let good = |operation: &str, method: &str, path: &str, body: &str| {
        let answer = ask(operation, method, path, body);
        assert!((200..300).contains(&answer.status), "{operation}: {} {}", answer.json(), agent.log());
        answer.json()
    };
    ask("getJwks", "GET", "/.well-known/jwks.json", "");
    let pool = format!(
        "{{\"name\":\"demo\",\"template\":{{\"spec\":{{\"image\":{BUSYBOX:?},\"resourceLimits\":{{\"memoryBytes\":\"256Mi\"}},\"ttl\":\"1h\"}}}},\"scaling\":{{\"minReady\":1,\"maxReady\":2}}}}"
    );
    good("createPool", "POST", "/v1/warm-pools", &pool);
    ask("createPool", "POST", "/v1/warm-pools", &pool);
    agent.wait_ready("demo", 1);
    let claim =
        json!({ "agent": owner.id, "networkPolicy": "web", "idempotencyKey": "1", "command": ["sleep", "1000"] });
    let claimed = good("claim", "POST", "/v1/warm-pools/demo/claims", &claim.to_string());
    let id = claimed["sandbox"]["id"].as_str().unwrap().to_owned();
    let spec = json!({ "spec": { "image": BUSYBOX, "command": ["sh", "-c", "echo out; sleep 1000"], "networkPolicy": { "rules": [] } }, "name": "box" });
    good("spawnSandbox", "POST", "/v1/sandboxes", &spec.to_string());
    ask("spawnSandbox", "POST", "/v1/sandboxes", &spec.to_string());
    for (operation, path) in [
        ("getHealth", "/health"),
        ("getMetrics", "/metrics"),
        ("describe", "/openapi.json"),
        ("getJwks", "/.well-known/jwks.json"),
        ("listKeys", "/v1/keys"),
        ("listSandboxes", "/v1/sandboxes?status=running&selector=!none&limit=10"),
        ("getSandbox", "/v1/sandboxes/box"),
        ("getSandboxLogs", "/v1/sandboxes/box/logs?tail=5"),
        ("listPools", "/v1/warm-pools"),
        ("getPool", "/v1/warm-pools/demo"),
        ("getPoolStats", "/v1/warm-pools/demo/stats"),
        ("getPoolLogs", "/v1/warm-pools/demo/logs?phase=Warming"),
        ("listRuntimes", "/v1/runtimes"),
        ("listAttestations", "/v1/attestations"),
        ("getAttestation", &format!("/v1/attestations/{id}")),
        ("searchAudit", "/v1/audit?limit=3&event=SandboxCreated&since=1h"),
        ("listPolicies", "/v1/policies"),
        ("getPolicy", "/v1/policies/web"),
        ("explainPolicy", "/v1/policies/web/explanation?destination=open.creto.net"),
        ("getFiles", "/v1/sandboxes/box/files?path=/etc"),
    ] {
        good(operation, "GET", path, "");
    }
    for (operation, method, path, body) in [
        ("getSandbox", "GET", "/v1/sandboxes/none", ""),
        ("exec", "GET", "/v1/sandboxes/box/exec?command=true", ""),
        ("claim", "POST", "/v1/warm-pools/none/claims", "{}"),
        ("getFiles", "GET", "/v1/sandboxes/box/files?path=/none", ""),
        ("setRuntime", "PUT", "/v1/runtimes/none", "{\"drained\":true}"),
    ] {
        assert!(ask(operation, method, path, body).status >= 400);
    }
    good("updatePool", "PATCH", "/v1/warm-pools/demo", "{\"minReady\":0}");
    good("evictMembers", "POST", "/v1/warm-pools/demo/evictions", "{\"count\":1}");
    good("spawnMember", "POST", "/v1/warm-pools/demo/members", "");
    good("drainPool", "POST", "/v1/warm-pools/demo/drain", "");
    good("enablePool", "POST", "/v1/warm-pools/demo/enable", "");
    good("setRuntime", "PUT", "/v1/runtimes/kata", "{\"drained\":false}");
    good("terminateSandbox", "DELETE", "/v1/sandboxes/box?force=true", "");
    good("terminateSandboxes", "DELETE", "/v1/sandboxes?force=true", "");
    good("deletePool", "DELETE", "/v1/warm-pools/demo", "");
    agent.clear();
}

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,unsupported_method";

/// What nobody asks: an answer that has no end, and a tar, which schemathesis makes none of.
const UNASKED: [&str; 4] = ["--exclude-operation-id", "listenToEvents", "--exclude-operation-id", "putFiles"];
/// Well and badly; and badly alone: no examples, which are good ones.
const WELL: [&str; 2] = ["--phases", "examples,coverage,fuzzing"];
const BADLY: [&str; 4] = ["--phases", "coverage,fuzzing", "--mode", "negative"];
/// Not without the token that nobody needs at the socket.
const TRUSTED: [&str; 2] = ["--generation-with-security-parameters", "false"];
/// What makes sandboxes, where it is asked well.
const MAKES: [&str; 3] = ["spawnSandbox", "claim", "spawnMember"];

/// schemathesis inside the node's network, bounded and the same each time. `judge`: its settings.
fn schemathesis(network: &Network, port: u16, judge: &str, checks: &str, more: &[&str]) -> Child {
    let dir = network.node.path(&format!("schemathesis-{}", more.join("").len())); // where it leaves its things
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("schemathesis.toml"), judge).unwrap();
    let mut command = network.host.command("python3");
    command
        .args(["-c", "from schemathesis.cli import schemathesis; schemathesis()"])
        .env("PYTHONPATH", parts::schemathesis());
    command.env("HOME", &dir).current_dir(&dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(["--config-file", "schemathesis.toml", "run", "--seed", "1", "--max-examples", "4", "--no-shrink"]);
    command.args(["--request-timeout", "60", "--warnings", "off"]);
    command.args(["--checks", checks]).args(more).arg(format!("http://127.0.0.1:{port}/openapi.json"));
    command.spawn().unwrap()
}

/// It has found nothing, and the agent is well.
#[track_caller]
fn assert_found_nothing(agent: &PoolAgent<'_>, asks: Child) {
    let done = asks.wait_with_output().unwrap();
    let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}\n{error}\n{}", agent.log());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn whoever_has_no_token_finds_nothing_that_the_document_does_not_say() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "[api.rate]\nanonymous = 0\n"); // as often as it likes
    // Too large a body is refused before it is looked at.
    let judge = "[checks]\nnegative_data_rejection.expected-statuses = [\"4xx\", \"5xx\"]\n";
    let checks = format!("{CHECKS},ignored_auth");
    assert_found_nothing(&agent, schemathesis(&network, 8080, judge, &checks, &[&WELL[..], &UNASKED].concat()));
    assert_eq!(agent.json(&["list"]), json!([]), "nothing was made");
    agent.clear();
}

/// Two ask side by side: one whatever makes no sandbox, well and badly, and one badly for sandboxes. (Asked well for one, the agent pulls
/// images that nobody has.)
#[test]
fn neither_does_the_operator() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "[limits]\nsandboxes = 4\nspawn = \"2s\"\n");
    let port = to_socket(&network);
    let pool = ["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "0", "--max-ready", "1"];
    agent.cli(&pool).ok();
    // The node may be drained or full; and what is no mistake after all is asked for in vain, within what a spawn may take.
    let judge = |failures: &str| {
        format!(
            "[checks]\nnot_a_server_error.expected-statuses = [\"2xx\", \"3xx\", \"4xx\", {failures}]\n\
             negative_data_rejection.expected-statuses = [\"4xx\", {failures}]\n"
        )
    };
    let others: Vec<_> = MAKES.iter().flat_map(|operation| ["--exclude-operation-id", operation]).collect();
    let makes: Vec<_> = MAKES.iter().flat_map(|operation| ["--include-operation-id", operation]).collect();
    let whatever =
        schemathesis(&network, port, &judge("503"), CHECKS, &[&WELL[..], &TRUSTED, &UNASKED, &others].concat());
    let badly = schemathesis(&network, port, &judge("502, 503, 504"), CHECKS, &[&BADLY[..], &TRUSTED, &makes].concat());
    assert_found_nothing(&agent, badly);
    assert_found_nothing(&agent, whatever);
    agent.cli(&["enable", "--runtime", "gvisor"]).ok();
    agent.clear();
}

/// A port in the node's network behind which its socket is; for clients that know TCP alone.
fn to_socket(network: &Network) -> u16 {
    let socket = network.node.path("creto/run/pool-agent.sock");
    let listener = network.host.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(client), Ok(server)) = (stream, UnixStream::connect(&socket)) else { return }; // the agent has ended
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || carry(from, &to, |to| drop(to.shutdown(Shutdown::Write))));
            thread::spawn(move || carry(server, &client, |to: &TcpStream| drop(to.shutdown(Shutdown::Both))));
        }
    });
    port
}

fn carry<T>(mut from: impl Read, to: &T, ended: impl FnOnce(&T))
where
    for<'a> &'a T: Write,
{
    let mut out = to;
    let _ = io::copy(&mut from, &mut out); // whoever hangs up ends it
    ended(to);
}
