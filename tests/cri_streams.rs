//! `kubectl exec`, `attach` and `port-forward`: containerd's streaming server in front of runc, then of us.

use crate::harness::cri::of_all;
use crate::harness::cri::stream::{STATUS, STDIN, STDOUT};
use crate::harness::wait_until;

const STDERR: u8 = 2;

#[test]
fn exec_carries_stdin_both_outputs_and_the_status() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", "sleep 1000");
        let mut session = cri.exec_stream(&id, false, &["sh", "-c", "read line; echo got $line; echo err >&2; exit 9"]);
        session.send(STDIN, b"words\n");
        session.wait_for(STDOUT, "got words\n");
        session.wait_for(STDERR, "err\n");
        session.wait_for(STATUS, "\"ExitCode\",\"message\":\"9\"");
        cri.remove_pod(&pod);
    });
}

#[test]
fn exec_with_a_terminal_is_resized() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", "sleep 1000");
        let mut session = cri.exec_stream(&id, true, &["sh", "-c", "while read line; do echo size $(stty size); done"]);
        for (columns, rows) in [(100, 40), (33, 7)] {
            session.resize(columns, rows);
            let size = format!("size {rows} {columns}");
            // The two go by different ways: the size may arrive after the line.
            wait_until(&size, || {
                session.send(STDIN, b"\n");
                session.listen();
                session.said(STDOUT).contains(&size)
            });
        }
        session.send(STDIN, &[4]); // the end of input, as typed
        let (_, status) = session.finish();
        assert!(status.contains("Success"), "{handler}: {status}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn attach_reaches_the_container_s_own_process() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let mut config = cri.container("c", "while read line; do echo got $line; done");
        config.stdin = true;
        let id = cri.run(&pod, config);
        for words in ["one", "two"] {
            // Who leaves does not end it: the next one goes on.
            let mut session = cri.attach(&id, false);
            session.send(STDIN, format!("{words}\n").as_bytes());
            session.wait_for(STDOUT, &format!("got {words}\n"));
        }
        cri.logs(&pod, "c", "got one\ngot two\n");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_container_s_terminal_is_attached_and_resized() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let mut config = cri.container("c", "while read line; do echo size $(stty size); done");
        (config.stdin, config.tty) = (true, true);
        let id = cri.run(&pod, config);
        let mut session = cri.attach(&id, true);
        session.resize(77, 22);
        wait_until("the size", || {
            session.send(STDIN, b"\n");
            session.listen();
            session.said(STDOUT).contains("size 22 77")
        });
        cri.remove_pod(&pod);
    });
}
