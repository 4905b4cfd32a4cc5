//! Routes: which rule a request to a Service matches, and where that leads. The Gateway API's HTTPRoute, GRPCRoute, TCPRoute and TLSRoute
//! with Services as parents (GAMMA), joined to one table for each Service port.
//!
//! Routes, grants and TrafficPolicies come as whole objects, parsed; [`crate::Snapshot::apply`] makes tables of them. What a rule leads to is
//! looked up when it is used: an endpoint that changes touches no table.

mod attachment;
mod backend;
mod cors;
mod entries;
mod matching;
mod paths;
mod rewrite;
mod status;
mod table;
mod tables;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

pub use backend::BackendFailure;
pub use cors::{AllowOrigin, Fields};
pub use matching::Missed;
pub use rewrite::without_port;
pub use status::{Condition, RouteStatus, TrafficOutcome, TrafficStatus};
pub use table::{Considered, Matched, Observer, Table};

pub(crate) use tables::Routing;

use crate::policy::Pattern;
use crate::service::ServiceKey;
use crate::time::Timestamp;
use crate::traffic::{RequestTraffic, ServiceTraffic, Share};

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// `HTTPRoute`.
    Http,
    /// `GRPCRoute`.
    Grpc,
    /// `TLSRoute`.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

/// Kind, namespace and name of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Its kind.
    pub kind: RouteKind,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// One route as its author wrote it, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Which.
    pub key: RouteKey,
    /// `metadata.creationTimestamp`: of rules that match alike the oldest route's counts.
    pub created: Option<Timestamp>,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.parentRefs`.
    pub parents: Box<[ParentRef]>,
    /// `spec.hostnames`, in lower case: SNI for TLSRoute; without meaning for Services as parents of other kinds, as GAMMA says.
    pub hostnames: Box<[Arc<str>]>,
    /// `spec.rules`, all of them in order. One that cannot be carried out is [`Rule::invalid`] and harms its own matches only.
    pub rules: Box<[Arc<Rule>]>,
}

/// One of `spec.parentRefs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// What it names.
    pub target: ParentTarget,
    /// `sectionName`, the name of a port of the Service.
    pub section: Option<Arc<str>>,
    /// `port`: the service port; `None` is every one.
    pub port: Option<u16>,
}

/// What a parentRef names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentTarget {
    /// A Service.
    Service(ServiceKey),
    /// Anything else (`Gateway`, `ServiceImport` …), which this agent does not serve; shown as `kind/namespace/name`.
    Other(Arc<str>),
}

/// One rule of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Of which route, by what number.
    pub id: RuleId,
    /// Any of these; none is `/`, every request. What could not be read of one is taken as met, or if nothing is left nothing meets it
    /// ([`PathMatch::Unreadable`]); the rule is invalid then.
    pub matches: Box<[Match]>,
    /// What is done to the request and its response.
    pub filters: Filters,
    /// Where to; none is 500, unless a filter answers.
    pub backends: Box<[Backend]>,
    /// `timeouts` of the rule; what is silent comes from TrafficPolicies.
    pub traffic: RequestTraffic,
    /// Why it cannot be carried out, as `field: message`, the field from `spec` on: it answers 500.
    pub invalid: Option<Arc<str>>,
}

/// A rule by its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleId {
    /// The route.
    pub route: RouteKey,
    /// Counted from 0.
    pub index: u32,
    /// `name`.
    pub name: Option<Arc<str>>,
}

/// One of `matches`: all of its conditions hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Of the path without query. Default every path.
    pub path: PathMatch,
    /// Exactly this.
    pub method: Option<Arc<str>>,
    /// Of each name the first counts; several values of one field are one text, joined by `,`.
    pub headers: Box<[HeaderMatch]>,
    /// Of each name the first counts.
    pub query: Box<[QueryMatch]>,
}

/// Of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// By whole segments, without trailing `/`; the empty one is every path.
    Prefix(Arc<str>),
    /// A regular expression over the whole path.
    Regex(Pattern),
    /// Of a gRPC call, whose path is `/service/method`.
    Call(CallMatch),
    /// No path: what was written could not be read.
    Unreadable,
}

/// Of a gRPC call: both have to match that are there, each over the whole name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallMatch {
    /// The service, with its package.
    pub service: Option<ValueMatch>,
    /// The method.
    pub method: Option<ValueMatch>,
}

/// Of a field; the name in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: Arc<str>,
    /// Of its value.
    pub value: ValueMatch,
}

/// Of a query parameter; the name as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Case counts.
    pub name: Arc<str>,
    /// Of its first value.
    pub value: ValueMatch,
}

/// Of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// The whole.
    Exact(Arc<str>),
    /// A regular expression over the whole.
    Regex(Pattern),
    /// Any: what was written could not be read.
    Present,
}

/// What is done to a request and its response. Of one kind there is one at most, but mirrors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// `requestHeaderModifier`.
    pub request_headers: Option<HeaderEdit>,
    /// `responseHeaderModifier`.
    pub response_headers: Option<HeaderEdit>,
    /// `requestRedirect`.
    pub redirect: Option<Redirect>,
    /// `urlRewrite`.
    pub rewrite: Option<Rewrite>,
    /// `requestMirror`.
    pub mirrors: Box<[Mirror]>,
    /// `cors`.
    pub cors: Option<Cors>,
}

