//! Which routes hold on which ports of a Service, and for whose clients; of those that exclude each other the one that counts.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::matching::Seniority;
use super::{ParentRef, ParentTarget, Route, RouteKey, RouteKind};
use crate::service::{Service, ServiceKey};

/// Whose requests: a route in the Service's namespace speaks to everyone (`None`), one in another namespace to the clients of its own.
pub(super) type Clients = Option<Arc<str>>;

/// The routes of one port for one set of clients.
#[derive(Debug)]
pub(super) struct Settled<'a> {
    /// Of this kind are those that count.
    pub(super) kind: RouteKind,
    /// Those that count, the oldest first.
    pub(super) winners: Vec<&'a Route>,
    /// Those that do not, each with the one it lost to.
    pub(super) losers: BTreeMap<RouteKey, RouteKey>,
    /// Names that winners lost to older ones: of TLSRoutes.
    pub(super) lost_names: BTreeMap<RouteKey, Vec<Arc<str>>>,
}

/// Why a parentRef attaches to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unattached {
    /// No such Service.
    NoService,
    /// Its object was rejected.
    Rejected,
    /// Requests to it carry no address of its own.
    Headless,
    /// No port of this number and name.
    NoPort,
}

/// The ports a parentRef to this Service means.
pub(super) fn ports_of(parent: &ParentRef, service: Option<&Service>) -> Result<Vec<u16>, Unattached> {
    let service = service.ok_or(Unattached::NoService)?;
    if service.invalid {
        return Err(Unattached::Rejected);
    }
    if service.headless {
        return Err(Unattached::Headless);
    }
    let of = |port: &&crate::ServicePort| {
        parent.port.is_none_or(|number| port.port == number)
            && parent.section.as_ref().is_none_or(|name| port.name == *name)
    };
    let ports: Vec<u16> = service.ports.iter().filter(of).map(|port| port.port).collect();
    if ports.is_empty() { Err(Unattached::NoPort) } else { Ok(ports) }
}

/// Whom a route speaks to.
pub(super) fn clients_of(route: &Route, service: &ServiceKey) -> Clients {
    (route.key.namespace != service.0).then(|| Arc::clone(&route.key.namespace))
}

/// Sorts the routes attached to a Service by clients and port.
pub(super) fn settle<'a>(
    routes: impl Iterator<Item = &'a Route>,
    service: &Service,
) -> BTreeMap<(Clients, u16), Settled<'a>> {
    let key = service.key();
    let mut routes: Vec<&Route> = routes.filter(|route| is_usable(route)).collect();
    routes.sort_by_cached_key(|route| Seniority::of(route));
    let mut all: BTreeMap<(Clients, u16), Vec<&Route>> = BTreeMap::new();
    for route in routes {
        let parents = route.parents.iter().filter(|p| matches!(&p.target, ParentTarget::Service(of) if *of == key));
        for port in parents.filter_map(|parent| ports_of(parent, Some(service)).ok()).flatten() {
            let of_port = all.entry((clients_of(route, &key), port)).or_default();
            // Two parentRefs may mean one port.
            if of_port.last().is_none_or(|last| last.key != route.key) {
                of_port.push(route);
            }
        }
    }
    all.into_iter().filter_map(|(of, routes)| Some((of, of_port(&routes)?))).collect()
}

/// A route about connections has one rule: with none it says nothing, and with more nothing says which. One about requests that has none says
/// nothing either, and takes the port from no other kind.
pub(super) fn is_usable(route: &Route) -> bool {
    match route.key.kind {
        RouteKind::Http | RouteKind::Grpc => !route.rules.is_empty(),
        RouteKind::Tls | RouteKind::Tcp => route.rules.len() == 1,
    }
}

/// On one port routes of one kind count, GRPCRoute before HTTPRoute before TLSRoute before TCPRoute (GEP-1294). HTTPRoutes and GRPCRoutes are
/// merged; of TLSRoutes the oldest has a name, of TCPRoutes the port.
fn of_port<'a>(routes: &[&'a Route]) -> Option<Settled<'a>> {
    let rank = |kind| match kind {
        RouteKind::Grpc => 0,
        RouteKind::Http => 1,
        RouteKind::Tls => 2,
        RouteKind::Tcp => 3,
    };
    let first = *routes.iter().min_by_key(|route| rank(route.key.kind))?;
    let kind = first.key.kind;
    let mut settled = Settled { kind, winners: Vec::new(), losers: BTreeMap::new(), lost_names: BTreeMap::new() };
    let mut names: HashSet<Option<&str>> = HashSet::new();
    for route in routes {
        let is_winner = route.key.kind == kind
            && match kind {
                RouteKind::Http | RouteKind::Grpc => true,
                RouteKind::Tcp => settled.winners.is_empty(),
                RouteKind::Tls if route.hostnames.is_empty() => names.insert(None),
                RouteKind::Tls => {
                    let lost = route.hostnames.iter().filter(|name| names.contains(&Some(&***name)));
                    let lost: Vec<_> = lost.cloned().collect();
                    // Every name, so that a younger route does not get it.
                    names.extend(route.hostnames.iter().map(|name| Some(&**name)));
                    let has_some = lost.len() < route.hostnames.len();
                    if has_some && !lost.is_empty() {
                        settled.lost_names.insert(route.key.clone(), lost);
                    }
                    has_some
                }
            };
        if is_winner {
            settled.winners.push(route);
        } else {
            let by = settled.winners.iter().find(|winner| {
                kind != RouteKind::Tls
                    || winner.hostnames == route.hostnames
                    || winner.hostnames.iter().any(|name| route.hostnames.contains(name))
            });
            settled.losers.insert(route.key.clone(), by.map_or_else(|| first.key.clone(), |by| by.key.clone()));
        }
    }
    Some(settled)
}
