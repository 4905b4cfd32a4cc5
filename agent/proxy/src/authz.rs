//! Who may reach a pod: what policies say of a connection's peer, of its bytes, and of each of its requests (DESIGN §6, server phases).
//!
//! Decided where the pod is called, whatever the transport: on the accepted connection, on what a peer's connection carries, and on the
//! called side of what is handed over on this node. [`Permit`] proves it: what forwards demands one. [`rules`] sorts out once per port what
//! there is to ask, [`view`] is a request as policies see it, [`judge`] asks again when a policy changes.

mod judge;
mod network;
mod rules;
mod view;

use std::net::SocketAddr;
use std::rc::Rc;

use heddle_http::Reject;
use heddle_http::h1::RequestHead;
use heddle_http::path;
use heddle_model::policy::{Outlook, Peer, Principal, Why};
use heddle_model::{OriginalDst, Snapshot};
use heddle_telemetry::{Direction, Reason, Via};
use http::Request;
use http::uri::PathAndQuery;

pub(crate) use judge::{Judge, Judges};
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

    /// Watches over what it lets in.
    pub(crate) fn judge(&self) -> Judge {
        Judge::new(self.judged.clone())
    }
}

/// What can be said of a called connection before its bytes are known; a calling one is judged elsewhere.
pub(crate) fn outlook(conn: &Conn) -> Outlook {
    conn.is_judged.set(true);
    if conn.direction == Direction::Outbound {
        return Outlook::Allowed;
    }
    if network::verdict(conn, &conn.worker.refresh()).is_some_and(|verdict| !verdict.is_allowed) {
        return Outlook::Denied;
    }
    let rules = rules(conn);
    if rules.access.is_open() { Outlook::Allowed } else { with_peer(conn, |peer| rules.access.outlook(peer)) }
}

/// The same of a connection that would be handed over to a pod of this node, at `addr`.
pub(crate) fn outlook_of_handover(conn: &Conn, pod: &Pod, addr: SocketAddr) -> Outlook {
    let rules = conn.worker.rules.get(pod, OriginalDst::new(addr), &conn.worker.refresh());
    let peer = Peer { principal: Principal::of(conn.pod.principal()), address: conn.client.get().ip() };
    rules.access.outlook(&peer)
}

/// Decides about a called connection that is no HTTP.
pub(crate) fn opaque(conn: &Rc<Conn>) -> Result<Permit, Reason> {
    conn.is_judged.set(true);
    if conn.direction == Direction::Outbound {
        return Ok(Permit::free());
    }
    let decided = decide(conn, None);
    let allowed = decided.as_ref().map_or(Ok(()), |decided| decided.verdict());
    if let Some(decided) = decided {
        decided.count(&conn.worker);
        conn.decided.replace(Some(decided));
    }
    allowed.map(|()| Permit { path: None, judged: Some((conn.clone(), conn.worker.policy_generation())) })
}

/// Why a called connection that is no HTTP may not go on, if it may not.
pub(crate) fn refusal(conn: &Rc<Conn>) -> Reason {
    opaque(conn).err().unwrap_or(Reason::PolicyDenied)
}

/// Decides about a request on a called connection. What was decided is left in `told`, to be counted when the request ends.
pub(crate) fn request(conn: &Rc<Conn>, view: &mut View<'_>, told: &mut Told) -> Result<Permit, Reason> {
    conn.is_judged.set(true);
    let rules = rules(conn);
    let mut path = None;
    if rules.access.tells_paths() && !view.is_connect() {
        match path::normalize(view.path_and_query()) {
            Ok(std::borrow::Cow::Borrowed(_)) => {}
            Ok(std::borrow::Cow::Owned(normal)) => {
                if rules.access.reads_paths() {
                    path = Some(normal.clone().into());
                }
                view.set_path_and_query(normal);
            }
            Err(ambiguous) if rules.access.reads_paths() => {
                told.detail = ambiguous.as_str();
                return Err(Reason::PathAmbiguous);
            }
            // Nothing that is in force asks for it.
            Err(_) => {}
        }
    }
    told.decided = decide(conn, Some(view));
    told.decided.as_ref().map_or(Ok(()), |decided| decided.verdict())?;
    Ok(Permit { path, judged: Some((conn.clone(), conn.worker.policy_generation())) })
}

/// What a decision about a request left to tell.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) decided: Option<Box<Decided>>,
    /// The rule that its path broke.
    pub(crate) detail: &'static str,
}

/// Whether a called connection, or a request on it, would still be let in.
pub(crate) fn stands(conn: &Conn, view: Option<&mut View<'_>>) -> bool {
    if conn.direction == Direction::Outbound {
        return true;
    }
    let snapshot = conn.worker.snapshot();
    if network::verdict(conn, &snapshot).is_some_and(|verdict| !verdict.is_allowed) {
        return false;
    }
    let rules = rules(conn);
    if rules.access.is_open() {
        return true;
    }
    if let Some(view) = view {
        if rules.access.reads_paths() && !view.is_connect() {
            match path::normalize(view.path_and_query()) {
                Ok(normal) => {
                    let normal = normal.into_owned();
                    view.set_path_and_query(normal);
                }
                Err(_) => return false,
            }
        }
        return with_peer(conn, |peer| rules.access.decide(peer, Some(view), &mut ()).is_allowed);
    }
    with_peer(conn, |peer| rules.access.decide(peer, None::<&View<'_>>, &mut ()).is_allowed)
}

/// Whether nothing that a called connection carries would be let in.
pub(crate) fn is_denied(conn: &Conn) -> bool {
    outlook(conn) == Outlook::Denied
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

fn decide(conn: &Conn, view: Option<&mut View<'_>>) -> Option<Box<Decided>> {
    let rules = rules(conn);
    let network = network::verdict(conn, &conn.worker.snapshot());
    if rules.access.is_open() && network.is_none() {
        return None;
    }
    let view = view.as_deref();
    let decision = with_peer(conn, |peer| rules.access.decide(peer, view, &mut ()));
    let mut audited = Vec::new();
    if !rules.access.is_quiet() {
        with_peer(conn, |peer| rules.access.audit(peer, view, &mut (), |policy, rule| audited.push((policy, rule))));
    }
    Some(Box::new(Decided { rules, decision, audited, network }))
}

/// Who calls: by what was proved on the way here, or not at all. Never by a header or an address.
fn with_peer<T>(conn: &Conn, ask: impl FnOnce(&Peer<'_>) -> T) -> T {
    let proved = if conn.via() == Via::Plain { "".into() } else { conn.source_principal() };
    ask(&Peer { principal: Principal::of(&proved), address: conn.client.get().ip() })
}

/// The reason for a refusal.
fn reason_of(why: Why) -> Reason {
    match why {
        Why::Rejected(_) => Reason::PolicyInvalid,
        Why::Default | Why::Rule(..) | Why::NoRule => Reason::PolicyDenied,
    }
}

/// Remembers what selects the pods of a worker: one whose object is gone keeps its policies until its last process exits.
pub(crate) fn remember(pod: &Pod, snapshot: &Snapshot) {
    if pod.workload(snapshot).is_some() && snapshot.workload(pod.uid()).is_some() {
        pod.policies.replace(snapshot.policies_of(pod.uid()).cloned());
    }
}
