//! Serving an HTTP/1 client: requests in order, one at a time; what it pipelines waits in one bounded buffer.

mod cross;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use heddle_http::detect::HttpVersion;
use heddle_http::h1::{
    Body, ClientSide, Progress, RequestHead, RequestParser, ResponseHead, Version, forward_request, forward_response,
};
use heddle_http::{Limits, answer, translate};
use heddle_telemetry::{Direction, Reason};
use http::uri::Scheme;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::client::{Client, Unreached};
use super::inbox::{Filled, Inbox};
use super::plan::{Ended as AttemptEnded, within};
use super::pool;
use super::record::{Record, Told};
use super::relay::{End, Facts, Outcome, Relay, flush};
use crate::authz::{Judge, Permit, View};
use crate::copy;
use crate::copy::Side;
use crate::dial;
use crate::registry::Conn;
use crate::route::{Choice, EndpointRef, From, Route, Upstream};
use crate::task::Ended;

/// How long, and how many bytes, a client may go on sending behind an answer that ends its connection: closing before it has
/// read the answer would take the answer away.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 1 << 20);
/// An answer of the agent's own must be taken in this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Heads of the request under way; only an active connection holds them.
#[derive(Default)]
pub(crate) struct Heads {
    pub(crate) request: RequestHead,
    pub(crate) response: ResponseHead,
}

/// What came of a request for which streams were tried.
enum Streamed {
    Done(Next),
    /// The endpoint that is next speaks HTTP/1.
    Otherwise(Box<(Record, Choice)>),
}

/// What follows a request on its connection.
enum Next {
    /// Another request.
    Request,
    /// The end, as it was told the client.
    End(Reason),
    /// Opaque bytes.
    Tunnel(Box<Tunnel>),
}

/// What a connection goes on with that is not HTTP any more.
struct Tunnel {
    upstream: Upstream,
    upbox: Inbox,
    record: Record,
    /// What was asked, and whoever watches whether it still may be.
    request: RequestHead,
    judge: Judge,
}

/// Serves one client to the end of its connection. `dialled`: the upstream that detection connected to, or why it could not.
pub(crate) async fn run(
    conn: &Rc<Conn>,
    route: Rc<Route>,
    downstream: TcpStream,
    dialled: Option<Result<Upstream, Reason>>,
) -> Ended {
    conn.carries_http();
    let client = Client::new(conn, route);
    client.dialled.set(dialled.as_ref().and_then(|d| d.as_ref().err().copied()));
    let mut server = Server {
        conn,
        client,
        kept: dialled.and_then(Result::ok),
        inbox: Inbox::default(),
        parser: RequestParser::new(Limits::DEFAULT),
        downstream: &downstream,
    };
    let reason = Box::pin(server.serve()).await;
    server.let_go();
    drop(server);
    Ended { reason, downstream: Some(downstream), upstream: None, held: None }
}

struct Server<'a> {
    conn: &'a Rc<Conn>,
    downstream: &'a TcpStream,
    client: Client,
    /// An upstream connection that is this client's alone, or that detection made.
    kept: Option<Upstream>,
    inbox: Inbox,
    parser: RequestParser,
}

