//! Where a call to a Service leads: the rules of its routes, the one that is picked and what it does, and the Services it may fall to.
//!
//! By the functions that carry requests: the table's own lookup, the plan's answers and edits, the route's backends.

use std::sync::Arc;

use heddle_http::detect::Declared;
use heddle_model::routing::{BackendRef, Considered, RouteKind, Rule, Table};
use heddle_model::traffic::{RequestTraffic, Share};
use heddle_model::{Candidates, Class, Family, Service, ServiceKey, Snapshot};
use heddle_telemetry::Reason;
use http::Request;

use super::{Asked, Call, ENDPOINTS_MAX, Explanation, Question, Step, endpoint, plural, words};
use crate::authz::View;
use crate::http::plan::{self, Plan};
use crate::{protocol, route};

/// Endpoints named that are not to choose from.
const LEFT_OUT_MAX: usize = 8;

/// A Service that a call may fall to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Which, with its port; none where the rule names no Service.
    pub service: Option<(ServiceKey, u16)>,
    /// `namespace/name:port`, or what is named instead, and why that is none.
    pub name: String,
    /// Its part of `sum`: which one a call falls to is drawn at random.
    pub weight: u32,
    /// The weights of all.
    pub sum: u64,
    /// How requests to it are carried.
    pub steps: Vec<Step>,
    /// Among whom is chosen.
    pub candidates: Option<Candidates>,
    /// Whether there is anybody to choose from.
    pub outcome: Result<(), Reason>,
    /// What a client of HTTP is answered if there is not, where that is not what stands for the reason.
    pub status: Option<u16>,
}

/// A Service port that was called, as it was resolved.
pub(super) struct Called {
    pub(super) service: Arc<Service>,
    pub(super) port_index: usize,
    pub(super) candidates: Candidates,
    /// Why nobody is there, if so.
    pub(super) refusal: Option<Reason>,
}

/// The port of a Service, and its endpoints to choose from.
type Found = Result<(Arc<Service>, usize, Candidates), Reason>;

impl Backend {
    fn new(service: Option<(ServiceKey, u16)>, weight: u32, sum: u64) -> Self {
        let name = service.as_ref().map(|((namespace, name), port)| format!("{namespace}/{name}:{port}"));
        Self {
            service,
            name: name.unwrap_or_default(),
            weight,
            sum,
            steps: Vec::new(),
            candidates: None,
            outcome: Ok(()),
            status: None,
        }
    }
}

impl Called {
    fn port(&self) -> u16 {
        self.service.ports.get(self.port_index).map_or(0, |port| port.port)
    }
}

/// Explains where it leads.
pub(super) fn lead(call: &Call<'_>, called: &Called, answer: &mut Explanation) {
    let Call { snapshot, question, .. } = *call;
    let (service, port) = (called.service.key(), called.port());
    let table =
        snapshot.route_table(&service, port, Some(&question.from.namespace)).filter(|_| !called.service.invalid);
    let declared =
        protocol::of_service(&called.service, called.port_index, &called.candidates, table.map(|t| &**t), snapshot);
    let request = question.request.filter(|_| declared.is_http() || declared == Declared::Unknown);
    if let Some(table) = table {
        let is_own = snapshot.route_table(&service, port, None).is_some_and(|own| Arc::ptr_eq(own, table));
        let whose = if is_own {
            format!("those of the Service's namespace, {}", service.0)
        } else {
            format!("those of the caller's namespace, {}, in place of the Service's own", question.from.namespace)
        };
        let kind = table.kind().map_or("", RouteKind::as_str);
        let without = match request {
            None if table.has_http() && !declared.is_http() => "; they are about requests, and these are bytes",
            _ => "",
        };
        let found = format!("{kind}s: {whose}{without}");
        answer.steps.push(Step::new("routes", found, format!("Service {}/{}", service.0, service.1)));
    }
    match (table, request) {
        (Some(table), _) if table.has_bytes() => bytes(call, table, answer),
        (Some(table), Some(asked)) => requests(call, table, asked, answer),
        // Told so by the agent that reads it, wherever it would have gone.
        (_, None) if declared.is_http() => {
            let found =
                "the port is declared HTTP, and bytes that are none are answered 400; ask with --method or --path";
            answer.steps.push(Step::new("protocol", found, ""));
            answer.refuse(Reason::RequestMalformed, true);
        }
        _ => match called.refusal {
            Some(reason) => answer.refuse(reason, request.is_some()),
            None => {
                let found = Ok((called.service.clone(), called.port_index, called.candidates.clone()));
                backend(call, None, Backend::new(Some((service, port)), 1, 1), found, request, answer);
            }
        },
    }
}

