//! What the debug API shows of policies: which are in force for whom, and what would become of a call, routes and policies together.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use heddle_admin::{ExplainQuery, ViewError};
use heddle_model::network_policy::{NetworkPolicy, Operator};
use heddle_model::policy::{AuthorizationPolicy, Rules, Target};
use heddle_model::traffic::Balance;
use heddle_model::workload::{Labels, Membership};
use heddle_model::{OriginalDst, PodUid, ServiceKey, Snapshot, Workload};
use heddle_proto::debug::v1;
use heddle_proxy::PortUsage;
use heddle_proxy::explain::{self, Asked, Explanation, Here, Question, Step};
use heddle_telemetry::{PolicyMetrics, PolicyVerdict, Reason};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::route_views;

type Name = (&'static str, Arc<str>, Arc<str>);

const AUTHORIZATION: &str = "AuthorizationPolicy";
const NETWORK: &str = "NetworkPolicy";

/// Every policy, or those of a namespace, by kind, namespace and name.
pub fn policies(snapshot: &Snapshot, node: &str, namespace: Option<&str>, counts: &PolicyMetrics) -> v1::Policies {
    let mut all: BTreeMap<Name, v1::Policy> = BTreeMap::new();
    for policy in snapshot.authorization_policies() {
        let name = (AUTHORIZATION, policy.namespace.clone(), policy.name.clone());
        all.insert(name, authorization(policy));
    }
    for policy in snapshot.network_policies() {
        all.insert((NETWORK, policy.namespace.clone(), policy.name.clone()), network(policy));
    }
    let mut pods: Vec<_> = snapshot.workloads().collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    for pod in pods {
        let of_pod = snapshot.policies_of(&pod.uid);
        let own = of_pod.iter().flat_map(|of| of.authorization.iter().map(|p| (AUTHORIZATION, &p.namespace, &p.name)));
        let isolating = of_pod.iter().flat_map(|of| of.network.iter().map(|p| (NETWORK, &p.namespace, &p.name)));
        let of_services = through_services(snapshot, pod);
        let of_services = of_services.iter().map(|p| (AUTHORIZATION, &p.namespace, &p.name));
        let selecting: HashSet<Name> =
            own.chain(isolating).chain(of_services).map(|(k, ns, n)| (k, ns.clone(), n.clone())).collect();
        let is_here = *pod.node == *node && pod.membership == Membership::Enabled && !pod.finished;
        for name in selecting {
            if let Some(policy) = all.get_mut(&name) {
                policy.selected += 1;
                if is_here {
                    policy.workloads.push(format!("{}/{}", pod.namespace, pod.name));
                }
            }
        }
    }
    let mut denied_by_none = 0;
    for (labels, count) in counts.counts() {
        let Some((namespace, name)) = labels.policy.split_once('/') else {
            denied_by_none += if labels.verdict == PolicyVerdict::Denied { count } else { 0 };
            continue;
        };
        let kind = if labels.kind == NETWORK { NETWORK } else { AUTHORIZATION };
        let Some(policy) = all.get_mut(&(kind, namespace.into(), name.into())) else { continue };
        match labels.verdict {
            PolicyVerdict::Allowed => policy.allowed += count,
            PolicyVerdict::Denied => policy.denied += count,
            PolicyVerdict::WouldDeny => policy.would_deny += count,
            PolicyVerdict::Audited => policy.audited += count,
        }
    }
    let policies = all.into_values().filter(|policy| namespace.is_none_or(|n| policy.namespace == n)).collect();
    v1::Policies { policies, denied_by_none }
}

/// The policies of the Services that lead to a pod.
fn through_services(snapshot: &Snapshot, pod: &Workload) -> Vec<Arc<AuthorizationPolicy>> {
    let leads_here = |policy: &&Arc<AuthorizationPolicy>| match &policy.target {
        Target::Service(name) => snapshot.service(&policy.namespace, name).is_some_and(|service| {
            let mut endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter());
            endpoints.any(|endpoint| endpoint.workload.as_ref().is_some_and(|w| w.uid == pod.uid))
        }),
        Target::Namespace | Target::Labels(_) | Target::Unreadable => false,
    };
    let targeted = snapshot.authorization_policies().filter(|policy| matches!(policy.target, Target::Service(_)));
    targeted.filter(leads_here).cloned().collect()
}

fn authorization(policy: &AuthorizationPolicy) -> v1::Policy {
    v1::Policy {
        kind: AUTHORIZATION.to_owned(),
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        action: policy.action.as_str().to_owned(),
        dry_run: policy.dry_run,
        rejected: policy.rules == Rules::Rejected,
        target: match &policy.target {
            Target::Namespace => "all pods".to_owned(),
            Target::Labels(labels) => labels_text(labels),
            Target::Service(name) => format!("Service {name}"),
            Target::Unreadable => "unreadable: all pods".to_owned(),
        },
        ..v1::Policy::default()
    }
}

