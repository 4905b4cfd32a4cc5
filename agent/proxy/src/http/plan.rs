//! What a request goes through on its client's side, before its first attempt and between attempts: the rule of its route, the faults, the
//! backend, the places of the circuit breaker, the clocks, and whether a failed attempt is followed by another.
//!
//! Decisions are `model`'s and `http`'s; here they meet a request. Requests that call no Service, and the called side's, have none of it.

mod clock;
mod edit;
mod outcome;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_http::breaker::Permit;
use heddle_http::detect::HttpVersion;
use heddle_http::outlier;
use heddle_http::retry::{self, ActiveRequest, Lookup, Token};
use heddle_http::{Reject, answer};
use heddle_model::routing::{Cors, RouteKey, Rule};
use heddle_model::traffic::{Abort, Faults, RetryPolicy};
use heddle_telemetry::{Direction, Event, Reason};
use http::Request;

use super::mirror::{self, Shadow};
use crate::authz::View;
use crate::dial::Failure;
use crate::registry::Conn;
use crate::route::{Kind, Route};
use crate::upstreams::{Attempt, View as Upstream};

pub(crate) use clock::Clock;
pub(crate) use edit::{Head, ResponseFields};

/// Times a request is sent again because its connection was closed meanwhile, or is being closed with a goodbye: nothing failed, so no budget is
/// asked.
const REPEATS_MAX: u32 = 2;

/// An answer made for one request, in place of the one that its reason stands for.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u8>,
    pub(crate) fields: Vec<(&'static str, String)>,
}

/// How an attempt ended without a response to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Whatever it was, it is not repeated.
    Final,
    /// Its connection had been closed while it was idle, and the request can be sent again without doing it twice: no failure of the
    /// endpoint, and at most as often as there are idle connections.
    Stale,
    /// The server did nothing with it.
    Refused {
        /// Because it says goodbye.
        graceful: bool,
    },
    /// The server, or the way to it, broke off before the response.
    Reset,
    /// It took too long.
    TimedOut {
        /// All of the request was sent by then: it was the server's turn.
        sent: bool,
    },
    /// The request took too long, all attempts together, and it was the server's turn.
    Overdue,
    /// The response asks for another attempt, which [`Plan::judge`] granted.
    Judged,
}

impl Ended {
    /// The same, of a connection that was `reused` or not: a new one was not closed while it was idle.
    pub(crate) fn on(self, reused: bool) -> Self {
        if self == Self::Stale && !reused { Self::Reset } else { self }
    }
}

