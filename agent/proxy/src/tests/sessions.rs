//! TLS as the connections of the mesh read and write it, on real sockets that take little at a time: order, ends, and what a broken record
//! leaves of those before it.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, ClientConfigs, HandshakeFailure, ServerConfigs};
use heddle_telemetry::{HttpMetrics, Reason};
use rustls::{AlertDescription, ClientConnection};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::mesh::{Ca, Node};
use super::support::*;
use crate::http::wire::{Line, Sent, Wire};
use crate::measure;
use crate::mesh::session::Session;
use crate::mesh::tls::failure_in;
use crate::registry::Conn;

/// A peer that is told what to do byte by byte.
struct Peer {
    socket: TcpStream,
    tls: ClientConnection,
}

impl Peer {
    /// What TLS has to send.
    fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// Bytes as records.
    fn sealed(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let count = self.tls.writer().write(bytes).unwrap();
            bytes = &bytes[count..];
            records.extend(self.records());
        }
        records
    }

    /// Reads so many bytes off the socket at most; what came of it, or the end.
    async fn read(&mut self, most: usize) -> Result<Vec<u8>, rustls::Error> {
        let mut read = vec![0; most];
        let count = soon(self.socket.read(&mut read)).await.unwrap_or(0);
        let (mut left, mut bytes) = (&read[..count], Vec::new());
        loop {
            self.tls.read_tls(&mut left).unwrap();
            self.tls.process_new_packets()?;
            match self.tls.reader().read_to_end(&mut bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if left.is_empty() {
                return Ok(bytes);
            }
        }
    }
}

/// This side of a connection, its connection in the registry, and its peer, who says `early` together with the end of its handshake.
async fn session(early: &[u8]) -> (Wire, Rc<Conn>, Peer) {
    let node = Node::new(&Ca::new());
    let (server, client) = (node.lease("server").await, node.lease("client").await);
    let acceptor = TlsAcceptor::from(ServerConfigs::new(&node.store).get(&server, Alpn::Heddle).unwrap());
    let config = ClientConfigs::new(&node.store).get(&client, &server.id().clone().into(), Alpn::Heddle).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    // Much smaller, and the kernel says that there is room again only when it is asked, every 200 ms.
    SockRef::from(&socket).set_recv_buffer_size(32 << 10).unwrap();
    let mut peer = Peer { socket, tls: ClientConnection::new(config, no_server_name()).unwrap() };
    let accepted = listener.accept().await.unwrap().0;
    SockRef::from(&accepted).set_send_buffer_size(4 << 10).unwrap();
    let accepting = acceptor.accept(accepted);
    let greeting = async {
        let hello = peer.records();
        peer.socket.write_all(&hello).await.unwrap();
        while peer.tls.is_handshaking() {
            peer.read(1 << 10).await.unwrap();
        }
        let mut last = peer.records();
        last.extend(peer.sealed(early));
        peer.socket.write_all(&last).await.unwrap();
    };
    let (accepted, ()) = tokio::join!(accepting, greeting);
    let session = Session::from(tokio_rustls::TlsStream::Server(accepted.unwrap()));
    let conn = measure::connection(&measure::worker(HttpMetrics::new(1, 10)));
    (Wire::Tls(Box::new(session)), conn, peer)
}

async fn read(wire: &mut Wire, conn: &Conn) -> io::Result<Vec<u8>> {
    let mut room = vec![0; 16 << 10];
    let mut buf = ReadBuf::new(&mut room);
    soon(poll_fn(|cx| wire.poll_read(cx, conn, &mut buf))).await?;
    Ok(buf.filled().to_vec())
}

async fn read_so_many(wire: &mut Wire, conn: &Conn, count: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < count {
        let part = read(wire, conn).await.unwrap();
        assert!(!part.is_empty(), "the end behind {} of {count}", got.len());
        got.extend(part);
    }
    got
}

#[tokio::test]
async fn what_came_with_the_handshake_is_read_first() {
    // Less than a record, some, and more than is read at once.
    for size in [5, 5_000, 100_000] {
        let early = pattern(size);
        let (mut wire, conn, mut peer) = session(&early).await;
        assert!(read_so_many(&mut wire, &conn, size).await == early, "{size}");
        let later = peer.sealed(b"later");
        peer.socket.write_all(&later).await.unwrap();
        assert_eq!(read(&mut wire, &conn).await.unwrap(), b"later");
        conn.end(Reason::Completed);
    }
}

