//! Requests between the versions (RFC 9113 §8.3, §8.5; RFC 8441).

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header, request};

use super::{check_value, insert, is_of_connection, strip_heddle};
use crate::h1::{Body, Known, RequestHead, TargetForm, Upgrade, content_length};
use crate::syntax::{self, HostPort};
use crate::websocket;
use crate::{Limits, Reject};

/// What an HTTP/2 request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary request.
    Plain,
    /// CONNECT: a byte stream to an authority.
    Connect,
    /// Extended CONNECT for WebSocket (RFC 8441): an HTTP/1 upgrade on the other side.
    WebSocket,
}

/// Facts of a checked HTTP/2 request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it asks for.
    pub kind: Kind,
    /// The body: `Empty`, `Length` (DATA must add up: [`super::LengthCheck`]), `Chunked` (length unknown) or `Tunnel`.
    pub body: Body,
    /// gRPC by content-type.
    pub grpc: bool,
    /// `te: trailers`.
    pub te_trailers: bool,
}

/// Checks a request that came by HTTP/2 and makes it fit to be passed on by either version: forbidden fields are errors, cookies are
/// joined, `host` is folded into the authority, `x-heddle-*` goes. `protocol` is `:protocol`; `end_stream`: no body follows.
pub fn check_request(parts: &mut request::Parts, protocol: Option<&str>, end_stream: bool) -> Result<Checked, Reject> {
    if parts.method.as_str().len() > 32 {
        return Err(Reject::MethodTooLong);
    }
    let kind = match (parts.method == Method::CONNECT, protocol) {
        (false, None) => Kind::Plain,
        (true, None) => Kind::Connect,
        (true, Some(protocol)) if protocol.eq_ignore_ascii_case("websocket") => Kind::WebSocket,
        (true, Some(_)) => return Err(Reject::ProtocolUnknown),
        (false, Some(_)) => return Err(Reject::PseudoHeader),
    };
    let facts = check_fields(&mut parts.headers)?;
    check_target(parts, kind)?;
    check_size(parts)?;
    let body = match (kind, facts.length) {
        (Kind::Connect | Kind::WebSocket, None) => Body::Tunnel,
        (Kind::Connect | Kind::WebSocket, Some(_)) => return Err(Reject::FramingForbidden),
        (Kind::Plain, Some(0)) => Body::Empty,
        (Kind::Plain, Some(_)) if end_stream => return Err(Reject::BodyIncomplete),
        (Kind::Plain, Some(length)) => Body::Length(length),
        (Kind::Plain, None) if end_stream => Body::Empty,
        (Kind::Plain, None) => Body::Chunked,
    };
    if parts.method == Method::TRACE && body != Body::Empty {
        return Err(Reject::FramingForbidden);
    }
    let grpc = parts.headers.get(header::CONTENT_TYPE).is_some_and(|v| crate::answer::is_grpc(v.as_bytes()));
    Ok(Checked { kind, body, grpc, te_trailers: facts.te_trailers })
}

/// The limits of an HTTP/1 head, counted as if it were one: behind what joins the crumbs of a cookie (RFC 9113 §8.2.3).
fn check_size(parts: &request::Parts) -> Result<(), Reject> {
    let limits = Limits::DEFAULT;
    if parts.headers.len() > limits.fields_max {
        return Err(Reject::TooManyFields);
    }
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if parts.method.as_str().len() + target + authority + fields > limits.head_bytes_max {
        return Err(Reject::HeadTooLarge);
    }
    Ok(())
}

#[derive(Default)]
struct FieldFacts {
    length: Option<u64>,
    te_trailers: bool,
}

