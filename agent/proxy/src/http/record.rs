//! One request as metrics and log will tell it: filled while it lives, recorded exactly once, whichever way it ends.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_http::retry;
use heddle_model::Workload;
use heddle_telemetry::{AccessRecord, Direction, HttpFields, HttpHandle, HttpLabels, Reason, RequestSample, Via};
use http::{HeaderMap, HeaderValue};

use super::plan::Plan;
use crate::authz::Told as Judged;
use crate::budget::InFlight;
use crate::labels::LabelKey;
use crate::mesh::headers;
use crate::mesh::way::Way;
use crate::registry::Conn;
use crate::route::EndpointRef;
use crate::worker::Worker;

/// Bytes of one text in the access log; the rest is cut off.
const TEXT_BYTES_MAX: usize = 2048;

/// A request under way.
pub(crate) struct Record {
    conn: Rc<Conn>,
    started: Instant,
    /// For the access log, if there is one.
    told: Option<Box<(SystemTime, HttpFields)>>,
    pub(crate) grpc: bool,
    /// An answer of the agent's own has no body.
    pub(crate) is_head: bool,
    /// Status the client was sent, 0 while it was sent none.
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u8>,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) request_messages: u64,
    pub(crate) response_messages: u64,
    /// The rule of HTTP that a message broke.
    pub(crate) detail: &'static str,
    endpoint: Option<(SocketAddr, Option<Arc<Workload>>)>,
    /// By what the endpoint is reached, and who it is.
    way: Way,
    /// Why the called side's agent answered for its application, if it did.
    told_by_peer: Option<Reason>,
    /// The called side, where the request is handed over on this node.
    called: Option<Called>,
    /// What policies said of it, at the called side.
    pub(crate) judged: Judged,
    pub(crate) attempts: u32,
    /// How it is carried.
    pub(crate) plan: Plan,
    /// Its place in the pod's budget.
    in_flight: Option<InFlight>,
    /// What its connection had carried when it became a tunnel.
    tunnel_from: Option<(u64, u64)>,
    is_done: bool,
}

/// What the log says about a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Told<'a> {
    pub(crate) protocol: &'static str,
    pub(crate) method: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    pub(crate) user_agent: &'a [u8],
    pub(crate) request_id: &'a [u8],
}

impl Record {
    /// A request whose first byte came just now.
    pub(crate) fn begin(conn: &Rc<Conn>) -> Self {
        conn.begin_request();
        let told = conn.worker.telemetry.access.enabled().then(|| Box::new((SystemTime::now(), HttpFields::default())));
        Self {
            conn: conn.clone(),
            started: Instant::now(),
            told,
            grpc: false,
            is_head: false,
            status: 0,
            grpc_status: None,
            request_bytes: 0,
            response_bytes: 0,
            request_messages: 0,
            response_messages: 0,
            detail: "",
            endpoint: None,
            way: Way::Direct,
            told_by_peer: None,
            called: None,
            judged: Judged::default(),
            attempts: 0,
            plan: Plan::default(),
            in_flight: None,
            tunnel_from: None,
            is_done: false,
        }
    }

    /// One that nobody is told of: neither log, metrics nor its connection know it.
    pub(crate) fn silent(conn: &Rc<Conn>) -> Self {
        let mut record = Self::begin(conn);
        conn.end_request();
        (record.told, record.is_done) = (None, true);
        record
    }

