//! Who may reach a pod: what policies say of a connection's peer, of its bytes, and of each of its requests (DESIGN §6, server phases).
//!
//! Decided where the pod is called, whatever the transport: on the accepted connection, on what a peer's connection carries, and on the
//! called side of what is handed over on this node. [`Permit`] proves it: what forwards demands one. [`rules`] sorts out once per port what
//! there is to ask, [`view`] is a request as policies see it, [`judge`] asks again when a policy changes.

mod judge;
mod network;
mod rules;
mod view;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use heddle_http::Reject;
use heddle_http::h1::RequestHead;
use heddle_http::path;
use heddle_model::policy::{Decision, Observer, Outlook, Peer, PortAccess, Principal, Why};
use heddle_model::{OriginalDst, Snapshot};
use heddle_telemetry::{Direction, Reason, Via};
use http::Request;
use http::uri::PathAndQuery;

pub(crate) use judge::{Judge, Judges, Revoked};
pub(crate) use network::NetworkVerdict;
pub(crate) use rules::{AsOf, Decided, RuleCache, Rules};
pub(crate) use view::View;

use crate::budget::Pod;
use crate::registry::Conn;

/// Something may be forwarded: nothing forbids it, or nothing is to be asked on this side.
pub(crate) struct Permit {
    /// The path as it was judged, with its query, where it differs from what the client sent.
    path: Option<Box<str>>,
    /// Whose rules let it in, as of which policies.
    judged: Option<(Rc<Conn>, u64)>,
}

impl Permit {
    /// For what another agent, or nobody, decides about.
    pub(crate) fn free() -> Self {
        Self { path: None, judged: None }
    }

    /// Makes the request say what was judged.
    pub(crate) fn apply_to_head(&self, head: &mut RequestHead) -> Result<(), Reject> {
        self.path.as_deref().map_or(Ok(()), |path| head.set_path_and_query(path))
    }

    /// The same for a request on a stream.
    pub(crate) fn apply_to(&self, request: &mut Request<()>) -> Result<(), Reject> {
        let Some(path) = self.path.as_deref() else { return Ok(()) };
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_| Reject::TargetByte)?);
        *request.uri_mut() = http::Uri::from_parts(parts).map_err(|_| Reject::TargetByte)?;
        Ok(())
    }

    /// Whether policies may have changed since.
    pub(crate) fn is_stale(&self) -> bool {
        let of = |(conn, generation): &(Rc<Conn>, u64)| conn.worker.refresh().policy_generation != *generation;
        self.judged.as_ref().is_some_and(of)
    }

    /// Watches over what it lets in.
    pub(crate) fn judge(&self) -> Judge {
        Judge::new(self.judged.clone(), self.path.clone())
    }
}

/// How the bytes of a connection are taken, before they are known. What is declared of the port says nothing against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// As the port is declared.
    Free,
    /// As HTTP if they are: rules ask for that. Let in either way, as far as is known now.
    Parsed,
    /// As HTTP, each request judged by itself; what is none is refused before the application hears of it.
    Requests,
    /// Not at all; a client that speaks HTTP is told so.
    Refused,
}

impl Admission {
    fn of(access: &PortAccess, peer: &Peer<'_>) -> Self {
        match access.outlook(peer) {
            Outlook::Allowed if access.needs_http() => Self::Parsed,
            Outlook::Allowed => Self::Free,
            Outlook::OfRequests => Self::Requests,
            Outlook::Denied => Self::Refused,
        }
    }
}

/// How the bytes of a called connection are taken; a calling one is judged elsewhere.
pub(crate) fn admission(conn: &Conn) -> Admission {
    if conn.direction == Direction::Outbound {
        return Admission::Free;
    }
    let rules = rules(conn);
    if network::verdict(conn).is_some_and(|verdict| !verdict.is_allowed) {
        return Admission::Refused;
    }
    if rules.access.is_open() { Admission::Free } else { with_peer(conn, |peer| Admission::of(&rules.access, peer)) }
}

/// The same of a calling connection, if it were handed over to a pod of this node, at `addr`.
pub(crate) fn admission_of_handover(conn: &Conn, pod: &Pod, addr: SocketAddr) -> Admission {
    let snapshot = conn.worker.refresh();
    let rules = conn.worker.rules.get(pod, OriginalDst::new(addr), &snapshot);
    if !network::lets_through(conn, pod, addr, &snapshot) {
        return Admission::Refused;
    }
    let principal = Principal::of(conn.pod.principal(), &snapshot.mesh.trust_domain);
    Admission::of(&rules.access, &Peer { principal, address: conn.client.get().ip() })
}