fn check_fields(headers: &mut HeaderMap) -> Result<FieldFacts, Reject> {
    let mut facts = FieldFacts::default();
    let (mut cookies, mut ours, mut expects, mut settings) = (0, false, 0, false);
    for (name, value) in headers.iter() {
        check_value(value)?;
        match Known::of(name.as_str().as_bytes()) {
            known if is_of_connection(known) => return Err(Reject::ConnectionField),
            Known::Te if value.as_bytes().eq_ignore_ascii_case(b"trailers") => facts.te_trailers = true,
            Known::Te => return Err(Reject::TeInvalid),
            Known::ContentLength if facts.length.is_some() => return Err(Reject::ContentLengthDuplicate),
            Known::ContentLength => facts.length = Some(content_length(value.as_bytes())?),
            Known::Expect => {
                expects += 1;
                if expects > 1 || !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                    return Err(Reject::ExpectationUnknown);
                }
            }
            Known::Cookie => cookies += 1,
            Known::Heddle => ours = true,
            Known::Http2Settings => settings = true,
            _ => {}
        }
    }
    if let Some(length) = facts.length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if cookies > 1 {
        // An empty one would leave a blank at an end (RFC 9113 §8.2.1).
        let crumbs = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
        let joined = crumbs.filter(|crumb| !crumb.is_empty()).collect::<Vec<_>>();
        let joined = HeaderValue::from_bytes(&joined.join(&b"; "[..])).map_err(|_| Reject::FieldValue)?;
        headers.insert(header::COOKIE, joined);
    }
    if ours {
        strip_heddle(headers);
    }
    if settings {
        headers.remove("http2-settings");
    }
    Ok(facts)
}

/// Scheme, authority and path; Host and `:authority` must say the same (RFC 9113 §8.3.1), and `:authority` remains.
fn check_target(parts: &mut request::Parts, kind: Kind) -> Result<(), Reject> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Reject::HostDuplicate);
    }
    let scheme = match parts.uri.scheme_str() {
        // A request must have `:scheme`, and the `h2` crate sees to it; but the `http` crate holds none where the authority is in Host
        // alone. Here, in clear text, it was http.
        None if kind != Kind::Connect && parts.uri.authority().is_none() => Some("http"),
        scheme => scheme,
    };
    if kind == Kind::Connect {
        if scheme.is_some() || !matches!(parts.uri.path(), "" | "/") || parts.uri.query().is_some() {
            return Err(Reject::PseudoHeader);
        }
    } else if !matches!(scheme, Some("http" | "https")) {
        return Err(Reject::PseudoHeader);
    }
    let default = match scheme {
        Some("https") => Some(443),
        Some(_) => Some(80),
        None => parts.uri.port_u16(),
    };
    let authority = match (parts.uri.authority(), host) {
        (None, None) => return Err(Reject::HostMissing),
        (Some(authority), None) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| Reject::HostInvalid)?,
        (Some(authority), Some(host)) => {
            let host = HostPort::parse(host.as_bytes()).ok_or(Reject::HostInvalid)?;
            let named = HostPort::parse(authority.as_str().as_bytes()).ok_or(Reject::PseudoHeader)?;
            if !host.same(named, default) {
                return Err(Reject::HostMismatch);
            }
            authority.clone()
        }
    };
    let named = HostPort::parse(authority.as_str().as_bytes()).ok_or(Reject::PseudoHeader)?;
    if kind == Kind::Connect {
        parts.headers.remove(header::HOST);
        return if named.port.is_some_and(|port| port > 0) { Ok(()) } else { Err(Reject::PseudoHeader) };
    }
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    if path.len() > Limits::DEFAULT.target_bytes_max {
        return Err(Reject::TargetTooLong);
    }
    match path {
        "*" if parts.method == Method::OPTIONS => {}
        path if path.starts_with('/') && syntax::is_path_and_query(path.as_bytes()) => {}
        path if path.starts_with('/') => return Err(Reject::TargetByte),
        _ => return Err(Reject::PseudoHeader),
    }
    parts.headers.remove(header::HOST);
    if parts.uri.authority().is_none() {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority);
        parts.uri = Uri::from_parts(uri).map_err(|_| Reject::HostInvalid)?;
    }
    Ok(())
}

