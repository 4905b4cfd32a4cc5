//! What would become of a call, and why: the steps the data plane takes, by the functions it takes them with, told in order.
//!
//! It knows what this agent knows. Whether the called side's agent has the same snapshot, and whether its application answers, shows only a
//! call.

mod routed;
mod words;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use heddle_http::answer;
use heddle_http::detect::Declared;
use heddle_model::network_policy::{self, NetworkDecision, NetworkWhy};
use heddle_model::policy::{AuthorizationPolicy, Observer, Peer, Principal, Why};
use heddle_model::workload::Membership;
use heddle_model::{Candidates, Class, MtlsMode, OriginalDst, PodUid, Resolution, Snapshot, Workload};
use heddle_telemetry::{Reason, Via};
use http::{HeaderMap, Method, Uri};

use crate::authz::{Judgement, View};
use crate::config::AGENT_PORTS;
use crate::mesh::way;
use crate::protocol;

pub use routed::Backend;
use routed::Called;
pub use words::{conditions, filters, target};

/// Endpoints of one Service explained one by one.
pub const ENDPOINTS_MAX: usize = 16;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The calling pod.
    pub from: &'a Arc<Workload>,
    /// The address it calls.
    pub to: OriginalDst,
    /// What it sends, if it is HTTP.
    pub request: Option<&'a Asked>,
    /// The server name that its TLS handshake asks for, if it is TLS.
    pub sni: Option<&'a str>,
}

/// A request.
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Host and port, path and query.
    pub uri: Uri,
    /// Header fields.
    pub headers: HeaderMap,
}

/// What the snapshot does not know of this agent.
pub struct Here<'a> {
    /// Its pods have identities.
    pub has_identities: bool,
    /// The pods it serves.
    pub pods: &'a HashSet<PodUid>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Up to the choice of an endpoint.
    pub steps: Vec<Step>,
    /// Why it ends there, if it does.
    pub refusal: Option<Reason>,
    /// What a client of HTTP is answered then, if anything.
    pub status: Option<u16>,
    /// The Services it may fall to: the called one itself where no rule says another. None where it called no Service.
    pub backends: Vec<Backend>,
    /// Each endpoint it may come to, of each Service at most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<Endpoint>,
    /// Endpoints left out.
    pub more: usize,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Of which of the backends, if of one.
    pub backend: Option<usize>,
    /// Address and target port.
    pub addr: SocketAddr,
    /// The pod there, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// By what it is reached.
    pub via: Via,
    /// What happens on the way.
    pub steps: Vec<Step>,
    /// What comes of it: `Ok` if it reaches the application.
    pub outcome: Result<(), Reason>,
    /// The object that decides, to be edited if that is not what is wanted; empty if none does.
    pub object: String,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which: `captured`, `resolved`, `routes`, `rule`, `filter`, `answer`, `backend`, `protocol`; of a backend `filter`, `retries`, `timeout`,
    /// `faults`, `budget`, `circuit`, `outlier`, `balance`, `endpoints`; of an endpoint `transport`, `mode`, `network-policy`, `policy`,
    /// `decision`.
    pub step: &'static str,
    /// What was found.
    pub found: String,
    /// The object it was found in, if it is one.
    pub object: String,
}

impl Step {
    fn new(step: &'static str, found: impl Into<String>, object: impl Into<String>) -> Self {
        Self { step, found: found.into(), object: object.into() }
    }
}

impl Endpoint {
    /// The status a client that speaks HTTP gets from the mesh, if it gets one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.outcome.err().and_then(answer::status)
    }
}

impl Explanation {
    fn refuse(&mut self, reason: Reason, is_http: bool) {
        self.refusal = Some(reason);
        self.status = if is_http { answer::status(reason) } else { None };
    }
}

/// A call, and what is known of the world it is made in.
#[derive(Clone, Copy)]
struct Call<'a> {
    snapshot: &'a Snapshot,
    here: &'a Here<'a>,
    question: &'a Question<'a>,
    captured: bool,
}

