//! Answers: text for people and probes, JSON for the CLI, and the errors every route shares.

use bytes::Bytes;
use heddle_proto::debug::v1;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;

/// A whole answer.
pub(crate) type Reply = Response<Full<Bytes>>;

pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Reply {
    let mut body: String = body.into();
    if !body.ends_with('\n') {
        body.push('\n');
    }
    with_type(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn json(message: &impl Serialize) -> Reply {
    match serde_json::to_vec(message) {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(error) => json_error(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the answer: {error}")),
    }
}

pub(crate) fn json_error(status: StatusCode, error: impl Into<String>) -> Reply {
    let body = serde_json::to_vec(&v1::Error { error: error.into() }).unwrap_or_default();
    with_type(status, "application/json", body)
}

pub(crate) fn allow(mut reply: Reply, methods: &'static str) -> Reply {
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    reply
}

/// Whether the method only reads; hyper leaves the body of an answer to HEAD out by itself.
pub(crate) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}
