//! One request and its responses on a client's and an upstream's connection: what may come, and which connection lives on.

use super::{Asked, Body, RequestHead, ResponseHead, Version};
use crate::{Limits, Reject};

/// What a response head is in its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// 1xx; another head follows.
    Interim {
        /// Whether the client may be told: an HTTP/1.0 client may not (RFC 9110 §15.2).
        forward: bool,
    },
    /// The final response; its body follows.
    Final,
    /// 101 or 2xx to CONNECT: forward the head, then copy both ways.
    Tunnel,
}

/// The state of one exchange. Feed it what happened, ask it what may be done.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    asked: Asked,
    client_version: Version,
    client_keep_alive: bool,
    expect: Expect,
    interim_left: u32,
    request_sent: bool,
    upstream: Upstream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    None,
    /// The client waits for 100, or for the final response.
    Waiting,
    Released,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upstream {
    /// No final head yet.
    Pending,
    /// The final head came.
    Body {
        keep_alive: bool,
    },
    /// The response is complete.
    Complete {
        keep_alive: bool,
    },
    Tunnel,
}

impl Exchange {
    /// A new exchange for this request.
    #[must_use]
    pub fn new(request: &RequestHead, limits: &Limits) -> Self {
        Self {
            asked: request.asked(),
            client_version: request.version(),
            client_keep_alive: request.keep_alive(),
            expect: if request.expects_continue() { Expect::Waiting } else { Expect::None },
            interim_left: limits.interim_responses_max,
            request_sent: false,
            upstream: Upstream::Pending,
        }
    }

    /// What the response parser has to know.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// A response head came.
    pub fn response_head(&mut self, head: &ResponseHead) -> Result<Received, Reject> {
        if self.upstream != Upstream::Pending {
            return Err(Reject::UnexpectedBytes);
        }
        if head.is_interim() {
            self.interim_left = self.interim_left.checked_sub(1).ok_or(Reject::TooManyInterim)?;
            if head.status() == 100 && self.expect == Expect::Waiting {
                self.expect = Expect::Released;
            }
            return Ok(Received::Interim { forward: self.client_version == Version::Http11 });
        }
        if head.body() == Body::Tunnel {
            // A server switches when it has read the request (RFC 9110 §7.8); before that it answers something we did not send.
            if head.status() == 101 && !self.request_sent {
                return Err(Reject::UpgradeUnasked);
            }
            self.upstream = Upstream::Tunnel;
            return Ok(Received::Tunnel);
        }
        self.upstream = Upstream::Body { keep_alive: head.keep_alive() };
        Ok(Received::Final)
    }

    /// The last byte of the request went upstream.
    pub fn request_sent(&mut self) {
        self.request_sent = true;
    }

    /// The last byte of the response came. Nothing happens before its head, or in a tunnel.
    pub fn response_received(&mut self) {
        if let Upstream::Body { keep_alive } = self.upstream {
            self.upstream = Upstream::Complete { keep_alive };
        }
    }

    /// Expect-continue: the client waits for 100 before it sends its body, and nothing released it yet. Whoever reads the body for
    /// another purpose than sending it upstream must answer 100 itself.
    #[must_use]
    pub fn awaits_continue(&self) -> bool {
        self.expect == Expect::Waiting && self.upstream == Upstream::Pending
    }

    /// Body bytes of the request came: the client does not wait (any more).
    pub fn body_begun(&mut self) {
        if self.expect == Expect::Waiting {
            self.expect = Expect::Released;
        }
    }

    /// Whether the final response came before the request was sent: the rest of the request goes nowhere.
    #[must_use]
    pub fn is_early_response(&self) -> bool {
        !self.request_sent && matches!(self.upstream, Upstream::Body { .. } | Upstream::Complete { .. })
    }

    /// Whether the upstream connection may serve another request. `leftover`: bytes are in its buffer behind the response, which nobody
    /// asked for (RFC 9112 §9.2).
    #[must_use]
    pub fn upstream_reusable(&self, leftover: bool) -> bool {
        self.upstream == Upstream::Complete { keep_alive: true } && self.request_sent && !leftover
    }

    /// Whether the client's connection may serve another request: it wants to, and the end of its request is known. Ask before the final
    /// head is written (the answer is what `Connection` tells the client, through [`super::ClientSide::keep_alive`]) and keep to
    /// that answer. Never behind a CONNECT: a client need not wait for its tunnel before it fills it, and where there is none what it
    /// sent would be the next request.
    #[must_use]
    pub fn client_reusable(&self) -> bool {
        self.client_keep_alive && self.request_sent && self.upstream != Upstream::Tunnel && !self.asked.connect
    }
}
