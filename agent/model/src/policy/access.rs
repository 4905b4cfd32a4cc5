//! The policies of one target port, and what they say of a connection or a request: deny, then allow, then the default (DESIGN §10).

use std::sync::Arc;

use super::authorization::{Action, AuthorizationPolicy, Missed, Operation, Rule, Rules, first_match};
use super::matcher::Quantifier;
use super::{Peer, Request};

/// What applies to one target port of one workload, sorted out once: a decision looks at nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortAccess {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// Rules that refuse.
    deny: Vec<Entry>,
    /// Rules that let in.
    allow: Vec<Entry>,
    /// An Allow policy selects the port: what none matches is refused.
    is_selected: bool,
    /// The same with what is only tried.
    dry_deny: Vec<Entry>,
    dry_allow: Vec<Entry>,
    is_dry_selected: bool,
    audit: Vec<Entry>,
    needs_http: bool,
    reads_paths: bool,
    tells_paths: bool,
}

/// One rule, with those of its operations that are of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Index into `policies`.
    policy: usize,
    /// Which of its rules; none of a policy that was rejected as a whole.
    rule: Option<usize>,
    /// Which operations; none means that everything to the port is meant.
    operations: Vec<usize>,
}

/// What was decided, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Let in.
    pub is_allowed: bool,
    /// What it follows from.
    pub why: Why,
    /// What would have been decided if what is only tried were in force, where that is a refusal and the decision is none.
    pub would_deny: Option<Why>,
}

/// What a decision follows from. Numbers of policies are those of [`PortAccess::policies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No Allow policy selects the port.
    Default,
    /// This rule of this policy.
    Rule(usize, usize),
    /// An Allow policy selects the port, and no rule of any matches.
    NoRule,
    /// This policy was rejected, and its targets are denied until it is corrected.
    Rejected(usize),
}

/// What can be said of a connection before its bytes are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Allowed, whatever it carries.
    Allowed,
    /// It depends on the requests it carries: what is no HTTP is refused.
    OfRequests,
    /// Refused, whatever it carries.
    Denied,
}

/// Hears what a decision looks at, in order. The data plane does not listen: `()`.
pub trait Observer {
    /// A rule matched, or missed at a field. Of a rule that was not looked at, because the decision stood, nothing is heard.
    fn looked(&mut self, _policy: usize, _rule: Option<usize>, _outcome: Result<(), &'static str>) {}
}

impl Observer for () {}

/// Hears of what is only tried: the rest was told before.
struct OnlyTried<'a, O> {
    observer: &'a mut O,
    policies: &'a [Arc<AuthorizationPolicy>],
}

impl<O: Observer> Observer for OnlyTried<'_, O> {
    fn looked(&mut self, policy: usize, rule: Option<usize>, outcome: Result<(), &'static str>) {
        if self.policies.get(policy).is_some_and(|policy| policy.dry_run) {
            self.observer.looked(policy, rule, outcome);
        }
    }
}