impl Server<'_> {
    async fn serve(&mut self) -> Reason {
        loop {
            if self.inbox.is_empty()
                && let Some(end) = poll_fn(|cx| self.poll_idle(cx)).await
            {
                return end;
            }
            let mut record = Record::begin(self.conn);
            let mut heads = self.conn.worker.spare_heads.take();
            let parsed = poll_fn(|cx| self.poll_head(cx, &mut heads.request)).await;
            self.conn.clear_deadline();
            let next = match parsed {
                Ok(()) => self.exchange(&mut heads, record).await,
                Err(Unread::Nothing) => {
                    record.forget();
                    Next::Request
                }
                Err(Unread::Left(Reason::Completed)) => {
                    record.forget();
                    return Reason::Completed;
                }
                Err(Unread::Left(reason)) => {
                    record.finish(reason);
                    return reason;
                }
                Err(Unread::Rejected(reason, rule)) => {
                    record.detail = rule;
                    record.describe(|| Told { protocol: "HTTP/1.1", ..Told::default() });
                    // What is no request may still be one for a head alone, whose answer has no content (RFC 9110 §9.3.2).
                    // Behind empty lines, which mean nothing.
                    let mut line = self.inbox.bytes().iter().skip_while(|byte| matches!(byte, b'\r' | b'\n'));
                    let is_head = b"HEAD ".iter().all(|byte| line.next() == Some(byte));
                    self.refuse(&mut heads.response, record, reason, Version::Http11, is_head, false).await
                }
            };
            self.conn.worker.spare_heads.give(heads);
            match next {
                Next::Request => {}
                Next::End(reason) => return reason,
                Next::Tunnel(parts) => return self.tunnel(*parts).await,
            }
        }
    }

    /// Ready when bytes came (`None`), or the connection is over.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reason>> {
        // A server that closes its idle connection is let go at once.
        if let Some(kept) = &self.kept
            && kept.stream.poll_read_ready(cx).is_ready()
            && !pool::is_quiet(&kept.stream)
            && let Some(gone) = self.kept.take()
        {
            pool::close(gone.stream);
        }
        let Poll::Ready(filled) = self.inbox.poll_fill(cx, self.conn, self.downstream) else {
            if self.conn.is_out_of_time() || self.conn.leaves_in_silence() {
                return Poll::Ready(Some(Reason::Completed));
            }
            if !self.conn.has_deadline() {
                self.conn.set_deadline(self.conn.worker.config.client_idle_timeout);
            }
            return Poll::Pending;
        };
        match filled {
            Ok(Filled::Bytes(_)) => {
                // A head that took too long to tell what it is stays out of time.
                if self.conn.has_deadline() {
                    self.conn.clear_deadline();
                }
                Poll::Ready(None)
            }
            Ok(Filled::End) => Poll::Ready(Some(Reason::Completed)),
            Ok(Filled::NoRoom) => Poll::Ready(Some(Reason::PodBufferedBytesMax)),
            Err(error) => Poll::Ready(Some(Side::Downstream.broke(&error))),
        }
    }

    /// Ready when a head is complete, refused or given up.
    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut RequestHead) -> Poll<Result<(), Unread>> {
        loop {
            match self.parser.parse(self.inbox.bytes(), head) {
                Ok(Progress::Complete { consumed }) => {
                    self.inbox.consume(consumed);
                    return Poll::Ready(Ok(()));
                }
                Ok(Progress::NeedMore) => {
                    if !self.parser.has_begun() && self.inbox.bytes().ends_with(b"\n") {
                        self.inbox.consume(usize::MAX);
                        return Poll::Ready(Err(Unread::Nothing));
                    }
                }
                Err(rule) => return Poll::Ready(Err(Unread::Rejected(rule.request_reason(), rule.as_str()))),
            }
            if self.conn.is_out_of_time() {
                return Poll::Ready(Err(Unread::Rejected(Reason::RequestTimeout, "")));
            }
            if !self.conn.has_deadline() {
                self.conn.set_deadline(self.conn.worker.config.request_head_timeout);
            }
            match ready!(self.inbox.poll_fill(cx, self.conn, self.downstream)) {
                Ok(Filled::Bytes(_)) => {}
                Ok(Filled::NoRoom) => return Poll::Ready(Err(Unread::Rejected(Reason::PodBufferedBytesMax, ""))),
                // Empty lines are no request.
                Ok(Filled::End) if !self.parser.has_begun() => {
                    return Poll::Ready(Err(Unread::Left(Reason::Completed)));
                }
                Ok(Filled::End) => return Poll::Ready(Err(Unread::Left(Reason::RequestCancelled))),
                Err(error) => return Poll::Ready(Err(Unread::Left(Side::Downstream.broke(&error)))),
            }
        }
    }

    /// One request, from its parsed head to its end.
    async fn exchange(&mut self, heads: &mut Heads, mut record: Record) -> Next {
        let limits = Limits::DEFAULT;
        let Heads { request, response } = &mut *heads;
        record.grpc = request.is_grpc();
        record.describe(|| Told {
            protocol: if request.version() == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" },
            method: request.method(),
            authority: request.authority().unwrap_or_default(),
            path: request.path_and_query(),
            user_agent: request.fields().get("user-agent").unwrap_or_default(),
            request_id: request.fields().get("x-request-id").unwrap_or_default(),
        });
        let mut facts = Facts::of(request, &limits);
        let (version, is_head, wants_more) = (facts.version, facts.is_head, facts.wants_more(request));
        let no_body = facts.body == Body::Empty;
        if let Err(reason) = record.take_budget() {
            return self.refuse(response, record, reason, version, is_head, no_body && wants_more).await;
        }
        let host = if request.authority().is_none() { self.original_host() } else { String::new() };
        match forward_request(request, &host) {
            Ok(body) => facts.wire_body = body,
            Err(rule) => {
                record.detail = rule.as_str();
                return self.refuse(response, record, rule.request_reason(), version, is_head, false).await;
            }
        }
        let is_idempotent = facts.is_idempotent;
        let mut begun = self.client.begin(View::of_head(request), HttpVersion::Http1, is_idempotent, &mut record);
        if let Some(delay) = record.plan.delay()
            && let Err(left) = Box::pin(self.waits(delay)).await
        {
            begun = Err(left);
        }
        if let Err(reason) = begun {
            return self.refuse(response, record, reason, version, is_head, no_body && wants_more).await;
        }
        if let Err(rule) = record.plan.edit_request(request) {
            record.detail = rule.as_str();
            return self.refuse(response, record, rule.request_reason(), version, is_head, false).await;
        }
        if record.plan.is_mirrored() {
            let host = self.original_host();
            let copied = translate::request_to_h2(request, Scheme::HTTP, &host).ok();
            let copied = copied.filter(|(_, kind)| *kind == translate::Kind::Plain).map(|(request, _)| request);
            record.plan.copy_of(self.conn, copied, !no_body);
        }
        if !no_body && record.plan.keeps_body() {
            self.inbox.keep(self.conn);
        }
        self.conn.attempts.set(0);
        let mut from = From::Pool;
        let mut choice = None;
        loop {
            let by = record.plan.connect_by();
            let connected = within(by, self.upstream(from, &mut choice, &heads.request, &mut record)).await;
            record.attempts = self.conn.attempts.get();
            let (upstream, permit) = match connected {
                Ok(connected) => connected,
                Err(Unreached::Failed(reason)) => {
                    let Heads { response, .. } = heads;
                    return self.refuse(response, record, reason, version, is_head, no_body && wants_more).await;
                }
                Err(Unreached::OtherVersion) => {
                    let Some(chosen) = choice.take() else { continue };
                    // Boxed: an idle connection holds no room for it.
                    match Box::pin(self.exchange_on_a_stream(heads, facts, record, chosen)).await {
                        Streamed::Done(next) => return next,
                        Streamed::Otherwise(parts) => {
                            let (again, other) = *parts;
                            (record, choice) = (again, Some(other));
                            continue;
                        }
                    }
                }
            };
            let Heads { request, response } = heads;
            let renewed = self.client.renewed(permit, &upstream.endpoint, || View::of_head(request), &mut record);
            let permit = match renewed {
                Ok(permit) => permit,
                Err(reason) => {
                    self.put_back(upstream, true);
                    return self.refuse(response, record, reason, version, is_head, no_body && wants_more).await;
                }
            };
            record.set_endpoint(&upstream.endpoint);
            if let Err(rule) = permit.apply_to_head(request) {
                record.detail = rule.as_str();
                self.put_back(upstream, true);
                return self.refuse(response, record, rule.request_reason(), version, is_head, false).await;
            }
            if record.plan.number() > 1 {
                // What a former attempt was told.
                request.fields_mut().remove("x-heddle-attempt");
            }
            if upstream.endpoint.way.via().is_authenticated() && record.plan.number() > 1 {
                // A word of ours has no byte a value may not have.
                let _ = request.fields_mut().set(b"x-heddle-attempt", record.plan.number().to_string().as_bytes());
            }
            let mut judge = permit.judge();
            let mut upbox = Inbox::default();
            let outcome = {
                let mut wire = self.conn.worker.spare.take();
                request.write(&mut wire);
                let down = End { stream: self.downstream, inbox: &mut self.inbox };
                let up = End { stream: &upstream.stream, inbox: &mut upbox };
                let mut relay = Relay::new(self.conn, down, up, facts, wire, response, &mut record, limits);
                let mut revoked = None;
                let outcome = poll_fn(|cx| match judge.poll(cx, || View::of_head(request)) {
                    Poll::Ready(by) => {
                        revoked = Some(by);
                        Poll::Ready(relay.cut(Reason::PolicyClosed))
                    }
                    Poll::Pending => relay.poll(cx),
                })
                .await;
                relay.recycle();
                revoked.into_iter().for_each(|by| record.judged.revoke(by));
                outcome
            };
            upbox.release();
            match outcome {
                Outcome::Complete { keep_client, keep_upstream } => {
                    self.put_back(upstream, keep_upstream);
                    return self.complete(record, keep_client).await;
                }
                Outcome::Tunnel => {
                    let request = std::mem::take(request);
                    return Next::Tunnel(Box::new(Tunnel { upstream, upbox, record, request, judge }));
                }
                Outcome::Failed(failed) => {
                    let ended = failed.ended.on(upstream.reused);
                    // The upstream is reset: it learns at once that nobody waits.
                    drop(upstream);
                    if let Some(wait) = record.plan.after(self.conn, ended, failed.replayable, failed.begun) {
                        if let Err(left) = Box::pin(self.waits(wait)).await {
                            record.finish(left);
                            return Next::End(left);
                        }
                        self.inbox.rewind();
                        // What was closed while it was idle may have others that are as stale: a new one is not.
                        from = if ended == AttemptEnded::Stale { From::Dial } else { From::Pool };
                        choice = None;
                        continue;
                    }
                    self.inbox.forget();
                    if !failed.answerable {
                        record.finish(failed.reason);
                        return Next::End(failed.reason);
                    }
                    let keep = failed.request_complete && wants_more;
                    return self.refuse(response, record, failed.reason, version, is_head, keep).await;
                }
            }
        }
    }

    /// Waits before another attempt; an error is how the client left meanwhile.
    async fn waits(&mut self, wait: Duration) -> Result<(), Reason> {
        if wait.is_zero() {
            return Ok(());
        }
        let down = End { stream: self.downstream, inbox: &mut self.inbox };
        tokio::select! {
            biased;
            left = down.left(self.conn) => Err(left),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    /// The response is complete.
    async fn complete(&mut self, record: Record, keep_client: bool) -> Next {
        record.finish(Reason::Completed);
        if keep_client {
            return Next::Request;
        }
        self.linger().await;
        Next::End(Reason::Completed)
    }

    /// The address the application called, for a request that names no host.
    fn original_host(&self) -> String {
        self.conn.original.map_or_else(String::new, |original| original.get().to_string())
    }

    /// An upstream for one request, and the permit to send it there.
    async fn upstream(
        &mut self,
        from: From,
        choice: &mut Option<Choice>,
        request: &RequestHead,
        record: &mut Record,
    ) -> Result<(Upstream, Permit), Unreached> {
        if let Some(stale) = self.kept.take_if(|kept| from == From::Dial || !pool::is_quiet(&kept.stream)) {
            pool::close(stale.stream);
        }
        // Where a rule leads elsewhere, what detection dialled is one idle connection more.
        if record.plan.is_routed()
            && let Some(dialled) = self.kept.take_if(|kept| !kept.reused)
        {
            self.put_away(dialled);
        }
        // Detection dialled it for this very request.
        if let Some(mut dialled) = self.kept.take_if(|kept| !kept.reused) {
            dialled.endpoint.carries_requests();
            let EndpointRef { way, addr, .. } = &dialled.endpoint;
            let addr = *addr;
            let permit = self.client.permit(way, addr, || View::of_head(request), record);
            let begun = permit.map_err(|reason| (reason, false)).and_then(|permit| {
                record.plan.attempt(self.conn, addr, true)?;
                record.plan.reached();
                Ok(permit)
            });
            let (reason, has_others) = match begun {
                Ok(permit) => return Ok((dialled, permit)),
                Err(full) => full,
            };
            self.put_back(dialled, true);
            if !has_others {
                return Err(reason.into());
            }
            *choice = Some(self.client.choose_beside(addr, reason, HttpVersion::Http1, &record.plan)?);
        }
        let choice = match choice {
            Some(chosen) => chosen,
            None => choice.insert(self.client.choose(HttpVersion::Http1, &record.plan)?),
        };
        loop {
            if choice.version() != HttpVersion::Http1 {
                return Err(Unreached::OtherVersion);
            }
            self.conn.set_endpoint(choice.hop().addr, choice.workload());
            let view = || View::of_head(request);
            let permit = self.client.permit(&choice.hop().way, choice.hop().addr, view, record)?;
            if !self.client.attempt(choice, record)? {
                continue;
            }
            let endpoint = choice.endpoint(self.conn);
            if let Some(stream) = self.idle(from, &endpoint) {
                record.plan.reached();
                choice.connected(self.conn);
                return Ok((Upstream { stream, endpoint, reused: true }, permit));
            }
            match dial::once(self.conn, self.downstream, choice.hop()).await {
                Ok(stream) => {
                    record.plan.reached();
                    choice.connected(self.conn);
                    return Ok((Upstream { stream, endpoint, reused: false }, permit));
                }
                Err(failure) => {
                    let wait = self.client.unreached(choice, failure, record)?;
                    Box::pin(self.waits(wait)).await?;
                }
            }
        }
    }

    /// An idle connection to an endpoint: the client's own one, or one of the pool.
    fn idle(&mut self, from: From, endpoint: &EndpointRef) -> Option<TcpStream> {
        if from == From::Dial {
            return None;
        }
        let fits =
            |kept: &mut Upstream| kept.endpoint.addr == endpoint.addr && kept.endpoint.private == endpoint.private;
        if let Some(own) = self.kept.take_if(fits) {
            return Some(own.stream);
        }
        if endpoint.private { None } else { self.conn.worker.pool.take(self.conn.pod.serial, endpoint.addr) }
    }

    /// The upstream's next life.
    fn put_back(&mut self, mut upstream: Upstream, keep: bool) {
        if !keep {
            pool::close(upstream.stream);
        } else if upstream.endpoint.private {
            upstream.reused = true;
            upstream.endpoint.rest();
            if let Some(other) = self.kept.replace(upstream) {
                pool::close(other.stream);
            }
        } else {
            self.client.put_back(upstream, true);
        }
    }

    /// The client's connection is over: what detection dialled in vain may serve others.
    fn let_go(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.put_away(kept);
        }
    }

    fn put_away(&self, kept: Upstream) {
        if kept.endpoint.private || !pool::is_quiet(&kept.stream) {
            pool::close(kept.stream);
        } else {
            self.client.put_back(kept, true);
        }
    }

    /// Answers for the upstream, if there is something honest to say, and records the request.
    async fn refuse(
        &mut self,
        head: &mut ResponseHead,
        mut record: Record,
        reason: Reason,
        version: Version,
        is_head: bool,
        keep: bool,
    ) -> Next {
        record.plan.given_up(self.conn, reason);
        // Whatever head was about to be written, nobody got it.
        record.status = 0;
        let made = record.plan.answer.take();
        let Some(status) = made.as_ref().map(|made| made.status).or_else(|| answer::status(reason)) else {
            record.finish(reason);
            return Next::End(reason);
        };
        let keep_alive = keep && !self.conn.worker.draining.get();
        let reveal = self.conn.direction == Direction::Outbound || self.conn.source.is_some();
        let body = answer::h1(reason, status, false, head);
        for (name, value) in made.iter().flat_map(|made| &made.fields) {
            // They were checked when the route was read; a request's own parts were when it came.
            let _ = head.fields_mut().append(name.as_bytes(), value.as_bytes());
        }
        record.plan.edit_answer(head);
        forward_response(head, ClientSide { version, keep_alive, head: is_head });
        if reveal {
            // Behind the step that strips what others say in our name. A word of ours has no byte a value may not have.
            let _ = head.fields_mut().append(answer::REASON_HEADER.as_bytes(), reason.as_str().as_bytes());
        }
        let mut wire = Vec::with_capacity(512);
        head.write(&mut wire);
        if !is_head {
            wire.extend_from_slice(body.as_bytes());
        }
        let mut written = 0;
        let sent =
            tokio::time::timeout(ANSWER_TIMEOUT, poll_fn(|cx| flush(cx, self.downstream, &wire, &mut written))).await;
        if !matches!(sent, Ok(Ok(()))) {
            record.finish(reason);
            return Next::End(reason);
        }
        record.status = status;
        record.response_bytes = if is_head { 0 } else { body.len() as u64 };
        record.finish(reason);
        if keep_alive {
            return Next::Request;
        }
        self.linger().await;
        // The client was told: its connection ends cleanly.
        Next::End(Reason::Completed)
    }

    /// Ends our direction and takes what the client still sends, so that it can read what it was told.
    async fn linger(&mut self) {
        self.let_go();
        self.inbox.discard();
        if SockRef::from(self.downstream).shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let mut left = LINGER.1;
        let drain = pin!(poll_fn(|cx| {
            loop {
                match ready!(self.downstream.poll_read_ready(cx)) {
                    Ok(()) => {}
                    Err(_) => return Poll::Ready(()),
                }
                let mut scratch = self.conn.worker.scratch.borrow_mut();
                match self.downstream.try_read(&mut scratch[..]) {
                    Ok(0) => return Poll::Ready(()),
                    Ok(count) if count >= left => return Poll::Ready(()),
                    Ok(count) => left -= count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(()),
                }
            }
        }));
        let _ = tokio::time::timeout(LINGER.0, drain).await;
    }

    /// Both directions are opaque: what was read ahead goes first, then the bytes are copied to the end.
    async fn tunnel(&mut self, tunnel: Tunnel) -> Reason {
        let Tunnel { upstream, mut upbox, mut record, request, mut judge } = tunnel;
        record.begin_tunnel();
        let mut revoked = None;
        let mut ahead = poll_fn(|cx| {
            if let Poll::Ready(by) = judge.poll(cx, || View::of_head(&request)) {
                revoked = Some(by);
                return Poll::Ready(Err(Reason::PolicyClosed));
            }
            if let Poll::Ready((late, _)) = record.plan.poll_late(cx, moved(self.conn), true) {
                return Poll::Ready(Err(late));
            }
            let before = (self.inbox.len(), upbox.len());
            let up = poll_empty(cx, &mut self.inbox, &upstream.stream).map_err(|e| Side::Upstream.broke(&e));
            let down = poll_empty(cx, &mut upbox, self.downstream).map_err(|e| Side::Downstream.broke(&e));
            self.conn.add_received((before.0 - self.inbox.len()) as u64);
            self.conn.add_sent((before.1 - upbox.len()) as u64);
            match (up, down) {
                (Poll::Ready(Err(reason)), _) | (_, Poll::Ready(Err(reason))) => Poll::Ready(Err(reason)),
                (Poll::Ready(Ok(a)), Poll::Ready(Ok(b))) => Poll::Ready(Ok((a, b))),
                _ => Poll::Pending,
            }
        })
        .await;
        let reason = match &mut ahead {
            Ok(_) => {
                let mut carrying = pin!(copy::carry(self.conn, self.downstream, &upstream.stream));
                poll_fn(|cx| match judge.poll(cx, || View::of_head(&request)) {
                    Poll::Ready(by) => {
                        revoked = Some(by);
                        Poll::Ready(Reason::PolicyClosed)
                    }
                    Poll::Pending => match record.plan.poll_late(cx, moved(self.conn), true) {
                        Poll::Ready((late, _)) => Poll::Ready(late),
                        Poll::Pending => carrying.as_mut().poll(cx),
                    },
                })
                .await
            }
            Err(reason) => *reason,
        };
        revoked.into_iter().for_each(|by| record.judged.revoke(by));
        record.finish(reason);
        if reason.is_success() {
            pool::close(upstream.stream);
        }
        reason
    }
}

/// Bytes that a connection carried, both ways.
fn moved(conn: &Conn) -> u64 {
    let (received, sent) = conn.carried();
    received + sent
}

/// Writes all an inbox holds.
fn poll_empty(cx: &mut Context<'_>, inbox: &mut Inbox, sink: &TcpStream) -> Poll<io::Result<()>> {
    let mut written = 0;
    let polled = flush(cx, sink, inbox.bytes(), &mut written);
    inbox.consume(written);
    if polled.is_ready() {
        inbox.release();
    }
    polled
}

/// Why there is no head.
enum Unread {
    /// Only empty lines came, which mean nothing (RFC 9112 §2.2): the client is as idle as before.
    Nothing,
    /// The client left.
    Left(Reason),
    /// It is not accepted; the rule's name.
    Rejected(Reason, &'static str),
}
