use std::net::TcpListener;

use super::*;

#[test]
fn families_take_turns_in_the_order_of_the_answers() {
    let read = |list: &str| -> Vec<SocketAddr> { list.split_whitespace().map(|a| a.parse().unwrap()).collect() };
    for (addresses, turns) in [
        ("", ""),
        ("1.1.1.1:1", "1.1.1.1:1"),
        ("1.1.1.1:1 1.1.1.2:1 [2001::1]:1", "[2001::1]:1 1.1.1.1:1 1.1.1.2:1"),
        ("[2001::1]:1 [2001::2]:1 1.1.1.1:1", "[2001::1]:1 1.1.1.1:1 [2001::2]:1"),
    ] {
        assert_eq!(in_turns(read(addresses)), read(turns), "{addresses}");
    }
}

/// A loopback port that refuses.
fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_address_that_refuses_gives_way_to_the_next_at_once() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = server.local_addr().unwrap();
    let connected = first_of(vec![refusing(), there], Duration::from_secs(3600)).await.unwrap();
    assert_eq!(connected.peer_addr().unwrap(), there);
}

#[tokio::test]
async fn an_address_that_does_not_answer_gives_way_to_the_next_after_a_while() {
    // Its queue is full: what else comes is not answered.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    silent.listen(0).unwrap();
    let nowhere = silent.local_addr().unwrap().as_socket().unwrap();
    let _filler = TcpStream::connect(nowhere).await.unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = server.local_addr().unwrap();
    let connected = first_of(vec![nowhere, there], Duration::from_millis(1)).await.unwrap();
    assert_eq!(connected.peer_addr().unwrap(), there);
}

#[tokio::test]
async fn without_an_address_that_answers_there_is_no_connection() {
    let all = Duration::from_secs(3600);
    assert!(matches!(first_of(vec![], all).await, Err(DialError::Unreachable(_))));
    assert!(matches!(first_of(vec![refusing(), refusing()], all).await, Err(DialError::Unreachable(_))));
}
