//! The shim of a sandbox, asked on its own socket by the node agent's client.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use creto_runtime::shim::{Address, Exec, Process, Shim, ShimError};
use serde_json::json;
use tokio::runtime::Runtime;
use trust::sandbox_api::{Bound, Description, Policy, Proven, RebindRequest};

use super::trust::Agent;
use super::{Node, PATIENCE, parts};

/// A connection to one sandbox's shim.
pub struct Direct {
    /// The sandbox.
    pub id: String,
    runtime: Runtime,
    shim: Shim,
    output: PathBuf,
}

impl Node {
    /// Runs a sandbox that waits to be claimed.
    #[track_caller]
    pub fn run_waiting(&self, id: &str, options: &[&str]) -> Direct {
        let hold = format!("type=bind,src={},dst=/.creto/hold,options=rbind:ro", parts::hold().display());
        let own = ["--annotation", "creto.dev/claimable=true", "--mount", &hold];
        self.run_detached(id, &[&own, options].concat(), &["/.creto/hold"]);
        self.direct(id)
    }

    /// The shim of a sandbox.
    #[track_caller]
    pub fn direct(&self, id: &str) -> Direct {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = Address::of(&self.path("state"), self.namespace(), id).unwrap();
        let shim = runtime.block_on(Shim::connect(&address)).unwrap();
        Direct { id: id.to_owned(), runtime, shim, output: self.path(&format!("fifos/{id}.exec")) }
    }
}

/// What a claim of this sandbox for an agent asks for.
pub fn claim(sandbox: &str, claim: &str, agent: &Agent) -> RebindRequest {
    RebindRequest {
        sandbox: sandbox.to_owned(),
        claim_id: claim.to_owned(),
        agent: agent.id.clone(),
        proven: Proven::Token.into(),
        pool: "agents".to_owned(),
        ..RebindRequest::default()
    }
}

impl Direct {
    /// What the sandbox is now.
    #[track_caller]
    pub fn describe(&self) -> Description {
        self.runtime.block_on(self.shim.describe(&self.id)).unwrap()
    }

    /// Claims it.
    pub fn rebind(&self, request: &RebindRequest) -> Result<Bound, ShimError> {
        self.runtime.block_on(self.shim.rebind(request))
    }

    /// Gives it another policy.
    pub fn update_policy(&self, policy: Policy) -> Result<Bound, ShimError> {
        self.runtime.block_on(self.shim.update_policy(&self.id, policy))
    }

    /// Runs a command in it to its end, by the shim alone: its status and output.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> (u32, String) {
        static EXECS: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", EXECS.fetch_add(1, Ordering::Relaxed));
        let (process, stdout) = (Process { id: &self.id, exec: &name }, format!("file://{}", self.output.display()));
        let spec = json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let _ = fs::remove_file(&self.output);
        let exit = self.runtime.block_on(async {
            let exec = Exec { process, spec: &spec, stdin: "", stdout: &stdout, stderr: &stdout, terminal: false };
            self.shim.exec(&exec).await.unwrap();
            self.shim.start(process).await.unwrap();
            let exit = self.shim.wait(process, PATIENCE).await.unwrap();
            assert_eq!(self.shim.delete(process).await.unwrap(), exit);
            exit
        });
        (exit.status, fs::read_to_string(&self.output).unwrap_or_default())
    }

    /// Whether a process of this OCI spec may be added to it; nothing is run.
    pub fn try_exec(&self, spec: &serde_json::Value) -> Result<(), String> {
        let process = Process { id: &self.id, exec: "tried" };
        let exec = Exec { process, spec, stdin: "", stdout: "", stderr: "", terminal: false };
        self.runtime.block_on(async {
            self.shim.exec(&exec).await.map_err(|e| trust::chain::chain(&e))?;
            self.shim.delete(process).await.map(drop).map_err(|e| trust::chain::chain(&e))
        })
    }

    /// Ends it with a signal: its exit status.
    #[track_caller]
    pub fn end(&self, signal: u32) -> u32 {
        let init = Process::init(&self.id);
        self.runtime.block_on(async {
            self.shim.kill(init, signal, false).await.unwrap();
            self.shim.wait(init, PATIENCE).await.unwrap().status
        })
    }
}