/// Explains one call.
#[must_use]
pub fn explain(snapshot: &Snapshot, here: &Here<'_>, question: &Question<'_>) -> Explanation {
    let from = question.from;
    let mut answer = Explanation::default();
    let captured = from.wants_capture() && here.pods.contains(&from.uid);
    let found = match (&from.membership, captured) {
        (Membership::Disabled(why), _) => {
            format!("no: the pod is not in the mesh ({}); its calls go as they are", why.as_str())
        }
        (Membership::Enabled, false) => "no: this agent does not serve the pod".to_owned(),
        (Membership::Enabled, true) => "yes: its calls come to this agent".to_owned(),
    };
    answer.steps.push(Step::new("captured", found, pod_name(from)));
    if AGENT_PORTS.contains(&question.to.port()) {
        answer.steps.push(Step::new("resolved", "a port of the agent itself, which nobody may call", ""));
        answer.refuse(Reason::AgentPort, false);
        return answer;
    }
    let call = Call { snapshot, here, question, captured };
    let (found, step) = resolved(&call);
    answer.steps.push(step);
    match found {
        Resolved::Service(called) => routed::lead(&call, &called, &mut answer),
        Resolved::Refused(reason) => answer.refuse(reason, question.request.is_some()),
        Resolved::Address(addr, workload, declared) => {
            let is_opaque = workload.as_ref().is_some_and(|w| w.capture.opaque_ports.contains(&addr.port()));
            // Told so by the agent that reads it.
            if declared.is_http() && question.request.is_none() && !is_opaque {
                let found =
                    "the port is declared HTTP, and bytes that are none are answered 400; ask with --method or --path";
                answer.steps.push(Step::new("protocol", found, ""));
                answer.refuse(Reason::RequestMalformed, true);
            } else {
                answer.endpoints.push(endpoint(&call, None, addr, workload));
            }
        }
    }
    answer
}

/// What the called address means.
enum Resolved {
    Service(Called),
    Address(SocketAddr, Option<Arc<Workload>>, Declared),
    Refused(Reason),
}

fn resolved(call: &Call<'_>) -> (Resolved, Step) {
    let Call { snapshot, question, .. } = *call;
    let to = question.to.get();
    let of_address = |addr| Declared::agreed(snapshot.ports_at(addr).map(protocol::of_port));
    if !call.captured {
        // The kernel's own way: a Service's address is translated by kube-proxy, which this agent knows nothing of.
        let workload = snapshot.workload_by_ip(to.ip()).cloned();
        let step = Step::new("resolved", format!("{to}, as it is"), "");
        return (Resolved::Address(to, workload, of_address(to)), step);
    }
    match snapshot.resolve(Some(question.from), question.to) {
        Resolution::Service { service, port_index, candidates } => {
            let port = service.ports.get(port_index).map_or(0, |port| port.port);
            let count = candidates.len();
            let found = format!("port {port} of a Service with {count} endpoint{} to choose from", plural(count));
            let step = Step::new("resolved", found, format!("Service {}/{}", service.namespace, service.name));
            (Resolved::Service(Called { service, port_index, candidates, refusal: None }), step)
        }
        Resolution::Workload { workload, addr } => {
            let step = Step::new("resolved", format!("{addr}, a pod's own address"), pod_name(&workload));
            (Resolved::Address(addr, Some(workload), of_address(addr)), step)
        }
        Resolution::External { addr } => {
            let found = format!("{addr}, which is no pod's and no Service's: passed through");
            (Resolved::Address(addr, None, Declared::Unknown), Step::new("resolved", found, "Mesh default"))
        }
        Resolution::Unserved { service, port_index, refusal } => {
            let reason = Reason::from(refusal);
            let object = format!("Service {}/{}", service.namespace, service.name);
            let endpoints = service.ports.get(port_index).map(|port| port.endpoints.clone()).unwrap_or_default();
            // It has nobody itself; its rules may lead to others.
            let candidates = Candidates { endpoints, eligible: Some(Arc::default()), class: Class::Ready };
            let called = Called { service, port_index, candidates, refusal: Some(reason) };
            (Resolved::Service(called), Step::new("resolved", reason.description().trim(), object))
        }
        Resolution::Refused(refusal) => {
            let reason = Reason::from(refusal);
            (Resolved::Refused(reason), Step::new("resolved", reason.description().trim(), ""))
        }
    }
}