/// Waits for an upstream until `by`, at most.
pub(crate) async fn within<T, E: From<Reason>>(
    by: Option<(Instant, Reason)>,
    upstream: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match by {
        None => upstream.await,
        Some((at, reason)) => match tokio::time::timeout_at(at.into(), upstream).await {
            Ok(reached) => reached,
            Err(_) => Err(reason.into()),
        },
    }
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Plan {
    carried: Option<Box<Carried>>,
    repeats: u32,
    /// A fault: to be waited for first.
    delay: Option<Duration>,
    /// The rule that it matches, for the log and for what we answer: also where that answers by itself, or is of no use.
    matched: Option<Arc<Rule>>,
    /// Fields of every response but a preflight's, beside what filters say.
    cors: Vec<(&'static str, String)>,
    /// Copies to be sent once the request is complete, and what they are copies of.
    shadows: Vec<Shadow>,
    original: Option<Box<Request<()>>>,
    /// What is answered in place of what the reason stands for.
    pub(crate) answer: Option<Box<Answer>>,
}

/// A request to a Service.
struct Carried {
    /// The rule it matches, with the length of the prefix that matched.
    rule: Option<(Arc<Rule>, usize)>,
    /// Which of the rule's backends it fell to.
    backend: usize,
    route: Rc<Route>,
    upstream: Rc<Upstream>,
    policy: Arc<RetryPolicy>,
    /// An object says so; otherwise it is what holds without.
    has_policy: bool,
    idempotent: bool,
    grpc: bool,
    /// The number of the attempt; the first is 1.
    number: u32,
    tried: Vec<SocketAddr>,
    attempt: Option<Attempt>,
    /// What the budget gave for it, and its place where their number is limited besides.
    token: Option<(Token, Permit)>,
    /// The wait before the attempt that a response asked for.
    granted: Option<Duration>,
    clock: Clock,
    _active: ActiveRequest,
}

impl Plan {
    /// Finds out what becomes of a request: an error is answered, by [`Plan::answer`] if there is one, and so is what goes on only behind
    /// [`Plan::delay`]. `idempotent` by its method.
    pub(crate) fn begin(
        &mut self,
        conn: &Rc<Conn>,
        route: Rc<Route>,
        view: &View<'_>,
        spoken: HttpVersion,
        idempotent: bool,
        grpc: bool,
    ) -> Result<(), Reason> {
        if conn.direction == Direction::Inbound {
            return Ok(());
        }
        let Kind::Service { view: upstream, table, .. } = &route.kind else { return Ok(()) };
        let matched = match table.as_ref().filter(|table| table.has_http()) {
            None => None,
            Some(table) => {
                let matched = table.pick(view).ok_or(Reason::RouteNotFound)?;
                Some((matched.rule.clone(), matched.prefix_bytes))
            }
        };
        let (mut to, mut backend) = (None, 0);
        if let Some((rule, prefix)) = &matched {
            if conn.worker.telemetry.access.enabled() || edits_answers(rule) {
                self.matched = Some(rule.clone());
            }
            if rule.invalid.is_some() {
                return Err(Reason::RouteInvalid);
            }
            self.answer_of(rule, *prefix, conn.original.map_or(80, heddle_model::OriginalDst::port), view)?;
            let drawn = rule.draw(fastrand::u64(..)).ok_or(Reason::BackendInvalid)?;
            backend = rule.backends.iter().position(|backend| std::ptr::eq(backend, drawn)).unwrap_or_default();
            to = Some(drawn);
        }
        let called = route.clone();
        let (route, upstream) = match to {
            None => (route.clone(), upstream.clone()),
            Some(backend) => {
                let route = route.backend(conn, &backend.to)?;
                let Kind::Service { view, .. } = &route.kind else { return Err(Reason::BackendInvalid) };
                let view = view.clone();
                (route, view)
            }
        };
        let of_service = &upstream.traffic.request;
        if let Some((rule, _)) = &matched {
            self.mirror(conn, &called, rule, spoken);
        }
        let traffic = match &matched {
            Some((rule, _)) => rule.traffic.or(of_service),
            None => of_service.clone(),
        };
        let has_policy = traffic.retry.is_some();
        let policy = traffic.retry.unwrap_or_else(|| conn.worker.untold_retries.clone());
        let clock = Clock::new(traffic.timeouts, policy.per_try_timeout, if grpc { grpc_timeout(view) } else { None });
        if let Some(faults) = &traffic.faults {
            self.inject(conn, &upstream, faults, view, clock.left())?;
        }
        let active = upstream.port.budget.request();
        self.carried = Some(Box::new(Carried {
            rule: matched,
            backend,
            route,
            upstream,
            policy,
            has_policy,
            idempotent,
            grpc,
            number: 0,
            tried: Vec::new(),
            attempt: None,
            token: None,
            granted: None,
            clock,
            _active: active,
        }));
        Ok(())
    }

    /// Draws the mirrors that get a copy of a request.
    fn mirror(&mut self, conn: &Conn, route: &Route, rule: &Rule, spoken: HttpVersion) {
        for mirror in &rule.filters.mirrors {
            if mirror.share.draws(fastrand::u64(..))
                && let Ok(route) = route.backend(conn, &mirror.to)
            {
                self.shadows.push(Shadow { route, spoken });
            }
        }
    }

    /// Whether anybody gets a copy: then its body is kept.
    pub(crate) fn is_mirrored(&self) -> bool {
        !self.shadows.is_empty()
    }

    /// What copies are made of, once filters have changed it; without a body they are sent at once.
    pub(crate) fn copy_of(&mut self, conn: &Rc<Conn>, original: Option<Request<()>>, has_body: bool) {
        self.original = original.map(Box::new);
        if !has_body {
            self.launch(conn, Some(Bytes::new()));
        }
    }

    /// The request is complete, or will not be kept any longer: `body` if all of it is there.
    pub(crate) fn launch(&mut self, conn: &Rc<Conn>, body: Option<Bytes>) {
        for shadow in self.shadows.drain(..) {
            mirror::launch(conn, shadow, self.original.as_deref(), body.clone());
        }
    }

    /// The request is over: copies that were not sent are not.
    pub(crate) fn end(&mut self, conn: &Conn) {
        self.shadows.drain(..).for_each(|shadow| mirror::drop_one(conn, &shadow));
    }

    /// What a rule's filters answer by themselves: a preflight, a redirect. `port` is the one that was called.
    pub(crate) fn answer_of(&mut self, rule: &Rule, prefix: usize, port: u16, view: &View<'_>) -> Result<(), Reason> {
        if let Some(cors) = &rule.filters.cors {
            let field = |name: &str| first_value(view, name);
            let (origin, asked) = (field("origin"), field("access-control-request-method"));
            let (origin, asked) = (origin.as_deref(), asked.as_deref());
            let method = heddle_model::routing::Request::method(view);
            if let (Some(origin), true) = (origin, Cors::is_preflight(method, origin, asked)) {
                let fields = cors.preflight(origin, asked, field("access-control-request-headers").as_deref());
                self.answer = Some(Box::new(Answer { status: 204, grpc_status: None, fields }));
                return Err(Reason::CorsPreflight);
            }
            self.cors = cors.response(origin);
        }
        if let Some(redirect) = &rule.filters.redirect {
            let location = redirect.location("http", view.authority(), port, view.path_and_query(), prefix);
            let fields = vec![("location", location)];
            self.answer = Some(Box::new(Answer { status: redirect.status, grpc_status: None, fields }));
            return Err(Reason::Redirected);
        }
        Ok(())
    }

    /// `left` is what the request may take.
    fn inject(
        &mut self,
        conn: &Conn,
        upstream: &Upstream,
        faults: &Faults,
        view: &View<'_>,
        left: Option<Duration>,
    ) -> Result<(), Reason> {
        if !faults.matches.iter().all(|condition| condition.is_met(view)) {
            return Ok(());
        }
        let count = |fault| {
            let service = &upstream.service;
            conn.worker.telemetry.upstream.count(Event::Fault, &service.namespace, &service.name, fault);
        };
        if let Some((share, delay)) = faults.delay
            && share.draws(fastrand::u64(..))
        {
            count("delay");
            self.delay = Some(left.map_or(delay, |left| delay.min(left)));
            // It does not live to see the other.
            if left.is_some_and(|left| left <= delay) {
                return Ok(());
            }
        }
        if let Some((share, abort)) = faults.abort
            && share.draws(fastrand::u64(..))
        {
            count("abort");
            let (status, grpc_status) = abort_codes(abort);
            self.answer = Some(Box::new(Answer { status, grpc_status: Some(grpc_status), fields: Vec::new() }));
            return Err(Reason::FaultInjected);
        }
        Ok(())
    }

    /// How long to wait before anything else; no longer than the request may take.
    pub(crate) fn delay(&mut self) -> Option<Duration> {
        self.delay.take()
    }

    /// Where it goes, if that is not where its connection does.
    pub(crate) fn route(&self) -> Option<&Rc<Route>> {
        self.carried.as_ref().map(|carried| &carried.route)
    }

    /// Whether it may go elsewhere than a connection that was made before it was read.
    pub(crate) fn is_routed(&self) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.rule.is_some())
    }

    /// The Service that it goes to, where a rule leads there.
    pub(crate) fn service(&self) -> Option<(Arc<heddle_model::Service>, u16)> {
        let upstream = &self.carried.as_ref()?.upstream;
        let port = upstream.service.ports.get(upstream.port_index)?.port;
        Some((upstream.service.clone(), port))
    }

    /// Endpoints that failed it.
    pub(crate) fn tried(&self) -> &[SocketAddr] {
        self.carried.as_ref().map_or(&[], |carried| &carried.tried)
    }

    /// Whether an object says when it is retried.
    pub(crate) fn has_retry_policy(&self) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.has_policy)
    }

    /// Whether its body should be kept: for another attempt (also where the policy wants none, a connection may turn out to be closed), or for
    /// copies.
    pub(crate) fn keeps_body(&self) -> bool {
        self.carried.is_some()
    }

    /// Makes a request's head what it is to be for the backend: once, before the first attempt.
    pub(crate) fn edit_request(&self, head: &mut impl Head) -> Result<(), Reject> {
        let Some(Carried { rule: Some((rule, prefix)), backend, .. }) = self.carried.as_deref() else { return Ok(()) };
        edit_request(rule, *prefix, *backend, head)
    }

    /// The rule that it matched, as the log names it; empty if there was none.
    pub(crate) fn rule_name(&self) -> Box<str> {
        self.matched.as_deref().map(rule_name).unwrap_or_default().into()
    }

    /// Makes a final response's head what the client gets.
    pub(crate) fn edit_response(&self, head: &mut impl ResponseFields) {
        let Some(Carried { rule: Some((rule, _)), backend, .. }) = self.carried.as_deref() else { return };
        if rule.filters.cors.is_some() {
            Cors::FIELDS.iter().for_each(|name| head.remove(name));
        }
        self.edit(rule, head);
        let of_backend = rule.backends.get(*backend).and_then(|backend| backend.filters.response_headers.as_ref());
        if let Some(edit) = of_backend {
            let _ = edit::apply(edit, head);
        }
    }

    /// Makes the head of an answer of ours what the client gets: of what its rule says all that is not of a backend.
    pub(crate) fn edit_answer(&self, head: &mut impl ResponseFields) {
        if let Some(rule) = self.matched.as_ref().filter(|rule| rule.invalid.is_none()) {
            self.edit(rule, head);
        }
    }

    fn edit(&self, rule: &Rule, head: &mut impl ResponseFields) {
        for (name, value) in &self.cors {
            // They were checked when the route was read. What an answer depends on besides is for its server to say.
            let _ = if *name == "vary" { head.add(name, value.as_bytes()) } else { head.set(name, value.as_bytes()) };
        }
        if let Some(edit) = &rule.filters.response_headers {
            let _ = edit::apply(edit, head);
        }
    }

    /// An attempt begins at an endpoint: takes its places, that of a connection too where it has one to itself (`is_alone`). An error is
    /// answered, unless another endpoint may have a place (`true`).
    pub(crate) fn attempt(&mut self, conn: &Conn, addr: SocketAddr, is_alone: bool) -> Result<(), (Reason, bool)> {
        let Some(carried) = self.carried.as_deref_mut() else { return Ok(()) };
        carried.attempt = None;
        match carried.upstream.begin(&conn.worker, addr, is_alone, carried.token.is_some()) {
            Ok(attempt) => {
                carried.attempt = Some(attempt);
                carried.number += 1;
                carried.clock.begin_attempt();
                Ok(())
            }
            Err(overflow) => {
                carried.tried.push(addr);
                Err(carried.upstream.overflowed(&conn.worker, overflow))
            }
        }
    }

    /// What one attempt may take, its connection included.
    pub(crate) fn per_try(&self) -> Option<Duration> {
        self.carried.as_ref()?.clock.per_try()
    }

    /// When the attempt that began has to have a connection, with all that belongs to it, and what it is otherwise.
    pub(crate) fn connected_by(&self) -> Option<(Instant, Reason)> {
        let carried = self.carried.as_ref()?;
        let connect = carried.upstream.traffic.connect_timeout.and_then(|time| Instant::now().checked_add(time));
        let attempt = carried.clock.attempt_ends().map(|at| (at, Reason::ResponseTimeout));
        connect.map(|at| (at, Reason::UpstreamConnectTimeout)).into_iter().chain(attempt).min_by_key(|(at, _)| *at)
    }

    /// The number of the attempt under way; 0 where nobody counts.
    pub(crate) fn number(&self) -> u32 {
        self.carried.as_ref().map_or(0, |carried| carried.number)
    }

    /// What the attempt began with turned out to be of no use, before anything was sent: it begins anew.
    pub(crate) fn begin_anew(&mut self) {
        if let Some(carried) = self.carried.as_deref_mut() {
            carried.attempt = None;
            carried.number = carried.number.saturating_sub(1);
            carried.clock.end_attempt();
        }
    }

    /// What is left of the deadline, to be told to the server of a gRPC call.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.carried.as_ref().filter(|carried| carried.grpc)?.clock.left()
    }

    /// The endpoint was reached.
    pub(crate) fn reached(&mut self) {
        if let Some(attempt) = self.carried.as_deref_mut().and_then(|carried| carried.attempt.as_mut()) {
            attempt.reached();
        }
    }

    /// All of the request is sent to it.
    pub(crate) fn sent(&mut self) {
        if let Some(attempt) = self.carried.as_deref_mut().and_then(|carried| carried.attempt.as_mut()) {
            attempt.sent();
        }
    }

    /// The endpoint was not reached: how long to wait before another is tried, or why none is.
    /// `next` says whether there is another.
    pub(crate) fn unreached(
        &mut self,
        conn: &Conn,
        addr: SocketAddr,
        failure: Failure,
        next: Result<(), Reason>,
    ) -> Result<Duration, Reason> {
        let Some(carried) = self.carried.as_deref_mut() else { return next.map(|()| Duration::ZERO) };
        if failure.is_ours() {
            if let Some(mut attempt) = carried.attempt.take().filter(|_| failure.reason != Reason::DownstreamReset) {
                attempt.acquit();
            }
            return Err(failure.reason);
        }
        carried.clock.end_attempt();
        carried.failed(conn, addr);
        next?;
        let outcome = match failure.reason {
            Reason::ResponseTimeout => retry::Outcome::TimedOut,
            _ => retry::Outcome::ConnectFailed,
        };
        carried.decide(conn, &outcome, true, false).ok_or(failure.reason)
    }

    /// A final head came. Whether the request is sent again instead of passing it on; then [`Ended::Judged`] is what follows.
    pub(crate) fn judge(&mut self, conn: &Conn, response: &Response<'_>) -> bool {
        let Some(carried) = self.carried.as_deref_mut() else { return false };
        carried.clock.head_came();
        carried.told(conn, response);
        let Response { status, head, trailers, replayable, begun, .. } = *response;
        if begun {
            return false;
        }
        let outcome = retry::Outcome::Response { status, head, trailers };
        let granted = carried.decide(conn, &outcome, replayable, begun);
        carried.granted = granted;
        granted.is_some()
    }

    /// The exchange is a tunnel from here on: only what is said of streams ends it.
    pub(crate) fn begin_tunnel(&mut self) {
        if let Some(carried) = self.carried.as_deref_mut() {
            carried.clock.begin_tunnel();
        }
    }

    /// Whether a gRPC call's response is to be held back until it is known how the call ended, where that comes without a message.
    pub(crate) fn awaits_status(&self) -> bool {
        self.carried.as_ref().is_some_and(|carried| {
            let is_asked = !carried.policy.conditions(carried.idempotent).grpc_codes.is_empty();
            carried.grpc && is_asked && carried.number <= carried.policy.retries_max
        })
    }

    /// The head of a gRPC call's response is held back: until when, at most.
    pub(crate) fn hold_head(&mut self) -> Instant {
        self.carried.as_mut().map_or_else(Instant::now, |carried| carried.clock.hold_head())
    }

    /// A gRPC call whose response was passed on ended so.
    pub(crate) fn grpc_ended(&mut self, conn: &Conn, code: u8) {
        if let Some(attempt) = self.carried.as_deref_mut().and_then(|carried| carried.attempt.as_mut()) {
            attempt.result(&conn.worker, outlier::Outcome::grpc(code));
        }
    }

    /// An attempt ended without a response that is passed on: how long to wait before the next one; `None` if there is none.
    pub(crate) fn after(&mut self, conn: &Conn, ended: Ended, replayable: bool, begun: bool) -> Option<Duration> {
        let is_harmless = match ended {
            Ended::Stale | Ended::Refused { graceful: true } => true,
            // Without a policy a request is sent again where nothing was done with it.
            Ended::Refused { graceful: false } => self.carried.is_none(),
            _ => false,
        };
        if is_harmless && replayable && !begun && self.repeats < REPEATS_MAX {
            self.repeats += 1;
            self.begin_anew();
            return Some(Duration::ZERO);
        }
        let carried = self.carried.as_deref_mut()?;
        carried.clock.end_attempt();
        let addr = carried.attempt.as_ref().map(Attempt::addr);
        let outcome = match ended {
            Ended::Final => {
                carried.attempt = None;
                return None;
            }
            Ended::Overdue => {
                addr.into_iter().for_each(|addr| carried.failed(conn, addr));
                return None;
            }
            Ended::Judged => {
                carried.attempt = None;
                carried.tried.extend(addr);
                return carried.granted.take();
            }
            Ended::Stale | Ended::Reset => retry::Outcome::Reset,
            Ended::Refused { graceful } => retry::Outcome::Refused { graceful },
            Ended::TimedOut { .. } => retry::Outcome::TimedOut,
        };
        if let Some(addr) = addr
            && !matches!(ended, Ended::Refused { graceful: true })
        {
            if ended == (Ended::TimedOut { sent: false }) {
                // The client took its time: that says nothing about the endpoint.
                carried.attempt = None;
                carried.tried.push(addr);
            } else {
                carried.failed(conn, addr);
            }
        }
        carried.decide(conn, &outcome, replayable, begun)
    }

    /// Ready when a time is over: why, and what that says about the attempt. `sent`: all of the request is.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>, moved: u64, sent: bool) -> Poll<(Reason, Ended)> {
        let Some(carried) = self.carried.as_deref_mut() else { return Poll::Pending };
        carried.clock.poll(cx, moved).map(|(reason, awaits_head)| {
            let ended = match reason {
                Reason::ResponseTimeout => Ended::TimedOut { sent },
                // What the client itself grants says nothing.
                Reason::RouteTimeout if sent && awaits_head => Ended::Overdue,
                _ => Ended::Final,
            };
            (reason, ended)
        })
    }

    /// The moment by which a connection must be there.
    pub(crate) fn connect_by(&self) -> Option<(Instant, Reason)> {
        self.carried.as_ref()?.clock.next()
    }
}

