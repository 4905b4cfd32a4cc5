//! The routes of one Service port, as one set of clients sees them: which rule a request or a connection matches.

use std::collections::HashMap;
use std::sync::Arc;

use super::entries::{Entries, Entry};
use super::matching::{Missed, Rank, Seniority};
use super::paths::Paths;
use super::{Backend, Match, PathMatch, Request, Route, RouteKind, Rule};

/// The rules of one Service port: of HTTPRoutes, GRPCRoutes, TLSRoutes or of one TCPRoute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    kind: Option<RouteKind>,
    rules: Vec<Arc<Rule>>,
    /// Of HTTPRoutes.
    paths: Paths,
    /// Of GRPCRoutes, whose order is one for all services and methods.
    calls: Entries,
    names: Names,
}

/// A rule that matches.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// Which; its grants and TrafficPolicies are applied.
    pub rule: &'a Arc<Rule>,
    /// Which of its matches; 0 also where the rule has none.
    pub match_index: usize,
    /// Length of the path prefix that matched, which `ReplacePrefixMatch` replaces. 0 of `/` and of a pattern, all of an exact path.
    pub prefix_bytes: usize,
}

/// One match whose path is the request's, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Considered {
    /// Of which rule.
    pub rule: Arc<Rule>,
    /// Which of its matches.
    pub match_index: usize,
    /// The first condition that failed; none: the rule was picked.
    pub missed: Option<Missed>,
}

/// Hears what a lookup looks at, in order. The data plane does not listen: `()`.
pub trait Observer {
    /// Whether it wants to hear of every match whose path is the request's, also of those that an index knows not to be met.
    const HEARS_ALL: bool = false;

    /// A path, or the text of a condition, was looked up, or a pattern run.
    fn compared(&mut self) {}
    /// A match whose path is the request's was held against it.
    fn looked(&mut self, _rule: &Arc<Rule>, _match_index: usize, _outcome: Result<(), Missed>) {}
}

impl Observer for () {}

impl Observer for Vec<Considered> {
    const HEARS_ALL: bool = true;

    fn looked(&mut self, rule: &Arc<Rule>, match_index: usize, outcome: Result<(), Missed>) {
        self.push(Considered { rule: Arc::clone(rule), match_index, missed: outcome.err() });
    }
}

/// What a connection names by SNI.
#[derive(Clone, Debug, Default, PartialEq)]
struct Names {
    exact: HashMap<Arc<str>, Arc<Rule>>,
    /// Without `*`, so with a leading dot.
    wildcards: HashMap<Box<str>, Arc<Rule>>,
    any: Option<Arc<Rule>>,
}

impl Table {
    /// Of routes of one kind, each with its rules as they are in force. Of routes that carry bytes each name goes to the first that has it.
    pub(super) fn new(kind: RouteKind, routes: &[(&Route, Vec<Arc<Rule>>)]) -> Self {
        let mut table = Self { kind: Some(kind), ..Self::default() };
        let mut ranked = Vec::new();
        for (route, rules) in routes {
            if !kind.is_http() {
                if let Some(rule) = rules.first() {
                    table.names.add(&route.hostnames, rule);
                }
                continue;
            }
            let seniority = Seniority::of(route);
            for rule in rules {
                for (at, of) in matches_of(rule).iter().enumerate() {
                    ranked.push((Rank::new(of, &seniority, rule.id.index, at), table.rules.len(), at));
                }
                table.rules.push(Arc::clone(rule));
            }
        }
        ranked.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let rules = std::mem::take(&mut table.rules);
        let of = |entry: Entry| &matches_of(&rules[entry.rule])[entry.at];
        for (order, (_, rule, at)) in ranked.into_iter().enumerate() {
            let entry = Entry { order, rule, at };
            match (kind, &of(entry).path) {
                (_, PathMatch::Unreadable) => {}
                (RouteKind::Grpc, _) => table.calls.push(entry),
                (_, path) => table.paths.add(path, entry),
            }
        }
        table.calls.index(&of);
        table.paths.index(&of);
        Self { rules, ..table }
    }

    /// Which kind of route it is made of.
    #[must_use]
    pub fn kind(&self) -> Option<RouteKind> {
        self.kind
    }