/// The HTTP/1 form of a checked request. The head's `body()` is the framing to send with; write it as it is, without
/// [`crate::h1::forward_request`]. `websocket_key`: of 16 random bytes ([`websocket::key`]), for extended CONNECT only. gRPC is refused:
/// no server is bound to take it, and its client could not tell a broken answer from a whole one.
pub fn request_to_h1(
    parts: &request::Parts,
    checked: &Checked,
    websocket_key: &str,
    head: &mut RequestHead,
) -> Result<(), Reject> {
    if checked.grpc {
        return Err(Reject::GrpcOverHttp1);
    }
    let authority = parts.uri.authority().map_or("", Authority::as_str);
    match checked.kind {
        Kind::Plain => head.compose(parts.method.as_str(), path_of(&parts.uri))?,
        Kind::Connect => head.compose("CONNECT", authority)?,
        Kind::WebSocket => head.compose("GET", path_of(&parts.uri))?,
    }
    head.compose_field(b"Host", authority.as_bytes());
    for (name, value) in &parts.headers {
        let name = name.as_str();
        match Known::of(name.as_bytes()) {
            Known::ContentLength if checked.body != Body::Empty => {}
            Known::Te | Known::Host => {}
            // Without content it means nothing (RFC 9110 §10.1.1).
            Known::Expect if !matches!(checked.body, Body::Length(_) | Body::Chunked) => {}
            _ if checked.kind == Kind::WebSocket && name == "sec-websocket-key" => {}
            _ => head.compose_field(name.as_bytes(), value.as_bytes()),
        }
    }
    match checked.body {
        Body::Length(length) => head.compose_field(b"Content-Length", length.to_string().as_bytes()),
        Body::Chunked => head.compose_field(b"Transfer-Encoding", b"chunked"),
        // RFC 9110 §8.6: methods that are about their content say that there is none.
        Body::Empty
            if matches!(parts.method.as_str(), "POST" | "PUT" | "PATCH")
                && !parts.headers.contains_key(header::CONTENT_LENGTH) =>
        {
            head.compose_field(b"Content-Length", b"0");
        }
        Body::Empty | Body::UntilClose | Body::Tunnel => {}
    }
    if checked.kind == Kind::WebSocket {
        if !parts.headers.contains_key("sec-websocket-version") {
            head.compose_field(b"Sec-WebSocket-Version", b"13");
        }
        head.compose_field(b"Sec-WebSocket-Key", websocket_key.as_bytes());
        head.compose_field(b"Upgrade", b"websocket");
        head.compose_field(b"Connection", b"Upgrade");
    } else if checked.te_trailers {
        head.compose_field(b"TE", b"trailers");
        head.compose_field(b"Connection", b"TE");
    }
    head.complete()
}

fn path_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

/// The HTTP/2 form of a parsed HTTP/1 request, before or behind [`crate::h1::forward_request`]. `authority` where the request has none
/// (HTTP/1.0). A WebSocket upgrade becomes CONNECT, to which the caller adds `:protocol` `websocket`; other upgrades are not offered on.
pub fn request_to_h2(head: &RequestHead, scheme: Scheme, authority: &str) -> Result<(Request<()>, Kind), Reject> {
    let kind = match (head.form(), head.upgrade()) {
        (TargetForm::Authority, _) => Kind::Connect,
        (_, Some(Upgrade::WebSocket)) => Kind::WebSocket,
        _ => Kind::Plain,
    };
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = match kind {
        Kind::Plain => Method::from_bytes(head.method().as_bytes()).map_err(|_| Reject::Method)?,
        Kind::Connect | Kind::WebSocket => Method::CONNECT,
    };
    let authority = head.authority().unwrap_or(authority);
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(Authority::try_from(authority).map_err(|_| Reject::HostInvalid)?);
    if kind != Kind::Connect {
        uri.scheme = Some(scheme);
        uri.path_and_query = Some(match head.path_and_query() {
            // An absolute-form OPTIONS without a path is about the server (RFC 9112 §3.2.4).
            "" if head.method() == "OPTIONS" => PathAndQuery::from_static("*"),
            path => path_and_query(path)?,
        });
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Reject::TargetForm)?;
    let nominated: Vec<&[u8]> = head.fields().known(Known::Connection).flat_map(syntax::list).collect();
    let headers = request.headers_mut();
    headers.reserve(head.fields().len());
    for (known, name, value) in head.fields().iter_known() {
        match known {
            known if is_of_connection(known) => {}
            Known::Host | Known::Te | Known::Http2Settings | Known::Heddle => {}
            Known::Expect if !head.expects_continue() => {}
            Known::Other if nominated.iter().any(|nominated| nominated.eq_ignore_ascii_case(name)) => {}
            Known::Other if kind == Kind::WebSocket && name.eq_ignore_ascii_case(b"sec-websocket-key") => {
                if !websocket::is_key(value) {
                    return Err(Reject::UpgradeInvalid);
                }
            }
            _ => insert(headers, name, value)?,
        }
    }
    if head.te_trailers() {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok((request, kind))
}

fn path_and_query(path: &str) -> Result<PathAndQuery, Reject> {
    let parsed = if path.starts_with('?') {
        PathAndQuery::try_from(format!("/{path}"))
    } else if path.is_empty() {
        Ok(PathAndQuery::from_static("/"))
    } else {
        PathAndQuery::try_from(path)
    };
    parsed.map_err(|_| Reject::TargetByte)
}