/// A response as far as it is known.
#[derive(Clone, Copy)]
pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    pub(crate) head: &'a dyn Lookup,
    pub(crate) trailers: Option<&'a dyn Lookup>,
    /// Nothing follows the head.
    pub(crate) ended: bool,
    /// What was sent of the request's body can be sent again.
    pub(crate) replayable: bool,
    /// A byte of a response went out to the client.
    pub(crate) begun: bool,
}

/// Makes a request's head what a rule says that it is to be for one of its backends.
pub(crate) fn edit_request(rule: &Rule, prefix: usize, backend: usize, head: &mut impl Head) -> Result<(), Reject> {
    // CONNECT has no path, and where it leads is its host; `*` is no path either.
    if let Some(rewrite) = rule.filters.rewrite.as_ref().filter(|_| head.path_and_query().starts_with('/')) {
        if let Some(path) = &rewrite.path {
            let path = path.apply(head.path_and_query(), prefix);
            head.set_path_and_query(&path)?;
        }
        if let Some(hostname) = &rewrite.hostname {
            head.set_authority(hostname)?;
        }
    }
    let of_backend = rule.backends.get(backend).and_then(|backend| backend.filters.request_headers.as_ref());
    for edit in rule.filters.request_headers.iter().chain(of_backend) {
        edit::apply(edit, head)?;
    }
    Ok(())
}

