//! The data plane itself, in this process and on loopback: a client and a server that say anything.
//!
//! Whatever they say: nothing panics, nothing hangs, every budget and buffer comes back, and what went through can be read in one
//! way only: the [`oracle`] finds at the server nothing but requests the client sent, in order, and at the client nothing but
//! whole responses, unless the connection was torn.

mod world;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::oracle::{self, End};
use world::{Port, Script, World};

/// How long the client waits for more before it ends its direction.
const QUIET: Duration = Duration::from_millis(4);
/// From then on the agent must be done in this time. It lingers 2 s behind an answer to a client that goes on sending.
const DONE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pieces that either side writes its bytes in, at most.
const PIECES_MAX: usize = 8;
/// Between what the client says and the answers of the server.
const SEPARATOR: &[u8] = b"\n~~~\n";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Times that the agent sends a request, at most: three tries to connect, and two more where a stream is refused.
const TRIES_MAX: usize = 9;

/// What became of a client's connection.
struct Heard {
    bytes: Vec<u8>,
    /// It ended by a clean end, before the client had ended its own direction.
    ended_first: bool,
}

/// `flags`, `split`, then what the client says, and behind each separator one answer of the server.
pub fn h1(input: &[u8]) {
    let [flags, split, text @ ..] = input else { return };
    let is_set = |bit: u8| flags & 1 << bit != 0;
    let mut parts = split_at_separators(text);
    let said = parts.remove(0);
    let script = Script {
        answers: parts.into_iter().map(<[u8]>::to_vec).collect(),
        speaks_first: is_set(1),
        closes: is_set(2),
        resets: is_set(3),
        answers_early: is_set(4),
        pieces: pieces(*split),
        is_h2: false,
    };
    let port = if is_set(0) { Port::Undeclared } else { Port::Http };
    World::run(|world| {
        let (heard, seen) = world.play(script, async |world| call(world, port, said, *split, is_set(5)).await);
        check_h1(said, &heard, &seen, port);
    });
}

/// `flags`, `split`, then frames: see [`frames`]; behind a separator what the server says, if it is not one that works.
pub fn h2(input: &[u8]) {
    let [flags, split, text @ ..] = input else { return };
    let is_set = |bit: u8| flags & 1 << bit != 0;
    let mut parts = split_at_separators(text);
    let mut said = if is_set(1) { Vec::new() } else { PREFACE.to_vec() };
    said.extend(frames(parts.remove(0)));
    let answers: Vec<Vec<u8>> = parts.into_iter().map(frames).collect();
    let script = Script {
        is_h2: answers.is_empty(),
        answers,
        speaks_first: is_set(2),
        closes: is_set(3),
        resets: false,
        answers_early: true,
        pieces: pieces(*split),
    };
    let port = if is_set(0) { Port::Undeclared } else { Port::Http2 };
    World::run(|world| {
        let (_, seen) = world.play(script, async |world| call(world, port, &said, *split, is_set(5)).await);
        let asked = headers_frames(&said).unwrap_or(usize::MAX);
        let served: usize = seen.iter().map(|seen| seen.requests).sum();
        assert!(served <= asked, "the server saw {served} requests, the client sent {asked}");
        let sent = |seen: &world::Seen| {
            let sent = headers_frames(&seen.bytes);
            sent.unwrap_or_else(|| panic!("the agent sent the server what is no HTTP/2: {:?}", seen.bytes))
        };
        // Not of detection's connection, if what was said turned out to be no HTTP/2.
        let all: usize = seen.iter().filter(|seen| seen.bytes.starts_with(PREFACE)).map(sent).sum();
        // Where the server refuses a stream or closes, a request comes again, and its trailers count.
        assert!(all <= asked.saturating_mul(TRIES_MAX), "the agent sent {all} heads, the client {asked}: {seen:?}");
    });
}

fn split_at_separators(mut text: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = text.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        parts.push(&text[..at]);
        text = &text[at + SEPARATOR.len()..];
    }
    parts.push(text);
    parts
}

fn pieces(split: u8) -> usize {
    1 + usize::from(split) % PIECES_MAX
}

/// Frames of HTTP/2 as lines: a byte each for type (its low four bits), flags (six) and stream (five), then the payload, in
/// which `~` stands for NUL. A line that begins with `!` is bytes as they are. So seeds are text, and lengths fit.
fn frames(text: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        let plain = |bytes: &[u8]| bytes.iter().map(|&b| if b == b'~' { 0 } else { b }).collect::<Vec<u8>>();
        match line {
            [b'!', raw @ ..] => wire.extend(plain(raw)),
            [kind, flags, stream, payload @ ..] => {
                let length = u32::try_from(payload.len()).unwrap_or_default();
                wire.extend(&length.to_be_bytes()[1..]);
                wire.extend([kind & 0xf, flags & 0x3f, 0, 0, 0, stream & 0x1f]);
                wire.extend(plain(payload));
            }
            _ => {}
        }
    }
    wire
}