impl PortAccess {
    /// Of the policies that speak of a workload, in any order, what is of one target port of it.
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Arc<AuthorizationPolicy>>, port: u16) -> Self {
        let mut all: Vec<_> = policies.into_iter().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all.dedup_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name));
        let mut access = Self::default();
        for policy in all {
            access.add(policy, port);
        }
        access
    }

    fn add(&mut self, policy: &Arc<AuthorizationPolicy>, port: u16) {
        let index = self.policies.len();
        let rules = match &policy.rules {
            Rules::Rejected => {
                // One that decides nothing at its best decides nothing at its worst.
                if policy.action != Action::Audit && !policy.dry_run {
                    self.deny.push(Entry { policy: index, rule: None, operations: Vec::new() });
                    self.policies.push(policy.clone());
                }
                return;
            }
            Rules::Any(rules) => rules,
        };
        let of_port = |(number, rule): (usize, &Rule)| {
            let operations: Vec<usize> = (0..rule.to.len()).filter(|at| rule.to[*at].is_of_port(port)).collect();
            let applies = rule.to.is_empty() || !operations.is_empty();
            applies.then_some(Entry { policy: index, rule: Some(number), operations })
        };
        let entries: Vec<Entry> = rules.iter().enumerate().filter_map(of_port).collect();
        let selects = policy.action == Action::Allow && (rules.is_empty() || !entries.is_empty());
        if entries.is_empty() && !selects {
            return;
        }
        self.policies.push(policy.clone());
        let operations = entries.iter().flat_map(|e| e.operations.iter().map(|at| &rules[e.rule.unwrap_or(0)].to[*at]));
        let asks = |what: fn(&Operation) -> bool| operations.clone().any(what);
        let is_in_force = policy.action != Action::Audit && !policy.dry_run;
        self.tells_paths |= asks(Operation::reads_paths);
        if is_in_force {
            self.needs_http |= asks(Operation::is_of_http);
            self.reads_paths |= asks(Operation::reads_paths);
        }
        let (list, is_selected) = match (policy.action, policy.dry_run) {
            (Action::Audit, _) => (&mut self.audit, None),
            (Action::Deny, false) => (&mut self.deny, None),
            (Action::Deny, true) => (&mut self.dry_deny, None),
            (Action::Allow, false) => (&mut self.allow, Some(&mut self.is_selected)),
            (Action::Allow, true) => (&mut self.dry_allow, Some(&mut self.is_dry_selected)),
        };
        list.extend(entries);
        if let Some(is_selected) = is_selected {
            *is_selected = true;
        }
    }

    /// The policies that are asked, by namespace and name.
    #[must_use]
    pub fn policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.policies
    }

    /// Whether a rule in force asks for what only HTTP has: bytes for the port are then parsed as HTTP, however they arrive.
    #[must_use]
    pub fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// Whether a rule in force asks for paths: they are normalized then, and forwarded so.
    #[must_use]
    pub fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// Whether any rule asks for paths, also one that decides nothing.
    #[must_use]
    pub fn tells_paths(&self) -> bool {
        self.tells_paths
    }

    /// Whether there is nothing to ask: everything is allowed, nothing is told.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether there is nothing to tell but the decision.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.audit.is_empty() && self.dry_deny.is_empty() && !self.is_dry_selected
    }

    /// What can be said of a connection of `peer` before anything is known of its bytes.
    pub fn outlook(&self, peer: &Peer<'_>) -> Outlook {
        let matches_peer = |entry: &&Entry, quantifier| self.matches_peer(entry, peer, quantifier).is_ok();
        let mut may_be_denied = false;
        for entry in self.deny.iter().filter(|entry| matches_peer(entry, Quantifier::Any)) {
            if !self.is_of_requests(entry) {
                return Outlook::Denied;
            }
            may_be_denied = true;
        }
        let mut may_be_allowed = !self.is_selected;
        let mut is_allowed = !self.is_selected;
        for entry in self.allow.iter().filter(|entry| matches_peer(entry, Quantifier::All)) {
            may_be_allowed = true;
            is_allowed |= !self.is_of_requests(entry);
        }
        match (may_be_denied, is_allowed, may_be_allowed) {
            (false, true, _) => Outlook::Allowed,
            (_, _, true) => Outlook::OfRequests,
            (_, _, false) => Outlook::Denied,
        }
    }

    /// Decides about a request, or about bytes that are none: those match no Allow rule that asks for HTTP, and a Deny rule by what it
    /// asks besides.
    pub fn decide<R: Request + ?Sized>(
        &self,
        peer: &Peer<'_>,
        request: Option<&R>,
        observer: &mut impl Observer,
    ) -> Decision {
        let (is_allowed, why) = self.verdict(peer, request, false, observer);
        let is_tried = !self.dry_deny.is_empty() || self.is_dry_selected;
        let would_deny = if is_allowed && is_tried {
            let mut observer = OnlyTried { observer, policies: &self.policies };
            let (would_allow, why) = self.verdict(peer, request, true, &mut observer);
            (!would_allow).then_some(why)
        } else {
            None
        };
        Decision { is_allowed, why, would_deny }
    }

    /// Calls `each` with policy and rule of every Audit rule that matches.
    pub fn audit<R: Request + ?Sized>(
        &self,
        peer: &Peer<'_>,
        request: Option<&R>,
        observer: &mut impl Observer,
        mut each: impl FnMut(usize, usize),
    ) {
        for entry in &self.audit {
            if self.looks(entry, peer, request, Quantifier::Any, observer)
                && let Some(rule) = entry.rule
            {
                each(entry.policy, rule);
            }
        }
    }

    fn verdict<R: Request + ?Sized>(
        &self,
        peer: &Peer<'_>,
        request: Option<&R>,
        is_tried: bool,
        observer: &mut impl Observer,
    ) -> (bool, Why) {
        let why = |entry: &Entry| entry.rule.map_or(Why::Rejected(entry.policy), |rule| Why::Rule(entry.policy, rule));
        let none: &[Entry] = &[];
        let (dry_deny, dry_allow) = if is_tried { (&self.dry_deny[..], &self.dry_allow[..]) } else { (none, none) };
        for entry in self.deny.iter().chain(dry_deny) {
            if self.looks(entry, peer, request, Quantifier::Any, observer) {
                return (false, why(entry));
            }
        }
        if !(self.is_selected || is_tried && self.is_dry_selected) {
            return (true, Why::Default);
        }
        for entry in self.allow.iter().chain(dry_allow) {
            if self.looks(entry, peer, request, Quantifier::All, observer) {
                return (true, why(entry));
            }
        }
        (false, Why::NoRule)
    }

    fn looks<R: Request + ?Sized>(
        &self,
        entry: &Entry,
        peer: &Peer<'_>,
        request: Option<&R>,
        quantifier: Quantifier,
        observer: &mut impl Observer,
    ) -> bool {
        let outcome =
            self.matches_peer(entry, peer, quantifier).and_then(|()| self.matches_request(entry, request, quantifier));
        observer.looked(entry.policy, entry.rule, outcome);
        outcome.is_ok()
    }

    fn rule(&self, entry: &Entry) -> Option<&Rule> {
        match &self.policies[entry.policy].rules {
            Rules::Any(rules) => rules.get(entry.rule?),
            Rules::Rejected => None,
        }
    }

    fn operations<'a>(&self, entry: &'a Entry) -> impl Iterator<Item = &Operation> + Clone + use<'_, 'a> {
        let to = self.rule(entry).map_or(&[][..], |rule| &rule.to);
        entry.operations.iter().filter_map(move |at| to.get(*at))
    }

    /// Whether a rule asks for HTTP, however it is matched.
    fn is_of_requests(&self, entry: &Entry) -> bool {
        !entry.operations.is_empty() && self.operations(entry).all(Operation::is_of_http)
    }

    fn matches_peer(&self, entry: &Entry, peer: &Peer<'_>, quantifier: Quantifier) -> Result<(), Missed> {
        self.rule(entry).map_or(Ok(()), |rule| rule.matches_peer(peer, quantifier))
    }

    fn matches_request<R: Request + ?Sized>(
        &self,
        entry: &Entry,
        request: Option<&R>,
        quantifier: Quantifier,
    ) -> Result<(), Missed> {
        let operations = self.operations(entry);
        match request {
            Some(request) => first_match(operations, |operation| operation.matches(request, quantifier)),
            None if quantifier == Quantifier::Any || !self.is_of_requests(entry) => Ok(()),
            None => Err("to: asks for HTTP, and this is none"),
        }
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