fn network(policy: &NetworkPolicy) -> v1::Policy {
    let directions = [("Ingress", policy.ingress.is_some()), ("Egress", policy.egress.is_some())];
    let isolated = directions.into_iter().filter(|(_, is)| *is || policy.is_rejected).map(|(name, _)| name);
    let requirements: Vec<String> = policy
        .pods
        .0
        .iter()
        .map(|requirement| {
            let (key, list) = (&requirement.key, |values: &std::collections::BTreeSet<Arc<str>>| {
                values.iter().map(|value| &**value).collect::<Vec<_>>().join("|")
            });
            match &requirement.operator {
                Operator::In(values) => format!("{key}={}", list(values)),
                Operator::NotIn(values) => format!("{key}!={}", list(values)),
                Operator::Exists => key.to_string(),
                Operator::DoesNotExist => format!("!{key}"),
            }
        })
        .collect();
    v1::Policy {
        kind: NETWORK.to_owned(),
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        action: isolated.collect::<Vec<_>>().join(", "),
        rejected: policy.is_rejected,
        target: if requirements.is_empty() { "all pods".to_owned() } else { requirements.join(",") },
        ..v1::Policy::default()
    }
}

fn labels_text(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What this agent knows.
pub struct Known<'a> {
    /// State.
    pub snapshot: &'a Snapshot,
    /// Its pods have identities.
    pub has_identities: bool,
    /// The pods it serves.
    pub pods: &'a HashSet<PodUid>,
    /// How its pods use a Service port.
    pub usage: &'a dyn Fn(&ServiceKey, u16) -> Option<PortUsage>,
}

/// Explains a call.
///
/// # Errors
/// A pod or an address that nobody knows, a request that is none.
pub fn explained(known: &Known<'_>, query: &ExplainQuery) -> Result<v1::Explanation, ViewError> {
    let snapshot = known.snapshot;
    let from = pod(snapshot, &query.pod)?;
    let (addr, host) = address(snapshot, &from, &query.to)?;
    let asked = asked(query, &host)?;
    if asked.is_some() && query.sni.is_some() {
        return Err(invalid("sni: a request has none here; ask either about a request or about TLS".to_owned()));
    }
    let here = Here { has_identities: known.has_identities, pods: known.pods };
    let to = OriginalDst::new(addr);
    let question = Question { from: &from, to, request: asked.as_ref(), sni: query.sni.as_deref() };
    Ok(answer(known, query, addr, asked.as_ref(), explain::explain(snapshot, &here, &question)))
}

fn pod(snapshot: &Snapshot, name: &str) -> Result<Arc<Workload>, ViewError> {
    let named = |pod: &&Arc<Workload>| match name.split_once('/') {
        Some((namespace, name)) => *pod.namespace == *namespace && *pod.name == *name,
        None => *pod.name == *name,
    };
    let mut found = snapshot.workloads().filter(named);
    let first =
        found.next().ok_or_else(|| invalid(format!("pod: nobody knows a pod {name:?}: see `heddle workloads`")))?;
    match found.next() {
        None => Ok(first.clone()),
        Some(_) => Err(invalid(format!("pod: there are several {name:?}: say NAMESPACE/NAME"))),
    }
}

/// The address that an application's `host:port` means to a pod, and the host as it would name it in a request.
fn address(snapshot: &Snapshot, from: &Workload, to: &str) -> Result<(SocketAddr, String), ViewError> {
    if let Ok(addr) = to.parse::<SocketAddr>() {
        return Ok((addr, to.to_owned()));
    }
    let wanted = || invalid(format!("to: {to:?} is not HOST:PORT, with a Service's name or an address as HOST"));
    let (host, port) = to.rsplit_once(':').ok_or_else(wanted)?;
    let port: u16 = port.parse().map_err(|_| wanted())?;
    let domain = format!(".svc.{}", snapshot.mesh.cluster_domain);
    let short = host.strip_suffix(&domain).or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    let (name, namespace) = short.split_once('.').unwrap_or((short, &from.namespace));
    let service = snapshot
        .service(namespace, name)
        .ok_or_else(|| invalid(format!("to: there is no Service {namespace}/{name}: see `heddle services`")))?;
    let has_family = |ip: &&IpAddr| from.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    let own = service.cluster_ips.iter().chain(&service.vips);
    let ip = own.clone().find(has_family).or_else(|| own.clone().next()).copied();
    // A headless Service's name means its pods, at the port that is called.
    let of_pods = || service.ports.iter().flat_map(|port| port.endpoints.iter()).map(|e| e.addr.ip()).next();
    let ip = ip.or_else(of_pods).ok_or_else(|| {
        invalid(format!("to: Service {namespace}/{name} has neither an address nor an endpoint: name an address"))
    })?;
    Ok((SocketAddr::new(ip, port), to.to_owned()))
}

