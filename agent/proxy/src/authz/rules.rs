//! What there is to ask at one port of a pod, and what came of asking: sorted out and kept by each worker for itself.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use heddle_model::policy::{Action, AuthorizationPolicy, Decision, PortAccess, Why};
use heddle_model::{OriginalDst, PodUid, Snapshot};
use heddle_telemetry::{PolicyFields, PolicyHandle, PolicyLabels, PolicyVerdict};

use super::{NetworkVerdict, remember};
use crate::budget::Pod;
use crate::hash::FastMap;
use crate::worker::Worker;

/// Allow policies named where none of their rules matched.
const SELECTING_TOLD: usize = 3;
/// Ports kept; with more the cache starts anew.
const PORTS_MAX: usize = 1024;

/// The rules of one port of one pod.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) access: PortAccess,
    /// By policy and verdict; behind the last policy those of no single one.
    handles: RefCell<Vec<Option<PolicyHandle>>>,
}

impl Rules {
    fn new(access: PortAccess) -> Self {
        let count = (access.policies().len() + 1) * PolicyVerdict::ALL.len();
        Self { access, handles: RefCell::new(vec![None; count]) }
    }

    fn count(&self, worker: &Worker, policy: Option<usize>, verdict: PolicyVerdict) {
        let at = policy.unwrap_or(self.access.policies().len()) * PolicyVerdict::ALL.len() + verdict as usize;
        if let Some(slot) = self.handles.borrow_mut().get_mut(at) {
            let handle = slot.get_or_insert_with(|| {
                let policy = policy.and_then(|at| self.access.policies().get(at)).map(name).unwrap_or_default();
                let labels = PolicyLabels { kind: "AuthorizationPolicy", policy: policy.into(), verdict };
                worker.telemetry.policy.handle(worker.index, &labels)
            });
            handle.count();
        }
    }

    /// A rule, as the log tells it.
    fn text(&self, policy: usize, rule: Option<usize>) -> String {
        let name = self.access.policies().get(policy).map(name).unwrap_or_default();
        rule.map_or(name.clone(), |rule| format!("{name}[{rule}]"))
    }

    fn why(&self, why: Why) -> String {
        match why {
            Why::Default => String::new(),
            Why::Rule(policy, rule) => self.text(policy, Some(rule)),
            Why::NoRule => {
                let selecting = self.access.policies().iter().filter(|p| p.action == Action::Allow);
                let names: Vec<_> = selecting.take(SELECTING_TOLD).map(name).collect();
                format!("no Allow rule matches ({})", names.join(", "))
            }
            Why::Rejected(policy) => self.text(policy, None),
        }
    }
}

fn name(policy: &Arc<AuthorizationPolicy>) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

/// What was decided about one connection or request.
pub(crate) struct Decided {
    pub(crate) rules: Rc<Rules>,
    /// None where it did not come to that.
    pub(crate) decision: Option<Decision>,
    /// Policies and rules that only tell.
    pub(crate) audited: Vec<(usize, usize)>,
    pub(crate) network: Option<Rc<NetworkVerdict>>,
}

impl Decided {
    /// Counts it, by policy.
    pub(crate) fn count(&self, worker: &Worker) {
        if let Some(network) = &self.network {
            network.count(worker);
        }
        let Some(decision) = self.decision else { return };
        let verdict = if decision.is_allowed { PolicyVerdict::Allowed } else { PolicyVerdict::Denied };
        match decision.why {
            Why::Default => {}
            Why::Rule(policy, _) | Why::Rejected(policy) => self.rules.count(worker, Some(policy), verdict),
            Why::NoRule => self.rules.count(worker, None, verdict),
        }
        match decision.would_deny {
            Some(Why::Rule(policy, _) | Why::Rejected(policy)) => {
                self.rules.count(worker, Some(policy), PolicyVerdict::WouldDeny);
            }
            Some(Why::NoRule) => self.rules.count(worker, None, PolicyVerdict::WouldDeny),
            Some(Why::Default) | None => {}
        }
        for (policy, _) in &self.audited {
            self.rules.count(worker, Some(*policy), PolicyVerdict::Audited);
        }
    }

    /// The same for the log; `None` where there is nothing to say.
    pub(crate) fn fields(&self) -> Option<Box<PolicyFields>> {
        let policy = match &self.network {
            Some(network) if !network.is_allowed => network.why.to_string(),
            _ => self.decision.map(|decision| self.rules.why(decision.why)).unwrap_or_default(),
        };
        let audit: Vec<_> = self.audited.iter().map(|(policy, rule)| self.rules.text(*policy, Some(*rule))).collect();
        let would_deny = self.decision.and_then(|decision| decision.would_deny);
        let fields = PolicyFields {
            policy: policy.into(),
            policy_would_deny: would_deny.map(|why| self.rules.why(why)).unwrap_or_default().into(),
            policy_audit: audit.join(",").into(),
        };
        (fields != PolicyFields::default()).then(|| Box::new(fields))
    }
}

/// The rules of the ports that are called, as of the newest snapshot that changed any.
#[derive(Default)]
pub(crate) struct RuleCache(RefCell<FastMap<PortOfPod, AsOf<Rc<Rules>>>>);

type PortOfPod = (PodUid, SocketAddr);

/// What was found as of which policies.
pub(crate) type AsOf<T> = (u64, T);

impl RuleCache {
    pub(super) fn get(&self, pod: &Pod, original: OriginalDst, snapshot: &Snapshot) -> Rc<Rules> {
        let (mut known, key) = (self.0.borrow_mut(), (pod.uid().clone(), original.get()));
        let is_gone = snapshot.workload(pod.uid()).is_none();
        if let Some((generation, rules)) = known.get(&key)
            && (*generation == snapshot.policy_generation || is_gone)
        {
            return rules.clone();
        }
        if known.len() >= PORTS_MAX {
            known.clear();
        }
        remember(pod, snapshot);
        let own = pod.workload(snapshot);
        let namespace = own.as_ref().map_or("", |workload| &workload.namespace);
        let access = snapshot.port_access_of(pod.policies.borrow().as_deref(), namespace, original.get());
        let rules = match known.get(&key) {
            // What is the same goes on counting where it did.
            Some((_, same)) if same.access == access => same.clone(),
            _ => Rc::new(Rules::new(access)),
        };
        known.insert(key, (snapshot.policy_generation, rules.clone()));
        rules
    }

    /// Lets go of everything, so that idle series can be dropped.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}
