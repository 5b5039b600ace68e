//! What is let through arrives as it was sent.

use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// Bytes that are nowhere the same.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).take(length).collect()
}

#[tokio::test]
async fn tls_to_the_name_works_end_to_end() {
    let world = World::new(Differently::default()).await;
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certified.cert.der().clone()],
            PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into()),
        )
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let serve = async {
        let (host, _) = world.host.accept().await.unwrap();
        let mut host = TlsAcceptor::from(Arc::new(server)).accept(host).await.unwrap();
        let mut asked = vec![0; 5];
        host.read_exact(&mut asked).await.unwrap();
        host.write_all(&bytes(4_000_000)).await.unwrap();
        host.shutdown().await.unwrap();
    };
    let ask = async {
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = TlsConnector::from(Arc::new(client)).connect(name, world.connect().await).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == bytes(4_000_000));
    };
    tokio::join!(serve, ask);
    assert_eq!(world.outcomes(), [Outcome::Allowed]);
}

#[tokio::test]
async fn all_bytes_arrive_both_ways_at_once_copied_or_through_a_pipe() {
    for length in [0, 1, 10_000, 1_000_000, 20_000_000] {
        let world = World::new(Differently::default()).await;
        let (client, host) = world.connected(b"\0").await;
        let (mut from_client, mut to_host) = client.into_split();
        let (mut from_host, mut to_client) = host.into_split();
        let sent = bytes(length);
        let send = async |to: &mut tokio::net::tcp::OwnedWriteHalf| {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let take = async |from: &mut tokio::net::tcp::OwnedReadHalf, before: &[u8]| {
            let mut got = Vec::new();
            from.read_to_end(&mut got).await.unwrap();
            assert!(got == [before, &sent[..]].concat(), "{length} bytes, {} arrived", got.len());
        };
        tokio::join!(
            send(&mut to_host),
            send(&mut to_client),
            take(&mut from_client, b""),
            take(&mut from_host, b"\0")
        );
    }
}

#[tokio::test]
async fn a_cleartext_upload_arrives_whole_and_so_does_what_follows() {
    let world = World::new(Differently::default()).await;
    let head = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5000000\r\n\r\n");
    let whole =
        [head.as_bytes(), &bytes(5_000_000), format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes()].concat();
    let (mut client, mut host) = world.connected(&whole[..head.len() + 10]).await;
    let mut got = Vec::new();
    let (sent, read) = tokio::join!(
        async {
            client.write_all(&whole[head.len() + 10..]).await?;
            client.shutdown().await
        },
        host.read_to_end(&mut got)
    );
    sent.unwrap();
    read.unwrap();
    assert!(got == whole);
}

#[tokio::test]
async fn either_end_may_stop_speaking_and_hear_on() {
    for client_first in [true, false] {
        let world = World::new(Differently::default()).await;
        let (client, mut host) = world.connected(b"\0").await;
        hears(&mut host, b"\0").await;
        let (mut first, mut second) = if client_first { (client, host) } else { (host, client) };
        first.write_all(b"last words").await.unwrap();
        first.shutdown().await.unwrap();
        let mut heard = Vec::new();
        second.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        let mut heard = Vec::new();
        first.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
    }
}

#[tokio::test]
async fn a_reset_at_one_end_is_one_at_the_other() {
    for client_breaks in [true, false] {
        let world = World::new(Differently::default()).await;
        let (client, mut host) = world.connected(b"\0").await;
        hears(&mut host, b"\0").await;
        let (breaks, mut other) = if client_breaks { (client, host) } else { (host, client) };
        listen::reset(breaks);
        is_reset(&mut other).await;
    }
}

#[tokio::test]
async fn a_flow_on_which_nothing_is_said_ends() {
    let settings = Settings { idle: Duration::from_millis(20), ..Differently::default().settings };
    let world = World::new(Differently { settings, ..Differently::default() }).await;
    let (mut client, mut host) = world.connected(b"\0").await;
    is_reset(&mut client).await;
    is_reset(&mut host).await;
}

#[tokio::test]
async fn many_flows_are_carried_side_by_side_and_leave_nothing_behind() {
    let world = World::new(Differently::default()).await;
    let (done, stop) = oneshot::channel::<()>();
    let serve = async {
        let accept = async {
            loop {
                let (mut host, _) = world.host.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = host.split();
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                    to.shutdown().await.unwrap();
                });
            }
        };
        tokio::select! { () = accept => {}, _ = stop => {} }
    };
    let ask = async {
        let mut all = tokio::task::JoinSet::new();
        for flow in 0..400u32 {
            let mut client = world.connect().await;
            all.spawn(async move {
                let sent = [&[0][..], &flow.to_be_bytes(), &bytes(5_000)].concat();
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert!(got == sent);
            });
        }
        while let Some(one) = all.join_next().await {
            one.unwrap();
        }
        done.send(()).unwrap();
    };
    tokio::join!(serve, ask);
    while world.metrics.open.get() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.outcomes().len(), 400);
}
