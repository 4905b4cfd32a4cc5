//! Serving an HTTP/2 client: its streams run inside the connection's own task, so that its end is theirs, and its time and
//! faults are its own.

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::RecvStream;
use h2::server::{Builder, Handshake, SendResponse};
use heddle_http::detect::HttpVersion;
use heddle_telemetry::Reason;
use http::Request;
use tokio::net::TcpStream;

use super::client::Client;
use super::flow::Flow;
use super::io::{Io, TURN_BYTES_MAX, Verdict};
use super::record::{Record, Told};
use super::stream;
use super::wire::Wire;
use super::{
    HEADER_LIST_BYTES_MAX, LOCAL_RESETS_MAX, PENDING_RESETS_MAX, RESET_STREAMS_MAX, SEND_BUFFER_BYTES_MAX,
    SMALL_FRAMES_BUDGET, STREAM_WINDOW_BYTES, STREAMS_MAX,
};
use crate::copy::burst;
use crate::mesh;
use crate::registry::Conn;
use crate::route::{Route, Upstream};
use crate::task::Ended;

/// How long a client without a stream may cost its pod budget, for a window that was given while bytes flowed.
const IDLE_CHARGED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client without a stream may take to close a connection it was told to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one client to the end of its connection. `dialled`: the upstream that detection connected to, or why it could not.
pub(crate) async fn run(
    conn: &Rc<Conn>,
    route: Rc<Route>,
    downstream: TcpStream,
    dialled: Option<Result<Upstream, Reason>>,
) -> Ended {
    conn.carries_http();
    conn.clear_deadline();
    let client = Rc::new(Client::new(conn, route));
    match dialled {
        Some(Ok(upstream)) => client.take_first(upstream).await,
        Some(Err(reason)) => client.dialled.set(Some(reason)),
        None => {}
    }
    let turns = client.turns.clone();
    let start = move |flow: &Rc<Flow>, request, respond| {
        Some(stream::serve(client.clone(), flow.clone(), request, respond, HttpVersion::Http2, Vec::new()))
    };
    serve(conn, &turns, downstream.into(), Kind::Client, start).await
}

/// Who opens the streams of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One client.
    Client,
    /// Another agent, for the clients of one pod.
    Heddle,
    /// A peer of HBONE.
    Hbone,
}

/// Serves the streams of one connection to its end. `start` makes the future of one, or refuses it.
pub(crate) async fn serve<F: Future<Output = ()>>(
    conn: &Rc<Conn>,
    turns: &Cell<u64>,
    wire: Wire,
    kind: Kind,
    start: impl Fn(&Rc<Flow>, Request<RecvStream>, SendResponse<Bytes>) -> Option<F>,
) -> Ended {
    let verdict = Rc::new(Verdict::default());
    let io = match kind {
        Kind::Client => Io::to_client(wire, conn, verdict.clone()),
        Kind::Heddle | Kind::Hbone => Io::to_peer(wire, conn, verdict.clone()),
    };
    let (reason, held) = Box::pin(drive(conn, turns, io, &verdict, kind, start)).await;
    Ended { reason, downstream: None, upstream: None, held }
}