/// A connection that is not looked into.
fn bytes(call: &Call<'_>, table: &Table, answer: &mut Explanation) {
    let sni = call.question.sni.filter(|_| table.kind() == Some(RouteKind::Tls));
    let Some(rule) = table.pick_bytes(sni) else {
        let asked = match (table.kind(), sni) {
            (Some(RouteKind::Tls), Some(name)) => format!("no rule is for the server name {name}"),
            (Some(RouteKind::Tls), None) => {
                "no rule is for connections without a server name; ask with --sni".to_owned()
            }
            _ => "no rule matches".to_owned(),
        };
        answer.steps.push(Step::new("rule", asked, ""));
        return answer.refuse(Reason::RouteNotFound, false);
    };
    let by = sni.map(|name| format!(" by the server name {name}")).unwrap_or_default();
    let found = format!("{} is picked{by}", words::rule_place(rule));
    answer.steps.push(Step::new("rule", found, words::route_name(&rule.id.route)));
    if is_invalid(rule, false, answer) {
        return;
    }
    fall(call, rule, 0, None, answer);
}

/// A request.
fn requests(call: &Call<'_>, table: &Table, asked: &Asked, answer: &mut Explanation) {
    let view = View::of_parts(&asked.method, &asked.uri, &asked.headers, false);
    answer.steps.extend(table.explain(&view).iter().map(considered));
    let Some(matched) = table.pick(&view) else {
        answer.steps.push(Step::new("rule", "no rule matches", ""));
        return answer.refuse(Reason::RouteNotFound, true);
    };
    let (rule, prefix) = (matched.rule, matched.prefix_bytes);
    if is_invalid(rule, true, answer) {
        return;
    }
    let object = words::route_name(&rule.id.route);
    let filters = words::filters(&rule.filters);
    answer.steps.extend(filters.into_iter().map(|filter| Step::new("filter", filter, object.as_str())));
    let mut plan = Plan::default();
    if let Err(reason) = plan.answer_of(rule, prefix, call.question.to.port(), &view) {
        let made = plan.answer.unwrap_or_default();
        let fields: Vec<_> = made.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let found = format!("by the rule itself: {} {}", made.status, fields.join(", "));
        answer.steps.push(Step::new("answer", found.trim_end(), object));
        answer.refuse(reason, true);
        answer.status = Some(made.status);
        return;
    }
    fall(call, rule, prefix, Some(asked), answer);
}

fn considered(considered: &Considered) -> Step {
    let Considered { rule, match_index, missed } = considered;
    let of = rule.matches.get(*match_index).map_or_else(|| "every request".to_owned(), words::conditions);
    let what = match missed {
        None => "is picked".to_owned(),
        Some(missed) => format!("does not match ({})", words::missed(rule, *match_index, *missed)),
    };
    let found = format!("{}: {of}: {what}", words::rule_place(rule));
    Step::new("rule", found, words::route_name(&rule.id.route))
}

fn is_invalid(rule: &Rule, is_http: bool, answer: &mut Explanation) -> bool {
    if let Some(why) = &rule.invalid {
        let found = format!("{} cannot be carried out: {why}", words::rule_place(rule));
        answer.steps.push(Step::new("rule", found, words::route_name(&rule.id.route)));
        answer.refuse(Reason::RouteInvalid, is_http);
    }
    rule.invalid.is_some()
}

/// The backends of the rule that was picked.
fn fall(call: &Call<'_>, rule: &Rule, prefix: usize, asked: Option<&Asked>, answer: &mut Explanation) {
    let sum: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum == 0 {
        let found = format!("{} has no backend that gets anything", words::rule_place(rule));
        answer.steps.push(Step::new("backend", found, words::route_name(&rule.id.route)));
        return answer.refuse(Reason::BackendInvalid, asked.is_some());
    }
    let family = Family::of(call.question.to.get().ip());
    let object = words::route_name(&rule.id.route);
    for (index, to) in rule.backends.iter().enumerate() {
        let found = route::backend(call.snapshot, &to.to, family);
        let edited = asked.map(|asked| edited(rule, prefix, index, asked));
        let (edited, found) = match edited.transpose() {
            Ok(edited) => (edited, found),
            Err(reason) => (None, found.and(Err(reason))),
        };
        let service = match &to.to {
            BackendRef::Service { service, port } => Some((service.clone(), *port)),
            BackendRef::Invalid(_) => None,
        };
        let told = Backend { name: words::target(&to.to), ..Backend::new(service, to.weight, sum) };
        let first = answer.backends.len();
        backend(call, Some(rule), told, found, edited.as_ref(), answer);
        let filters =
            words::filters(&to.filters).into_iter().map(|filter| Step::new("filter", filter, object.as_str()));
        if let Some(told) = answer.backends.get_mut(first) {
            told.steps.splice(0..0, filters);
        }
    }
}

