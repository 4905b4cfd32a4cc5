//! The one list of reasons: why a connection ended, was refused or was passed by. The same word stands in the access log,
//! in metrics and in the CLI (DESIGN §9).
//!
//! Words are stable: a new cause gets a new word, an old word never changes its meaning.

use std::fmt;

use heddle_model::Refusal;
use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $flags:literal;)+) => {
        /// Why a connection ended. [`Reason::as_str`] is the word users see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in declaration order: `ALL[r as usize] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable snake_case word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What it means, for documentation and `heddle` help.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// Envoy's response flag for it (label `response_flags`, `-` for none), so that existing dashboards and Kiali read it.
            #[must_use]
            pub const fn response_flags(self) -> &'static str {
                match self { $(Self::$variant => $flags,)+ }
            }
        }
    };
}

reasons! {
    /// Both directions ended cleanly.
    Completed = "completed", "-";

    /// The kernel had no fresh record of where the connection was meant to go.
    NoOriginalDestination = "no_original_destination", "NR";
    /// The destination is a port of the agent itself (15001, 15006, 15008), which no application may address.
    AgentPort = "agent_port", "NR";
    /// No agent ran and the failure policy is Closed; counted by the kernel.
    AgentDown = "agent_down", "UH";
    /// A kernel map was full, so the connection could not be recorded.
    MapFull = "map_full", "OM";
    /// The kernel could not read or write what it needed (a helper failed).
    KernelError = "kernel_error", "OM";

    /// The Service has no such port.
    NoSuchServicePort = "no_such_service_port", "NR";
    /// The Service port has no endpoint that is ready or still serving.
    NoReadyEndpoint = "no_ready_endpoint", "UH";
    /// `internalTrafficPolicy: Local` and no endpoint on this node.
    NoLocalEndpoint = "no_local_endpoint", "UH";
    /// The mesh's outbound policy denies destinations nobody knows.
    OutboundDenied = "outbound_denied", "NC";
    /// The address belongs to an object that was rejected; `heddle check` names it.
    InvalidObject = "invalid_object", "NR";
    /// The address may not be dialled on a pod's behalf (loopback, link-local, unspecified, multicast).
    ForbiddenAddress = "forbidden_address", "NR";

    /// The pod has as many open connections as its budget allows.
    PodConnectionsMax = "pod_connections_max", "OM";
    /// The pod's buffers are at its budget: bytes go through unbuffered until some are freed; no connection is cut for it.
    PodBufferedBytesMax = "pod_buffered_bytes_max", "OM";
    /// No socket in the pod's network namespace could be had in time.
    SocketUnavailable = "socket_unavailable", "UF";
    /// The true client address could not be published to the kernel.
    ClientNotPublished = "client_not_published", "UF";

    /// The upstream refused the connection.
    UpstreamConnectRefused = "upstream_connect_refused", "UF";
    /// The upstream did not answer in the connect timeout.
    UpstreamConnectTimeout = "upstream_connect_timeout", "UF";
    /// There is no route to the upstream, or this node could not open the connection.
    UpstreamUnreachable = "upstream_unreachable", "UF";
    /// The upstream reset the connection.
    UpstreamReset = "upstream_reset", "UC";
    /// The downstream (the calling application) reset the connection.
    DownstreamReset = "downstream_reset", "DC";
    /// The upstream stopped answering (retransmission or keepalive gave up).
    UpstreamLost = "upstream_lost", "UC";
    /// The downstream stopped answering (retransmission or keepalive gave up).
    DownstreamLost = "downstream_lost", "DC";

    /// The request broke a rule of HTTP; the access record's detail names the rule. Answered 400, and the connection closed.
    RequestMalformed = "request_malformed", "DPE";
    /// The request's head or trailers are larger than the limit (431).
    RequestHeadTooLarge = "request_head_too_large", "DPE";
    /// The request target is longer than the limit (414).
    RequestTargetTooLong = "request_target_too_long", "DPE";
    /// The request wants what this agent, or the version its server is called with, does not have: a transfer coding, a method longer than any
    /// known, gRPC over HTTP/1 (501).
    RequestNotImplemented = "request_not_implemented", "DPE";
    /// The request's HTTP version is neither 1.0, 1.1 nor 2 (505).
    RequestVersion = "request_version", "DPE";
    /// The request has an expectation other than 100-continue (417).
    RequestExpectation = "request_expectation", "DPE";
    /// The client did not finish its request in time (408).
    RequestTimeout = "request_timeout", "DT";
    /// The client sent more HTTP/2 control frames, resets or header bytes than any honest client does; the connection was closed.
    RequestAbuse = "request_abuse", "DPE";
    /// The client cancelled the request or closed before the response was complete.
    RequestCancelled = "request_cancelled", "DC";
    /// The pod has as many requests in flight as its budget allows (503).
    PodRequestsMax = "pod_requests_max", "OM";
    /// The upstream's response broke a rule of HTTP (502); the access record's detail names the rule.
    ResponseMalformed = "response_malformed", "UPE";
    /// The upstream sent more HTTP/2 control frames than any honest server does (502); the connection to it was closed.
    ResponseAbuse = "response_abuse", "UPE";
    /// The upstream's response head or trailers are larger than the limit (502).
    ResponseHeadTooLarge = "response_head_too_large", "UPE";
    /// The upstream ended before its response was complete: 502 before the head, a reset towards the client inside the body.
    ResponseIncomplete = "response_incomplete", "UC";
    /// The upstream did not respond within the time that an attempt may take (504).
    ResponseTimeout = "response_timeout", "UT";
    /// No byte of the body moved for longer than the idle timeout.
    StreamIdleTimeout = "stream_idle_timeout", "SI";
    /// The exchange took longer than the stream duration that its TrafficPolicy allows: 504, or a reset inside the body.
    StreamDurationMax = "stream_duration_max", "UMSDR";
    /// The request took longer than its route or TrafficPolicy allows, all attempts together (504).
    RouteTimeout = "route_timeout", "UT";
    /// The deadline that the caller set by `grpc-timeout` passed: DEADLINE_EXCEEDED.
    GrpcDeadline = "grpc_deadline", "DT";
    /// No rule of the routes of this Service matches the request (404).
    RouteNotFound = "route_not_found", "NR";
    /// The rule that the request matches was rejected (500, gRPC UNAVAILABLE); `heddle routes` says why.
    RouteInvalid = "route_invalid", "NR";
    /// The request fell to a backend that does not exist or may not be referred to (500, gRPC UNAVAILABLE); `heddle routes` says which.
    BackendInvalid = "backend_invalid", "NR";
    /// A route sent the client elsewhere (301, 302, 303, 307 or 308).
    Redirected = "redirected", "-";
    /// A route answered the preflight of a cross-origin request (204).
    CorsPreflight = "cors_preflight", "-";
    /// A TrafficPolicy injects this answer as a fault.
    FaultInjected = "fault_injected", "FI";
    /// The upstream's connections or streams are all in use and the queue for them is full (503).
    UpstreamOverflow = "upstream_overflow", "UO";
    /// The upstream reset the request's stream (502, or a reset towards the client if the response had begun).
    UpstreamStreamReset = "upstream_stream_reset", "UR";

    /// The TLS peer's chain leads to none of the roots of the trust domain it claims.
    TlsUnknownRoot = "tls_unknown_root", "UF";
    /// The TLS peer is of a trust domain that is not trusted here, or not the expected one.
    TlsWrongTrustDomain = "tls_wrong_trust_domain", "UF";
    /// The TLS peer proved another identity than the one expected at this endpoint.
    TlsWrongIdentity = "tls_wrong_identity", "UF";
    /// The TLS peer's certificate, or one above it, has expired.
    TlsExpired = "tls_expired", "UF";
    /// The TLS peer's certificate, or one above it, is not valid yet.
    TlsNotYetValid = "tls_not_yet_valid", "UF";
    /// The TLS peer presented no certificate.
    TlsNoCertificate = "tls_no_certificate", "UF";
    /// The TLS peer's certificate breaks a rule: not exactly one SPIFFE id, a CA as leaf, wrong usage, malformed.
    TlsBadCertificate = "tls_bad_certificate", "UF";
    /// The TLS handshake found no application protocol in common.
    TlsBadAlpn = "tls_bad_alpn", "UF";
    /// The TLS peer does not speak TLS 1.3.
    TlsProtocolVersion = "tls_protocol_version", "UF";
    /// The TLS handshake found no cipher suite, group or signature scheme in common.
    TlsNoCommonParameters = "tls_no_common_parameters", "UF";
    /// The TLS peer refused the certificate of this side.
    TlsRefusedByPeer = "tls_refused_by_peer", "UF";
    /// This side has no certificate to present: none was issued yet.
    TlsNoOwnCertificate = "tls_no_own_certificate", "UF";
    /// The TLS handshake did not end in time.
    TlsTimeout = "tls_timeout", "UF";
    /// The connection ended in the middle of the TLS handshake.
    TlsClosed = "tls_closed", "UF";
    /// The peer's bytes are not TLS, or break its rules.
    TlsProtocol = "tls_protocol", "UF";

    /// The port takes authenticated connections of the mesh only (STRICT), and this was none.
    PlaintextRefused = "plaintext_refused", "UAEX";

    /// No authorization policy lets it in, or one refuses it; the access record's `policy` says which.
    PolicyDenied = "policy_denied", "UAEX";
    /// An authorization policy for this port was rejected, so its targets are denied; `heddle check` names it.
    PolicyInvalid = "policy_invalid", "UAEX";
    /// A NetworkPolicy isolates one of the two pods, and none lets this through.
    NetworkPolicyDenied = "network_policy_denied", "UAEX";
    /// A policy asks for paths, and this one may mean different things to different servers. Answered 400.
    PathAmbiguous = "path_ambiguous", "DPE";

    /// The agent was draining and the connection outlived the deadline.
    DrainDeadline = "drain_deadline", "LR";
    /// A policy change closed the connection.
    PolicyClosed = "policy_closed", "LR";
    /// An operator closed the connection.
    ClosedByOperator = "closed_by_operator", "LR";
    /// The pod left the mesh or was deleted.
    PodReleased = "pod_released", "LR";
    /// The agent ended without a drain.
    AgentShutdown = "agent_shutdown", "LR";
    /// A fault in the agent ended this connection, and this one only.
    Panic = "panic", "LR";
}