    /// The rule a request matches; none is 404.
    pub fn pick<R: Request + ?Sized>(&self, request: &R) -> Option<Matched<'_>> {
        self.find(request, &mut ())
    }

    /// What [`Self::pick`] looks at, in order, up to what it picks.
    pub fn explain<R: Request + ?Sized>(&self, request: &R) -> Vec<Considered> {
        let mut considered = Vec::new();
        self.find(request, &mut considered);
        considered
    }

    /// [`Self::pick`] with somebody who listens.
    pub fn find<R: Request + ?Sized, O: Observer>(&self, request: &R, observer: &mut O) -> Option<Matched<'_>> {
        let is_grpc = self.kind == Some(RouteKind::Grpc);
        let each = |entry: Entry, prefix_bytes, observer: &mut O| {
            let (rule, of) = self.entry(entry);
            // Where a match stands says that its path is the request's, unless that is a pattern.
            let is_told = !is_grpc && !matches!(of.path, PathMatch::Regex(_) | PathMatch::Call(_));
            let is_path = |observer: &mut O| {
                observer.compared();
                of.path.is_met(request.path())
            };
            // Who hears all wants to know what those missed whose path it is; else what costs least comes first.
            if O::HEARS_ALL && !is_told && !is_path(observer) {
                return None;
            }
            let outcome = of.meets(request);
            if outcome.is_ok() && !O::HEARS_ALL && !is_told && !is_path(observer) {
                return None;
            }
            observer.looked(rule, entry.at, outcome);
            outcome.is_ok().then_some(Matched { rule, match_index: entry.at, prefix_bytes })
        };
        if is_grpc {
            return self.calls.find(request, observer, |entry, observer| each(entry, 0, observer));
        }
        self.paths.find(request, observer, each)
    }

    fn entry(&self, entry: Entry) -> (&Arc<Rule>, &Match) {
        let rule = &self.rules[entry.rule];
        (rule, &matches_of(rule)[entry.at])
    }

    /// The rule a connection matches whose bytes are not looked into, by the name its TLS handshake asks for, if it has one: the name itself,
    /// else the longest wildcard, else a route without names.
    #[must_use]
    pub fn pick_bytes(&self, sni: Option<&str>) -> Option<&Arc<Rule>> {
        sni.and_then(|name| self.names.find(name)).or(self.names.any.as_ref())
    }

    /// Whether it is about requests: then the connection has to be HTTP.
    #[must_use]
    pub fn has_http(&self) -> bool {
        self.kind.is_some_and(RouteKind::is_http)
    }

    /// Whether it is about connections.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        self.kind.is_some_and(|kind| !kind.is_http())
    }

    /// All rules, in no particular order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        let names = self.names.exact.values().chain(self.names.wildcards.values()).chain(&self.names.any);
        self.rules.iter().chain(names)
    }
}

/// A rule without `matches` is about every request.
fn matches_of(rule: &Rule) -> &[Match] {
    static EVERY: std::sync::LazyLock<[Match; 1]> = std::sync::LazyLock::new(|| [Match::default()]);
    if rule.matches.is_empty() { &*EVERY } else { &rule.matches }
}

impl Names {
    fn add(&mut self, hostnames: &[Arc<str>], rule: &Arc<Rule>) {
        if hostnames.is_empty() {
            self.any.get_or_insert_with(|| Arc::clone(rule));
        }
        for name in hostnames {
            match name.strip_prefix('*') {
                Some(suffix) => self.wildcards.entry(suffix.into()).or_insert_with(|| Arc::clone(rule)),
                None => self.exact.entry(Arc::clone(name)).or_insert_with(|| Arc::clone(rule)),
            };
        }
    }

    fn find(&self, name: &str) -> Option<&Arc<Rule>> {
        let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(rule) = self.exact.get(lower.as_str()) {
            return Some(rule);
        }
        // A DNS name has 127 labels at most, and no label of a wildcard is empty.
        let dots = lower.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0).take(127);
        dots.filter_map(|at| self.wildcards.get(&lower[at..])).next()
    }
}

impl RouteKind {
    /// Whether it is about requests.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

impl Rule {
    /// One of its backends, as often as its weight says; none if it has none, or none that gets anything. `random` is 64 uniformly random bits.
    #[must_use]
    pub fn draw(&self, random: u64) -> Option<&Backend> {
        let sum: u64 = self.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut left = (u128::from(random) * u128::from(sum)) >> 64;
        self.backends.iter().find(|backend| match left.checked_sub(u128::from(backend.weight)) {
            None => true,
            Some(rest) => {
                left = rest;
                false
            }
        })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "table_reference_tests.rs"]
mod reference_tests;
