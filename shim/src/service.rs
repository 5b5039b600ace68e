//! The RPC table, under both of containerd's names for the Task service: name | request | response. Wire types end here.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;

use crate::error::TaskError;
use crate::events::timestamp;
use crate::task::{Input, Phase};
use crate::tasks::{Key, Pod};
use crate::{checkpoint, create, exec};

/// The service that ttrpc calls.
#[derive(Clone)]
pub struct Service(pub Arc<Pod>);

impl Service {
    async fn freeze(&self, key: &Key, pause: bool) -> Result<(), TaskError> {
        let (verb, from, input) = match pause {
            true => ("pause", Phase::Running, Input::Paused),
            false => ("resume", Phase::Paused, Input::Resumed),
        };
        let phase = self.0.with(key, |p| p.phase)?;
        if phase != from {
            return Err(TaskError::WrongPhase { verb, what: key.to_string(), phase });
        }
        self.0.backend()?.freeze(&key.id, pause).await?;
        self.0.advance(key, verb, input)
    }
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> Answer<StateResponse> {
        let key = Key { id: req.id.clone(), exec: req.exec_id.clone() };
        Ok(self.0.with(&key, |p| {
            let (status, exit) = match p.phase {
                Phase::Created => (Status::CREATED, None),
                Phase::Starting | Phase::DiedEarly(_) | Phase::Running => (Status::RUNNING, None),
                Phase::Paused => (Status::PAUSED, None),
                Phase::Stopped(exit) => (Status::STOPPED, Some(exit)),
            };
            StateResponse {
                id: req.id,
                bundle: p.bundle.to_string_lossy().into_owned(),
                pid: p.pid as u32,
                status: status.into(),
                stdin: p.stdio.stdin.clone(),
                stdout: p.stdio.stdout.clone(),
                stderr: p.stdio.stderr.clone(),
                terminal: p.stdio.terminal,
                exit_status: exit.map_or(0, |e| e.status),
                exited_at: exit.map(|e| timestamp(e.at)).into(),
                exec_id: req.exec_id,
                ..Default::default()
            }
        })?)
    }

