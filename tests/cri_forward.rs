//! `kubectl port-forward`: containerd connects to 127.0.0.1 in the pod's network namespace, where runc's containers listen and
//! no sandbox does. A connection there is carried in.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use k8s_cri::v1::PodSandboxStatusRequest;

use crate::harness::cri::stream::{DATA, ERROR};
use crate::harness::cri::{Cri, Pod, of_all};
use crate::harness::{Setup, wait_until};

/// A server on the loopback alone, and one that sends back what it gets.
const SERVERS: &str = "echo served > /tmp/f; httpd -p 127.0.0.1:8080 -h /tmp; exec nc -ll -p 9000 -e cat";
/// A port that nobody listens on.
const NOBODY: u16 = 8081;

fn with_servers(cri: &Cri, handler: &str) -> (Pod, String) {
    let pod = cri.run_pod(handler, "p");
    let id = cri.run_script(&pod, "c", SERVERS);
    let both = "wget -qO- http://127.0.0.1:8080/f && echo x | nc -w 1 127.0.0.1 9000";
    wait_until("the servers", || {
        cri.exec(&id, &["timeout", "2", "sh", "-c", both], 0).unwrap().stdout.contains("served\nx")
    });
    (pod, id)
}

fn fetches(cri: &Cri, pod: &Pod) {
    let mut session = cri.forward(pod, 8080);
    session.send(DATA, b"GET /f HTTP/1.0\r\n\r\n");
    session.wait_for(DATA, "served\n");
}

#[test]
fn a_port_is_forwarded_to_whoever_listens_there_also_on_the_loopback_alone() {
    of_all(|cri, handler| {
        let (pod, _) = with_servers(cri, handler);
        fetches(cri, &pod);
        // Two at once, of which neither sees the other's; and more than any buffer holds.
        let mut sessions = [cri.forward(&pod, 9000), cri.forward(&pod, 9000)];
        for (n, session) in sessions.iter_mut().enumerate() {
            session.send(DATA, format!("session {n}\n").as_bytes());
        }
        for (n, session) in sessions.iter_mut().enumerate() {
            session.wait_for(DATA, &format!("session {n}\n"));
            assert_eq!(session.said(DATA).matches("session").count(), 1, "{handler}");
            let long = "0123456789abcdef".repeat(16 << 10);
            session.send(DATA, long.as_bytes());
            session.send(DATA, b"\nthe end\n");
            session.wait_for(DATA, "\nthe end\n");
            assert!(session.said(DATA).contains(&long), "{handler}");
        }
        cri.remove_pod(&pod);
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn where_nobody_listens_a_session_fails_and_the_next_one_does_not() {
    of_all(|cri, handler| {
        let (pod, _) = with_servers(cri, handler);
        let mut nobody = cri.forward(&pod, NOBODY);
        nobody.wait_for(ERROR, &format!("error forwarding port {NOBODY}"));
        fetches(cri, &pod);
        cri.remove_pod(&pod);
    });
}

#[test]
fn the_loopback_of_the_pod_is_the_only_way_in() {
    of_all(|cri, handler| {
        let (pod, _) = with_servers(cri, handler);
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let status = cri.ask(cri.client().pod_sandbox_status(request)).unwrap().status.unwrap();
        let at: SocketAddr = format!("{}:8080", status.network.unwrap().ip).parse().unwrap();
        let connected = cri.network.host.inside(|| TcpStream::connect_timeout(&at, Duration::from_secs(2)));
        assert!(connected.is_err(), "{handler}: {at} answers on the node");
        cri.remove_pod(&pod);
    });
}

/// How many sockets the pod's shim and its sandbox have: a session is one of each at least.
fn sockets(cri: &Cri) -> Vec<usize> {
    let of = |pid: i32| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count()
    };
    cri.network.node.shims().into_iter().chain(cri.network.node.sandboxes()).map(of).collect()
}

#[test]
fn clients_that_vanish_leave_nothing_and_all_ends_with_the_pod() {
    of_all(|cri, handler| {
        let (pod, _) = with_servers(cri, handler);
        fetches(cri, &pod);
        let mut before = sockets(cri);
        wait_until("the first session's end", || {
            let now = sockets(cri);
            std::mem::replace(&mut before, now.clone()) == now
        });
        for _ in 0..10 {
            let mut session = cri.forward(&pod, 9000);
            session.send(DATA, b"here\n");
            session.wait_for(DATA, "here\n");
        }
        wait_until("the sessions to be forgotten", || sockets(cri).iter().zip(&before).all(|(now, then)| now <= then));
        let mut open = cri.forward(&pod, 9000);
        open.send(DATA, b"here\n");
        open.wait_for(DATA, "here\n");
        cri.remove_pod(&pod);
        open.finish();
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn who_was_connected_with_which_port_is_on_record() {
    let cri = Cri::with(Setup::default(), &[]);
    let (pod, _) = with_servers(&cri, "creto");
    fetches(&cri, &pod);
    cri.forward(&pod, NOBODY).wait_for(ERROR, "error forwarding");
    wait_until("both records", || {
        let records = cri.network.node.records();
        let of_port =
            |port: u16| records.iter().find(|r| r["event"]["type"] == "PortForwarded" && r["event"]["port"] == port);
        let (Some(served), Some(refused)) = (of_port(8080), of_port(NOBODY)) else { return false };
        assert!(served["event"].get("error").is_none_or(|e| e.is_null()), "{served}");
        assert!(refused["event"]["error"].as_str().unwrap().contains("refused"), "{refused}");
        served["about"]["sandbox"] == pod.id.as_str()
    });
    cri.remove_pod(&pod);
}
