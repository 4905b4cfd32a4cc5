//! An `AuthorizationPolicy` as the mesh sees it: parsed, its patterns compiled, nothing left that could be wrong.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::matcher::{HeaderMatch, HostMatch, IdentityMatch, PathMatch, Quantifier};
use super::{Peer, Request};
use crate::workload::{Labels, has_labels};

/// One policy. Names of its fields are those of the object's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace: it speaks for pods there only.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Whose traffic it speaks of.
    pub target: Target,
    /// What a match means.
    pub action: Action,
    /// Decides nothing, and tells what it would have decided.
    pub dry_run: bool,
    /// When it matches.
    pub rules: Rules,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Let in, and of the ports it selects nothing that no Allow policy matches.
    #[default]
    Allow,
    /// Refused, whatever else allows it.
    Deny,
    /// Told in log and metric; decides nothing.
    Audit,
}

impl Action {
    /// The word users write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Audit => "Audit",
        }
    }
}

/// Whose traffic a policy speaks of, within its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every pod.
    Namespace,
    /// Pods with these labels; at least one.
    Labels(Labels),
    /// The endpoints of a Service, at the target ports it leads to.
    Service(Arc<str>),
    /// Nobody can tell, as the object is invalid. It might have been any: every pod.
    Unreadable,
}

impl Target {
    /// Whether a pod of the policy's namespace is selected by itself, not by a Service.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        match self {
            Self::Namespace | Self::Unreadable => true,
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
            Self::Service(_) => false,
        }
    }

    /// The same of a pod of whose labels these are known and others may not be; `None`: it depends on those.
    #[must_use]
    pub fn selects_knowing(&self, known: &Labels) -> Option<bool> {
        match self {
            Self::Labels(wanted) => has_labels(wanted, known),
            Self::Namespace | Self::Unreadable | Self::Service(_) => Some(self.selects(known)),
        }
    }
}

/// When a policy matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// If one of these does. None at all never match.
    Any(Vec<Rule>),
    /// The object was rejected: its targets are denied (DESIGN §7).
    Rejected,
}

/// One item of `spec.rules`: who, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// One of these has to match; without any, everybody does.
    pub from: Vec<Source>,
    /// One of these has to match; without any, everything does.
    pub to: Vec<Operation>,
}

/// An item of `from`: all fields that are set have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// SPIFFE ids.
    pub identities: Vec<IdentityMatch>,
    /// SPIFFE ids that do not match.
    pub not_identities: Vec<IdentityMatch>,
    /// Namespaces of the identity.
    pub namespaces: Vec<Arc<str>>,
    /// Namespaces that do not match.
    pub not_namespaces: Vec<Arc<str>>,
    /// Namespace and service account of the identity.
    pub service_accounts: Vec<(Arc<str>, Arc<str>)>,
    /// Service accounts that do not match.
    pub not_service_accounts: Vec<(Arc<str>, Arc<str>)>,
    /// Networks of the true client's address.
    pub cidrs: Vec<IpNet>,
    /// Networks that do not match.
    pub not_cidrs: Vec<IpNet>,
}

/// An item of `to`: all fields that are set have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Target ports.
    pub ports: Vec<u16>,
    /// Target ports that do not match.
    pub not_ports: Vec<u16>,
    /// Hosts.
    pub hosts: Vec<HostMatch>,
    /// Hosts that do not match.
    pub not_hosts: Vec<HostMatch>,
    /// Methods.
    pub methods: Vec<Box<str>>,
    /// Methods that do not match.
    pub not_methods: Vec<Box<str>>,
    /// Paths.
    pub paths: Vec<PathMatch>,
    /// Paths that do not match.
    pub not_paths: Vec<PathMatch>,
    /// Header fields, all of which have to match.
    pub headers: Vec<HeaderMatch>,
    /// Header fields, none of which may match.
    pub not_headers: Vec<HeaderMatch>,
}

/// The method that opens a tunnel.
const CONNECT: &str = "CONNECT";

/// The field of a rule that did not match.
pub(super) type Missed = &'static str;

impl Rule {
    /// Whether everybody or one of `from` is the peer.
    pub(super) fn matches_peer(&self, peer: &Peer<'_>, quantifier: Quantifier) -> Result<(), Missed> {
        first_match(&self.from, |source| source.matches(peer, quantifier))
    }
}