fn endpoint(call: &Call<'_>, backend: Option<usize>, addr: SocketAddr, workload: Option<Arc<Workload>>) -> Endpoint {
    let Call { snapshot, here, question, captured } = *call;
    let (steps, outcome, object) = (Vec::new(), Ok(()), String::new());
    let mut told = Endpoint { backend, addr, workload, via: Via::Plain, steps, outcome, object };
    let Some(called) = told.workload.clone() else {
        told.steps.push(Step::new("transport", "plain: nobody is known there", ""));
        return told;
    };
    if called.uid == question.from.uid {
        told.steps.push(Step::new(
            "transport",
            "plain: a pod's calls to itself stay in the pod, and nothing judges them",
            "",
        ));
        return told;
    }
    let (via, why) = transport(snapshot, here, question.from, captured, &called, addr.port());
    told.via = via;
    told.steps.push(Step::new("transport", format!("{}: {why}", via.as_str()), ""));
    if called.membership != Membership::Enabled || called.finished {
        let found = "the called pod is not in the mesh: nothing judges the call";
        told.steps.push(Step::new("mode", found, pod_name(&called)));
        return told;
    }
    if called.capture.exclude_inbound_ports.contains(&addr.port()) {
        let found = format!("port {} is excluded from capture: nothing judges the call", addr.port());
        told.steps.push(Step::new("mode", found, pod_name(&called)));
        return told;
    }
    let mode = called.mtls.of(addr.port(), &snapshot.mesh);
    told.steps.push(Step::new("mode", format!("{}: {}", mode.as_str(), what_it_takes(mode)), pod_name(&called)));
    if mode == MtlsMode::Strict && via == Via::Plain {
        told.outcome = Err(Reason::PlaintextRefused);
        return told;
    }
    judged(snapshot, question, &called, &mut told);
    told
}

/// By what the pod is reached, and why by that.
fn transport(
    snapshot: &Snapshot,
    here: &Here<'_>,
    from: &Workload,
    captured: bool,
    called: &Workload,
    port: u16,
) -> (Via, &'static str) {
    if !captured {
        return (Via::Plain, "the caller is not captured, and proves nothing");
    }
    if !here.has_identities {
        return (Via::Plain, "this agent has no identities (--ca), so its pods can prove nothing");
    }
    let is_here = here.pods.contains(&called.uid) && here.pods.contains(&from.uid);
    match way::via(called, port, &snapshot.mesh, is_here) {
        Via::Handover => (Via::Handover, "both pods are of this node; the caller is who its listener says"),
        Via::Heddle => (Via::Heddle, "mutual TLS on the port itself; the caller proves its certificate"),
        Via::Hbone => (Via::Hbone, "HBONE to port 15008; the caller proves its certificate"),
        Via::Plain => (Via::Plain, "the called port takes no mTLS, and the caller proves nothing"),
    }
}

const fn what_it_takes(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "authenticated connections only",
        MtlsMode::Permissive => "authenticated connections and plain text",
        MtlsMode::Disabled => "plain text",
    }
}

