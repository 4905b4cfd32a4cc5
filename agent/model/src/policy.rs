//! Who may talk to whom: `AuthorizationPolicy` at the called port, `NetworkPolicy` where an agent stands in for the network.
//!
//! What is decided follows from a snapshot's policies, the peer that was proved, and what a request says of itself; every decision
//! names the rule it follows from. The data plane and `heddle explain` ask the same functions.

mod access;
mod authorization;
mod matcher;
pub mod path;

pub use access::{Decision, Observer, Outlook, PortAccess, Why};
pub use authorization::{Action, AuthorizationPolicy, Operation, Rule, Rules, Source, Target};
pub use matcher::{
    HeaderMatch, HostMatch, IdentityMatch, PATTERN_BYTES_MAX, PathMatch, PathTemplate, Pattern, PatternError, TextMatch,
};

use std::net::IpAddr;

/// Whoever is at the other end of a connection: what it proved, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Who it proved to be, by its certificate or by the listener that accepted it; none of a peer that proved nothing.
    pub principal: Option<Principal<'a>>,
    /// Its true address.
    pub address: IpAddr,
}

/// An authenticated identity, `spiffe://<trust-domain>/ns/<namespace>/sa/<account>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Principal<'a> {
    /// The whole id.
    pub id: &'a str,
    /// Namespace, empty if the id names none.
    pub namespace: &'a str,
    /// Service account, empty if the id names none.
    pub service_account: &'a str,
}

impl<'a> Principal<'a> {
    /// An identity that was verified; `None` of an empty text, which is nobody's. Namespace and account are those of the mesh's own trust
    /// domain: elsewhere the same names are somebody else's.
    #[must_use]
    pub fn of(id: &'a str, trust_domain: &str) -> Option<Self> {
        if id.is_empty() {
            return None;
        }
        let parts = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        let path = parts.filter(|(domain, _)| *domain == trust_domain).map_or("", |(_, path)| path);
        let mut parts = path.split('/');
        let (namespace, service_account) = match std::array::from_fn(|_| parts.next()) {
            [Some("ns"), Some(namespace), Some("sa"), Some(account), None] => (namespace, account),
            _ => ("", ""),
        };
        Some(Self { id, namespace, service_account })
    }
}

/// What policies ask of an HTTP request.
pub trait Request {
    /// The method, as sent. CONNECT is no request like others: what follows it may be anything, and so it is matched as bytes are, but by an
    /// operation that lists CONNECT among its `methods`.
    fn method(&self) -> &str;
    /// Host without port, or empty.
    fn host(&self) -> &str;
    /// Path without query, normalized as it is forwarded. CONNECT has none.
    fn path(&self) -> &str;
    /// Calls `each` with every value of the header fields of this (lower-case) name.
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_read_by_their_exact_form() {
        for (id, expected) in [
            ("spiffe://cluster.local/ns/shop/sa/web", Some(("shop", "web"))),
            ("spiffe://cluster.local/ns/shop/sa/web/more", Some(("", ""))),
            ("spiffe://cluster.local/sa/web/ns/shop", Some(("", ""))),
            ("spiffe://cluster.local", Some(("", ""))),
            ("https://cluster.local/ns/shop/sa/web", Some(("", ""))),
            ("spiffe://partner/ns/shop/sa/web", Some(("", ""))),
            ("", None),
        ] {
            let found = Principal::of(id, "cluster.local").map(|p| (p.namespace, p.service_account));
            assert_eq!(found, expected, "{id}");
        }
    }
}
