//! NetworkPolicy, where this agent stands in for the network: between two pods of its node whose bytes it hands over.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;

use heddle_model::Snapshot;
use heddle_model::network_policy::{self, NetworkPolicy, NetworkWhy};
use heddle_telemetry::{PolicyHandle, PolicyLabels, PolicyVerdict, Via};

use crate::budget::Pod;
use crate::registry::Conn;
use crate::worker::Worker;

/// What NetworkPolicies say of one handed-over connection.
pub(crate) struct NetworkVerdict {
    pub(crate) is_allowed: bool,
    /// By what, for the log.
    pub(crate) why: Box<str>,
    policy: Box<str>,
    handle: OnceCell<PolicyHandle>,
}

impl NetworkVerdict {
    pub(super) fn count(&self, worker: &Worker) {
        let handle = self.handle.get_or_init(|| {
            let verdict = if self.is_allowed { PolicyVerdict::Allowed } else { PolicyVerdict::Denied };
            let policy = (&*self.policy).into();
            worker.telemetry.policy.handle(worker.index, &PolicyLabels { kind: "NetworkPolicy", policy, verdict })
        });
        handle.count();
    }
}

/// What they say of a called connection; none of one that came over the network, which saw to it, or where no pod is isolated.
pub(super) fn verdict(conn: &Conn) -> Option<Rc<NetworkVerdict>> {
    if conn.via() != Via::Handover {
        return None;
    }
    let snapshot = conn.worker.snapshot();
    let mut known = conn.network.borrow_mut();
    match &*known {
        Some((generation, verdict)) if *generation == snapshot.policy_generation => verdict.clone(),
        _ => {
            let verdict = judge(conn, &snapshot).map(Rc::new);
            *known = Some((snapshot.policy_generation, verdict.clone()));
            verdict
        }
    }
}

/// Whether they let a calling connection through to a pod of this node.
pub(super) fn lets_through(conn: &Conn, pod: &Pod, addr: SocketAddr, snapshot: &Snapshot) -> bool {
    let (Some(from), Some(to)) = (&conn.source, pod.workload(snapshot)) else { return true };
    let from = snapshot.workload(&from.uid).unwrap_or(from);
    super::remember(&conn.pod, snapshot);
    super::remember(pod, snapshot);
    let (of_caller, of_called) = (conn.pod.policies.borrow(), pod.policies.borrow());
    let (caller, called) = ((&**from, of_caller.as_deref()), (&*to, of_called.as_deref()));
    let (egress, ingress) = network_policy::between_those(snapshot, caller, conn.client.get().ip(), called, addr);
    egress.is_allowed && ingress.is_allowed
}

fn judge(conn: &Conn, snapshot: &Snapshot) -> Option<NetworkVerdict> {
    let (from, to, addr) = (conn.source.as_ref()?, conn.pod.workload(snapshot)?, conn.original?.get());
    // As it is labelled now.
    let from = snapshot.workload(&from.uid).unwrap_or(from);
    let caller = conn.carrier()?.pod.clone();
    super::remember(&caller, snapshot);
    super::remember(&conn.pod, snapshot);
    let (of_caller, of_called) = (caller.policies.borrow().clone(), conn.pod.policies.borrow().clone());
    let (egress, ingress) = network_policy::between_those(
        snapshot,
        (from, of_caller.as_deref()),
        conn.client.get().ip(),
        (&to, of_called.as_deref()),
        addr,
    );
    // The one that refuses; else the one that lets in.
    let decisions = [("ingress", ingress), ("egress", egress)];
    let telling = decisions.iter().find(|(_, decision)| !decision.is_allowed);
    let (direction, decision) = telling.or_else(|| decisions.iter().find(|(_, d)| told(d.why).is_some()))?;
    let policy = told(decision.why)?;
    let name = format!("{}/{}", policy.namespace, policy.name);
    let why = match decision.why {
        NetworkWhy::Rule(_, rule) => format!("NetworkPolicy {name} {direction}[{rule}]"),
        NetworkWhy::Rejected(_) => format!("NetworkPolicy {name} was rejected"),
        NetworkWhy::NoRule(_) => format!("no {direction} rule matches: NetworkPolicy {name} isolates the pod"),
        NetworkWhy::Itself | NetworkWhy::NotIsolated => return None,
    };
    let policy = name.into_boxed_str();
    Some(NetworkVerdict { is_allowed: decision.is_allowed, why: why.into(), policy, handle: OnceCell::new() })
}

/// The policy that a decision follows from.
fn told(why: NetworkWhy<'_>) -> Option<&NetworkPolicy> {
    match why {
        NetworkWhy::Rule(policy, _) | NetworkWhy::NoRule(policy) | NetworkWhy::Rejected(policy) => Some(policy),
        NetworkWhy::Itself | NetworkWhy::NotIsolated => None,
    }
}
