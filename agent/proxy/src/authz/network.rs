//! NetworkPolicy, where this agent stands in for the network: between two pods of its node whose bytes it hands over.

use std::cell::OnceCell;
use std::rc::Rc;

use heddle_model::Snapshot;
use heddle_telemetry::{PolicyHandle, PolicyLabels, PolicyVerdict, Via};

use crate::registry::Conn;
use crate::worker::Worker;

/// What NetworkPolicies say of one handed-over connection.
pub(crate) struct NetworkVerdict {
    pub(crate) is_allowed: bool,
    /// By what, for the log; empty where neither pod is isolated.
    pub(crate) why: Box<str>,
    /// The policy it follows from, if it is one.
    policy: Option<Box<str>>,
    handle: OnceCell<PolicyHandle>,
}

impl NetworkVerdict {
    pub(super) fn count(&self, worker: &Worker) {
        let handle = self.handle.get_or_init(|| {
            let verdict = if self.is_allowed { PolicyVerdict::Allowed } else { PolicyVerdict::Denied };
            let policy = self.policy.as_deref().unwrap_or_default().into();
            worker.telemetry.policy.handle(worker.index, &PolicyLabels { kind: "NetworkPolicy", policy, verdict })
        });
        handle.count();
    }
}

/// What they say of a called connection; none of one that came over the network, which saw to it, or where no pod is isolated.
pub(super) fn verdict(conn: &Conn, snapshot: &Snapshot) -> Option<Rc<NetworkVerdict>> {
    if conn.via() != Via::Handover {
        return None;
    }
    let mut known = conn.network.borrow_mut();
    match &*known {
        Some((generation, verdict)) if *generation == snapshot.policy_generation => verdict.clone(),
        _ => {
            let verdict = judge(conn, snapshot).map(Rc::new);
            *known = Some((snapshot.policy_generation, verdict.clone()));
            verdict
        }
    }
}

fn judge(_conn: &Conn, _snapshot: &Snapshot) -> Option<NetworkVerdict> {
    None
}
