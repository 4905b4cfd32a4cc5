//! What an outbox gathers and when it goes out.

use std::future::poll_fn;
use std::time::Duration;

use heddle_telemetry::{HttpMetrics, Reason};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::measure;

/// A driven line, its connection, and the other end of the socket.
async fn line() -> (Line, Rc<Conn>, TcpStream) {
    let conn = measure::connection(&measure::worker(HttpMetrics::new(1, 10)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let line = Line::new(listener.accept().await.unwrap().0.into(), &conn);
    line.begin();
    (line, conn, peer)
}

/// The size of its outbox.
fn held(line: &Line) -> usize {
    line.0.state.borrow().outbox.bytes.capacity()
}

async fn write(line: &Line, bytes: &[u8]) -> usize {
    poll_fn(|cx| line.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap()
}

async fn send(line: &Line) -> Sent {
    poll_fn(|cx| Poll::Ready(line.send(cx))).await
}

#[tokio::test]
async fn what_a_turn_wrote_goes_out_together_at_its_end() {
    let (line, conn, mut peer) = line().await;
    let mut room = [0; 100];
    for part in ["a head", " and", " its body"] {
        assert_eq!(write(&line, part.as_bytes()).await, part.len());
        poll_fn(|cx| line.poll_flush(cx)).await.unwrap();
    }
    tokio::time::timeout(Duration::from_millis(20), peer.read(&mut room)).await.unwrap_err();
    assert_eq!(send(&line).await, Sent::All);
    assert_eq!(peer.read(&mut room).await.unwrap(), "a head and its body".len());
    assert_eq!(held(&line), 0);
    conn.end(Reason::Completed);
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_it_hold_one_buffer_and_gets_everything_in_order() {
    let (line, conn, mut peer) = line().await;
    let byte = |index: usize| (index % 251) as u8;
    let mut written = 0;
    loop {
        let part: Vec<u8> = (written..written + 1000).map(byte).collect();
        let polled = poll_fn(|cx| Poll::Ready(line.poll_write(cx, &[IoSlice::new(&part)]))).await;
        let Poll::Ready(count) = polled else { break };
        written += count.unwrap();
    }
    assert_eq!((send(&line).await, held(&line)), (Sent::Nothing, OUTBOX_BYTES));
    let mut read = Vec::with_capacity(written);
    while read.len() < written {
        let reading = tokio::time::timeout(Duration::from_secs(5), peer.read_buf(&mut read));
        assert!(reading.await.unwrap().unwrap() > 0);
        send(&line).await;
    }
    assert!(read.iter().enumerate().all(|(index, b)| *b == byte(index)));
    assert_eq!((send(&line).await, held(&line)), (Sent::All, 0));
    conn.end(Reason::Completed);
}

#[tokio::test]
async fn what_a_peer_said_before_it_left_can_be_read_behind_a_failed_write() {
    let (line, conn, mut peer) = line().await;
    peer.write_all(b"go away").await.unwrap();
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    tokio::time::sleep(Duration::from_millis(20)).await;
    write(&line, b"a request").await;
    assert_eq!(send(&line).await, Sent::Broken);
    assert_eq!((send(&line).await, held(&line)), (Sent::Nothing, 0));
    let mut room = [0; 100];
    let mut buf = ReadBuf::new(&mut room);
    poll_fn(|cx| line.poll_read(cx, &mut buf)).await.unwrap();
    assert_eq!(buf.filled(), b"go away");
    for _ in 0..2 {
        poll_fn(|cx| line.poll_flush(cx)).await.unwrap_err();
    }
    poll_fn(|cx| line.poll_write(cx, &[IoSlice::new(b"more")])).await.unwrap_err();
    conn.end(Reason::Completed);
}
