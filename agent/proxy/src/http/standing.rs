//! What an address was good for when a connection to it was kept, so that the connection goes when the address does: its
//! endpoint left the Service or became unready, its pod is gone, or the address is another pod's now.

use std::net::SocketAddr;

use heddle_model::{PodUid, Snapshot};

/// What the snapshot says about an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Of the snapshot it follows from.
    generation: u64,
    /// The best that any Service says.
    rank: Rank,
    /// Whose address it is.
    pod: Option<PodUid>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// No endpoint.
    #[default]
    None,
    /// Named, and neither ready nor serving.
    Named,
    /// Serving while it terminates.
    Serving,
    Ready,
}

impl Standing {
    pub(crate) fn of(snapshot: &Snapshot, addr: SocketAddr) -> Self {
        let endpoints = snapshot.ports_at(addr).filter_map(|port| {
            let index = port.endpoints.binary_search_by_key(&addr, |e| e.addr).ok()?;
            port.endpoints.get(index)
        });
        let rank = |e: &heddle_model::Endpoint| match (e.ready, e.serving) {
            (true, _) => Rank::Ready,
            (false, true) => Rank::Serving,
            (false, false) => Rank::Named,
        };
        Self {
            generation: snapshot.generation,
            rank: endpoints.map(rank).max().unwrap_or_default(),
            pod: snapshot.workload_by_ip(addr.ip()).map(|w| w.uid.clone()),
        }
    }

    /// Whether the address is as good as it was. Cheap where the snapshot has not changed.
    pub(crate) fn holds(&mut self, snapshot: &Snapshot, addr: SocketAddr) -> bool {
        if self.generation == snapshot.generation {
            return true;
        }
        let now = Self::of(snapshot, addr);
        let holds = now.pod == self.pod && now.rank >= self.rank;
        *self = now;
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_model::{Delta, Endpoint, Service, ServicePort, Workload};

    fn service(endpoints: &[(&str, bool, bool)]) -> Service {
        let mut service = Service::new("shop", "web");
        let endpoint = |(addr, ready, serving): &(&str, bool, bool)| Endpoint {
            ready: *ready,
            serving: *serving,
            ..Endpoint::ready(addr.parse().unwrap())
        };
        let endpoints = endpoints.iter().map(endpoint).collect();
        service.ports.push(ServicePort { name: "".into(), port: 80, app_protocol: None, endpoints });
        service
    }

    fn pod(uid: &str, ip: &str) -> Workload {
        let mut pod = Workload::new(uid, "shop", uid);
        pod.addresses = vec![ip.parse().unwrap()];
        pod
    }

    #[test]
    fn what_becomes_of_an_address() {
        const A: &str = "10.0.0.1:80";
        const B: &str = "10.0.0.2:80";
        type Endpoints = &'static [(&'static str, bool, bool)];
        type Row = (&'static str, Endpoints, Option<&'static str>, Endpoints, Option<&'static str>, bool);
        let ready: Endpoints = &[(A, true, true)];
        let table: [Row; 11] = [
            ("nothing", ready, Some("a"), ready, Some("a"), true),
            ("another endpoint comes", ready, Some("a"), &[(A, true, true), (B, true, true)], Some("a"), true),
            ("it leaves", ready, Some("a"), &[(B, true, true)], Some("a"), false),
            ("its Service leaves, the pod not", ready, Some("a"), &[], Some("a"), false),
            ("it becomes unready", ready, Some("a"), &[(A, false, false)], Some("a"), false),
            ("it terminates", ready, Some("a"), &[(A, false, true)], Some("a"), false),
            ("it was unready and becomes ready", &[(A, false, false)], Some("a"), ready, Some("a"), true),
            ("its pod goes", ready, Some("a"), ready, None, false),
            ("its address is another pod's", ready, Some("a"), ready, Some("b"), false),
            ("a pod that was called directly goes", &[], Some("a"), &[], None, false),
            ("an address nobody knows", &[], None, &[], None, true),
        ];
        for (what, endpoints, owner, endpoints_after, owner_after, holds) in table {
            let delta = |endpoints: Endpoints, owner: Option<&str>| Delta {
                services: vec![(("shop".into(), "web".into()), Some(service(endpoints)))],
                workloads: ["a", "b"]
                    .map(|uid| (PodUid::new(uid), (owner == Some(uid)).then(|| pod(uid, "10.0.0.1"))))
                    .into(),
                ..Delta::default()
            };
            let before = Snapshot::new("n1").apply(delta(endpoints, owner));
            let mut standing = Standing::of(&before, A.parse().unwrap());
            assert!(standing.holds(&before, A.parse().unwrap()));
            let after = before.apply(delta(endpoints_after, owner_after));
            assert_eq!(standing.holds(&after, A.parse().unwrap()), holds, "{what}");
            assert!(standing.holds(&after, A.parse().unwrap()), "{what}: told once");
        }
    }
}
