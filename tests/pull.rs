//! Images out of a registry, by containerd, with the credentials of `docker login`; what is there already is not asked for again.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use creto_runtime::containerd::{Containers, ContainersError, Pulled, quietly};
use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::parts::Containerd;
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::{Node, Setup};

fn logged_in(agent: &Agent, registry: &Registry, password: &str) -> std::path::PathBuf {
    use base64::Engine;
    let auth = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{password}"));
    let path = agent.node.path("docker.json");
    let host = registry.host();
    fs::write(&path, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    path
}

fn pulling<'a>(node: &'a Node, docker: &Path) -> Agent<'a> {
    Agent::with(node, "10-creto.conflist", |settings| creto_runtime::containerd::Settings {
        docker_config: Some(docker.to_owned()),
        ..settings
    })
}

#[test]
fn an_image_is_pulled_by_tag_or_digest_once_and_runs() {
    for setup in [
        Setup::default(),
        // Not one that containerd's transfer service unpacks for.
        Setup { snapshotter: Some("native"), ..Setup::default() },
    ] {
        let what = format!("{:?}, {:?}", setup.containerd, setup.snapshotter);
        let node = Node::with(setup);
        let registry = Registry::with_image(&node);
        let agent = pulling(&node, &node.path("docker.json"));
        logged_in(&agent, &registry, PASSWORD);
        agent.block_on(async {
            let seen: Arc<Mutex<Vec<Pulled>>> = Arc::default();
            let told = seen.clone();
            let progress = Arc::new(move |pulled| told.lock().unwrap().push(pulled));
            let image = agent.containerd.image(&registry.image("1"), progress).await.expect(&what);
            assert_eq!(image.config.env, ["PATH=/bin"], "{what}");
            assert!(!seen.lock().unwrap().is_empty(), "{what}: nothing is told of the pull");

            let by_digest = format!("{}/team/busybox@{}", registry.host(), image.digest);
            let same = agent.containerd.image(&by_digest, quietly()).await.expect(&what);
            assert_eq!((same.digest, same.chain), (image.digest, image.chain), "{what}");
            let mut wanted = agent.wanted("s", &["sh", "-c", "exit 3"]);
            wanted.image = by_digest;
            agent.spawn(wanted).await.expect(&what);
            assert_eq!(agent.containerd.wait("s").await.unwrap().status, 3, "{what}");
            agent.remove("s").await;

            // Local first: the registry is not asked any more.
            drop(registry);
            let name = image.name.clone();
            assert_eq!(agent.containerd.image(&name, quietly()).await.expect(&what).name, name);
        });
        agent.assert_nothing_left();
    }
}

#[test]
fn an_image_that_is_not_there_and_one_that_is_not_given_are_told_apart() {
    let node = Node::start();
    let registry = Registry::with_image(&node);
    let agent = pulling(&node, &node.path("docker.json"));
    agent.block_on(async {
        let ask = async |name: &str| agent.containerd.image(name, quietly()).await.expect_err(name);
        logged_in(&agent, &registry, PASSWORD);
        for name in [registry.image("2"), format!("{}/team/other:1", registry.host())] {
            let error = ask(&name).await;
            assert!(matches!(&error, ContainersError::ImageNotFound(image) if *image == name), "{error:?}");
        }
        logged_in(&agent, &registry, "guess");
        let error = ask(&registry.image("1")).await;
        assert!(matches!(&error, ContainersError::ImageForbidden { .. }), "{error:?}");
        assert!(!error.to_string().contains("guess"), "{error}");
        fs::remove_file(node.path("docker.json")).unwrap();
        let error = ask(&registry.image("1")).await;
        assert!(matches!(&error, ContainersError::ImageForbidden { .. }), "{error:?}");
        let name = registry.image("1");
        drop(registry);
        let error = ask(&name).await;
        assert!(matches!(&error, ContainersError::Failed { .. }), "nobody is there: {error:?}");
    });
    agent.assert_nothing_left();
}

#[test]
fn a_containerd_that_cannot_pull_says_so_and_runs_what_was_imported() {
    let node = Node::with(Setup { containerd: Containerd::V1_6, ..Setup::default() });
    let agent = Agent::of(&node, "10-creto.conflist");
    agent.block_on(async {
        let error = agent.containerd.image("127.0.0.1:1/a:b", quietly()).await.unwrap_err();
        assert!(error.to_string().contains("containerd 1.7 or later"), "{error}");
        agent.spawn(agent.wanted("s", &["true"])).await.unwrap();
        assert_eq!(agent.containerd.wait("s").await.unwrap().status, 0);
        agent.remove("s").await;
    });
}