#[tokio::test]
async fn whatever_is_written_in_whatever_parts_arrives_in_order() {
    let (wire, conn, mut peer) = session(b"").await;
    let line = Line::new(wire, &conn);
    line.begin();
    let all = pattern(600_000);
    let mut sizes = fastrand::Rng::with_seed(7);
    let (mut held_up, mut direct, mut small, mut short) = (0, 0, 0, 0);
    let writing = async {
        let mut written = 0;
        while written < all.len() {
            // Half of them fill a record by themselves.
            let size = if sizes.bool() { sizes.usize(1..3_000) } else { sizes.usize(8_192..40_000) };
            let part = &all[written..(written + size).min(all.len())];
            let (head, tail) = part.split_at(part.len() / 3);
            let count = poll_fn(|cx| {
                let polled = line.poll_write(cx, &[IoSlice::new(head), IoSlice::new(tail)]);
                held_up += usize::from(polled.is_pending());
                polled
            });
            let count = count.await.unwrap();
            assert!(count > 0 && count <= part.len());
            written += count;
            *(if part.len() >= 8_192 { &mut direct } else { &mut small }) += 1;
            short += usize::from(count < part.len());
            // The end of a turn, sometimes.
            if sizes.u8(..) < 80 {
                poll_fn(|cx| Poll::Ready(line.send(cx))).await;
            }
        }
        poll_fn(|cx| if line.send(cx) == Sent::All { Poll::Ready(()) } else { Poll::Pending }).await;
    };
    let (mut read, mut reads) = (Vec::new(), fastrand::Rng::with_seed(8));
    let reading = async {
        while read.len() < all.len() {
            read.extend(peer.read(reads.usize(1..8_192)).await.unwrap());
            assert!(all.starts_with(&read), "other bytes arrived before {}", read.len());
            tokio::task::yield_now().await;
        }
    };
    soon(async { tokio::join!(writing, reading) }).await;
    assert!(held_up > 5 && direct > 5 && small > 5 && short > 5, "{held_up} {direct} {small} {short}");
    conn.end(Reason::Completed);
}

#[tokio::test]
async fn a_goodbye_waits_behind_what_the_socket_has_not_taken() {
    let (wire, conn, mut peer) = session(b"").await;
    let line = Line::new(wire, &conn);
    line.begin();
    let all = pattern(4 << 20);
    let mut written = 0;
    while let Poll::Ready(count) =
        poll_fn(|cx| Poll::Ready(line.poll_write(cx, &[IoSlice::new(&all[written..])]))).await
    {
        written += count.unwrap();
    }
    assert!(written > 0 && written < all.len(), "positive control: {written}");
    assert!(poll_fn(|cx| Poll::Ready(line.poll_shutdown(cx))).await.is_pending());
    let mut read = Vec::new();
    let reading = async {
        while read.len() < written {
            read.extend(peer.read(4 << 10).await.unwrap());
        }
        // The word that it is the end, then the end.
        let mut end = peer.tls.process_new_packets().unwrap();
        while !end.peer_has_closed() {
            assert!(peer.read(4 << 10).await.unwrap().is_empty());
            end = peer.tls.process_new_packets().unwrap();
        }
    };
    let closing = poll_fn(|cx| line.poll_shutdown(cx));
    let ((), closed) = soon(async { tokio::join!(reading, closing) }).await;
    closed.unwrap();
    assert!(read == all[..written], "other bytes arrived");
    conn.end(Reason::Completed);
}

#[tokio::test]
async fn a_goodbye_is_an_end_and_a_cut_is_none() {
    for says_goodbye in [true, false] {
        let (mut wire, conn, mut peer) = session(b"").await;
        let mut last = peer.sealed(b"last words");
        if says_goodbye {
            peer.tls.send_close_notify();
            last.extend(peer.records());
        }
        peer.socket.write_all(&last).await.unwrap();
        peer.socket.shutdown().await.unwrap();
        assert_eq!(read(&mut wire, &conn).await.unwrap(), b"last words");
        for _ in 0..2 {
            match read(&mut wire, &conn).await {
                Ok(end) => assert!(says_goodbye && end.is_empty(), "{end:?}"),
                Err(error) => assert!(!says_goodbye && error.kind() == io::ErrorKind::UnexpectedEof, "{error}"),
            }
        }
        conn.end(Reason::Completed);
    }
}

#[tokio::test]
async fn a_broken_record_takes_nothing_of_what_came_before_it() {
    for (what, broken) in [
        ("forged", [&[23, 3, 3, 0, 32][..], &[7; 32]].concat()),
        ("too long", vec![23, 3, 3, 0xff, 0xff]),
        ("no record", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let (mut wire, conn, mut peer) = session(b"").await;
        let good = pattern(3_000);
        // In one segment, as one read brings it.
        let all = [peer.sealed(&good[..1_000]), peer.sealed(&good[1_000..]), broken].concat();
        peer.socket.write_all(&all).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(read_so_many(&mut wire, &conn, good.len()).await == good, "{what}");
        // It stays broken, whatever comes.
        let more = peer.sealed(b"more");
        peer.socket.write_all(&more).await.unwrap();
        for _ in 0..2 {
            let error = read(&mut wire, &conn).await.unwrap_err();
            assert_eq!(failure_in(&error), Some(HandshakeFailure::Protocol), "{what}: {error}");
        }
        // And the peer hears why.
        let told = peer.read(4 << 10).await.unwrap_err();
        let alerts = [AlertDescription::BadRecordMac, AlertDescription::DecodeError, AlertDescription::RecordOverflow];
        assert!(matches!(told, rustls::Error::AlertReceived(alert) if alerts.contains(&alert)), "{what}: {told}");
        conn.end(Reason::Completed);
    }
}
