//! What the agent itself answers when it cannot forward: one status, one reason word, and for gRPC a trailers-only response.

use heddle_telemetry::Reason;
use http::{HeaderValue, Response, StatusCode, header};

use crate::h1::{Body, ResponseHead};

/// The name of the header that tells a peer inside the mesh why (DESIGN §10).
pub const REASON_HEADER: &str = "x-heddle-reason";

/// The status a client gets for a reason; `None` where there is nothing to answer: the client is gone, or only closing is honest.
#[must_use]
pub fn status(reason: Reason) -> Option<u16> {
    Some(match reason {
        Reason::Completed
        | Reason::RequestCancelled
        | Reason::RequestAbuse
        | Reason::DownstreamReset
        | Reason::DownstreamLost
        | Reason::ClosedByOperator
        | Reason::PodReleased
        | Reason::AgentShutdown
        | Reason::AgentDown
        | Reason::NoOriginalDestination
        | Reason::MapFull
        | Reason::KernelError
        | Reason::PlaintextRefused
        | Reason::PodBufferedBytesMax => return None,

        Reason::RequestMalformed | Reason::PathAmbiguous => 400,
        Reason::PolicyDenied | Reason::PolicyInvalid | Reason::NetworkPolicyDenied | Reason::PolicyClosed => 403,
        Reason::RouteNotFound => 404,
        Reason::RequestTimeout => 408,
        Reason::RequestTargetTooLong => 414,
        Reason::RequestExpectation => 417,
        Reason::RequestHeadTooLarge => 431,
        Reason::Panic => 500,
        Reason::InvalidObject | Reason::RouteInvalid | Reason::BackendInvalid => 500,
        // What an answer says that was made for the request comes with it.
        Reason::Redirected => 302,
        Reason::CorsPreflight => 204,
        Reason::FaultInjected => 503,
        Reason::RequestNotImplemented => 501,
        Reason::OutboundDenied
        | Reason::ForbiddenAddress
        | Reason::ResponseMalformed
        | Reason::ResponseAbuse
        | Reason::ResponseHeadTooLarge
        | Reason::ResponseIncomplete
        | Reason::UpstreamReset
        | Reason::UpstreamLost
        | Reason::UpstreamStreamReset => 502,
        Reason::AgentPort
        | Reason::NoSuchServicePort
        | Reason::NoReadyEndpoint
        | Reason::NoLocalEndpoint
        | Reason::PodConnectionsMax
        | Reason::PodRequestsMax
        | Reason::SocketUnavailable
        | Reason::ClientNotPublished
        | Reason::UpstreamConnectRefused
        | Reason::UpstreamUnreachable
        | Reason::UpstreamOverflow
        | Reason::TlsUnknownRoot
        | Reason::TlsWrongTrustDomain
        | Reason::TlsWrongIdentity
        | Reason::TlsExpired
        | Reason::TlsNotYetValid
        | Reason::TlsNoCertificate
        | Reason::TlsBadCertificate
        | Reason::TlsBadAlpn
        | Reason::TlsProtocolVersion
        | Reason::TlsNoCommonParameters
        | Reason::TlsRefusedByPeer
        | Reason::TlsNoOwnCertificate
        | Reason::TlsClosed
        | Reason::TlsProtocol
        | Reason::DrainDeadline => 503,
        // The upstream was chosen and did not answer in time: RFC 9110 §15.6.5, whether in connecting or later.
        Reason::UpstreamConnectTimeout
        | Reason::TlsTimeout
        | Reason::ResponseTimeout
        | Reason::StreamIdleTimeout
        | Reason::StreamDurationMax
        | Reason::RouteTimeout
        | Reason::GrpcDeadline => 504,
        Reason::RequestVersion => 505,
    })
}

/// gRPC status codes that the agent uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// The gRPC status of an HTTP status (gRPC's `http-grpc-status-mapping.md`).
#[must_use]
pub fn grpc_status(http_status: u16) -> u8 {
    (match http_status {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }) as u8
}

/// The HTTP status that says what a gRPC status does (gRPC's `HTTP to gRPC Status Code Mapping`, the other way, as grpc-gateway has it).
#[must_use]
pub const fn http_status(grpc_status: u8) -> u16 {
    match grpc_status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The gRPC status for a reason: finer than that of its HTTP status where a client would act otherwise. Deadlines are the client's own, so
/// a timeout of ours is UNAVAILABLE; a limit is RESOURCE_EXHAUSTED, except UNAVAILABLE where another endpoint may have room. What a route or
/// backend that cannot be carried out is to HTTP a 500, is UNAVAILABLE too: the Gateway API's GRPCRoute demands it (`backendRefs`).
#[must_use]
pub fn grpc_status_of(reason: Reason) -> u8 {
    match reason {
        Reason::PodRequestsMax | Reason::PodConnectionsMax | Reason::RequestHeadTooLarge => {
            Code::ResourceExhausted as u8
        }
        Reason::OutboundDenied | Reason::ForbiddenAddress => Code::PermissionDenied as u8,
        Reason::RequestNotImplemented => Code::Unimplemented as u8,
        Reason::RouteInvalid | Reason::BackendInvalid | Reason::InvalidObject => Code::Unavailable as u8,
        Reason::GrpcDeadline => Code::DeadlineExceeded as u8,
        Reason::ResponseMalformed | Reason::ResponseHeadTooLarge => Code::Internal as u8,
        _ => status(reason).map_or(Code::Unavailable as u8, grpc_status),
    }
}

/// Whether an answer with this status has content (RFC 9110 §15.3.5, §15.3.6, §15.4.5).
const fn has_content(status: u16) -> bool {
    !matches!(status, 204 | 205 | 304)
}

/// The sentence a client reads.
fn sentence(reason: Reason) -> &'static str {
    reason.description().trim()
}