/// HEADERS frames in a stream of frames; `None` if it is none (a part of a frame at its end is fine).
fn headers_frames(mut bytes: &[u8]) -> Option<usize> {
    bytes = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut count = 0;
    while let Some((header, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if length > 1 << 14 {
            return None;
        }
        count += usize::from(header[3] == 1);
        bytes = rest.get(length..).unwrap_or_default();
    }
    Some(count)
}

/// One client: says it all, listens until nobody says any more, ends.
async fn call(world: &World, port: Port, said: &[u8], split: u8, hangs_up: bool) -> Heard {
    let mut stream = TcpStream::connect(world.address(port)).await.expect("the agent listens");
    stream.set_nodelay(true).expect("no delay");
    // So that thousands of runs leave no port in TIME_WAIT.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
    let mut heard = Heard { bytes: Vec::new(), ended_first: false };
    let mut is_torn = false;
    for piece in said.chunks(said.len().div_ceil(pieces(split)).max(1)) {
        if stream.write_all(piece).await.is_err() {
            is_torn = true;
            break;
        }
        tokio::task::yield_now().await;
    }
    if hangs_up && split & 64 != 0 {
        return heard;
    }
    let mut has_ended = hangs_up && stream.shutdown().await.is_ok();
    let done = async {
        let mut buffer = [0; 4096];
        loop {
            match timeout(if has_ended { DONE_TIMEOUT } else { QUIET }, stream.read(&mut buffer)).await {
                Ok(Ok(0)) => {
                    heard.ended_first = !has_ended && !is_torn;
                    return;
                }
                Ok(Ok(count)) => heard.bytes.extend_from_slice(&buffer[..count]),
                Ok(Err(_)) => return,
                Err(_) if !has_ended => {
                    has_ended = true;
                    if stream.shutdown().await.is_err() {
                        return;
                    }
                }
                Err(_) => panic!("the client has ended and the agent does not: {:?}", String::from_utf8_lossy(said)),
            }
        }
    };
    timeout(2 * DONE_TIMEOUT, done).await.expect("the agent goes on sending");
    heard
}

/// What the server saw, of what the client said; what the client heard, of what the server answered.
fn check_h1(said: &[u8], heard: &Heard, seen: &[world::Seen], port: Port) {
    use heddle_http::detect::{Detection, Protocol, detect};
    // Whether the agent takes it for HTTP/1 is another target's question.
    match detect(said) {
        Detection::Decided(Protocol::Http1) => {}
        Detection::Decided(Protocol::Http2) => return,
        _ if port == Port::Undeclared => return,
        _ => {}
    }
    let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (sent, sent_end, rest) = oracle::requests_and_rest(said);
    let mut next = 0;
    for connection in seen {
        let (served, end) = oracle::requests(&connection.bytes);
        if let End::Bad(why) = end {
            panic!("the agent sent the server bad HTTP ({why}): {:?}\nof {:?}", show(&connection.bytes), show(said));
        }
        let mut is_tunnel = false;
        for request in &served {
            // In order; one that got no answer may come again, one that the agent answered does not come.
            let again = next.max(1) - 1;
            let found = (again..sent.len()).find(|&at| is_same(&sent[at], request));
            let Some(at) = found else {
                assert!(
                    is_tunnel,
                    "the server saw a request that the client did not send: {request:?}\nof {:?}",
                    show(said)
                );
                break;
            };
            next = at + 1;
            is_tunnel |= request.may_tunnel;
        }
    }
    let (answers, end) = oracle::responses(&heard.bytes, &sent, rest);
    if let End::Bad(why) = end {
        panic!("the client heard bad HTTP ({why}): {:?}\nof {:?}", show(&heard.bytes), show(said));
    }
    // One more for what is no request, which is then the last.
    let is_bad = matches!(sent_end, End::Bad(_) | End::Part | End::Tunnel) || sent.iter().any(|r| !r.is_complete);
    assert!(
        answers.len() <= sent.len() + usize::from(is_bad),
        "{} answers to {} requests: {:?}",
        answers.len(),
        sent.len(),
        show(&heard.bytes)
    );
    if heard.ended_first {
        let is_whole = answers.iter().all(|answer| answer.is_complete) && !matches!(end, End::Part);
        assert!(is_whole, "a clean end in the middle of an answer: {:?}\nto {:?}", show(&heard.bytes), show(said));
    }
    for answer in answers.iter().rev().skip(1) {
        assert!(!answer.closes, "an answer behind one that ends the connection: {:?}", show(&heard.bytes));
    }
}

/// Whether the server saw this request of the client's: the same, or as much of it as came.
fn is_same(sent: &oracle::Request, seen: &oracle::Request) -> bool {
    let is_body = if seen.is_complete {
        sent.is_complete && sent.body == seen.body
    } else {
        sent.body.starts_with(&seen.body) || seen.body.starts_with(&sent.body)
    };
    is_body && sent.method == seen.method && sent.target == seen.target
}

/// A pause for what has to go round the loop once more.
async fn breathe() {
    sleep(Duration::from_micros(200)).await;
}
