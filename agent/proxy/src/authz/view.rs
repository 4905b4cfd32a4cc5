//! A request as policies see it, whichever version of HTTP it came by.

use std::borrow::Cow;

use h2::ext::Protocol;
use heddle_http::h1::{Fields, RequestHead};
use heddle_http::path;
use heddle_model::{policy, routing};
use http::{HeaderMap, Method, Request};

/// See the module documentation. WebSocket is a GET by either version.
pub(crate) struct View<'a> {
    method: &'a str,
    authority: &'a str,
    path_and_query: Cow<'a, str>,
    fields: Headers<'a>,
}

enum Headers<'a> {
    Http1(&'a Fields),
    Http2(&'a HeaderMap),
}

impl<'a> View<'a> {
    /// A head that is ready to be forwarded: it names its host.
    pub(crate) fn of_head(head: &'a RequestHead) -> Self {
        Self {
            method: head.method(),
            authority: head.authority().unwrap_or_default(),
            path_and_query: Cow::Borrowed(head.path_and_query()),
            fields: Headers::Http1(head.fields()),
        }
    }

    /// A request on a stream.
    pub(crate) fn of_request(request: &'a Request<()>) -> Self {
        let is_websocket = request.extensions().get::<Protocol>().is_some();
        Self::of_parts(request.method(), request.uri(), request.headers(), is_websocket)
    }

    /// The same in parts.
    pub(crate) fn of_parts(method: &'a Method, uri: &'a http::Uri, fields: &'a HeaderMap, is_websocket: bool) -> Self {
        Self {
            method: if is_websocket { "GET" } else { method.as_str() },
            authority: uri.authority().map_or("", |authority| authority.as_str()),
            path_and_query: Cow::Borrowed(uri.path_and_query().map_or("", |path| path.as_str())),
            fields: Headers::Http2(fields),
        }
    }

    /// CONNECT has no path.
    pub(crate) fn is_connect(&self) -> bool {
        self.method == "CONNECT"
    }

    /// Host and port as they were sent; empty if no host was.
    pub(crate) fn authority(&self) -> &str {
        self.authority
    }

    pub(crate) fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    pub(crate) fn set_path_and_query(&mut self, path_and_query: String) {
        self.path_and_query = Cow::Owned(path_and_query);
    }
}

impl policy::Request for View<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn host(&self) -> &str {
        routing::without_port(self.authority)
    }

    fn path(&self) -> &str {
        if self.is_connect() { "" } else { path::without_query(&self.path_and_query) }
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        match self.fields {
            Headers::Http1(fields) => fields.get_all(name).for_each(each),
            Headers::Http2(fields) => fields.get_all(name).iter().for_each(|value| each(value.as_bytes())),
        }
    }
}

impl routing::Request for View<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        policy::Request::path(self)
    }

    fn query(&self) -> Option<&str> {
        self.path_and_query.split_once('?').map(|(_, query)| query)
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        // HTTP/2 says it beside the fields, and of HTTP/1 what stands there has been made one with what the target says.
        if name == "host" {
            if !self.authority.is_empty() {
                each(self.authority.as_bytes());
            }
            return;
        }
        policy::Request::header(self, name, each);
    }
}
