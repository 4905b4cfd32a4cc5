//! Routes, ReferenceGrants and TrafficPolicies: which of them changed since they were last given out. They are joined with nothing here; what
//! follows from them and from Services is for the snapshot to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::{Key, Kind, Object};
use heddle_model::ServiceKey;
use heddle_model::routing::{ReferenceGrant, Route, RouteKey, RoutingDelta, TrafficPolicy};

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    routes: BTreeMap<RouteKey, Option<Arc<Route>>>,
    grants: BTreeMap<ServiceKey, Option<Arc<ReferenceGrant>>>,
    traffic: BTreeMap<ServiceKey, Option<Arc<TrafficPolicy>>>,
}

impl Routing {
    /// Sets what is desired under a key; `None` removes it. Other kinds are nothing to it.
    pub(crate) fn set(&mut self, key: &Key, object: Option<&Object>) {
        let (namespace, name) = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        match key.kind {
            Kind::Route(kind) => {
                let route = match object {
                    Some(Object::Route(route)) => Some(Arc::clone(route)),
                    _ => None,
                };
                self.routes.insert(RouteKey { kind, namespace, name }, route);
            }
            Kind::ReferenceGrant => {
                let grant = match object {
                    Some(Object::ReferenceGrant(dated)) => Some(Arc::clone(&dated.policy)),
                    _ => None,
                };
                self.grants.insert((namespace, name), grant);
            }
            Kind::TrafficPolicy => {
                let policy = match object {
                    Some(Object::TrafficPolicy(policy)) => Some(Arc::clone(policy)),
                    _ => None,
                };
                self.traffic.insert((namespace, name), policy);
            }
            _ => {}
        }
    }

    /// What changed since it was asked last, in order.
    pub(crate) fn take(&mut self) -> RoutingDelta {
        let Self { routes, grants, traffic } = std::mem::take(self);
        RoutingDelta {
            routes: routes.into_iter().collect(),
            grants: grants.into_iter().collect(),
            traffic: traffic.into_iter().collect(),
        }
    }
}