/// Changes of fields; names in lower case, values checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// In place of what is there.
    pub set: Box<[(Arc<str>, Arc<str>)]>,
    /// Beside what is there.
    pub add: Box<[(Arc<str>, Arc<str>)]>,
    /// Away.
    pub remove: Box<[Arc<str>]>,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; the request's if none.
    pub scheme: Option<Arc<str>>,
    /// The request's if none.
    pub hostname: Option<Arc<str>>,
    /// The request's if none.
    pub path: Option<PathRewrite>,
    /// If none: the well-known one of `scheme` where that is given, else the request's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. Default 302.
    pub status: u16,
}

/// Another host or path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// `Host`.
    pub hostname: Option<Arc<str>>,
    /// The path.
    pub path: Option<PathRewrite>,
}

/// Another path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// In place of the whole path.
    Full(Arc<str>),
    /// In place of the prefix that matched.
    Prefix(Arc<str>),
}

/// A copy of requests for somebody else, whose answers nobody waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Whom.
    pub to: BackendRef,
    /// Of how many.
    pub share: Share,
}

/// Cross-origin requests (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// `https://example.com`, `https://*.example.com` or `*`, in lower case.
    pub allow_origins: Box<[Arc<str>]>,
    /// Methods, or `*`.
    pub allow_methods: Box<[Arc<str>]>,
    /// Names in lower case, or `*`.
    pub allow_headers: Box<[Arc<str>]>,
    /// Names, or `*`.
    pub expose_headers: Box<[Arc<str>]>,
    /// Whether credentials may be sent.
    pub allow_credentials: bool,
    /// How long a preflight's answer may be kept. Default 5 s.
    pub max_age: Duration,
}

/// One of `backendRefs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Where.
    pub to: BackendRef,
    /// Its part of the sum of all. Default 1; 0 gets none.
    pub weight: u32,
    /// Its own filters: header modifiers only.
    pub filters: Filters,
}

/// A reference to a Service, or why it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendRef {
    /// A port of a Service. Whether both exist is for the snapshot to say, at the time of the request.
    Service {
        /// Which.
        service: ServiceKey,
        /// The service port.
        port: u16,
    },
    /// Another kind of object, or one that could not be read: its share is answered 500.
    Invalid(BackendProblem),
}

/// Why a reference leads nowhere, by the Gateway API's reasons of `ResolvedRefs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendProblem {
    /// `InvalidKind`: no Service.
    InvalidKind(Arc<str>),
    /// `RefNotPermitted`: in another namespace, where no ReferenceGrant allows it.
    RefNotPermitted(ServiceKey),
    /// `UnsupportedValue`: a field says what this agent cannot do.
    UnsupportedValue(Arc<str>),
}

/// A `ReferenceGrant`: who may refer to Services of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// `metadata.namespace` and `name`.
    pub key: ServiceKey,
    /// `from`: kind of route and namespace.
    pub from: Box<[(RouteKind, Arc<str>)]>,
    /// `to`: Services by name; `None` is all of them.
    pub to: Box<[Option<Arc<str>>]>,
}

/// A `TrafficPolicy` as its author wrote it, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp`: of two with one target the older counts, and of those of one time the first by namespace and name.
    pub created: Option<Timestamp>,
    /// `spec.targetRefs`.
    pub targets: Box<[TrafficTarget]>,
    /// What it says, over the defaults; `Err` says why it cannot be read, as `field: message`: its targets keep the defaults, and it is reported.
    pub settings: Result<Arc<ServiceTraffic>, Arc<str>>,
}

/// What a TrafficPolicy is about, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrafficTarget {
    /// A Service, all ports.
    Service(ServiceKey),
    /// A route, or the rule of this name in it: only what [`RequestTraffic`] says.
    Route {
        /// Which.
        route: RouteKey,
        /// `sectionName`.
        rule: Option<Arc<str>>,
    },
}

/// Changes: desired state by key, `None` removes. Of two entries with one key the later counts.
#[derive(Clone, Debug, Default)]
pub struct RoutingDelta {
    /// Routes of all kinds.
    pub routes: Vec<(RouteKey, Option<Arc<Route>>)>,
    /// ReferenceGrants.
    pub grants: Vec<(ServiceKey, Option<Arc<ReferenceGrant>>)>,
    /// TrafficPolicies.
    pub traffic: Vec<(ServiceKey, Option<Arc<TrafficPolicy>>)>,
}

/// A request as routes see it.
pub trait Request {
    /// The method.
    fn method(&self) -> &str;
    /// The path, without query.
    fn path(&self) -> &str;
    /// The query, without `?`.
    fn query(&self) -> Option<&str>;
    /// The values of a field, name in lower case, in order.
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix(Arc::default())
    }
}

impl RouteKind {
    /// The kind's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }
}

impl RoutingDelta {
    /// Whether applying it would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.grants.is_empty() && self.traffic.is_empty()
    }
}
