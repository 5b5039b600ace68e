//! What a spec says, by what was asked for.

use super::*;

fn image() -> ImageConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ImageConfig {
        entrypoint: words(&["/entry"]),
        cmd: words(&["serve"]),
        env: words(&["PATH=/bin", "A=image", "B=image"]),
        working_dir: "/work".into(),
        user: "ada".into(),
        stop_signal: String::new(),
    }
}

fn wishes() -> Wishes {
    Wishes { id: "c1".into(), namespace: "creto".into(), ..Wishes::default() }
}

fn accounts() -> Accounts {
    Accounts::parse("root:x:0:0::/:\nada:x:1000:1000::/:\n", "root:x:0:\nada:x:1000:\nvideo:x:44:ada\n")
}

fn spec(image: &ImageConfig, wishes: &Wishes) -> Value {
    build(image, &accounts(), wishes).unwrap()
}

#[test]
fn the_image_says_how_it_is_run_and_wishes_go_before_it() {
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let env = BTreeMap::from([("A".to_owned(), "wish".to_owned()), ("C".to_owned(), "x=y".to_owned())]);
    let bare = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() };
    for (what, image, wishes, pointer, said) in [
        ("entry point and command", image(), wishes(), "/process/args", json!(["/entry", "serve"])),
        ("a command", image(), Wishes { command: words(&["a", "b"]), ..wishes() }, "/process/args", json!(["a", "b"])),
        ("a command alone", bare.clone(), wishes(), "/process/args", json!(["sh"])),
        ("the directory", image(), wishes(), "/process/cwd", json!("/work")),
        ("another", image(), Wishes { cwd: Some("/x".into()), ..wishes() }, "/process/cwd", json!("/x")),
        ("none", bare.clone(), wishes(), "/process/cwd", json!("/")),
        (
            "variables",
            image(),
            Wishes { env, ..wishes() },
            "/process/env",
            json!(["PATH=/bin", "B=image", "A=wish", "C=x=y"]),
        ),
        ("a path", bare.clone(), wishes(), "/process/env", json!([PATH])),
        (
            "a terminal",
            bare.clone(),
            Wishes { terminal: true, ..wishes() },
            "/process/env",
            json!([PATH, "TERM=xterm"]),
        ),
        (
            "the user",
            image(),
            wishes(),
            "/process/user",
            json!({"uid": 1000, "gid": 1000, "additionalGids": [44, 1000]}),
        ),
        (
            "another user",
            image(),
            Wishes { user: Some("0".into()), ..wishes() },
            "/process/user",
            json!({"uid": 0, "gid": 0, "additionalGids": [0]}),
        ),
        ("its name", image(), wishes(), "/hostname", json!("c1")),
        ("another name", image(), Wishes { hostname: Some("h".into()), ..wishes() }, "/hostname", json!("h")),
        ("its cgroup", image(), wishes(), "/linux/cgroupsPath", json!("/creto/c1")),
        ("no network", image(), wishes(), "/linux/namespaces/4", json!({"type": "network"})),
        (
            "a network",
            image(),
            Wishes { netns: Some("/run/creto/netns/c1".into()), ..wishes() },
            "/linux/namespaces/4",
            json!({"type": "network", "path": "/run/creto/netns/c1"}),
        ),
        (
            "annotations",
            image(),
            Wishes { annotations: BTreeMap::from([("creto.dev/agent".into(), "spiffe://a/b".into())]), ..wishes() },
            "/annotations",
            json!({"creto.dev/agent": "spiffe://a/b"}),
        ),
    ] {
        assert_eq!(spec(&image, &wishes).pointer(pointer), Some(&said), "{what}");
    }
}

#[test]
fn what_is_limited_and_nothing_else() {
    let of = |limits| spec(&image(), &Wishes { limits, ..wishes() })["linux"]["resources"].clone();
    let none = Limits::default();
    let devices = json!([{"allow": false, "access": "rwm"}]);
    for (limits, key, said) in [
        (Limits { memory_bytes: Some(512 << 20), ..none }, "memory", json!({"limit": 512 << 20, "swap": 512 << 20})),
        (Limits { cpu_millis: Some(500), ..none }, "cpu", json!({"quota": 50_000, "period": 100_000, "shares": 512})),
        (
            Limits { cpu_millis: Some(4000), ..none },
            "cpu",
            json!({"quota": 400_000, "period": 100_000, "shares": 4096}),
        ),
        (Limits { cpu_millis: Some(1), ..none }, "cpu", json!({"quota": 1000, "period": 100_000, "shares": 2})),
        (Limits { pids: Some(64), ..none }, "pids", json!({"limit": 64})),
    ] {
        assert_eq!(of(limits), json!({"devices": devices, key: said}));
    }
    assert_eq!(of(none), json!({"devices": devices}));
}

#[test]
fn nothing_of_the_host_is_writable_unless_asked_for() {
    let bind = |writable| Bind { source: "/host/x".into(), destination: "/x".into(), writable };
    for (writable, options) in [(false, "rbind,ro,nosuid,nodev"), (true, "rbind,rw")] {
        let spec = spec(&image(), &Wishes { mounts: vec![bind(writable)], ..wishes() });
        let last = spec["mounts"].as_array().unwrap().last().unwrap().clone();
        let options: Vec<&str> = options.split(',').collect();
        assert_eq!(last, json!({"destination": "/x", "type": "bind", "source": "/host/x", "options": options}));
    }
}

#[test]
fn a_user_gets_no_capability_that_it_could_pass_on() {
    let spec = spec(&image(), &wishes());
    let capabilities = spec["process"]["capabilities"].as_object().unwrap();
    assert_eq!(capabilities.keys().collect::<Vec<_>>(), ["bounding", "effective", "permitted"]);
    assert!(!capabilities["bounding"].to_string().contains("SYS_ADMIN"));
    assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
}

#[test]
fn what_cannot_be_is_named() {
    let bare = ImageConfig::default();
    let relative = |what, path: &str| SpecError::Relative { what, path: path.into() };
    let bind = |source: &str, destination: &str| Bind {
        source: source.into(),
        destination: destination.into(),
        writable: false,
    };
    for (image, wishes, error) in [
        (bare.clone(), wishes(), SpecError::NoCommand),
        (image(), Wishes { command: Some(vec![]), ..wishes() }, SpecError::NoCommand),
        (image(), Wishes { command: Some(vec![String::new()]), ..wishes() }, SpecError::NoCommand),
        (image(), Wishes { cwd: Some("x".into()), ..wishes() }, relative("working directory", "x")),
        (image(), Wishes { netns: Some("x".into()), ..wishes() }, relative("network namespace", "x")),
        (image(), Wishes { mounts: vec![bind("/x", "y")], ..wishes() }, relative("mount", "y")),
        (image(), Wishes { mounts: vec![bind("x", "/y")], ..wishes() }, relative("mount's source", "x")),
        (image(), Wishes { user: Some("eve".into()), ..wishes() }, BadUser::NoUser("eve".into()).into()),
        (
            image(),
            Wishes { env: BTreeMap::from([("A=B".into(), "c".into())]), ..wishes() },
            SpecError::Variable("A=B".into()),
        ),
    ] {
        assert_eq!(build(&image, &accounts(), &wishes), Err(error));
    }
}
