//! Serving an HTTP/2 client: its streams run inside the connection's own task, so that its end is theirs, and its time and
//! faults are its own.

use std::any::Any;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::{Builder, Handshake};
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use super::client::Client;
use super::io::{Io, TURN_BYTES_MAX, Verdict};
use super::stream;
use super::{
    CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, PENDING_RESETS_MAX, RESET_STREAMS_MAX, SEND_BUFFER_BYTES_MAX,
    STREAM_WINDOW_BYTES, STREAMS_MAX,
};
use crate::copy::burst;
use crate::registry::Conn;
use crate::route::{Route, Upstream};
use crate::task::Ended;

/// How long a client without a stream may take to close a connection it was told to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one client to the end of its connection. `dialled`: the upstream that detection connected to, or why it could not.
pub(crate) async fn run(
    conn: &Rc<Conn>,
    route: Route,
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
    let verdict = Rc::new(Verdict::default());
    let (reason, held) = Box::pin(serve(&client, Io::to_client(downstream, verdict.clone()), &verdict)).await;
    Ended { reason, downstream: None, upstream: None, held }
}

/// How it ended, and the connection itself.
async fn serve(client: &Rc<Client>, io: Io, verdict: &Verdict) -> (Reason, Option<Box<dyn Any>>) {
    let mut connection = match handshake(io).await {
        Ok(connection) => connection,
        Err(error) => return (ended(Err(error), verdict), None),
    };
    let mut streams = FuturesUnordered::new();
    let mut is_leaving = false;
    let end = poll_fn(|cx| {
        let conn = &client.conn;
        verdict.allowance.set(burst(conn.worker.table.len()).min(TURN_BYTES_MAX));
        if conn.is_out_of_time() && is_leaving {
            // It was told, and goes on as if nothing was said.
            return Poll::Ready(Ok(()));
        }
        if (conn.worker.draining.get() || conn.is_out_of_time()) && !is_leaving {
            is_leaving = true;
            conn.clear_deadline();
            connection.graceful_shutdown();
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    // Boxed: the set keeps room for one of its futures even when it is empty.
                    streams.push(Box::pin(stream::serve(client.clone(), request, respond)));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => client.turns.update(|turns| turns + 1),
            }
            // Streams move; what they sent goes out with the next turn of the connection.
            let mut moved = false;
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
                moved = true;
            }
            if moved {
                continue;
            }
            if !streams.is_empty() {
                conn.clear_deadline();
            } else if !conn.has_deadline() {
                conn.set_deadline(if is_leaving { GOODBYE_TIMEOUT } else { conn.worker.config.client_idle_timeout });
            }
            return Poll::Pending;
        }
    })
    .await;
    // Where GOAWAY says why, a reset must not take it back.
    let is_told = end.as_ref().err().is_none_or(h2::Error::is_library);
    let reason = ended(end, verdict);
    verdict.is_clean.set(is_told);
    if matches!(reason, Reason::RequestAbuse | Reason::RequestMalformed) {
        // It is why its requests end, too.
        client.conn.end(reason);
    }
    // What is left of the streams goes first: each is recorded before the client can see its connection close.
    drop(streams);
    (reason, Some(Box::new(connection)))
}

fn handshake(io: Io) -> Handshake<Io, Bytes> {
    Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .enable_connect_protocol()
        .handshake(io)
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
