//! Whether a request meets the conditions of one match, besides its path, and which of two matches counts.

use std::cmp::Reverse;

use super::{CallMatch, HeaderMatch, Match, PathMatch, QueryMatch, Request, Route, ValueMatch};
use crate::time::Timestamp;

/// The first condition that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// `method`.
    Method,
    /// The header match of this number.
    Header(usize),
    /// The query match of this number.
    Query(usize),
}

/// Of matches whose paths are alike, and of all of gRPC calls, the least counts. The Gateway API's order: more characters of the gRPC service;
/// more of the gRPC method; one that asks for an HTTP method; more headers; more query parameters; the older route; the first by
/// `namespace/name`; the first in its route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    service: Reverse<usize>,
    call: Reverse<usize>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    route: Seniority,
    rule: u32,
    at: usize,
}

/// Older first: one without a creation time counts as younger, of one age the first by `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seniority(bool, Option<Timestamp>, String);

impl Seniority {
    pub(super) fn new(created: Option<Timestamp>, namespace: &str, name: &str) -> Self {
        // As one text, as the API says: `a-b/c` comes before `a/c`.
        Self(created.is_none(), created, format!("{namespace}/{name}"))
    }

    pub(super) fn of(route: &Route) -> Self {
        Self::new(route.created, &route.key.namespace, &route.key.name)
    }
}

impl Rank {
    pub(super) fn new(of: &Match, route: &Seniority, rule: u32, at: usize) -> Self {
        let (service, call) = match &of.path {
            PathMatch::Call(CallMatch { service, method }) => (service.as_ref(), method.as_ref()),
            _ => (None, None),
        };
        let chars = |value: Option<&ValueMatch>| Reverse(value.map_or(0, ValueMatch::chars));
        Self {
            service: chars(service),
            call: chars(call),
            method: Reverse(of.method.is_some()),
            headers: Reverse(of.effective_headers().count()),
            query: Reverse(of.effective_query().count()),
            route: route.clone(),
            rule,
            at,
        }
    }
}

impl Match {
    /// The header matches that count: of each name the first, with their numbers.
    pub(super) fn effective_headers(&self) -> impl Iterator<Item = (usize, &HeaderMatch)> {
        let is_first = |(at, header): &(usize, &HeaderMatch)| self.headers[..*at].iter().all(|h| h.name != header.name);
        self.headers.iter().enumerate().filter(is_first)
    }

    pub(super) fn effective_query(&self) -> impl Iterator<Item = (usize, &QueryMatch)> {
        let is_first = |(at, param): &(usize, &QueryMatch)| self.query[..*at].iter().all(|q| q.name != param.name);
        self.query.iter().enumerate().filter(is_first)
    }

    /// Whether a request meets what is asked besides the path.
    pub(super) fn meets<R: Request + ?Sized>(&self, request: &R) -> Result<(), Missed> {
        if self.method.as_ref().is_some_and(|method| **method != *request.method()) {
            return Err(Missed::Method);
        }
        for (at, header) in self.effective_headers() {
            if !header.is_met(request) {
                return Err(Missed::Header(at));
            }
        }
        for (at, param) in self.effective_query() {
            if !param.is_met(request.query()) {
                return Err(Missed::Query(at));
            }
        }
        Ok(())
    }
}

impl PathMatch {
    /// Whether a path, without query, is meant.
    pub(super) fn is_met(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => {
                prefix.is_empty()
                    || path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
            Self::Call(call) => call.is_met(path),
            Self::Unreadable => false,
        }
    }
}

impl CallMatch {
    fn is_met(&self, path: &str) -> bool {
        let Some((service, method)) = call_of(path) else { return false };
        self.service.as_ref().is_none_or(|value| value.is_met(service.as_bytes()))
            && self.method.as_ref().is_none_or(|value| method.is_some_and(|method| value.is_met(method.as_bytes())))
    }
}

/// Service and method of a gRPC call, by its path; a method that is not there is none.
pub(super) fn call_of(path: &str) -> Option<(&str, Option<&str>)> {
    let rest = path.strip_prefix('/')?;
    Some(match rest.split_once('/') {
        Some((service, method)) => (service, Some(method)),
        None => (rest, None),
    })
}

impl HeaderMatch {
    /// Whether the field is there with this value; several lines of it are one value, joined by `,` (RFC 9110 section 5.3).
    pub fn is_met<R: Request + ?Sized>(&self, request: &R) -> bool {
        header(request, &self.name, |value| self.value.is_met(value)).unwrap_or_default()
    }
}

/// Reads the value of a field, several lines joined by `,`, if it is there. What `read` says of a part is not heard.
pub(super) fn header<R: Request + ?Sized, T>(request: &R, name: &str, mut read: impl FnMut(&[u8]) -> T) -> Option<T> {
    let (mut lines, mut found) = (0_usize, None);
    request.header(name, &mut |value| {
        lines += 1;
        found = Some(read(value));
    });
    // The usual case, which copies nothing.
    if lines < 2 {
        return found;
    }
    let mut joined = Vec::new();
    request.header(name, &mut |value| {
        joined.extend_from_slice(value);
        joined.push(b',');
    });
    joined.pop();
    Some(read(&joined))
}

impl QueryMatch {
    /// Whether the query has the parameter, and its first value matches.
    fn is_met(&self, query: Option<&str>) -> bool {
        param(query, &self.name, |value| self.value.is_met(value)).unwrap_or_default()
    }
}

/// Reads the first value of a parameter, if it is there. Names and values are compared after their percent-encoding is taken off (RFC 7230
/// section 2.7.3, to which the Gateway API refers); `+` stands for itself.
pub(super) fn param<T>(query: Option<&str>, name: &str, mut read: impl FnMut(&[u8]) -> T) -> Option<T> {
    let params = query.unwrap_or_default().split('&').filter(|param| !param.is_empty());
    let mut params = params.map(|param| param.split_once('=').unwrap_or((param, "")));
    let (_, value) = params.find(|(of, _)| Decoded(of.as_bytes()).eq(name.bytes()))?;
    Some(match value.contains('%') {
        true => read(&Decoded(value.as_bytes()).collect::<Vec<u8>>()),
        false => read(value.as_bytes()),
    })
}

impl ValueMatch {
    fn is_met(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Regex(pattern) => pattern.matches(value),
            Self::Present => true,
        }
    }

    /// So many characters a text has at least that matches: of an exact one all, so that no pattern comes before it that matches the same.
    fn chars(&self) -> usize {
        match self {
            Self::Exact(exact) => exact.chars().count(),
            Self::Regex(pattern) => pattern.bytes_min(),
            Self::Present => 1,
        }
    }
}

/// Bytes of a text without its percent-encoding; what is no encoding stands for itself.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let digit = |at: usize| self.0.get(at).and_then(|b| char::from(*b).to_digit(16));
        let (&first, mut rest) = self.0.split_first()?;
        let mut byte = first;
        if first == b'%'
            && let (Some(high), Some(low)) = (digit(1), digit(2))
        {
            byte = u8::try_from(high * 16 + low).unwrap_or(first);
            rest = &self.0[3..];
        }
        self.0 = rest;
        Some(byte)
    }
}