fn asked(query: &ExplainQuery, host: &str) -> Result<Option<Asked>, ViewError> {
    if query.method.is_none() && query.path.is_none() && query.headers.is_empty() {
        return Ok(None);
    }
    let method = query.method.as_deref().unwrap_or("GET");
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| invalid(format!("method: {method:?} is none")))?;
    let path = query.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(invalid(format!("path: {path:?} does not begin with `/`")));
    }
    let (mut headers, mut host) = (HeaderMap::new(), host.to_owned());
    for header in &query.headers {
        let bad = || invalid(format!("header: {header:?} is not NAME:VALUE"));
        let (name, value) = header.split_once(':').ok_or_else(bad)?;
        if name.eq_ignore_ascii_case("host") {
            value.trim().clone_into(&mut host);
            continue;
        }
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| bad())?);
    }
    let uri = Uri::builder().scheme("http").authority(host.as_str()).path_and_query(path).build();
    let uri = uri.map_err(|error| invalid(format!("path {path:?} of host {host:?}: {error}")))?;
    Ok(Some(Asked { method, uri, headers }))
}

fn answer(
    known: &Known<'_>,
    query: &ExplainQuery,
    addr: SocketAddr,
    asked: Option<&Asked>,
    told: Explanation,
) -> v1::Explanation {
    let reason = |reason: Option<Reason>| reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default();
    // Once for all, so that what is told of a port and its endpoints belongs together.
    let usage_of = |backend: &explain::Backend| backend.service.as_ref().map(|(of, port)| (known.usage)(of, *port));
    let usages: Vec<Option<Option<PortUsage>>> = told.backends.iter().map(usage_of).collect();
    let balance_of = |backend: &explain::Backend| {
        backend.service.as_ref().map_or_else(Balance::default, |(of, _)| known.snapshot.traffic(of).balance)
    };
    let balances: Vec<Balance> = told.backends.iter().map(balance_of).collect();
    let backends = told.backends.into_iter().zip(&usages).map(|(backend, usage)| {
        let ejections = ejections(known.snapshot, &backend, usage.as_ref().and_then(Option::as_ref));
        let mut all = steps(backend.steps);
        if let (Some(usage), Ok(())) = (usage, backend.outcome) {
            all.push(step("in-use", route_views::port_in_words(usage.as_ref())));
            all.extend(ejections.map(|found| step("ejections", found)));
        }
        v1::ExplainedBackend {
            name: backend.name,
            weight: backend.weight,
            percent: route_views::percent(backend.weight, backend.sum),
            steps: all,
            reason: reason(backend.outcome.err()),
            status: backend.status.unwrap_or_default().into(),
        }
    });
    let backends = backends.collect();
    let endpoints = told.endpoints.into_iter().map(|endpoint| {
        let usage = endpoint.backend.and_then(|place| usages.get(place)?.as_ref()?.as_ref());
        let used = usage.and_then(|usage| usage.endpoints.iter().find(|used| used.addr == endpoint.addr));
        let balance = endpoint.backend.and_then(|place| balances.get(place)).copied().unwrap_or_default();
        let standing = used.map(|used| step("standing", route_views::endpoint_in_words(used, &balance)));
        v1::ExplainedEndpoint {
            address: endpoint.addr.to_string(),
            pod: endpoint.workload.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)).unwrap_or_default(),
            node: endpoint.workload.as_ref().map(|w| w.node.to_string()).unwrap_or_default(),
            transport: endpoint.via.as_str().to_owned(),
            allowed: endpoint.outcome.is_ok(),
            reason: reason(endpoint.outcome.err()),
            status: if asked.is_some() { endpoint.status().unwrap_or_default().into() } else { 0 },
            object: endpoint.object,
            backend: endpoint.backend.map_or(0, |place| u32::try_from(place + 1).unwrap_or(u32::MAX)),
            steps: standing.into_iter().chain(steps(endpoint.steps)).collect(),
        }
    });
    v1::Explanation {
        from: query.pod.clone(),
        to: query.to.clone(),
        address: addr.to_string(),
        request: asked.map(|asked| format!("{} {}", asked.method, asked.uri)).unwrap_or_default(),
        endpoints: endpoints.collect(),
        backends,
        steps: steps(told.steps),
        reason: reason(told.refusal),
        status: told.status.unwrap_or_default().into(),
        more: told.more as u64,
    }
}

/// How many of the endpoints to choose from are left out, where some are.
fn ejections(snapshot: &Snapshot, backend: &explain::Backend, usage: Option<&PortUsage>) -> Option<String> {
    let (service, _) = backend.service.as_ref()?;
    let settings = snapshot.traffic(service).outlier.as_ref()?;
    let candidates = backend.candidates.as_ref()?;
    let (ejected, is_panic) = usage?.ejected(candidates, settings);
    let all = candidates.len();
    (ejected > 0).then(|| match is_panic {
        false => format!("{ejected} of {all} left out"),
        true => format!(
            "{ejected} of {all}, which is ignored: less than {} % would be left, so all are called",
            settings.panic_percent
        ),
    })
}

fn steps(steps: Vec<Step>) -> Vec<v1::ExplainedStep> {
    let step = |step: Step| v1::ExplainedStep { step: step.step.to_owned(), found: step.found, object: step.object };
    steps.into_iter().map(step).collect()
}

fn step(name: &str, found: String) -> v1::ExplainedStep {
    v1::ExplainedStep { step: name.to_owned(), found, object: String::new() }
}

fn invalid(message: String) -> ViewError {
    ViewError::Invalid(message)
}