/// Whether one of several matches; if not, what the last one missed. None at all match everything.
pub(super) fn first_match<'a, T: 'a>(
    all: impl IntoIterator<Item = &'a T>,
    matches: impl Fn(&T) -> Result<(), Missed>,
) -> Result<(), Missed> {
    let mut outcome = Ok(());
    for one in all {
        outcome = matches(one);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

impl Source {
    /// Whether the peer is meant. In doubt against the request: one that proved no identity is not «another one» to a rule that allows.
    fn matches(&self, peer: &Peer<'_>, quantifier: Quantifier) -> Result<(), Missed> {
        let unproved = quantifier == Quantifier::Any;
        let principal = peer.principal;
        let is = |known: &dyn Fn(&super::Principal<'_>) -> bool| principal.as_ref().is_some_and(known);
        let is_not = |known: &dyn Fn(&super::Principal<'_>) -> bool| principal.as_ref().map_or(unproved, |p| !known(p));
        let identities = |list: &[IdentityMatch], id: &str| list.iter().any(|m| m.matches(id));
        let namespaces = |list: &[Arc<str>], namespace: &str| list.iter().any(|n| **n == *namespace);
        let accounts = |list: &[(Arc<str>, Arc<str>)], p: &super::Principal<'_>| {
            list.iter().any(|(namespace, name)| **namespace == *p.namespace && **name == *p.service_account)
        };
        let cidrs = |list: &[IpNet], address: IpAddr| list.iter().any(|net| net.contains(&address));
        let address = peer.address.to_canonical();
        let checks: [(bool, &dyn Fn() -> bool, Missed); 8] = [
            (self.identities.is_empty(), &|| is(&|p| identities(&self.identities, p.id)), "from.identities"),
            (
                self.not_identities.is_empty(),
                &|| is_not(&|p| identities(&self.not_identities, p.id)),
                "from.notIdentities",
            ),
            (self.namespaces.is_empty(), &|| is(&|p| namespaces(&self.namespaces, p.namespace)), "from.namespaces"),
            (
                self.not_namespaces.is_empty(),
                &|| is_not(&|p| namespaces(&self.not_namespaces, p.namespace)),
                "from.notNamespaces",
            ),
            (
                self.service_accounts.is_empty(),
                &|| is(&|p| accounts(&self.service_accounts, p)),
                "from.serviceAccounts",
            ),
            (
                self.not_service_accounts.is_empty(),
                &|| is_not(&|p| accounts(&self.not_service_accounts, p)),
                "from.notServiceAccounts",
            ),
            (self.cidrs.is_empty(), &|| cidrs(&self.cidrs, address), "from.cidrs"),
            (self.not_cidrs.is_empty(), &|| !cidrs(&self.not_cidrs, address), "from.notCidrs"),
        ];
        all_hold(&checks)
    }
}

/// Each check: holds for want of anything to check, the check, its field.
fn all_hold(checks: &[(bool, &dyn Fn() -> bool, Missed)]) -> Result<(), Missed> {
    match checks.iter().find(|(is_unset, holds, _)| !is_unset && !holds()) {
        Some((_, _, missed)) => Err(missed),
        None => Ok(()),
    }
}

impl Operation {
    /// Whether connections to a target port may be meant.
    #[must_use]
    pub fn is_of_port(&self, port: u16) -> bool {
        (self.ports.is_empty() || self.ports.contains(&port)) && !self.not_ports.contains(&port)
    }

    /// Whether it asks for anything that only HTTP has.
    #[must_use]
    pub fn is_of_http(&self) -> bool {
        let is_empty = self.hosts.is_empty()
            && self.not_hosts.is_empty()
            && self.methods.is_empty()
            && self.not_methods.is_empty()
            && !self.reads_paths()
            && self.headers.is_empty()
            && self.not_headers.is_empty();
        !is_empty
    }

    /// Whether it asks for paths.
    #[must_use]
    pub fn reads_paths(&self) -> bool {
        !self.paths.is_empty() || !self.not_paths.is_empty()
    }

    /// Whether a request is meant, whose port is. What a CONNECT opens is not known: it is bytes, for which an operation speaks that lists it.
    pub(super) fn matches<R: Request + ?Sized>(&self, request: &R, quantifier: Quantifier) -> Result<(), Missed> {
        if request.method() != CONNECT {
            return self.matches_request(request, quantifier);
        }
        let is_listed = self.methods.iter().any(|method| **method == *CONNECT);
        match quantifier {
            Quantifier::Any if !is_listed => Ok(()),
            Quantifier::All if !is_listed && self.is_of_http() => Err("to: asks for HTTP, and CONNECT is a tunnel"),
            // Which path is called inside of it is anybody's guess.
            Quantifier::All if self.reads_paths() => Err("to.paths"),
            Quantifier::Any if self.reads_paths() => {
                let pathless = Self { paths: Vec::new(), not_paths: Vec::new(), ..self.clone() };
                pathless.matches_request(request, quantifier)
            }
            _ => self.matches_request(request, quantifier),
        }
    }

    fn matches_request<R: Request + ?Sized>(&self, request: &R, quantifier: Quantifier) -> Result<(), Missed> {
        let host = |list: &[HostMatch]| list.iter().any(|m| m.matches(request.host()));
        let method = |list: &[Box<str>]| list.iter().any(|m| **m == *request.method());
        let bare = without_parameters(request.path());
        let path = |list: &[PathMatch], quantifier| {
            let of = |path: &str| list.iter().any(|m| m.matches(path));
            // Some servers drop `;v=1`, some do not: whichever it is, what allows wants both readings, what denies one.
            match (&bare, quantifier) {
                (None, _) => of(request.path()),
                (Some(bare), Quantifier::All) => of(request.path()) && of(bare),
                (Some(bare), Quantifier::Any) => of(request.path()) || of(bare),
            }
        };
        let values = |name: &str, each: &mut dyn FnMut(&[u8])| request.header(name, each);
        let headers = || self.headers.iter().all(|m| m.matches(values, quantifier));
        let not_headers = || !self.not_headers.iter().any(|m| m.matches(values, quantifier.opposite()));
        let checks: [(bool, &dyn Fn() -> bool, Missed); 8] = [
            (self.methods.is_empty(), &|| method(&self.methods), "to.methods"),
            (self.not_methods.is_empty(), &|| !method(&self.not_methods), "to.notMethods"),
            (self.hosts.is_empty(), &|| host(&self.hosts), "to.hosts"),
            (self.not_hosts.is_empty(), &|| !host(&self.not_hosts), "to.notHosts"),
            (self.paths.is_empty(), &|| path(&self.paths, quantifier), "to.paths"),
            (self.not_paths.is_empty(), &|| !path(&self.not_paths, quantifier.opposite()), "to.notPaths"),
            (self.headers.is_empty(), &headers, "to.headers"),
            (self.not_headers.is_empty(), &not_headers, "to.notHeaders"),
        ];
        all_hold(&checks)
    }
}

/// The path without the parameters of its segments (RFC 3986 §3.3), where it has any.
fn without_parameters(path: &str) -> Option<String> {
    path.contains(';').then(|| {
        let segments = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
        segments.collect::<Vec<_>>().join("/")
    })
}