/// Whether a rule has a say in the heads of what we answer.
fn edits_answers(rule: &Rule) -> bool {
    rule.filters.cors.is_some() || rule.filters.response_headers.is_some()
}

/// HTTP status and gRPC code of an injected answer.
pub(crate) fn abort_codes(abort: Abort) -> (u16, u8) {
    match abort {
        Abort::Http(status) => (status, answer::grpc_status(status)),
        Abort::Grpc(code) => (answer::http_status(code), code),
    }
}

/// `HTTPRoute/namespace/name/number`.
pub(crate) fn rule_name(rule: &Rule) -> String {
    let RouteKey { kind, namespace, name } = &rule.id.route;
    format!("{}/{namespace}/{name}/{}", kind.as_str(), rule.id.index)
}

/// The first value of a field, where it is text.
fn first_value(view: &View<'_>, name: &str) -> Option<String> {
    let mut first = None;
    heddle_model::routing::Request::header(view, name, &mut |value| {
        if first.is_none() {
            first = Some(std::str::from_utf8(value).map(str::to_owned));
        }
    });
    first?.ok()
}

/// `grpc-timeout`: what the client gives the call.
fn grpc_timeout(view: &View<'_>) -> Option<Duration> {
    let mut timeout = None;
    heddle_model::policy::Request::header(view, "grpc-timeout", &mut |value| {
        timeout = timeout.or_else(|| retry::grpc_timeout(value));
    });
    timeout
}