    /// Says what was asked. `told` is not called where nobody logs.
    pub(crate) fn describe<'a>(&mut self, told: impl FnOnce() -> Told<'a>) {
        if let Some((_, fields)) = self.told.as_deref_mut() {
            let told = told();
            fields.protocol = told.protocol;
            fields.method = cut(told.method);
            fields.authority = cut(told.authority);
            fields.path = cut(told.path);
            fields.user_agent = cut(&String::from_utf8_lossy(told.user_agent));
            fields.request_id = cut(&String::from_utf8_lossy(told.request_id));
        }
    }

    /// `grpc-status`, of trailers or of a response that is nothing but trailers. What is no known code is UNKNOWN.
    pub(crate) fn read_grpc_status(&mut self, value: Option<&[u8]>) {
        if self.grpc
            && let Some(value) = value
        {
            self.grpc_status = Some(retry::read_grpc_status(value));
        }
    }

    /// The request is known: it takes its place in the pod's budget until this record ends.
    pub(crate) fn take_budget(&mut self) -> Result<(), Reason> {
        let worker = &self.conn.worker;
        self.in_flight = self.conn.pod.budget.try_request(worker.limits().requests_max);
        if self.in_flight.is_some() {
            return Ok(());
        }
        worker.metrics().count_budget_exceeded(Reason::PodRequestsMax);
        Err(Reason::PodRequestsMax)
    }

    /// What of both bodies passed so far: bytes and gRPC messages; of the response once there is one.
    pub(crate) fn progress(&mut self, request: (u64, &Messages), response: Option<(u64, &Messages)>) {
        let (request_bytes, messages) = request;
        self.request_messages = messages.count;
        let mut response_bytes = self.response_bytes;
        if let Some((bytes, messages)) = response {
            (response_bytes, self.response_messages) = (bytes, messages.count);
        }
        // A request that is sent again begins anew.
        self.conn.add_received(request_bytes.saturating_sub(self.request_bytes));
        self.conn.add_sent(response_bytes.saturating_sub(self.response_bytes));
        if let Some(Called { conn, .. }) = &self.called {
            conn.add_received(request_bytes.saturating_sub(self.request_bytes));
            conn.add_sent(response_bytes.saturating_sub(self.response_bytes));
        }
        (self.request_bytes, self.response_bytes) = (request_bytes, response_bytes);
    }

    /// From here on every byte its connection carries is its own.
    pub(crate) fn begin_tunnel(&mut self) {
        self.tunnel_from = Some(self.conn.carried());
    }

    /// The endpoint that serves it, once chosen.
    pub(crate) fn set_endpoint(&mut self, endpoint: &EndpointRef) {
        self.endpoint = Some((endpoint.addr, endpoint.workload.clone()));
        self.way = endpoint.way.clone();
    }

    /// Reads why the called side's agent answered for its application. Its word counts where it proved to be one; an application's is stripped.
    pub(crate) fn read_reason(&mut self, fields: &HeaderMap) -> Option<Reason> {
        self.told_by_peer = headers::reason(fields).filter(|_| self.way.via() == Via::Heddle);
        self.told_by_peer
    }

    /// It is handed over on this node: `called` is the other side's connection, which records it too.
    pub(crate) fn hand_over(&mut self, called: Rc<Conn>) -> Result<(), Reason> {
        // What a former attempt took there is given back first.
        self.called = None;
        let worker = &self.conn.worker;
        let Some(in_flight) = called.pod.budget.try_request(worker.limits().requests_max) else {
            worker.metrics().count_budget_exceeded(Reason::PodRequestsMax);
            return Err(Reason::PodRequestsMax);
        };
        called.begin_request();
        // An endpoint that was tried before had no part in it.
        self.called = Some(Called { conn: called, _in_flight: in_flight });
        Ok(())
    }

    /// It is not handed over, or no longer: a pod that was tried before had no part in it.
    pub(crate) fn goes_elsewhere(&mut self) {
        self.called = None;
        self.judged = Judged::default();
    }

    /// Ends it.
    pub(crate) fn finish(mut self, reason: Reason) {
        self.record(reason);
    }

    /// There was no request after all.
    pub(crate) fn forget(mut self) {
        self.conn.end_request();
        self.is_done = true;
    }

    fn record(&mut self, reason: Reason) {
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        let (conn, duration) = (&self.conn, self.started.elapsed());
        let reason = self.told_by_peer.filter(|_| reason.is_success()).unwrap_or(reason);
        conn.end_request();
        conn.count_request();
        if let Some(before) = self.tunnel_from {
            let now = conn.carried();
            self.request_bytes += now.0 - before.0;
            self.response_bytes += now.1 - before.1;
        }
        if let Some(code) = self.grpc_status.filter(|_| reason.is_success()) {
            self.plan.grpc_ended(&self.conn, code);
        }
        self.plan.end(&self.conn);
        let conn = &self.conn;
        if let Some(decided) = &self.judged.decided {
            decided.count(&conn.worker);
        }
        let mut peers = conn.label_key(reason.response_flags());
        if let Some((_, workload)) = &self.endpoint {
            peers.destination.clone_from(workload);
        }
        let routed = self.plan.is_routed().then(|| self.plan.service()).flatten();
        if let Some((service, _)) = &routed {
            peers.service = Some(service.clone());
        }
        if conn.direction == Direction::Outbound {
            peers.is_authenticated = self.way.via().is_authenticated();
        }
        self.count(conn, peers, duration);
        let called = self.called.take();
        if let Some(Called { conn: called, .. }) = &called {
            called.count_request();
            self.count(called, called.label_key(reason.response_flags()), duration);
        }
        let Some(told) = self.told.take() else { return };
        let (start_time, mut fields) = *told;
        let detail = if self.detail.is_empty() { self.judged.detail } else { self.detail };
        (fields.status, fields.grpc_status, fields.detail) = (self.status, self.grpc_status, detail);
        let policy = self.judged.decided.as_ref().and_then(|decided| decided.fields());
        let tell = |conn: &Conn, fields: HttpFields| AccessRecord {
            start_time,
            duration,
            attempts: self.attempts.max(self.plan.number()),
            bytes_sent: self.response_bytes,
            bytes_received: self.request_bytes,
            http: Some(fields),
            ..conn.record(reason)
        };
        let log = &conn.worker.telemetry.access;
        if let Some(Called { conn: called, .. }) = &called {
            log.log(AccessRecord { policy: policy.clone(), ..tell(called, fields.clone()) });
        }
        fields.route = self.plan.rule_name();
        let mut record = tell(conn, fields);
        if conn.direction == Direction::Inbound {
            record.policy = policy;
        }
        if conn.direction == Direction::Outbound {
            record.transport = self.way.via();
            if self.way.via().is_authenticated() {
                record.source_principal = conn.pod.principal().into();
                record.destination_principal = match &self.way {
                    Way::Handover(pod) => pod.principal().into(),
                    way => way.tls().and_then(|(_, ids)| ids.ids().first()).map_or("", |id| id.as_str()).into(),
                };
            }
        }
        if let Some((service, port)) = routed {
            let host = service.host(&conn.worker.snapshot().mesh.cluster_domain);
            record.destination_service = format!("{host}:{port}").into();
        }
        if let Some((addr, workload)) = &self.endpoint {
            record.upstream_address = Some(*addr);
            if let Some(workload) = workload {
                record.destination_namespace = workload.namespace.clone();
                record.destination_pod = workload.name.clone();
                record.destination_workload = workload.workload_name.clone();
            }
        }
        log.log(record);
    }

    fn count(&self, conn: &Conn, peers: LabelKey, duration: Duration) {
        let key = HttpKey { peers, grpc: self.grpc, response_code: self.status, grpc_status: self.grpc_status };
        key.handle(&conn.worker).record(&RequestSample {
            duration,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            request_messages: self.request_messages,
            response_messages: self.response_messages,
        });
    }
}