    async fn create(&self, _: &TtrpcContext, req: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let pod = self.0.clone();
        // In a task of its own: a client that goes away must not drop the undo.
        let made = tokio::spawn(async move { create::create(&pod, req).await }).await;
        let pid = made.map_err(|e| TaskError::host("creating the task", e))??;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> Answer<StartResponse> {
        let (pod, key) = (self.0.clone(), Key { id: req.id, exec: req.exec_id });
        let started = tokio::spawn(async move { create::start(&pod, &key).await }).await;
        let pid = started.map_err(|e| TaskError::host("starting the process", e))??;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> Answer<DeleteResponse> {
        let (pod, key) = (self.0.clone(), Key { id: req.id, exec: req.exec_id });
        let deleted = tokio::spawn(async move { create::delete(&pod, &key).await }).await;
        let (pid, exit) = deleted.map_err(|e| TaskError::host("deleting the process", e))??;
        let exited_at = MessageField::some(timestamp(exit.at));
        Ok(DeleteResponse { pid, exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> Answer<PidsResponse> {
        let init = self.0.with(&Key::init(&req.id), |p| p.pid as u32)?;
        let pids = self.0.backend()?.pids(&req.id, init).await?;
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, ..Default::default() }).collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> Answer<Empty> {
        self.freeze(&Key::init(&req.id), true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> Answer<Empty> {
        self.freeze(&Key::init(&req.id), false).await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> Answer<Empty> {
        create::kill(&self.0, &Key { id: req.id, exec: req.exec_id }, req.signal, req.all).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> Answer<Empty> {
        exec::register(&self.0, req)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> Answer<Empty> {
        let key = Key { id: req.id, exec: req.exec_id };
        let resized = self.0.with(&key, |p| p.io.resize(req.width as u16, req.height as u16))?;
        resized.map_err(|e| TaskError::host("resizing the terminal", e))?;
        self.0.backend()?.resized(&key, req.width, req.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> Answer<Empty> {
        self.0.with(&Key { id: req.id, exec: req.exec_id }, |p| p.io.close_stdin())?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> Answer<WaitResponse> {
        let mut done = self.0.with(&Key { id: req.id, exec: req.exec_id }, |p| p.done.subscribe())?;
        let ended = done.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|e| *e).ok_or_else(|| TaskError::NotFound("the process".into()))?;
        let exited_at = MessageField::some(timestamp(exit.at));
        Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, req: CheckpointTaskRequest) -> Answer<Empty> {
        checkpoint::checkpoint(&self.0, req).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> Answer<Empty> {
        self.0.with(&Key::init(&req.id), |_| ())?;
        self.0.backend()?.update(&req.id, &req.resources).await?;
        match (self.0.bound(), self.0.begins_with(&req.id)) {
            (Some(bound), true) => bound.updated()?,
            (Some(bound), false) => bound.limits_may_have_changed(),
            (None, _) => {}
        }
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, req: StatsRequest) -> Answer<StatsResponse> {
        self.0.with(&Key::init(&req.id), |_| ())?;
        let metrics = self.0.backend()?.stats(&req.id).await?;
        Ok(StatsResponse { stats: MessageField::some(metrics), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, req: ConnectRequest) -> Answer<ConnectResponse> {
        let task_pid = self.0.with(&Key::init(&req.id), |p| p.pid as u32).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        self.0.end_when_empty();
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use containerd_shim_protos::ttrpc::{Code, MessageHeader};

    use super::*;
    use crate::backend::Place;
    use crate::backend::gvisor::Gvisor;
    use crate::events::Events;
    use crate::stdio;
    use crate::task::Exit;
    use crate::tasks::Process;

    /// The phases of a task, and none at all.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Given {
        Nothing,
        In(Phase),
    }

    /// A pod whose sandbox does not exist: a call that gets past the phase's check fails on the host (Unknown).
    fn pod(given: Given, dir: &std::path::Path) -> Service {
        let place = Place { dir: dir.to_owned(), address: "".into(), namespace: "ns".into(), group: "c1".into() };
        let pod = Pod::new(place, Events::new(None, "ns".into()));
        if let Given::In(phase) = given {
            pod.adopt(Gvisor::open(pod.place.clone(), None, Default::default()).unwrap());
            let mut process = Process::new(stdio::Request::default(), "/bundle".into());
            process.phase = phase;
            if let Phase::Stopped(exit) = phase {
                process.done.send_replace(Some(exit));
            }
            pod.insert(Key::init("c1"), process);
        }
        Service(Arc::new(pod))
    }

    async fn code(rpc: &str, given: Given) -> Code {
        let dir = tempfile::tempdir().unwrap();
        let service = pod(given, dir.path());
        let (id, exec_id) = ("c1".to_owned(), String::new());
        let context = TtrpcContext {
            mh: MessageHeader::default(),
            metadata: Default::default(),
            timeout_nano: 0,
            connection_data: Default::default(),
        };
        let c = &context;
        let answer = match rpc {
            "state" => service.state(c, StateRequest { id, ..Default::default() }).await.map(drop),
            "start" => service.start(c, StartRequest { id, ..Default::default() }).await.map(drop),
            "delete" => service.delete(c, DeleteRequest { id, ..Default::default() }).await.map(drop),
            "pids" => service.pids(c, PidsRequest { id, ..Default::default() }).await.map(drop),
            "pause" => service.pause(c, PauseRequest { id, ..Default::default() }).await.map(drop),
            "resume" => service.resume(c, ResumeRequest { id, ..Default::default() }).await.map(drop),
            "checkpoint" => service.checkpoint(c, CheckpointTaskRequest { id, ..Default::default() }).await.map(drop),
            "kill" => service.kill(c, KillRequest { id, signal: 15, ..Default::default() }).await.map(drop),
            "kill with signal 0" => service.kill(c, KillRequest { id, ..Default::default() }).await.map(drop),
            "exec" => service.exec(c, ExecProcessRequest { id, exec_id, ..Default::default() }).await.map(drop),
            "resize_pty" => service.resize_pty(c, ResizePtyRequest { id, ..Default::default() }).await.map(drop),
            "close_io" => service.close_io(c, CloseIORequest { id, ..Default::default() }).await.map(drop),
            "update" => service.update(c, UpdateTaskRequest { id, ..Default::default() }).await.map(drop),
            "stats" => service.stats(c, StatsRequest { id, ..Default::default() }).await.map(drop),
            "create" => service.create(c, CreateTaskRequest { id, ..Default::default() }).await.map(drop),
            "wait" => service.wait(c, WaitRequest { id, ..Default::default() }).await.map(drop),
            "connect" => service.connect(c, ConnectRequest { id, ..Default::default() }).await.map(drop),
            "shutdown" => service.shutdown(c, ShutdownRequest { id, ..Default::default() }).await.map(drop),
            other => panic!("no such RPC: {other}"),
        };
        match answer {
            Ok(()) => Code::OK,
            Err(ttrpc::Error::RpcStatus(status)) => status.code(),
            Err(other) => panic!("not a status: {other}"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_rpc_answers_the_code_of_the_tasks_phase() {
        const OK: Code = Code::OK;
        const GONE: Code = Code::NOT_FOUND;
        const PHASE: Code = Code::FAILED_PRECONDITION;
        const BAD: Code = Code::INVALID_ARGUMENT;
        const HOST: Code = Code::UNKNOWN; // past the check, and there is no sandbox
        let stopped = Phase::Stopped(Exit { status: 7, at: SystemTime::UNIX_EPOCH });
        let phases = [
            Given::Nothing,
            Given::In(Phase::Created),
            Given::In(Phase::Starting),
            Given::In(Phase::Running),
            Given::In(Phase::Paused),
            Given::In(stopped),
        ];
        for (rpc, expected) in [
            //              nothing, created, starting, running, paused, stopped
            ("state", [GONE, OK, OK, OK, OK, OK]),
            ("start", [GONE, HOST, PHASE, PHASE, PHASE, PHASE]),
            ("delete", [GONE, PHASE, PHASE, PHASE, PHASE, OK]),
            ("pids", [GONE, OK, OK, OK, OK, OK]),
            ("pause", [GONE, PHASE, PHASE, HOST, PHASE, PHASE]),
            ("resume", [GONE, PHASE, PHASE, PHASE, HOST, PHASE]),
            ("checkpoint", [GONE, PHASE, PHASE, HOST, HOST, PHASE]),
            ("kill with signal 0", [BAD, BAD, BAD, BAD, BAD, BAD]),
            ("exec", [GONE, PHASE, PHASE, BAD, PHASE, PHASE]), // it has no exec id
            ("resize_pty", [GONE, OK, OK, OK, OK, OK]),
            ("close_io", [GONE, OK, OK, OK, OK, OK]),
            ("update", [GONE, BAD, BAD, BAD, BAD, BAD]), // it has no resources
            ("stats", [GONE, HOST, HOST, HOST, HOST, HOST]),
            ("connect", [OK; 6]),
            ("shutdown", [OK; 6]),
        ] {
            for (given, expected) in phases.into_iter().zip(expected) {
                assert_eq!(code(rpc, given).await, expected, "{rpc} of {given:?}");
            }
        }
        for (rpc, given, expected) in [
            ("create", Given::In(stopped), Code::ALREADY_EXISTS),
            ("create", Given::Nothing, HOST), // it has no bundle
            ("wait", Given::Nothing, GONE),
            ("wait", Given::In(stopped), OK),
            ("kill", Given::Nothing, GONE),
            ("kill", Given::In(stopped), GONE),
            ("kill", Given::In(Phase::Running), HOST),
        ] {
            assert_eq!(code(rpc, given).await, expected, "{rpc} of {given:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_that_would_lead_elsewhere_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", ".", "..", "../c1", "a/b", "a\0b", "a b", &"a".repeat(200)] {
            let service = pod(Given::In(Phase::Running), dir.path());
            let request = CreateTaskRequest { id: bad.into(), bundle: "/bundle".into(), ..Default::default() };
            let created = create::create(&service.0, request).await.unwrap_err();
            let request = ExecProcessRequest { id: "c1".into(), exec_id: bad.into(), ..Default::default() };
            let exec = exec::register(&service.0, request).unwrap_err();
            for error in [created, exec] {
                assert_eq!(error.code(), Code::INVALID_ARGUMENT, "{bad:?}: {error}");
            }
            assert!(!dir.path().join("bundles").exists(), "{bad:?}");
        }
    }
}
