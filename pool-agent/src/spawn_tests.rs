//! The order of the steps and their undo, without containerd: with fakes that write down what they are asked, in one journal.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::containerd::{Accounts, Container, Exit, Image, ImageConfig, TaskEvent, Usage, quietly};

#[derive(Default)]
struct Fake {
    journal: Mutex<Vec<String>>,
    /// The calls that fail.
    broken: Vec<&'static str>,
    made: Mutex<Option<NewContainer>>,
}

impl Fake {
    fn note(&self, call: &'static str) -> Result<(), ContainersError> {
        let broken = self.broken.contains(&call);
        self.journal.lock().unwrap().push(format!("{call}{}", if broken { "!" } else { "" }));
        let failed = || ContainersError::Failed { doing: call.into(), message: "broken".into() };
        if broken { Err(failed()) } else { Ok(()) }
    }

    fn wire(&self, call: &'static str) -> Result<(), NetworkError> {
        let host = |_| NetworkError::Host { doing: "break", path: call.into(), source: io::Error::other("broken") };
        self.note(call).map_err(host)
    }
}

#[async_trait]
impl Containers for Fake {
    async fn version(&self) -> Result<String, ContainersError> {
        unimplemented!("a spawn does not ask")
    }
    async fn image(&self, name: &str, _: Progress) -> Result<Image, ContainersError> {
        self.note("image")?;
        let config = ImageConfig { cmd: vec!["serve".into()], ..ImageConfig::default() };
        Ok(Image { name: name.into(), digest: "sha256:aa".into(), chain: "sha256:bb".into(), config })
    }
    async fn accounts(&self, _: &Image) -> Result<Arc<Accounts>, ContainersError> {
        self.note("accounts").map(|()| Arc::default())
    }
    async fn create(&self, new: NewContainer) -> Result<u32, ContainersError> {
        *self.made.lock().unwrap() = Some(new);
        self.note("create").map(|()| 7)
    }
    async fn start(&self, _: &str) -> Result<(), ContainersError> {
        self.note("start")
    }
    async fn kill(&self, _: &str, _: i32) -> Result<(), ContainersError> {
        unimplemented!("delete kills")
    }
    async fn wait(&self, _: &str) -> Result<Exit, ContainersError> {
        unimplemented!("delete waits")
    }
    async fn delete(&self, _: &str) -> Result<(), ContainersError> {
        self.note("delete")
    }
    async fn list(&self, _: Option<(&str, &str)>) -> Result<Vec<Container>, ContainersError> {
        unimplemented!("a spawn does not ask")
    }
    async fn usage(&self, _: &[&str]) -> Result<BTreeMap<String, Usage>, ContainersError> {
        unimplemented!("a spawn does not ask")
    }
    fn events(&self) -> mpsc::Receiver<TaskEvent> {
        unimplemented!("a spawn does not listen")
    }
}

#[async_trait]
impl Networks for Fake {
    async fn attach(&self, id: &SandboxId) -> Result<Attached, NetworkError> {
        self.wire("attach")?;
        let run = |name: &str| PathBuf::from(format!("/run/{id}/{name}"));
        Ok(Attached { netns: run("netns"), addresses: vec![], resolv_conf: run("resolv.conf"), hosts: run("hosts") })
    }
    async fn detach(&self, _: &SandboxId) -> Result<(), NetworkError> {
        self.wire("detach")
    }
    fn attached(&self) -> Result<BTreeSet<SandboxId>, NetworkError> {
        unimplemented!("a spawn does not ask")
    }
}

