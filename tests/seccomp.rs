//! A seccomp profile holds inside the sandbox as it does under runc; one that gVisor cannot express is refused by name.

use serde_json::{Value, json};

use crate::harness::containerd::RUNTIME;
use crate::harness::specs::{RUNC, Specs};
use crate::harness::{Node, Runsc, Setup};

/// Prints what becomes of some calls, and of a thread.
const CALLS: &str = r#"python3 -c '
import ctypes, errno, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    print(name, "-" if libc.syscall(*args) >= 0 else errno.errorcode[ctypes.get_errno()])
def attempt(name, what):
    try: what(); print(name, "-")
    except OSError as e: print(name, errno.errorcode[e.errno])
call("clone3", 435, 0, 0)
attempt("mkdir", lambda: (os.mkdir("/tmp/new"), os.rmdir("/tmp/new")))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("inet", lambda: socket.socket(socket.AF_INET))
t = threading.Thread(target=lambda: print("thread -")); t.start(); t.join()
'"#;

fn profile(default: &str, rules: Value) -> Value {
    json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], "syscalls": rules})
}

fn with(specs: &Specs, script: &str, profile: Value) -> Value {
    let mut spec = specs.spec(script);
    spec["linux"]["seccomp"] = profile;
    spec
}

#[test]
fn what_a_profile_forbids_fails_inside_as_under_runc_and_threads_go_on() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let free =
        specs.same(&specs.spec("python3 -c 'import os; os.mkdir(\"/tmp/new\"); os.rmdir(\"/tmp/new\"); print(1)'"));
    assert_eq!(free, "1\n");
    let rules = json!([
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        // What libc asks first for a thread: told that there is no such call, it takes another.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
    ]);
    let said = specs.same(&with(&specs, CALLS, profile("SCMP_ACT_ALLOW", rules)));
    assert_eq!(said, "clone3 ENOSYS\nmkdir EPERM\nunix -\ninet EPERM\nthread -\n");
    // A rule without comparisons counts before one with some, wherever it stands.
    let rules = json!([
        {"names": ["socket"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO"},
    ]);
    let said = specs.same(&with(&specs, CALLS, profile("SCMP_ACT_ALLOW", rules)));
    assert!(said.contains("unix EPERM\ninet EPERM\n"), "{said}");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
        let said = specs.same(&with(&specs, "mkdir /tmp/new; echo $?", profile("SCMP_ACT_ALLOW", rules)));
        assert_eq!(said, "159\n", "{action}: 128 + SIGSYS");
    }
    node.assert_nothing_left();
}

#[test]
fn containerds_own_profile_holds_and_an_exec_is_under_it_too() {
    let node = Node::start();
    let unshare = ["sh", "-c", "grep Seccomp: /proc/self/status; unshare -U true && echo made"];
    for (options, expected) in [(&["--seccomp"][..], "Seccomp:\t2\n"), (&[], "Seccomp:\t0\nmade\n")] {
        node.run_detached("c", options, &["sleep", "1000"]);
        let said = node.exec("c", "e", &unshare);
        assert_eq!(said.text(), expected, "{options:?} {said:?}");
        node.remove("c");
    }
    node.assert_nothing_left();
}

#[test]
fn nobody_lifts_a_filter_by_tracing() {
    let node = Node::start();
    let specs = Specs::of(&node);
    // A tracer that may decide about the call would let it go on.
    let script = r#"python3 -c '
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, None, None); os.kill(os.getpid(), 19); os._exit(0)
os.waitpid(child, 0)
for options in (0, 0x80):
    ctypes.set_errno(0); print(libc.ptrace(0x4200, child, None, ctypes.c_void_p(options)), errno.errorcode.get(ctypes.get_errno()))
os.kill(child, 9)
'"#;
    let rules = json!([
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 99, "op": "SCMP_CMP_EQ"}]},
    ]);
    let spec = with(&specs, script, profile("SCMP_ACT_ALLOW", rules));
    assert_eq!(specs.run(RUNC, &spec).ok(), "0 None\n0 None\n", "a tracer there is told, and decides nothing");
    assert_eq!(specs.run(RUNTIME, &spec).ok(), "0 None\n-1 EPERM\n");
}

#[test]
fn a_profile_that_gvisor_cannot_express_is_refused_by_name_and_leaves_nothing() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let one = |rule: Value| profile("SCMP_ACT_ALLOW", json!([rule]));
    let comparisons: Vec<_> =
        (0..10_000).map(|n| json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": n, "op": "SCMP_CMP_EQ"}]})).collect();
    for (profile, parts) in [
        (
            one(json!({"names": ["mkdir"], "action": "SCMP_ACT_LOG"})),
            ["linux.seccomp.syscalls[0].action", "SCMP_ACT_LOG"],
        ),
        (profile("SCMP_ACT_NOTIFY", json!([])), ["linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY"]),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}),
            ["linux.seccomp.architectures", "SCMP_ARCH_S390X"],
        ),
        (
            one(
                json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_FLY"}]}),
            ),
            ["linux.seccomp.syscalls[0].args", "SCMP_CMP_FLY"],
        ),
        (profile("SCMP_ACT_ALLOW", json!(comparisons)), ["linux.seccomp", "at most"]),
    ] {
        let said = specs.refusal(&with(&specs, "true", profile));
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    }
}

#[test]
fn a_build_that_would_run_an_exec_outside_the_profile_runs_none() {
    let node = Node::with(Setup { runsc: Runsc::Y2024, ..Setup::default() });
    node.run_detached("c", &["--seccomp"], &["sleep", "1000"]);
    let said = node.exec("c", "e", &["true"]);
    assert!(said.status != 0 && said.stderr.contains("outside its container's profile"), "{said:?}");
    node.remove("c");
    node.assert_nothing_left();
}
