//! Routes and requests in few words, for tests.

use std::sync::Arc;

use super::{
    Backend, BackendRef, CallMatch, Filters, HeaderMatch, Match, ParentRef, ParentTarget, PathMatch, QueryMatch,
    Request, Route, RouteKey, RouteKind, Rule, RuleId, ValueMatch,
};
use crate::policy::Pattern;
use crate::service::ServiceKey;
use crate::time::Timestamp;
use crate::traffic::RequestTraffic;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: Vec<(String, String)>,
}

/// `METHOD /path?query name=value name=value`.
pub(super) fn ask(text: &str) -> Asked {
    let mut words = text.split(' ');
    let method = words.next().unwrap().to_owned();
    let target = words.next().unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let headers = words.map(|word| word.split_once('=').unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Asked { method, path: path.to_owned(), query, headers }
}

impl Request for Asked {
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.iter().filter(|(n, _)| n == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

fn value(text: &str) -> ValueMatch {
    match text.strip_prefix('~') {
        Some(pattern) => ValueMatch::Regex(Pattern::new(pattern).unwrap()),
        None if text == "?" => ValueMatch::Present,
        None => ValueMatch::Exact(text.into()),
    }
}

/// `/prefix`, `=/exact`, `~pattern`, `@service/method` of a call, where `*` is none, or `!`, unreadable; then any of `m:METHOD`,
/// `h:name=value`, `q:name=value`. A value, service or method may be a `~pattern`, or `?`: any.
pub(super) fn matching(text: &str) -> Match {
    let mut words = text.split(' ');
    let path = words.next().unwrap();
    let some = |text: &str| (text != "*").then(|| value(text));
    let path = match path.split_at_checked(1) {
        Some(("=", exact)) => PathMatch::Exact(exact.into()),
        Some(("~", pattern)) => PathMatch::Regex(Pattern::new(pattern).unwrap()),
        Some(("!", "")) => PathMatch::Unreadable,
        Some(("@", call)) => {
            let (service, method) = call.split_once('/').unwrap();
            PathMatch::Call(CallMatch { service: some(service), method: some(method) })
        }
        _ => PathMatch::Prefix(path.trim_end_matches('/').into()),
    };
    let (mut method, mut headers, mut query) = (None, Vec::new(), Vec::new());
    for word in words {
        let (what, rest) = word.split_once(':').unwrap();
        let pair = || rest.split_once('=').unwrap();
        match what {
            "m" => method = Some(rest.into()),
            "h" => headers.push(HeaderMatch { name: pair().0.into(), value: value(pair().1) }),
            "q" => query.push(QueryMatch { name: pair().0.into(), value: value(pair().1) }),
            _ => panic!("{word}"),
        }
    }
    Match { path, method, headers: headers.into(), query: query.into() }
}

/// A rule of these matches, joined by ` | `; none of an empty text.
pub(super) fn rule(text: &str) -> Rule {
    let key = RouteKey { kind: RouteKind::Http, namespace: Arc::default(), name: Arc::default() };
    Rule {
        id: RuleId { route: key, index: 0, name: None },
        matches: text.split(" | ").filter(|text| !text.is_empty()).map(matching).collect(),
        filters: Filters::default(),
        backends: Box::default(),
        traffic: RequestTraffic::default(),
        invalid: None,
    }
}

/// A route to Service `shop/web`, all ports.
pub(super) fn route(kind: RouteKind, namespace: &str, name: &str, created: i64, rules: &[Rule]) -> Route {
    let key = RouteKey { kind, namespace: namespace.into(), name: name.into() };
    let numbered = |(index, rule): (u32, &Rule)| {
        let id = RuleId { route: key.clone(), index, name: rule.id.name.clone() };
        Arc::new(Rule { id, ..rule.clone() })
    };
    Route {
        key: key.clone(),
        created: (created >= 0).then(|| Timestamp::from_unix(created)),
        generation: 1,
        parents: [parent("shop", "web", None)].into(),
        hostnames: Box::default(),
        rules: (0..).zip(rules).map(numbered).collect(),
    }
}

pub(super) fn parent(namespace: &str, name: &str, port: Option<u16>) -> ParentRef {
    ParentRef { target: ParentTarget::Service(key(namespace, name)), section: None, port }
}

pub(super) fn key(namespace: &str, name: &str) -> ServiceKey {
    (namespace.into(), name.into())
}

pub(super) fn to(namespace: &str, name: &str, port: u16, weight: u32) -> Backend {
    Backend { to: BackendRef::Service { service: key(namespace, name), port }, weight, filters: Filters::default() }
}
