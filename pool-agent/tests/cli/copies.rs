//! Files go into a sandbox and come out of it; whoever is in it writes nowhere else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use axum::http::StatusCode;
use creto_runtime::api::problem::Problem;

use crate::node::Node;
use crate::pool_agent::PoolAgent;

const FILES: &str = "/v1/sandboxes/box-1/files";

/// A tar of files with their texts; one of `->` is a link to what follows.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4755);
        // Whoever writes it is not bound by what a library lets pass.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        match text.strip_prefix("->") {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                header.set_link_name(target).unwrap();
                header.set_cksum();
                tar.append(&header, std::io::empty()).unwrap();
            }
            None => {
                header.set_size(text.len() as u64);
                header.set_cksum();
                tar.append(&header, text.as_bytes()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_file_comes_out_under_the_name_it_is_to_have() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as(&format!("GET {FILES}"), StatusCode::OK, &tar(&[("result", "42")]));
    let there = node.path("there");
    fs::create_dir(&there).unwrap();
    for (to, place) in [("there", "there/result"), ("there/x", "there/x"), ("there/x", "there/x")] {
        node.run(&["cp", "box-1:/tmp/result", node.path(to).to_str().unwrap()]).good();
        let place = node.path(place);
        assert_eq!(fs::read_to_string(&place).unwrap(), "42");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7000, 0, "nothing comes out setuid");
    }
    assert_eq!(agent.asked(), vec![format!("GET {FILES}?path=%2Ftmp%2Fresult"); 3]);
    assert_eq!(fs::read_dir(&there).unwrap().count(), 2, "nothing is left beside it");
    let mut child = node.command(&["cp", "box-1:/tmp/result", "-"]);
    assert_eq!(child.stdout(Stdio::piped()).output().unwrap().stdout, tar(&[("result", "42")]));
}

#[test]
fn a_directory_comes_out_whole_and_replaces_none() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let body = tar(&[("d/a", "1"), ("d/b/c", "2"), ("d/link", "->a")]);
    agent.answers_as(&format!("GET {FILES}"), StatusCode::OK, &body);
    let to = node.path("copy");
    node.run(&["cp", "box-1:/srv/d", to.to_str().unwrap()]).good();
    assert_eq!(fs::read_to_string(to.join("b/c")).unwrap(), "2");
    assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("a"));
    node.run(&["cp", "box-1:/srv/d", to.to_str().unwrap()]).good(); // into it
    assert!(to.join("d/a").exists());
    let error = node.run(&["cp", "box-1:/srv/d", to.to_str().unwrap()]).bad(1);
    assert!(error.contains("there is a directory") && error.contains("copy/d already"), "{error}");
}

#[test]
fn whoever_is_in_the_sandbox_writes_nowhere_else() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let (place, outside) = (node.path("place"), node.path("outside"));
    fs::create_dir(&place).unwrap();
    fs::create_dir(&outside).unwrap();
    let outside = outside.to_str().unwrap();
    let absolute = format!("{outside}/abs");
    for files in [
        &[("x", "fine"), ("../escaped", "bad"), ("../../outside/escaped", "bad")][..],
        &[("x", "fine"), (&absolute, "bad")],
        &[("x/link", &format!("->{outside}")), ("x/link/escaped", "bad")],
        &[("link", &format!("->{outside}")), ("link/x", "bad")],
        &[("y", "not what was asked for")],
    ] {
        agent.answers_as(&format!("GET {FILES}"), StatusCode::OK, &tar(files));
        node.run(&["cp", "box-1:/x", place.to_str().unwrap()]);
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0, "{files:?}");
        let names: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name == "x"), "{files:?}: {names:?}");
        assert!(!node.path("escaped").exists());
        let _ = fs::remove_dir_all(place.join("x")).or_else(|_| fs::remove_file(place.join("x")));
    }
    agent.answers_as(&format!("GET {FILES}"), StatusCode::OK, b"no tar at all");
    let error = node.run(&["cp", "box-1:/x", place.to_str().unwrap()]).bad(1);
    assert!(error.contains("unpacking into"), "{error}");
    let problem = Problem::new(StatusCode::NOT_FOUND, "path-not-found", "there is no /x in box-1");
    agent.refuses(&format!("GET {FILES}"), &problem);
    assert_eq!(node.run(&["cp", "box-1:/x", place.to_str().unwrap()]).bad(1), "Error: there is no /x in box-1\n");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
fn a_file_goes_in_under_the_name_it_is_to_have() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as(&format!("PUT {FILES}"), StatusCode::NO_CONTENT, b"");
    fs::create_dir_all(node.path("d/e")).unwrap();
    fs::write(node.path("d/e/script.py"), vec![b'x'; 1_000_000]).unwrap();
    symlink("e/script.py", node.path("d/link")).unwrap();
    for (from, to, dir, names) in [
        ("d/e/script.py", "/app/main.py", "%2Fapp", &["main.py"][..]),
        ("d/e/script.py", "/app/", "%2Fapp%2F", &["script.py"]),
        ("d/e/script.py", "/main.py", "%2F", &["main.py"]),
        ("d", "/srv/copy", "%2Fsrv", &["copy", "copy/e", "copy/e/script.py", "copy/link"]),
        ("d/link", "/srv/", "%2Fsrv%2F", &["link"]),
    ] {
        node.run(&["cp", node.path(from).to_str().unwrap(), &format!("box-1:{to}")]).good();
        let asked = agent.asked_with_bodies();
        assert_eq!((asked.len(), &asked[0].0), (1, &format!("PUT {FILES}?path={dir}")));
        let mut archive = tar::Archive::new(&*asked[0].1);
        let mut found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned())
            .collect();
        found.sort();
        assert_eq!(found, names, "{from} {to}");
    }
}

#[test]
fn a_tar_goes_in_from_stdin() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as(&format!("PUT {FILES}"), StatusCode::NO_CONTENT, b"");
    let body = tar(&[("a", "1")]);
    let mut child = node.command(&["cp", "-", "box-1:/srv"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&body).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(agent.asked_with_bodies(), [(format!("PUT {FILES}?path=%2Fsrv"), body)]);
}

#[test]
fn what_is_not_to_be_copied_is_said() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    fs::write(node.path("file"), "").unwrap();
    let file = node.path("file").to_str().unwrap().to_owned();
    for (from, to, why) in [
        ("a", "b", "one of the two"),
        ("box-1:/a", "box-2:/b", "one of the two"),
        ("-", "-", "one of the two"),
        ("/nonexistent/a", "box-1:/a", "reading /nonexistent/a"),
        ("box-1:/", "/tmp", "names nothing"),
        (&file, "box-1:/nowhere/", "nothing answers"),
    ] {
        let error = node.run(&["cp", from, to]).bad(1);
        assert!(error.contains(why), "{from} {to}: {error}");
    }
    agent.asked();
}