fn node(broken: &[&'static str]) -> (Arc<Fake>, Node) {
    let fake = Arc::new(Fake { broken: broken.to_vec(), ..Fake::default() });
    let node = Node { containers: fake.clone(), networks: fake.clone(), namespace: "creto".into() };
    (fake, node)
}

fn wanted(network: bool) -> Wanted {
    Wanted {
        id: "c1".parse().unwrap(),
        image: "busybox".into(),
        run: Run::Command(None),
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        limits: Limits::default(),
        network,
        annotations: BTreeMap::new(),
        labels: BTreeMap::new(),
        mounts: vec![],
        stdio: Stdio::Null,
        runtime: "r".into(),
        runtime_path: None,
    }
}

fn journal(fake: &Fake) -> String {
    fake.journal.lock().unwrap().join(" ")
}

#[tokio::test]
async fn whatever_fails_on_the_way_up_leaves_nothing_behind() {
    for (broken, step, said) in [
        ("image", Step::Image, "image!"),
        ("accounts", Step::Spec, "image accounts!"),
        ("attach", Step::Network, "image accounts attach!"),
        // Create undoes itself.
        ("create", Step::Create, "image accounts attach create! detach"),
        ("start", Step::Start, "image accounts attach create start! delete detach"),
    ] {
        let (fake, node) = node(&[broken]);
        let failed = spawn(&node, wanted(true), quietly()).await.unwrap_err();
        assert_eq!((journal(&fake).as_str(), failed.step), (said, step), "broken at {broken}");
        assert_eq!(failed.took.last().unwrap().0, step, "broken at {broken}");
    }
}

#[tokio::test]
async fn what_is_wanted_and_cannot_be_is_refused_before_anything_is_made() {
    let (fake, node) = node(&[]);
    let wanted = Wanted { user: Some("nobody-knows".into()), ..wanted(true) };
    let failed = spawn(&node, wanted, quietly()).await.unwrap_err();
    assert!(matches!(failed.cause, Cause::Spec(SpecError::User(_))), "{failed}");
    assert_eq!(journal(&fake), "image accounts");
}

#[tokio::test]
async fn every_step_of_a_spawn_is_timed_in_its_order() {
    for (network, steps) in [
        (true, vec![Step::Image, Step::Spec, Step::Network, Step::Create, Step::Start]),
        (false, vec![Step::Image, Step::Spec, Step::Create, Step::Start]),
    ] {
        let (_, node) = node(&[]);
        let spawned = spawn(&node, wanted(network), quietly()).await.unwrap();
        assert_eq!(spawned.took.iter().map(|(step, _)| *step).collect::<Vec<_>>(), steps);
        assert_eq!((spawned.pid, spawned.network.is_some()), (7, network));
    }
}

#[tokio::test]
async fn a_held_sandbox_is_claimable_and_reaches_nothing_whatever_was_asked() {
    let (fake, node) = node(&[]);
    let annotations =
        BTreeMap::from([(NETWORK_POLICY.to_owned(), "open".to_owned()), (CLAIMABLE.to_owned(), "false".to_owned())]);
    let wanted = Wanted { run: Run::Hold("/opt/creto-hold".into()), annotations, ..wanted(true) };
    spawn(&node, wanted, quietly()).await.unwrap();
    let spec = fake.made.lock().unwrap().take().unwrap().spec;
    assert_eq!(spec["process"]["args"], json!([HOLDER]));
    assert_eq!(spec["annotations"], json!({CLAIMABLE: "true", NETWORK_POLICY: r#"{"rules":[]}"#}));
    let mounts = spec["mounts"].as_array().unwrap();
    let holder = mounts.iter().find(|mount| mount["destination"] == HOLDER).unwrap();
    assert_eq!(holder["source"], "/opt/creto-hold");
    assert!(holder["options"].as_array().unwrap().contains(&json!("ro")));
    assert_eq!(spec["linux"]["namespaces"][4], json!({"type": "network", "path": "/run/c1/netns"}));
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_deleted_keeps_its_network() {
    for (broken, said) in [(&[][..], "delete detach"), (&["delete"], "delete!"), (&["detach"], "delete detach!")] {
        let (fake, node) = node(broken);
        let done = remove(&node, &"c1".parse().unwrap()).await;
        assert_eq!((journal(&fake).as_str(), done.is_ok()), (said, broken.is_empty()));
    }
}

#[tokio::test]
async fn a_network_is_not_taken_from_a_sandbox_whose_undo_has_failed() {
    let (fake, node) = node(&["start", "delete"]);
    spawn(&node, wanted(true), quietly()).await.unwrap_err();
    assert_eq!(journal(&fake), "image accounts attach create start! delete!");
}
