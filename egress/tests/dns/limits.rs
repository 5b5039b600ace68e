//! What one sandbox does to the DNS stays with that sandbox.

use std::net::Ipv4Addr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::Ordering::Relaxed;

use egress::worker::dns::{DnsSettings, Limits, TcpSettings};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::AsyncWriteExt;

use super::node::{Node, OURS, STRANGER, THEIRS, hear, question, receive, send};

fn many(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

#[tokio::test]
async fn a_flood_is_dropped_and_told_once_and_others_are_answered() {
    let limits = Limits { questions_per_second: many(1), questions_burst: many(5), ..Limits::default() };
    let node = Node::start(DnsSettings { limits, ..DnsSettings::default() });
    let socket = node.socket(OURS, Ipv4Addr::LOCALHOST).await;
    let asked = question("evil.example.org.", RecordType::A).to_vec().unwrap();
    for _ in 0..500 {
        socket.send(&asked).await.unwrap();
    }
    for _ in 0..5 {
        assert_eq!(hear(&socket).await.metadata.response_code, ResponseCode::Refused);
    }
    let other = node.ask(THEIRS, "api.example.com.", RecordType::A).await; // answered after the flood
    assert_eq!(other.metadata.response_code, ResponseCode::NoError);
    let limited = node.dns.counters().limited.load(Relaxed);
    assert!(limited > 100, "{limited}");
    let told = node.told.all();
    let floods = told.iter().filter(|(to, why)| to.is_empty() && why == "too many questions at once").count();
    let seconds = 3; // that the flood may have taken
    assert!((1..=seconds).contains(&floods), "{told:?}");
    assert!(told.len() <= 5 + 2 * seconds, "each dropped question was told");
}

#[tokio::test]
async fn names_below_an_allowed_zone_run_out() {
    let limits = Limits { names: NonZeroUsize::new(3).unwrap(), ..Limits::default() };
    let node = Node::start(DnsSettings { limits, ..DnsSettings::default() });
    let code =
        async |from, n| node.ask(from, &format!("chunk-{n}.example.net."), RecordType::A).await.metadata.response_code;
    for n in 0..3 {
        assert_eq!(code(OURS, n).await, ResponseCode::NoError);
    }
    assert_eq!(code(OURS, 3).await, ResponseCode::Refused);
    assert_eq!(code(OURS, 0).await, ResponseCode::NoError, "what it has it keeps");
    assert_eq!(code(THEIRS, 3).await, ResponseCode::NoError);
    assert_eq!(node.dns.counters().no_address.load(Relaxed), 1);
    assert_eq!(node.told.all().len(), 1);
}

#[tokio::test]
async fn a_connection_that_drips_says_too_much_or_is_one_too_many_is_closed() {
    let tcp = TcpSettings {
        connections_per_sandbox: NonZeroUsize::new(2).unwrap(),
        idle_seconds: many(1),
        ..TcpSettings::default()
    };
    let node = Node::start(DnsSettings { tcp, ..DnsSettings::default() });
    let asked = question("api.example.com.", RecordType::A).to_vec().unwrap();

    let (mut first, mut second) = (node.connect(OURS).await, node.connect(OURS).await);
    for stream in [&mut first, &mut second] {
        send(stream, &asked).await;
        assert!(receive(stream).await.is_some());
    }
    assert!(receive(&mut node.connect(OURS).await).await.is_none(), "a third connection");
    assert!(receive(&mut node.connect(STRANGER).await).await.is_none(), "a stranger's connection");

    // The first drips; the second is idle; both end by themselves, and make room.
    first.write_all(&[0, 40, 1]).await.unwrap();
    assert!(receive(&mut first).await.is_none() && receive(&mut second).await.is_none());
    let mut long = node.connect(OURS).await;
    long.write_all(&[0xff, 0xff, 1]).await.unwrap();
    assert!(receive(&mut long).await.is_none(), "a message of 64 KiB");
    assert_eq!(node.dns.counters().turned_away.load(Relaxed), 2);
}

#[tokio::test]
async fn what_is_no_question_is_not_answered_and_harms_nobody() {
    let node = Node::start(DnsSettings::default());
    let socket = node.socket(OURS, Ipv4Addr::LOCALHOST).await;
    let mut answer = question("api.example.com.", RecordType::A);
    answer.metadata.message_type = hickory_proto::op::MessageType::Response;
    for bytes in [vec![], vec![0], vec![0; 11], answer.to_vec().unwrap()] {
        socket.send(&bytes).await.unwrap();
    }
    let long = [question("api.example.com.", RecordType::A).to_vec().unwrap(), vec![0; 2000]].concat();
    socket.send(&long).await.unwrap();
    assert_eq!(hear(&socket).await.metadata.response_code, ResponseCode::FormErr, "only the last was a question");
    assert_eq!(node.ask(OURS, "api.example.com.", RecordType::A).await.metadata.response_code, ResponseCode::NoError);
}