/// Decides about a called connection that is no HTTP.
pub(crate) fn opaque(conn: &Rc<Conn>) -> Result<Permit, Reason> {
    if conn.direction == Direction::Outbound {
        return Ok(Permit::free());
    }
    let Some(asked) = Asked::of(conn) else {
        conn.carries_bytes.set(true);
        return Judgement::LET_IN.permit(conn);
    };
    let (judgement, decided) = asked.decide(conn, None);
    decided.count(&conn.worker);
    conn.decided.replace(Some(decided));
    let permit = judgement.permit(conn)?;
    conn.carries_bytes.set(true);
    Ok(permit)
}

/// Why a called connection that is no HTTP may not go on, if it may not.
pub(crate) fn refusal(conn: &Rc<Conn>) -> Reason {
    opaque(conn).err().unwrap_or(Reason::PolicyDenied)
}

/// Decides about a request on a called connection. What was decided is left in `told`, to be counted when the request ends.
pub(crate) fn request<'v>(conn: &Rc<Conn>, view: impl FnOnce() -> View<'v>, told: &mut Told) -> Result<Permit, Reason> {
    let Some(asked) = Asked::of(conn) else {
        *told = Told::default();
        return Judgement::LET_IN.permit(conn);
    };
    let (judgement, decided) = asked.decide(conn, Some(&mut view()));
    *told = Told { decided: Some(decided), detail: judgement.detail };
    judgement.permit(conn)
}

impl Told {
    /// What it was let in by is taken back.
    pub(crate) fn revoke(&mut self, revoked: Revoked) {
        *self = Self { decided: Some(revoked.0), detail: "" };
    }
}

/// What a decision about a request left to tell.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) decided: Option<Box<Decided>>,
    /// The rule that its path broke.
    pub(crate) detail: &'static str,
}

/// Asks again about a called connection, or a request on it, that was let in. An error is what there is to tell if it would not be now.
pub(crate) fn stands(conn: &Conn, view: Option<&mut View<'_>>) -> Result<(), Box<Decided>> {
    if conn.direction == Direction::Outbound {
        return Ok(());
    }
    let Some(asked) = Asked::of(conn) else { return Ok(()) };
    let (judgement, decided) = asked.decide(conn, view);
    // What was sent as it is must not be let in for what it might be taken for.
    if judgement.verdict.is_ok() && judgement.path.is_none() { Ok(()) } else { Err(decided) }
}

/// A policy changed: ends the connection if what it carries is not let in any more. Requests are judged one by one by whoever carries them;
/// here a client's connection ends on which none would be. Whoever has said nothing yet is judged when it speaks.
pub(crate) fn enforce(conn: &Conn, is_clients_http: bool) {
    if is_clients_http {
        // Of one with requests under way these are answered, each by itself.
        if !conn.has_requests_under_way() && admission(conn) == Admission::Refused {
            conn.ends_for_itself();
            conn.cut(Reason::PolicyClosed);
        }
    } else if conn.carries_bytes.get()
        && let Err(decided) = stands(conn, None)
    {
        decided.count(&conn.worker);
        conn.decided.replace(Some(decided));
        conn.cut(Reason::PolicyClosed);
    }
}

/// What the policies of one port come to, for the data plane and for those who ask it why.
pub(crate) struct Judgement {
    pub(crate) verdict: Result<(), Reason>,
    /// What AuthorizationPolicies said, if they were asked.
    pub(crate) decision: Option<Decision>,
    /// The path to forward, where it is not the one that was sent.
    path: Option<Box<str>>,
    /// The rule that the path broke.
    pub(crate) detail: &'static str,
}

impl Judgement {
    /// Where nothing speaks of the port.
    const LET_IN: Self = Self { verdict: Ok(()), decision: None, path: None, detail: "" };

