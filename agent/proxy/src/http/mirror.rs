//! Copies of requests for another Service (FEATURES D4): sent when the request itself is complete, never waited for, their answers read and
//! dropped. Bounded: so many at once on a worker, bodies as far as they are kept for another attempt, a time for each. What finds no place is
//! dropped and counted.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use heddle_http::breaker::{Permit, Resource};
use heddle_http::detect::HttpVersion;
use heddle_http::h1::{BodyDecoder, Progress, RequestHead, ResponseHead, ResponseParser};
use heddle_http::{Limits, translate};
use heddle_telemetry::{Event, Reason};
use http::{HeaderValue, Request, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Client, Unreached};
use super::record::Record;
use crate::mesh::headers::SHADOW;
use crate::registry::Conn;
use crate::route::{Choice, From, Kind, Route};
use crate::upstreams::View;
use crate::worker::Worker;

/// Copies on their way at once, on one worker.
const IN_FLIGHT_MAX: usize = 256;
/// To one Service port: one that hangs leaves room for others.
const IN_FLIGHT_PER_PORT_MAX: usize = 64;
/// What one may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read before its connection is closed.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A copy to be sent.
pub(crate) struct Shadow {
    pub(crate) route: Rc<Route>,
    /// By which the client speaks: its copy goes by the same where the port leaves it open.
    pub(crate) spoken: HttpVersion,
}

/// How many are on their way.
#[derive(Default)]
pub(crate) struct InFlight(Cell<usize>);

/// One place among them, among those to its Service, and among that Service's requests.
struct Place {
    worker: Rc<Worker>,
    view: Rc<View>,
    _request: Permit,
}

impl Place {
    /// If all three are free.
    fn take(worker: &Rc<Worker>, route: &Route) -> Option<Self> {
        let Kind::Service { view, .. } = &route.kind else { return None };
        if worker.mirrors.0.get() >= IN_FLIGHT_MAX || view.shadows.get() >= IN_FLIGHT_PER_PORT_MAX {
            return None;
        }
        let request = view.port.breaker.take(Resource::Requests, &view.traffic.circuit.service)?;
        worker.mirrors.0.update(|count| count + 1);
        view.shadows.update(|count| count + 1);
        Some(Self { worker: worker.clone(), view: view.clone(), _request: request })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.mirrors.0.update(|count| count - 1);
        self.view.shadows.update(|count| count - 1);
    }
}

/// Sends a copy, if there is a place for it and its body is known.
pub(crate) fn launch(conn: &Rc<Conn>, shadow: Shadow, request: Option<&Request<()>>, body: Option<Bytes>) {
    let worker = &conn.worker;
    let place = if worker.draining.get() { None } else { Place::take(worker, &shadow.route) };
    let (Some(request), Some(body), Some(place)) = (request, body, place) else {
        return count(conn, &shadow.route, "dropped");
    };
    let (conn, request) = (conn.clone(), request.clone());
    // It ends within its time, and with its worker.
    tokio::task::spawn_local(async move {
        let _place = place;
        // Of its own, and told to nobody: metrics and log are of the request itself.
        let mut record = Record::silent(&conn);
        let sent = tokio::time::timeout(TIMEOUT, send(&conn, &shadow, request, body, &mut record)).await;
        let outcome = match sent {
            Ok(Ok(status)) => class(status),
            Ok(Err(_)) | Err(_) => "failed",
        };
        count(&conn, &shadow.route, outcome);
    });
}

/// It is not sent.
pub(crate) fn drop_one(conn: &Conn, shadow: &Shadow) {
    count(conn, &shadow.route, "dropped");
}