/// What the policies at the called side say.
fn judged(snapshot: &Snapshot, question: &Question<'_>, called: &Arc<Workload>, told: &mut Endpoint) {
    let from = question.from;
    let principal =
        format!("spiffe://{}/ns/{}/sa/{}", snapshot.mesh.trust_domain, from.namespace, from.service_account);
    let proved = if told.via == Via::Plain { "" } else { &principal };
    let address = source_address(from, told.addr.ip());
    let peer = Peer { principal: Principal::of(proved, &snapshot.mesh.trust_domain), address };
    let mut is_let_through = true;
    if told.via == Via::Handover {
        let (egress, ingress) = network_policy::between(snapshot, from, address, called, told.addr);
        for (direction, decision) in [("egress", egress), ("ingress", ingress)] {
            let (found, object) = network(direction, decision);
            if !decision.is_allowed && is_let_through {
                is_let_through = false;
                told.object.clone_from(&object);
            }
            told.steps.push(Step::new("network-policy", found, object));
        }
    }
    let access = snapshot.port_access(&called.uid, told.addr);
    let mut view = question.request.map(|asked| View::of_parts(&asked.method, &asked.uri, &asked.headers, false));
    let mut heard = Heard { policies: access.policies(), is_http: view.is_some(), steps: Vec::new() };
    let judgement = Judgement::of(&access, is_let_through, &peer, view.as_mut(), &mut heard);
    told.steps.append(&mut heard.steps);
    told.outcome = judgement.verdict;
    let object = |policy: usize| access.policies().get(policy).map(policy_name).unwrap_or_default();
    let step = match (judgement.verdict, judgement.decision.map(|decision| decision.why)) {
        (Err(Reason::PathAmbiguous), _) => {
            Step::new("decision", format!("refused: the path is ambiguous ({})", judgement.detail), "")
        }
        (Err(reason), None) => Step::new("decision", format!("refused: {reason}"), told.object.as_str()),
        (Ok(()), None) => Step::new("decision", "allowed: no AuthorizationPolicy speaks of the port", ""),
        (_, Some(Why::Default)) => Step::new("decision", "allowed: no Allow policy selects the port", ""),
        (Ok(()), Some(Why::Rule(policy, rule))) => {
            Step::new("decision", format!("allowed by rule {rule}"), object(policy))
        }
        (Err(_), Some(Why::Rule(policy, rule))) => {
            Step::new("decision", format!("refused by rule {rule}"), object(policy))
        }
        (_, Some(Why::Rejected(policy))) => {
            Step::new("decision", "refused: the policy was rejected, see `heddle check`", object(policy))
        }
        (_, Some(Why::NoRule)) => {
            let selects = |policy: &&Arc<AuthorizationPolicy>| {
                policy.action == heddle_model::policy::Action::Allow && !policy.dry_run
            };
            let first = access.policies().iter().find(selects).map(policy_name).unwrap_or_default();
            Step::new("decision", "refused: an Allow policy selects the port, and no rule of any matches", first)
        }
    };
    if told.object.is_empty() {
        told.object.clone_from(&step.object);
    }
    told.steps.push(step);
    if let Some(why) = judgement.decision.and_then(|decision| decision.would_deny) {
        let object = match why {
            Why::Rule(policy, _) | Why::Rejected(policy) => object(policy),
            Why::Default | Why::NoRule => String::new(),
        };
        told.steps.push(Step::new(
            "decision",
            "would be refused, if what is only tried (dryRun) were in force",
            object,
        ));
    }
}

/// Hears what a decision looks at.
struct Heard<'a> {
    policies: &'a [Arc<AuthorizationPolicy>],
    is_http: bool,
    steps: Vec<Step>,
}

impl Observer for Heard<'_> {
    fn looked(&mut self, policy: usize, rule: Option<usize>, outcome: Result<(), &'static str>) {
        let Some(policy) = self.policies.get(policy) else { return };
        let tried = if policy.dry_run { ", only tried" } else { "" };
        let rule = rule.map_or(String::new(), |rule| format!(" rule {rule}"));
        let found = match outcome {
            Ok(()) => format!("{}{tried}:{rule} matches", policy.action.as_str()),
            Err(missed) if self.is_http || !missed.starts_with("to.") => {
                format!("{}{tried}:{rule} does not match ({missed})", policy.action.as_str())
            }
            Err(missed) => {
                format!("{}{tried}:{rule} does not match ({missed}, and this is no HTTP)", policy.action.as_str())
            }
        };
        self.steps.push(Step::new("policy", found, policy_name(policy)));
    }
}

fn network(direction: &str, decision: NetworkDecision<'_>) -> (String, String) {
    let name = |policy: &network_policy::NetworkPolicy| format!("NetworkPolicy {}/{}", policy.namespace, policy.name);
    match decision.why {
        NetworkWhy::Itself => (format!("{direction}: a pod may always call itself"), String::new()),
        NetworkWhy::NotIsolated => (format!("{direction}: no policy isolates the pod"), String::new()),
        NetworkWhy::Rule(policy, rule) => (format!("{direction}: rule {rule} lets it through"), name(policy)),
        NetworkWhy::NoRule(policy) => (format!("{direction}: the pod is isolated, and no rule matches"), name(policy)),
        NetworkWhy::Rejected(policy) => (format!("{direction}: the policy was rejected"), name(policy)),
    }
}

fn policy_name(policy: &Arc<AuthorizationPolicy>) -> String {
    format!("AuthorizationPolicy {}/{}", policy.namespace, policy.name)
}

fn pod_name(pod: &Workload) -> String {
    format!("Pod {}/{}", pod.namespace, pod.name)
}

/// The address the called side sees.
fn source_address(from: &Workload, to: IpAddr) -> IpAddr {
    let of_family = |ip: &&IpAddr| ip.to_canonical().is_ipv4() == to.to_canonical().is_ipv4();
    from.addresses.iter().find(of_family).or(from.addresses.first()).copied().unwrap_or(to)
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
