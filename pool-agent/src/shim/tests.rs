//! Where a shim is found, and what becomes of each of its answers.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::Response;
use containerd_shim_protos::ttrpc::r#async::{MethodHandler, Server, Service, TtrpcContext};
use serde_json::json;

use super::*;

#[test]
fn a_shims_address_is_found_in_every_dialect_of_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("io.containerd.runtime.v2.task/ns/c1");
    fs::create_dir_all(&bundle).unwrap();
    let found = || Address::of(dir.path(), "ns", "c1").map(|address| address.path().display().to_string());
    let missing = found().unwrap_err().to_string();
    assert!(missing.contains("c1/address: No such file"), "{missing}");
    for (name, text, expected) in [
        ("address", "unix:///run/containerd/s/1", Ok("/run/containerd/s/1")), // 1.6, 1.7
        ("address", "unix:///s\n", Ok("/s")),
        ("address", "vsock://3:1024", Err("no address")),
        ("address", "", Err("no address")),
        ("bootstrap.json", r#"{"version":2,"address":"unix:///b","protocol":"ttrpc"}"#, Ok("/b")), // since 2.0
        ("bootstrap.json", r#"{"version":3,"address":"unix:///b"}"#, Ok("/b")),
        ("bootstrap.json", r#"{"version":3,"address":"unix:///b","protocol":"grpc"}"#, Err("speaks \"grpc\"")),
        ("bootstrap.json", r#"{"version":3}"#, Err("missing field `address`")),
        ("bootstrap.json", "", Err("EOF")),
    ] {
        fs::write(bundle.join(name), text).unwrap();
        match (found(), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{text}: {error}"),
            (found, expected) => panic!("{name} {text:?}: {found:?}, expected {expected:?}"),
        }
    }
}

/// A shim that answers claims with their own id where that is no code's, and knows one process.
struct Fake;

const CODES: [(&str, Code); 9] = [
    ("not-found", Code::NOT_FOUND),
    ("exists", Code::ALREADY_EXISTS),
    ("invalid", Code::INVALID_ARGUMENT),
    ("rejected", Code::PERMISSION_DENIED),
    ("refused", Code::FAILED_PRECONDITION),
    ("spoilt", Code::ABORTED),
    ("unavailable", Code::UNAVAILABLE),
    ("late", Code::DEADLINE_EXCEEDED),
    ("failed", Code::UNKNOWN),
];

#[async_trait]
impl MethodHandler for Fake {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let asked = RebindRequest::decode(request.payload.as_slice()).unwrap();
        if asked.claim_id == "never" {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new();
        let code = CODES.iter().find(|(claim, _)| *claim == asked.claim_id).map_or(Code::OK, |(_, code)| *code);
        response.set_status(ttrpc::get_status(code, "because"));
        response.payload =
            Bound { workload: format!("{}/{}", asked.sandbox, asked.claim_id), ..Default::default() }.encode_to_vec();
        Ok(response)
    }
}

#[async_trait]
impl Task for Fake {
    async fn exec(&self, _: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        let spec: serde_json::Value = serde_json::from_slice(&req.spec.value).unwrap();
        assert_eq!((req.spec.type_url.as_str(), &spec["args"][0]), (PROCESS, &json!("sh")));
        assert_eq!((req.id.as_str(), req.exec_id.as_str(), req.stdout.as_str()), ("c1", "e1", "/out"));
        Ok(api::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, req: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        Ok(api::StartResponse { pid: req.exec_id.len() as u32, ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, req: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let status = match req.exec_id.as_str() {
            "created" => api::Status::CREATED,
            "paused" => api::Status::PAUSED,
            "stopped" => api::Status::STOPPED,
            "odd" => api::Status::UNKNOWN,
            _ => api::Status::RUNNING,
        };
        Ok(api::StateResponse { status: status.into(), pid: 7, exit_status: 3, ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, req: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        if req.exec_id.is_empty() {
            std::future::pending::<()>().await;
        }
        Ok(api::WaitResponse { exit_status: 3, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, _: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        Ok(api::DeleteResponse { exit_status: 3, ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<api::Empty> {
        assert_eq!((req.signal, req.all), (15, true));
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        assert_eq!((req.width, req.height), (80, 25));
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        assert!(req.stdin);
        Ok(api::Empty::new())
    }
}

async fn connected(dir: &Path) -> (Server, Shim) {
    let path = dir.join("s");
    let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Fake);
    let own = Service { methods: HashMap::from([(REBIND.to_owned(), method)]), streams: HashMap::new() };
    let server = Server::new().bind(&format!("{SCHEME}{}", path.display())).unwrap();
    let mut server = server
        .register_service(create_task(Arc::new(Fake)))
        .register_service(HashMap::from([(SERVICE.to_owned(), own)]));
    server.start().await.unwrap();
    (server, Shim::connect(&Address::parse(path.to_str().unwrap()).unwrap()).await.unwrap())
}

fn kind(error: ShimError) -> &'static str {
    match error {
        ShimError::Gone { .. } => "gone",
        ShimError::Late(_) => "late",
        ShimError::NotFound(_) => "not-found",
        ShimError::AlreadyExists(_) => "exists",
        ShimError::Invalid(_) => "invalid",
        ShimError::Rejected(_) => "rejected",
        ShimError::Refused(_) => "refused",
        ShimError::Spoilt(_) => "spoilt",
        ShimError::Unavailable(_) => "unavailable",
        ShimError::Failed(_) => "failed",
        ShimError::Because { .. } => "marked",
    }
}

#[tokio::test]
async fn each_answer_to_a_claim_is_told_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, shim) = connected(dir.path()).await;
    let claim =
        |claim_id: &str| RebindRequest { sandbox: "c1".into(), claim_id: claim_id.into(), ..RebindRequest::default() };
    assert_eq!(shim.rebind(&claim("c-1")).await.unwrap().workload, "c1/c-1");
    for (claim_id, _) in CODES {
        assert_eq!(kind(shim.rebind(&claim(claim_id)).await.unwrap_err()), claim_id);
    }
    // A mark says more than the code; what is spoilt is spoilt, whatever has spoilt it.
    let marked = |code| refused("Rebind", code, Cause::FenceLost.mark("no fence"));
    match marked(Code::FAILED_PRECONDITION) {
        ShimError::Because { cause, message } => assert_eq!((cause, &*message), (Cause::FenceLost, "no fence")),
        other => panic!("{other:?}"),
    }
    assert_eq!(kind(marked(Code::ABORTED)), "spoilt");
    let patience = Duration::from_millis(20);
    let never = shim.own::<_, Bound>(REBIND, &claim("never"), patience).await.unwrap_err();
    assert_eq!(kind(never), "late");
    assert!(shim.describe("c1").await.is_err(), "this one has no such method");
}

#[tokio::test]
async fn processes_are_run_seen_and_forgotten_without_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, shim) = connected(dir.path()).await;
    let process = Process { id: "c1", exec: "e1" };
    let spec = json!({"args": ["sh"], "cwd": "/"});
    shim.exec(&Exec { process, spec: &spec, stdin: "", stdout: "/out", stderr: "", terminal: false }).await.unwrap();
    assert_eq!(shim.start(process).await.unwrap(), 2);
    shim.resize_pty(process, 80, 25).await.unwrap();
    shim.close_io(process).await.unwrap();
    shim.kill(process, 15, true).await.unwrap();
    let exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };
    assert_eq!(shim.wait(process, PROMPT).await.unwrap(), exit);
    assert_eq!(shim.delete(process).await.unwrap(), exit);
    assert_eq!(kind(shim.wait(Process::init("c1"), Duration::ZERO).await.unwrap_err()), "late");
    for (exec, expected) in [
        ("", State::Running(7)),
        ("created", State::Created),
        ("paused", State::Paused(7)),
        ("stopped", State::Stopped(exit)),
    ] {
        assert_eq!(shim.state(Process { id: "c1", exec }).await.unwrap(), expected);
    }
    assert_eq!(kind(shim.state(Process { id: "c1", exec: "odd" }).await.unwrap_err()), "failed");
}

#[tokio::test]
async fn a_shim_that_is_not_there_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = Address::parse(dir.path().join("s").to_str().unwrap()).unwrap();
    let error = Shim::connect(&nowhere).await.err().unwrap();
    assert!(error.to_string().contains("does not answer at"), "{error}");
    let (mut server, shim) = connected(dir.path()).await;
    server.shutdown().await.unwrap();
    assert_eq!(kind(shim.start(Process::init("c1")).await.unwrap_err()), "gone");
}