fn count(conn: &Conn, route: &Route, outcome: &'static str) {
    if let Kind::Service { service, .. } = &route.kind {
        conn.worker.telemetry.upstream.count(Event::Mirrored, &service.namespace, &service.name, outcome);
    }
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// Sends it and reads the answer; its status.
async fn send(
    conn: &Rc<Conn>,
    shadow: &Shadow,
    mut request: Request<()>,
    body: Bytes,
    record: &mut Record,
) -> Result<u16, Reason> {
    let client = Client::new(conn, shadow.route.clone());
    let headers = request.headers_mut();
    headers.remove(header::EXPECT);
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(SHADOW, HeaderValue::from_static("1"));
    if !body.is_empty() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let mut choice = Choice::new(conn, &shadow.route, shadow.spoken, None, &[])?;
    let mut answered = Err(Unreached::OtherVersion);
    // Endpoints of one Service may speak either.
    for _ in 0..3 {
        answered = match choice.version() {
            HttpVersion::Http2 => by_http2(&client, &mut choice, &request, &body, record).await,
            HttpVersion::Http1 => by_http1(&client, &mut choice, &request, &body, record).await,
        };
        if answered != Err(Unreached::OtherVersion) {
            break;
        }
    }
    answered.map_err(|unreached| match unreached {
        Unreached::Failed(reason) => reason,
        Unreached::OtherVersion => Reason::UpstreamUnreachable,
    })
}

async fn by_http2(
    client: &Client,
    choice: &mut Choice,
    request: &Request<()>,
    body: &Bytes,
    record: &mut Record,
) -> Result<u16, Unreached> {
    let broken = |_| Unreached::Failed(Reason::UpstreamStreamReset);
    let mut opened = client.open(choice, request, body.is_empty(), record).await?;
    let mut left = body.clone();
    while !left.is_empty() {
        let capacity = poll_fn(|cx| opened.sink.poll_capacity(cx, left.len())).await;
        let part = left.split_to(capacity.ok_or(Unreached::Failed(Reason::UpstreamStreamReset))?);
        let ended = left.is_empty();
        opened.sink.send_data(part, ended).map_err(broken)?;
    }
    let response = (&mut opened.response).await.map_err(broken)?;
    let (status, mut answer) = (response.status().as_u16(), response.into_body());
    let mut read = 0;
    while let Some(part) = answer.data().await {
        let part = part.map_err(broken)?;
        read += part.len();
        if read > ANSWER_BYTES_MAX {
            break;
        }
        answer.flow_control().release_capacity(part.len()).map_err(broken)?;
    }
    opened.held.1.complete();
    Ok(status)
}

async fn by_http1(
    client: &Client,
    choice: &mut Choice,
    request: &Request<()>,
    body: &Bytes,
    record: &mut Record,
) -> Result<u16, Unreached> {
    let malformed = |rule: heddle_http::Reject| Unreached::Failed(rule.request_reason());
    let broken = |_| Unreached::Failed(Reason::UpstreamReset);
    let (mut parts, ()) = request.clone().into_parts();
    let checked = translate::check_request(&mut parts, None, body.is_empty()).map_err(malformed)?;
    let mut head = RequestHead::default();
    translate::request_to_h1(&parts, &checked, "", &mut head).map_err(malformed)?;
    // What is said in our name was stripped from the fields.
    head.fields_mut().append(SHADOW.as_str().as_bytes(), b"1").map_err(malformed)?;
    let (mut upstream, permit) = client.connection(choice, From::Pool, &head, record).await?;
    permit.apply_to_head(&mut head).map_err(malformed)?;
    let mut wire = Vec::with_capacity(1024 + body.len());
    head.write(&mut wire);
    wire.extend_from_slice(body);
    upstream.stream.write_all(&wire).await.map_err(broken)?;
    let (mut parser, mut response) = (ResponseParser::new(Limits::DEFAULT), ResponseHead::default());
    let refused = |rule: heddle_http::Reject| Unreached::Failed(rule.response_reason());
    let (mut bytes, mut read) = (Vec::new(), 0);
    loop {
        if let Progress::Complete { consumed } = parser.parse(&bytes, head.asked(), &mut response).map_err(refused)? {
            bytes.drain(..consumed);
            if !response.is_interim() {
                break;
            }
            continue;
        }
        let count = upstream.stream.read_buf(&mut bytes).await.map_err(broken)?;
        if count == 0 {
            return Err(Reason::ResponseIncomplete.into());
        }
    }
    let mut decoder = BodyDecoder::new(response.body(), &Limits::DEFAULT);
    while !decoder.is_done() && read <= ANSWER_BYTES_MAX {
        let decoded = decoder.decode(&bytes).map_err(refused)?;
        bytes.drain(..decoded.consumed);
        if decoded.done {
            break;
        }
        if decoded.consumed == 0 {
            let count = upstream.stream.read_buf(&mut bytes).await.map_err(broken)?;
            if count == 0 {
                break;
            }
            read += count;
        }
    }
    super::pool::close(upstream.stream);
    Ok(response.status())
}