/// The called side of a request that is handed over.
struct Called {
    conn: Rc<Conn>,
    /// Its place in the called pod's budget.
    _in_flight: InFlight,
}

impl Drop for Called {
    fn drop(&mut self) {
        self.conn.end_request();
    }
}

impl Drop for Record {
    /// Dropped before its end: its connection was cut, or its client went away.
    fn drop(&mut self) {
        // A fault takes the request with it before its connection knows.
        let fault = std::thread::panicking().then_some(Reason::Panic);
        let ended = fault.or_else(|| self.conn.ended().filter(|r| !r.is_success()));
        self.record(ended.unwrap_or(Reason::RequestCancelled));
    }
}

/// The field that tells how a gRPC call ended.
pub(crate) fn grpc_status(fields: &HeaderMap) -> Option<&[u8]> {
    fields.get("grpc-status").map(HeaderValue::as_bytes)
}

fn cut(text: &str) -> Box<str> {
    let end = if text.len() <= TEXT_BYTES_MAX { text.len() } else { text.floor_char_boundary(TEXT_BYTES_MAX) };
    text[..end].into()
}

/// gRPC's length-prefixed messages, counted as they pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Messages {
    /// Whether it is gRPC at all.
    counts: bool,
    prefix: [u8; 5],
    prefix_length: u8,
    /// Bytes of the message under way still to come.
    left: u64,
    pub(crate) count: u64,
}

impl Messages {
    pub(crate) fn new(grpc: bool) -> Self {
        Self { counts: grpc, ..Self::default() }
    }

    /// Body bytes pass.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) {
        while self.counts && !bytes.is_empty() {
            let skip = self.left.min(bytes.len() as u64);
            self.left -= skip;
            bytes = &bytes[skip as usize..];
            while let [first, rest @ ..] = bytes
                && self.left == 0
            {
                self.prefix[usize::from(self.prefix_length)] = *first;
                self.prefix_length += 1;
                bytes = rest;
                if let (5, [_, length @ ..]) = (self.prefix_length, self.prefix) {
                    self.prefix_length = 0;
                    self.left = u32::from_be_bytes(length).into();
                    self.count += 1;
                }
            }
        }
    }
}

/// Everything the labels of a request follow from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HttpKey {
    peers: LabelKey,
    grpc: bool,
    response_code: u16,
    grpc_status: Option<u8>,
}

impl Hash for HttpKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.peers.hash(state);
        (self.grpc, self.response_code, self.grpc_status).hash(state);
    }
}

impl HttpKey {
    /// The cells of its series.
    fn handle(&self, worker: &Worker) -> HttpHandle {
        worker.http_labels.handle(worker, self, |mesh| {
            let labels = HttpLabels {
                peers: self.peers.labels(mesh),
                grpc: self.grpc,
                response_code: self.response_code,
                grpc_status: self.grpc_status,
            };
            worker.telemetry.http.handle(worker.index, &labels)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_counted_however_they_are_cut() {
        let mut wire = Vec::new();
        for length in [0u32, 1, 300, 0, 7] {
            wire.push(0);
            wire.extend(length.to_be_bytes());
            wire.extend(std::iter::repeat_n(b'x', length as usize));
        }
        for step in [1, 2, 3, 5, 7, 100, wire.len()] {
            let mut messages = Messages::new(true);
            wire.chunks(step).for_each(|part| messages.read(part));
            assert_eq!(messages.count, 5, "in steps of {step}");
        }
        let mut none = Messages::new(false);
        none.read(&wire);
        assert_eq!(none.count, 0);
    }
}