    /// In this order: NetworkPolicy, as a network would; the path; AuthorizationPolicy.
    pub(crate) fn of(
        access: &PortAccess,
        is_let_through: bool,
        peer: &Peer<'_>,
        mut view: Option<&mut View<'_>>,
        observer: &mut impl Observer,
    ) -> Self {
        let mut judgement = Self::LET_IN;
        if !is_let_through {
            judgement.verdict = Err(Reason::NetworkPolicyDenied);
            return judgement;
        }
        if access.is_open() {
            return judgement;
        }
        if let Some(view) = view.as_deref_mut()
            && access.tells_paths()
            && !view.is_connect()
        {
            match path::normalize(view.path_and_query()) {
                Ok(Cow::Borrowed(_)) => {}
                Ok(Cow::Owned(normal)) => {
                    judgement.path = access.reads_paths().then(|| normal.as_str().into());
                    view.set_path_and_query(normal);
                }
                Err(ambiguous) if access.reads_paths() => {
                    judgement.detail = ambiguous.as_str();
                    judgement.verdict = Err(Reason::PathAmbiguous);
                    return judgement;
                }
                // Nothing that is in force asks for it.
                Err(_) => {}
            }
        }
        let decision = access.decide(peer, view.as_deref(), observer);
        if !decision.is_allowed {
            judgement.verdict = Err(reason_of(decision.why));
        }
        judgement.decision = Some(decision);
        judgement
    }

    fn permit(self, conn: &Rc<Conn>) -> Result<Permit, Reason> {
        self.verdict.map(|()| Permit { path: self.path, judged: Some((conn.clone(), conn.worker.policy_generation())) })
    }
}

/// The rules of the called port, as of the newest snapshot.
fn rules(conn: &Conn) -> Rc<Rules> {
    let snapshot = conn.worker.refresh();
    let mut known = conn.rules.borrow_mut();
    match &*known {
        Some((generation, rules)) if *generation == snapshot.policy_generation => rules.clone(),
        _ => {
            let rules = match conn.original {
                Some(original) => conn.worker.rules.get(&conn.pod, original, &snapshot),
                None => Rc::default(),
            };
            *known = Some((snapshot.policy_generation, rules.clone()));
            rules
        }
    }
}

/// What there is to ask about a called connection.
struct Asked {
    rules: Rc<Rules>,
    network: Option<Rc<NetworkVerdict>>,
}

impl Asked {
    /// `None` where no policy speaks of it.
    fn of(conn: &Conn) -> Option<Self> {
        let (rules, network) = (rules(conn), network::verdict(conn));
        (!rules.access.is_open() || network.is_some()).then_some(Self { rules, network })
    }

    /// The judgement, and what is to be told of it.
    fn decide(self, conn: &Conn, mut view: Option<&mut View<'_>>) -> (Judgement, Box<Decided>) {
        let Self { rules, network } = self;
        let is_let_through = network.as_ref().is_none_or(|verdict| verdict.is_allowed);
        let judgement =
            with_peer(conn, |peer| Judgement::of(&rules.access, is_let_through, peer, view.as_deref_mut(), &mut ()));
        let mut audited = Vec::new();
        if judgement.decision.is_some() && !rules.access.is_quiet() {
            let view = view.as_deref();
            with_peer(conn, |peer| {
                rules.access.audit(peer, view, &mut (), |policy, rule| audited.push((policy, rule)));
            });
        }
        let decision = judgement.decision;
        (judgement, Box::new(Decided { rules, decision, audited, network }))
    }
}

/// Who calls: by what was proved on the way here, or not at all. Never by a header or an address.
fn with_peer<T>(conn: &Conn, ask: impl FnOnce(&Peer<'_>) -> T) -> T {
    let proved = if conn.via() == Via::Plain { Arc::default() } else { conn.source_principal() };
    let snapshot = conn.worker.snapshot();
    ask(&Peer { principal: Principal::of(&proved, &snapshot.mesh.trust_domain), address: conn.client.get().ip() })
}

/// The reason for a refusal.
fn reason_of(why: Why) -> Reason {
    match why {
        Why::Rejected(_) => Reason::PolicyInvalid,
        Why::Default | Why::Rule(..) | Why::NoRule => Reason::PolicyDenied,
    }
}

/// Remembers what selects a pod: one whose object is gone keeps its policies until its last process exits.
pub(crate) fn remember(pod: &Pod, snapshot: &Snapshot) {
    if snapshot.workload(pod.uid()).is_some() {
        pod.policies.replace(snapshot.policies_of(pod.uid()).cloned());
    }
}