/// How it ended, and the connection itself.
async fn drive<F: Future<Output = ()>>(
    conn: &Rc<Conn>,
    turns: &Cell<u64>,
    io: Io,
    verdict: &Verdict,
    kind: Kind,
    start: impl Fn(&Rc<Flow>, Request<RecvStream>, SendResponse<Bytes>) -> Option<F>,
) -> (Reason, Option<Box<dyn Any>>) {
    let config = &conn.worker.config;
    conn.set_deadline(config.request_head_timeout);
    let outlet = io.outlet();
    let mut handshaking = pin!(handshake(io, kind));
    let greeted = poll_fn(|cx| match handshaking.as_mut().poll(cx) {
        Poll::Pending if conn.is_out_of_time() => Poll::Ready(None),
        polled => polled.map(Some),
    });
    let mut connection = match greeted.await {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => return (ended(Err(error), verdict), None),
        None => return (Reason::RequestTimeout, None),
    };
    outlet.begin();
    let flow = Flow::new(conn);
    let mut streams = FuturesUnordered::new();
    let mut is_leaving = false;
    let mut awaits = Awaits::Rest(0);
    let end = poll_fn(|cx| {
        verdict.begin_turn(burst(conn.worker.table.len()).min(TURN_BYTES_MAX), burst(conn.worker.table.len()));
        if conn.is_out_of_time() && matches!(awaits, Awaits::Rest(_)) {
            return Poll::Ready(None);
        }
        if conn.is_out_of_time() && is_leaving {
            // It was told, and goes on as if nothing was said.
            return Poll::Ready(Some(Ok(())));
        }
        if (conn.worker.draining.get() || conn.is_retired() || conn.is_out_of_time()) && !is_leaving {
            is_leaving = true;
            conn.clear_deadline();
            connection.graceful_shutdown();
        }
        loop {
            if let Some(window) = flow.new_window() {
                connection.set_target_window_size(window);
            }
            let accepted = connection.poll_accept(cx);
            if flow.is_awaited() {
                outlet.send(cx);
            }
            flow.driven(cx, verdict.is_flushed.get());
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    verdict.meter.borrow_mut().accept(respond.stream_id().as_u32());
                    // Boxed: the set keeps room for one of its futures even when it is empty.
                    streams.extend(start(&flow, request, respond).map(Box::pin));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending => turns.update(|turns| turns + 1),
            }
            // Streams move; what they sent goes out with the next turn of the connection.
            let mut moved = false;
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
                moved = true;
            }
            if moved {
                continue;
            }
            outlet.send(cx);
            flow.driven(cx, verdict.is_flushed.get());
            let mut meter = verdict.meter.borrow_mut();
            tell_unread(conn, meter.take_refused(), Reason::RequestMalformed);
            let now = match meter.owed() {
                Some(block) => Awaits::Rest(block),
                None if streams.is_empty() => Awaits::Request,
                None => Awaits::Nothing,
            };
            if std::mem::replace(&mut awaits, now) != now {
                conn.clear_deadline();
            }
            if !conn.has_deadline() {
                match now {
                    Awaits::Rest(_) => conn.set_deadline(config.request_head_timeout),
                    Awaits::Request if is_leaving => conn.set_deadline(GOODBYE_TIMEOUT),
                    Awaits::Request if flow.is_charged() => {
                        conn.set_deadline(config.client_idle_timeout.min(IDLE_CHARGED_TIMEOUT));
                    }
                    Awaits::Request => conn.set_deadline(config.client_idle_timeout),
                    Awaits::Nothing => {}
                }
            }
            return Poll::Pending;
        }
    })
    .await;
    // Where GOAWAY says why, a reset must not take it back.
    let is_told = end.as_ref().is_some_and(|end| end.as_ref().err().is_none_or(h2::Error::is_library));
    let reason = end.map_or(Reason::RequestTimeout, |end| ended(end, verdict));
    verdict.is_clean.set(is_told);
    match reason {
        // Of the connection, not of a request; and why its requests end, too.
        Reason::RequestAbuse | Reason::RequestMalformed => {
            conn.ends_for_itself();
            conn.end(reason);
        }
        Reason::RequestTimeout => conn.ends_for_itself(),
        _ if is_leaving => {}
        _ => tell_unread(conn, verdict.meter.borrow_mut().unserved(), Reason::RequestCancelled),
    }
    // What is left of the streams goes first: each is recorded before the client can see its connection close.
    drop(streams);
    (reason, Some(Box::new(connection)))
}

fn handshake(io: Io, kind: Kind) -> Handshake<Io, Bytes> {
    let mut builder = Builder::new();
    if kind == Kind::Hbone {
        builder.max_frame_size(mesh::FRAME_BYTES_MAX);
    }
    // The streams of a peer are those of many clients, who may all give up at once.
    let streams_max = match kind {
        Kind::Client => STREAMS_MAX,
        Kind::Heddle | Kind::Hbone => mesh::STREAMS_MAX,
    };
    let pending_resets_max = PENDING_RESETS_MAX.max(2 * streams_max as usize);
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .max_concurrent_streams(streams_max)
        .max_header_list_size(2 * HEADER_LIST_BYTES_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(pending_resets_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .enable_connect_protocol()
        .handshake(io)
}

/// What a client has to do in time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// Send the rest of its greeting or of a header block, by its number.
    Rest(u64),
    /// Open a stream.
    Request,
    /// Nothing: its streams have clocks of their own.
    Nothing,
}

/// Records requests that ended before anyone could read them.
fn tell_unread(conn: &Rc<Conn>, count: u64, reason: Reason) {
    for _ in 0..count {
        let mut record = Record::begin(conn);
        record.describe(|| Told { protocol: "HTTP/2", ..Told::default() });
        record.detail = "stream_refused";
        record.finish(reason);
    }
}

/// What the end of a client's connection means.
fn ended(end: Result<(), h2::Error>, verdict: &Verdict) -> Reason {
    let Err(error) = end else { return Reason::Completed };
    if verdict.is_abuse.get() || error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) && error.is_library() {
        Reason::RequestAbuse
    } else if let Some(io) = error.get_io() {
        crate::copy::Side::Downstream.broke(io)
    } else if error.is_remote() {
        Reason::DownstreamReset
    } else {
        Reason::RequestMalformed
    }
}
