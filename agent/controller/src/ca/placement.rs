//! Which accounts have a pod on which node: the one ground on which a node may have a certificate.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use heddle_identity::{SpiffeId, TrustDomain};
use heddle_model::Snapshot;
use heddle_model::workload::{Membership, NotInMesh};

use super::names;

/// Accounts by node, of one snapshot.
#[derive(Debug, Default)]
pub struct Placement(HashMap<Arc<str>, Accounts>);

/// By namespace.
type Accounts = HashMap<Arc<str>, HashSet<Arc<str>>>;

/// Why a node may not have a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Of another mesh.
    #[error("{id} is not of trust domain {trust_domain}")]
    TrustDomain {
        /// Asked for.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// The control plane's own.
    #[error("{0} is the control plane's own and no workload's")]
    Reserved(SpiffeId),
    /// Perhaps not yet: objects may reach the authority later than the agent.
    #[error("no pod of {id} is known on node {node} (yet)")]
    NoPod {
        /// Asked for.
        id: SpiffeId,
        /// Who asked.
        node: String,
    },
}

impl Placement {
    /// What a snapshot says. Finished pods need no certificate, and objects that were rejected prove nothing, but where what guards their pod holds
    /// it in the mesh: it goes on under the account that can be read.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut nodes: HashMap<_, Accounts> = HashMap::new();
        for pod in snapshot.workloads() {
            let is_rejected = pod.membership == Membership::Disabled(NotInMesh::InvalidObject);
            if pod.node.is_empty() || pod.finished || is_rejected {
                continue;
            }
            let accounts =
                nodes.entry(Arc::clone(&pod.node)).or_default().entry(Arc::clone(&pod.namespace)).or_default();
            accounts.insert(Arc::clone(&pod.service_account));
        }
        Self(nodes)
    }

    /// Whether `node` may have a certificate for `id`.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, trust_domain: &TrustDomain, node: &str, id: &SpiffeId) -> Result<(), Denial> {
        if id.trust_domain() != trust_domain.as_str() {
            return Err(Denial::TrustDomain { id: id.clone(), trust_domain: trust_domain.clone() });
        }
        if names::is_reserved(id) {
            return Err(Denial::Reserved(id.clone()));
        }
        let accounts = self.0.get(node).and_then(|namespaces| namespaces.get(id.namespace()));
        if accounts.is_some_and(|accounts| accounts.contains(id.service_account())) {
            return Ok(());
        }
        Err(Denial::NoPod { id: id.clone(), node: node.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use heddle_model::{Delta, PodUid, Workload};

    use super::*;

    fn pod(name: &str, account: &str, node: &str) -> Workload {
        let pod = Workload::new(name, "shop", name);
        Workload { service_account: account.into(), node: node.into(), ..pod }
    }

    fn placement(pods: Vec<Workload>) -> Placement {
        let workloads = pods.into_iter().map(|pod| (PodUid::new(&pod.name), Some(pod))).collect();
        let mut snapshot = Snapshot::new("");
        snapshot = snapshot.apply(Delta { workloads, ..Delta::default() });
        Placement::of(&snapshot)
    }

    #[test]
    fn an_account_needs_a_living_pod_on_that_very_node() {
        let rejected = Membership::Disabled(NotInMesh::InvalidObject);
        let placement = placement(vec![
            pod("web-1", "web", "a"),
            pod("web-2", "web", "b"),
            pod("api", "api", "b"),
            pod("waits", "waits", ""),
            Workload { finished: true, ..pod("job", "job", "a") },
            Workload { membership: rejected, ..pod("odd", "odd", "a") },
            Workload { namespace: "heddle-system".into(), ..pod("agent", "agent", "a") },
        ]);
        let domain: TrustDomain = "td".parse().unwrap();
        for (node, id, want) in [
            ("a", "spiffe://td/ns/shop/sa/web", ""),
            ("b", "spiffe://td/ns/shop/sa/web", ""),
            ("b", "spiffe://td/ns/shop/sa/api", ""),
            ("a", "spiffe://td/ns/shop/sa/api", "no pod"),
            ("c", "spiffe://td/ns/shop/sa/web", "no pod"),
            ("", "spiffe://td/ns/shop/sa/waits", "no pod"),
            ("a", "spiffe://td/ns/shop/sa/waits", "no pod"),
            ("a", "spiffe://td/ns/shop/sa/job", "no pod"),
            ("a", "spiffe://td/ns/shop/sa/odd", "no pod"),
            ("a", "spiffe://td/ns/other/sa/web", "no pod"),
            ("a", "spiffe://other/ns/shop/sa/web", "not of trust domain td"),
            ("a", "spiffe://td/ns/heddle-system/sa/agent", "control plane"),
            ("a", "spiffe://td/ns/heddle-system/sa/ca", "control plane"),
        ] {
            let outcome = placement.check(&domain, node, &id.parse().unwrap()).map_err(|denial| denial.to_string());
            match outcome {
                Ok(()) => assert_eq!(want, "", "{node} {id}"),
                Err(denial) => assert!(!want.is_empty() && denial.contains(want), "{node} {id}: {denial}"),
            }
        }
    }
}