/// Fills `head` with the HTTP/1 answer and returns its body, plain text. `reveal` adds the reason word as a header (inside the mesh only).
/// The body is announced also towards HEAD, where the caller must not send it. Pass the head through [`crate::h1::forward_response`], without
/// `keep_alive` where [`closes`] says so.
pub fn h1(reason: Reason, status: u16, reveal: bool, head: &mut ResponseHead) -> &'static str {
    let body = if has_content(status) { sentence(reason) } else { "" };
    if body.is_empty() {
        head.compose(status, Body::Empty);
    } else {
        head.compose(status, Body::Length(body.len() as u64));
        head.compose_field(b"Content-Type", b"text/plain; charset=utf-8");
    }
    if reveal {
        head.compose_field(REASON_HEADER.as_bytes(), reason.as_str().as_bytes());
    }
    body
}

/// Whether an HTTP/1 connection must be closed behind the answer: where the request ends is not known, or not worth waiting for.
#[must_use]
pub fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RequestMalformed
            | Reason::RequestHeadTooLarge
            | Reason::RequestTargetTooLong
            | Reason::RequestNotImplemented
            | Reason::RequestVersion
            | Reason::RequestExpectation
            | Reason::RequestTimeout
            | Reason::DrainDeadline
            | Reason::Panic
    )
}

/// The HTTP/2 answer: its headers, and its body, which is empty for gRPC: trailers-only, with HTTP status 200.
#[must_use]
pub fn h2(reason: Reason, status: u16, grpc: bool, reveal: bool) -> (Response<()>, &'static str) {
    let mut response = Response::new(());
    let body = if grpc || !has_content(status) { "" } else { sentence(reason) };
    let headers = response.headers_mut();
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(grpc_status_of(reason))));
        headers.insert("grpc-message", grpc_message(reason));
    } else if !body.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if reveal {
        headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    }
    if !grpc {
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    }
    (response, body)
}

/// Percent-encoded as gRPC wants it.
fn grpc_message(reason: Reason) -> HeaderValue {
    let mut text = String::new();
    for byte in sentence(reason).bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(reason.as_str()))
}

/// Whether a content-type is gRPC's: `application/grpc`, alone or with `+format` or parameters, and not `grpc-web`.
#[must_use]
pub fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type.len() >= GRPC.len()
        && content_type[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(content_type.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// The reason phrase of a status (RFC 9110 §15); empty for a status nobody registered.
#[must_use]
pub fn phrase(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reject;

    #[test]
    fn every_answer_has_a_phrase_and_a_reason_that_allows_it() {
        for reason in Reason::ALL {
            let Some(status) = status(*reason) else { continue };
            let is_answer = matches!(reason, Reason::Redirected | Reason::CorsPreflight);
            assert!((if is_answer { 200..400 } else { 400..600 }).contains(&status), "{reason}");
            assert!(!phrase(status).is_empty(), "{reason}");
            let mut head = ResponseHead::default();
            let body = h1(*reason, status, true, &mut head);
            let mut text = Vec::new();
            head.write(&mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} {}\r\n", phrase(status))), "{text}");
            let length = format!("Content-Length: {}\r\n", body.len());
            assert_eq!(text.contains(&length), has_content(status), "{text}");
            assert_eq!(body.is_empty(), !has_content(status), "{text}");
            assert!(text.ends_with(&format!("x-heddle-reason: {reason}\r\n\r\n")), "{text}");
        }
    }

    #[test]
    fn a_rejected_request_is_answered_with_its_rules_status() {
        for rule in Reject::ALL {
            assert_eq!(status(rule.request_reason()), Some(rule.status()), "{rule}");
            assert_eq!(status(rule.response_reason()), Some(502), "{rule}");
        }
    }

    #[test]
    fn grpc_answers_are_trailers_only() {
        let (response, body) = h2(Reason::NoReadyEndpoint, 503, true, false);
        assert_eq!(response.status(), 200);
        assert_eq!(body, "");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.headers().get("content-length").is_none());
        assert!(response.headers().get(REASON_HEADER).is_none());
        let (response, body) = h2(Reason::NoReadyEndpoint, 503, false, true);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-length"], body.len().to_string());
        assert_eq!(response.headers()[REASON_HEADER], "no_ready_endpoint");
    }

    #[test]
    fn grpc_statuses() {
        for (status, code) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (500, 2), (200, 2)]
        {
            assert_eq!(grpc_status(status), code, "{status}");
        }
        for (reason, code) in [
            (Reason::RouteInvalid, 14),
            (Reason::BackendInvalid, 14),
            (Reason::InvalidObject, 14),
            (Reason::RouteNotFound, 12),
            (Reason::Panic, 2),
            (Reason::GrpcDeadline, 4),
            (Reason::RouteTimeout, 14),
            (Reason::PodRequestsMax, 8),
            (Reason::OutboundDenied, 7),
            (Reason::ClosedByOperator, 14),
        ] {
            assert_eq!(grpc_status_of(reason), code, "{reason}");
            if let Some(status) = status(reason) {
                assert_eq!(h2(reason, status, true, false).0.headers()["grpc-status"], code.to_string(), "{reason}");
            }
        }
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(content_type.as_bytes()), expected, "{content_type}");
        }
    }
}