/// The request as it goes to a backend.
fn edited(rule: &Rule, prefix: usize, backend: usize, asked: &Asked) -> Result<Asked, Reason> {
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut()) = (asked.method.clone(), asked.uri.clone());
    *request.headers_mut() = asked.headers.clone();
    let (mut parts, ()) = request.into_parts();
    plan::edit_request(rule, prefix, backend, &mut parts).map_err(|rule| rule.request_reason())?;
    Ok(Asked { method: parts.method, uri: parts.uri, headers: parts.headers })
}

/// One backend, or the Service itself where no rule speaks: how it is called, and what becomes of the call at each endpoint.
fn backend(
    call: &Call<'_>,
    rule: Option<&Rule>,
    mut told: Backend,
    found: Found,
    asked: Option<&Asked>,
    answer: &mut Explanation,
) {
    let place = answer.backends.len();
    let status = |reason| call.question.request.and_then(|_| heddle_http::answer::status(reason));
    match found {
        Err(reason) => (told.outcome, told.status) = (Err(reason), status(reason)),
        Ok((service, port_index, candidates)) => {
            let of_service = &call.snapshot.traffic(&service.key()).request;
            let traffic = rule.map_or_else(|| of_service.clone(), |rule| rule.traffic.or(of_service));
            told.steps = words::traffic(call.snapshot, rule, &service.key(), asked.map(|_| &traffic));
            told.steps.push(choice(call.snapshot, &service, port_index, &candidates));
            if let Some(status) = answered_by_fault(call, &traffic) {
                (told.outcome, told.status) = (Err(Reason::FaultInjected), Some(status));
            } else if told.weight > 0 {
                told.candidates = Some(candidates.clone());
                answer.more += candidates.len().saturating_sub(ENDPOINTS_MAX);
                let call = Call {
                    question: &Question { request: asked.or(call.question.request), ..*call.question },
                    ..*call
                };
                let of = |e: &heddle_model::Endpoint| endpoint(&call, Some(place), e.addr, e.workload.clone());
                answer.endpoints.extend(candidates.iter().take(ENDPOINTS_MAX).map(of));
            }
        }
    }
    answer.backends.push(told);
}

/// The status of the fault that every such request is answered with, if there is one.
fn answered_by_fault(call: &Call<'_>, traffic: &RequestTraffic) -> Option<u16> {
    let (faults, asked) = (traffic.faults.as_ref()?, call.question.request?);
    let view = View::of_parts(&asked.method, &asked.uri, &asked.headers, false);
    let (share, abort) = faults.abort?;
    let is_sure = share == Share::ALL && faults.matches.iter().all(|condition| condition.is_met(&view));
    is_sure.then(|| plan::abort_codes(abort).0)
}

/// Which endpoints there are to choose from, and which not.
fn choice(snapshot: &Snapshot, service: &Service, port_index: usize, candidates: &Candidates) -> Step {
    let all = service.ports.get(port_index).map_or(&[][..], |port| &port.endpoints);
    let family = candidates.iter().next().map(|e| Family::of(e.addr.ip()));
    let left_out = all.iter().filter(|e| candidates.find(e.addr).is_none()).map(|e| {
        let why = if family.is_some_and(|family| Family::of(e.addr.ip()) != family) {
            "of the other IP family"
        } else if service.internal_local && *e.node != *snapshot.node {
            "of another node"
        } else if e.terminating {
            "terminating"
        } else {
            "not ready"
        };
        format!("{} ({why})", e.addr)
    });
    let left_out: Vec<String> = left_out.collect();
    let count = candidates.len();
    let which = match candidates.class {
        Class::Ready => "",
        Class::ServingTerminating => " (none is ready; these serve while they terminate)",
        Class::Published => " (published whether ready or not)",
    };
    let affinity = service.session_affinity.map(|time| format!("; a client stays with its own for {time:?}"));
    let mut found = format!("{count} endpoint{} to choose from{which}{}", plural(count), affinity.unwrap_or_default());
    if !left_out.is_empty() {
        let more = left_out.len().saturating_sub(LEFT_OUT_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = left_out.iter().take(LEFT_OUT_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        found = format!("{found}; not: {shown}{more}");
    }
    Step::new("endpoints", found, format!("Service {}/{}", service.namespace, service.name))
}
