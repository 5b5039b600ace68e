//! Where a connection was to go, from the kernel: a sandbox's network namespace, a host's, a veth and nat `redirect`.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::*;

/// Runs a line in the network namespace of this thread.
fn run(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn the_destination_of_a_redirected_connection_is_learnt_from_the_kernel() {
    let (tell_tid, tid) = mpsc::channel();
    let (go, went) = mpsc::channel();
    // The namespaces are their threads', and go with them.
    let sandbox = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tell_tid.send(gettid()).unwrap();
        let gate: SocketAddr = went.recv().unwrap();
        run("ip addr add 10.9.0.2/24 dev sandbox && ip link set sandbox up && ip route add default via 10.9.0.1");
        run("ip addr add 2001:db8::2/64 dev sandbox nodad && ip route add default via 2001:db8::1");
        let to = |address: SocketAddr| -> io::Result<String> {
            let mut gate = std::net::TcpStream::connect(address)?;
            gate.write_all(b"\0")?;
            let mut heard = String::new();
            gate.read_to_string(&mut heard)?;
            Ok(heard)
        };
        [
            to((SYNTHETIC, 443).into()),
            to("198.18.0.8:443".parse().unwrap()),
            to("[2001:db8:1::7]:443".parse().unwrap()),
            to((Ipv4Addr::new(10, 9, 0, 1), gate.port()).into()),
        ]
        .map(|heard| heard.map_err(|error| error.kind()))
    });
    let host = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            run("ip link set lo up");
            run(&format!("ip link add host type veth peer name sandbox netns {}", tid.recv().unwrap()));
            run("ip addr add 10.9.0.1/24 dev host && ip addr add 2001:db8::1/64 dev host nodad && ip link set host up");
            let listener = std::net::TcpListener::bind("[::]:0").unwrap();
            let gate = listener.local_addr().unwrap();
            run(&format!(
                "nft 'table inet t {{ chain c {{ type nat hook prerouting priority dstnat; \
                 ip daddr 198.18.0.0/15 tcp dport 443 redirect to :{port}; \
                 ip6 daddr 2001:db8:1::7 tcp dport 443 redirect to :{port}; }}; }}'",
                port = gate.port()
            ));
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (_policies, binding) = binding_with(policy(Action::Allow, 443, 1));
            let bindings = Arc::new(Bindings::default());
            bindings.put(&["10.9.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()], &binding);
            let told = Arc::new(Told::default());
            let carrier = Arc::new(Gate {
                settings: Settings::default(),
                bindings,
                names: OneName,
                resolve: At(vec![server.local_addr().unwrap()]),
                authorizer: Decides::No,
                attempts: told.clone(),
                open: Open::new(&Metrics::default()),
                metrics: Metrics::default(),
                original_destination: Box::new(original_destination),
            });
            let serving = tokio::spawn(carrier.serve(listener));
            go.send(gate).unwrap();
            let (mut flow, _) = server.accept().await.unwrap();
            flow.write_all(b"found").await.unwrap();
            drop(flow);
            while told.0.lock().unwrap().len() < 4 {
                tokio::task::yield_now().await;
            }
            serving.abort();
            let told = told.0.lock().unwrap().clone();
            told.into_iter().map(|attempt| (attempt.destination, attempt.port, attempt.outcome)).collect::<Vec<_>>()
        })
    });
    let reset = || Err(io::ErrorKind::ConnectionReset);
    // The host closes the first without reading the byte that came, so it may end in a reset behind the answer.
    let [first, others @ ..] = sandbox.join().unwrap();
    assert!(first == Ok("found".to_owned()) || first == reset(), "{first:?}");
    assert_eq!(others, [reset(), reset(), reset()]);
    let told = host.join().unwrap();
    let denied = |why: &str| Outcome::Denied(why.to_owned());
    assert_eq!(
        told,
        [
            (NAME.to_owned(), 443, Outcome::Allowed),
            (
                "198.18.0.8".to_owned(),
                443,
                denied("the address stands for no name of this sandbox: it is another's, or too old")
            ),
            ("2001:db8:1::7".to_owned(), 443, denied("no rule allows it")),
            ("the gate itself".to_owned(), 0, denied("it was not brought here by the fence")),
        ]
    );
}