impl Reason {
    /// Whether the connection ended as its two applications wanted.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Completed)
    }

    /// The reason with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.as_str() == word)
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchServicePort => Self::NoSuchServicePort,
            Refusal::NoReadyEndpoint => Self::NoReadyEndpoint,
            Refusal::NoLocalEndpoint => Self::NoLocalEndpoint,
            Refusal::OutboundDenied => Self::OutboundDenied,
            Refusal::InvalidObject => Self::InvalidObject,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_unique_snake_case_and_found_again() {
        let mut seen = HashSet::new();
        for (i, reason) in Reason::ALL.iter().enumerate() {
            let word = reason.as_str();
            assert_eq!(*reason as usize, i);
            assert!(seen.insert(word), "{word} twice");
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{word} is not snake_case");
            assert_eq!(Reason::from_word(word), Some(*reason));
            assert!(!reason.response_flags().is_empty());
        }
        assert_eq!(Reason::from_word("no_such_word"), None);
    }

    #[test]
    fn every_refusal_of_the_model_has_its_word() {
        for (refusal, word) in [
            (Refusal::NoSuchServicePort, "no_such_service_port"),
            (Refusal::NoReadyEndpoint, "no_ready_endpoint"),
            (Refusal::NoLocalEndpoint, "no_local_endpoint"),
            (Refusal::OutboundDenied, "outbound_denied"),
            (Refusal::InvalidObject, "invalid_object"),
        ] {
            assert_eq!(Reason::from(refusal).as_str(), word);
        }
    }
}
