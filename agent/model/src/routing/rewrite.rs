//! Where a redirect sends the client, and what a rewrite makes of a path (Gateway API `HTTPRequestRedirectFilter`, `HTTPPathModifier`).

use super::{PathRewrite, Redirect, Rewrite};

impl PathRewrite {
    /// The path and query in place of these. `prefix_bytes` is the length of the prefix that matched, without `/` at its end, as
    /// [`super::Matched::prefix_bytes`] says.
    #[must_use]
    pub fn apply(&self, path_and_query: &str, prefix_bytes: usize) -> String {
        let (path, query) = match path_and_query.find('?') {
            Some(at) => path_and_query.split_at(at),
            None => (path_and_query, ""),
        };
        let path = match self {
            Self::Full(path) => rooted(path.to_string()),
            Self::Prefix(prefix) => {
                let rest = path.get(prefix_bytes..).unwrap_or_default();
                rooted(format!("{}{rest}", prefix.trim_end_matches('/')))
            }
        };
        path + query
    }
}

/// No path is empty, and none begins with anything but `/`.
fn rooted(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

impl Rewrite {
    /// The path and query in place of these; they stay if it speaks of the host only.
    #[must_use]
    pub fn apply(&self, path_and_query: &str, prefix_bytes: usize) -> String {
        self.path.as_ref().map_or_else(|| path_and_query.to_owned(), |path| path.apply(path_and_query, prefix_bytes))
    }
}

impl Redirect {
    /// The value of `Location` for a request of this `scheme` to this host, with a port or not, that came to this port. The port is the
    /// redirect's own; without one the well-known one of its scheme; without that the one the request came to, whatever its host says. It is
    /// left out where the scheme says the same.
    #[must_use]
    pub fn location(&self, scheme: &str, host: &str, to: u16, path_and_query: &str, prefix_bytes: usize) -> String {
        let name = without_port(host);
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => Some(to),
        };
        let scheme = self.scheme.as_deref().unwrap_or(scheme);
        let name = self.hostname.as_deref().unwrap_or(name);
        let path = match &self.path {
            Some(path) => path.apply(path_and_query, prefix_bytes),
            None => rooted_query(path_and_query),
        };
        match port.filter(|port| well_known(scheme) != Some(*port)) {
            Some(port) => format!("{scheme}://{name}:{port}{path}"),
            None => format!("{scheme}://{name}{path}"),
        }
    }
}

/// `OPTIONS *` has no path that could follow a host.
fn rooted_query(path_and_query: &str) -> String {
    match path_and_query {
        "*" => "/".to_owned(),
        path => rooted(path.to_owned()),
    }
}

fn well_known(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// The host of an authority that was checked before; an IPv6 address keeps its brackets, and the colons in them are no port's.
#[must_use]
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
