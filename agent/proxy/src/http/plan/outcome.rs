//! What came of an attempt: what it says about the endpoint, and whether another follows.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use heddle_http::breaker::{Overflow, Resource, Scope};
use heddle_http::outlier;
use heddle_http::retry::{self, Attempt as Tried, Decision, Stop};
use heddle_model::Timestamp;
use heddle_telemetry::{Event, Reason};

use super::{Carried, Plan, Response};
use crate::registry::Conn;
use crate::upstreams::Attempt;

/// A connection that did not come about in less than this says nothing about its endpoint: a request may have begun its last attempt just
/// before its time was over, and callers give calls as little as they like.
const CONNECTING_MIN: Duration = Duration::from_millis(20);

impl Plan {
    /// The request is answered by this agent, for this `reason`: what it holds of an endpoint is given back. A time that is over while a
    /// connection is awaited counts against the endpoint as one that did not come about, however early its request gives up; a client that
    /// leaves says nothing.
    pub(crate) fn given_up(&mut self, conn: &Conn, reason: Reason) {
        let Some(carried) = self.carried.as_deref_mut() else { return };
        let is_late = matches!(
            reason,
            Reason::RouteTimeout | Reason::GrpcDeadline | Reason::StreamIdleTimeout | Reason::StreamDurationMax
        );
        let in_vain = carried.attempt.as_ref().filter(|attempt| attempt.connecting() >= Some(CONNECTING_MIN));
        match in_vain.map(Attempt::addr).filter(|_| is_late) {
            Some(addr) => carried.failed(conn, addr),
            None => carried.attempt = None,
        }
    }
}

impl Carried {
    /// The endpoint failed.
    pub(super) fn failed(&mut self, conn: &Conn, addr: SocketAddr) {
        if let Some(mut attempt) = self.attempt.take() {
            attempt.result(&conn.worker, outlier::Outcome::Local);
        }
        self.tried.push(addr);
    }

    /// The endpoint responded.
    pub(super) fn told(&mut self, conn: &Conn, response: &Response<'_>) {
        let Some(attempt) = &mut self.attempt else { return };
        attempt.answered();
        if self.grpc {
            let trailers = response.trailers.or(response.ended.then_some(response.head));
            // Otherwise it is known when the call ends.
            match retry::grpc_code(response.status, response.head, trailers) {
                Some(code) => attempt.result(&conn.worker, outlier::Outcome::grpc(code)),
                // A call may last for hours: an endpoint that is to prove itself has answered.
                None if attempt.is_probe() => attempt.result(&conn.worker, outlier::Outcome::status(response.status)),
                None => {}
            }
            return;
        }
        let retry_after = if response.status == 503 {
            response.head.lookup("retry-after").and_then(|value| retry::retry_after(value, wall_clock()))
        } else {
            None
        };
        attempt.result(&conn.worker, outlier::Outcome::Response { status: response.status, retry_after });
    }

    /// Asks whether another attempt follows; how long to wait first.
    pub(super) fn decide(
        &mut self,
        conn: &Conn,
        outcome: &retry::Outcome<'_>,
        replayable: bool,
        begun: bool,
    ) -> Option<Duration> {
        let tried = Tried {
            idempotent: self.idempotent,
            grpc: self.grpc,
            number: self.number,
            replayable,
            response_begun: begun,
            left: self.clock.left(),
        };
        // The former retry is over: its place may be the next one's.
        self.token = None;
        let (budget, limits) = (&self.upstream.port.budget, &self.upstream.traffic.budget);
        let (breaker, circuit) = (&self.upstream.port.breaker, &self.upstream.traffic.circuit.service);
        let withdraw = || {
            let place = breaker.take(Resource::Retries, circuit).ok_or(Stop::UpstreamOverflow)?;
            let token = budget.withdraw(limits, conn.worker.upstreams.now()).ok_or(Stop::BudgetExhausted)?;
            Ok((token, place))
        };
        let decision = retry::decide(&self.policy, &tried, outcome, wall_clock(), fastrand::u64(..), withdraw);
        let word = decision.stop().map_or("retried", Stop::as_str);
        if decision.stop() == Some(Stop::UpstreamOverflow) {
            self.upstream.overflowed(&conn.worker, Overflow { scope: Scope::Service, resource: Resource::Retries });
        }
        if decision.stop() != Some(Stop::NotRetriable) {
            let service = &self.upstream.service;
            conn.worker.telemetry.upstream.count(Event::Retry, &service.namespace, &service.name, word);
        }
        match decision {
            Decision::Stop(_) => None,
            Decision::Retry { after, token } => {
                self.token = Some(token);
                Some(after)
            }
        }
    }
}

/// For dates that servers name.
fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
