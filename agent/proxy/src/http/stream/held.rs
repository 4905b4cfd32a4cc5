//! The head of a unary gRPC call's response, held back until it is known whether the call failed: a server may say so in trailers behind a head
//! of its own, and what the client has not heard of can be tried again.
//!
//! gRPC itself takes a response's head for the end of all retries, so servers that are asked for a lot may send it long before they are done.
//! It came within the time of a try, and is held no longer than that; where a try has none, for a second.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use heddle_http::h1::Body;
use heddle_telemetry::Reason;
use http::{HeaderMap, response};
use tokio::time::{Sleep, sleep_until};

use crate::http::flow::Incoming;

/// A response's head and what follows it.
pub(super) struct Came {
    pub(super) parts: response::Parts,
    pub(super) source: Incoming,
    pub(super) body: Body,
    pub(super) ended: bool,
    /// Why another agent answered for its application.
    pub(super) reason: Option<Reason>,
}

/// See the module documentation.
pub(super) struct Held {
    pub(super) response: Came,
    /// When it goes out at the latest.
    until: Instant,
    /// Set once nothing followed the head at once, which is rare.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Held {
    pub(super) const fn new(response: Came, until: Instant) -> Self {
        Self { response, until, timer: None }
    }

    /// Ready when it is held no longer: with trailers if nothing else follows the head.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        let polled = self.poll_behind(cx);
        if polled.is_ready() {
            return polled;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.until.into())));
        timer.as_mut().poll(cx).map(|()| Ok(None))
    }

    /// Ready with the first byte behind the head, or what comes instead.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        let source = &mut self.response.source;
        if let Some(data) = ready!(source.poll_data(cx)).transpose()? {
            source.untake(data);
            return Poll::Ready(Ok(None));
        }
        let trailers = ready!(source.poll_trailers(cx))?;
        if let Some(trailers) = &trailers {
            source.untake_trailers(trailers.clone());
        }
        Poll::Ready(Ok(Some(trailers.unwrap_or_default())))
    }
}
