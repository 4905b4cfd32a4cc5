//! Peers that are not what they say: clients at both of a pod's doors, and the server at the other end of a call to the application's own port.
//! Each stands beside the same peer without the one thing that is wrong.

use std::sync::Arc;

use heddle_identity::HandshakeFailure;
use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use rustls::SupportedProtocolVersion;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::http2::{PREFACE, frame};
use super::mesh::{CALLED, Ca, Node, REQUEST, read_until};
use super::mesh_handshakes::Called;
use super::peers::{Client, Server};
use super::support::*;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
/// From a minute ago for an hour.
const GOOD: std::ops::Range<i64> = -60..3600;

/// A certificate that is wrong, or shown in the wrong way, and what that is called.
type Wrong = (HandshakeFailure, Arc<CertifiedKey>, &'static SupportedProtocolVersion);

fn wrong(ca: &Ca, id: &str) -> [Wrong; 5] {
    use HandshakeFailure::{Expired, NotYetValid, ProtocolVersion, UnknownRoot, WrongTrustDomain};
    let elsewhere = id.replace("cluster.local", "elsewhere.example");
    [
        (WrongTrustDomain, ca.peer(&elsewhere, GOOD), &TLS13),
        (Expired, ca.peer(id, -7200..-3600), &TLS13),
        (NotYetValid, ca.peer(id, 3600..7200), &TLS13),
        (UnknownRoot, Ca::new().peer(id, GOOD), &TLS13),
        (ProtocolVersion, ca.peer(id, GOOD), &TLS12),
    ]
}

#[tokio::test]
async fn a_client_that_is_not_what_it_says_is_refused_at_both_doors() {
    let called = Called::new(PATIENCE).await;
    let handshakes = &called.node.handshakes;
    let good = || Some(called.ca.peer(CLIENT, GOOD));
    for (alpn, door) in called.doors {
        // Whether a word of HTTP/2 comes back.
        let is_answered = async |certificate, version| {
            let certificate: Option<Arc<CertifiedKey>> = certificate;
            let client = Client { version, alpn: vec![alpn.as_bytes().to_vec()], ..Client::with(certificate) };
            let connector = TlsConnector::from(client.config());
            let Ok(mut wire) = soon(connector.connect(no_server_name(), connect(door).await)).await else {
                return false;
            };
            let _ = wire.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await;
            matches!(soon(wire.read(&mut [0])).await, Ok(1))
        };
        let let_in = || handshakes.completed(Side::Server);
        let wrong =
            wrong(&called.ca, CLIENT).map(|(failure, certificate, version)| (failure, Some(certificate), version));
        for (failure, certificate, version) in
            [(HandshakeFailure::NoCertificate, None, &TLS13)].into_iter().chain(wrong)
        {
            let (before, failed) = (let_in(), handshakes.failed(Side::Server, failure));
            assert!(is_answered(good(), &TLS13).await, "positive control at {alpn:?}");
            assert_eq!(let_in(), before + 1, "positive control at {alpn:?}");
            assert!(!is_answered(certificate, version).await, "{failure:?} at {alpn:?}");
            until("it is counted", || handshakes.failed(Side::Server, failure) == failed + 1).await;
            assert_eq!(let_in(), before + 1, "{failure:?} at {alpn:?}");
        }
    }
}

/// Takes a connection; whether it was told anything behind the handshake.
async fn is_told(listener: &TcpListener, server: &TlsAcceptor) -> bool {
    let (stream, _): (TcpStream, _) = soon(listener.accept()).await.unwrap();
    match soon(server.accept(stream)).await {
        Ok(mut wire) => matches!(soon(wire.read(&mut [0])).await, Ok(1)),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_server_that_is_not_what_it_says_is_told_nothing() {
    let ca = Ca::new();
    let here = Node::new(&ca);
    let listener = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let vip = here.caller(listener.local_addr().unwrap(), |s| s.ports[0].name = "http".into()).await;
    let other = (HandshakeFailure::WrongIdentity, ca.peer(CLIENT, GOOD), &TLS13);
    for (failure, certificate, version) in wrong(&ca, SERVER).into_iter().chain([other]) {
        // It would take anybody's certificate: nothing but its own is wrong.
        let server = TlsAcceptor::from(Server { version, ..Server::with(certificate) }.config());
        let failed = here.handshakes.failed(Side::Client, failure);
        let mut client = connect(vip).await;
        client.write_all(REQUEST).await.unwrap();
        let head = tokio::select! {
            head = read_until(&mut client, b"\r\n\r\n") => head,
            () = async { while !is_told(&listener, &server).await {} } => panic!("{failure:?}: it was told something"),
        };
        let reason = format!("x-heddle-reason: {}", failure.as_str());
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains(&reason), "{failure:?}: {head}");
        assert!(here.handshakes.failed(Side::Client, failure) > failed, "{failure:?}");
    }
    let server = TlsAcceptor::from(Server::with(ca.peer(SERVER, GOOD)).config());
    let mut client = connect(vip).await;
    client.write_all(REQUEST).await.unwrap();
    assert!(is_told(&listener, &server).await, "positive control");
}
