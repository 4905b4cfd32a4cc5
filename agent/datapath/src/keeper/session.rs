//! One connection: who is it, what may it ask, one reply per request.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use heddle_abi::ABI_VERSION;
use heddle_proto::keeper::v1::{self as wire, Role, error::Kind, reply::Reply, request::Request};
use nix::sys::socket::{getsockopt, sockopt};

use super::Shared;
use super::state::{Refusal, Wanted};
use crate::enrol::{Namespace, PodSpec};
use crate::error::DatapathError;
use crate::netns::{Identity, Netns, OpenError};
use crate::wire::{PROTOCOL_AGENT_MIN, PROTOCOL_MAX, PROTOCOL_MIN, receive, send};

/// Pods one `SetPods` sequence may name: as many as the maps hold.
const PODS_MAX: usize = heddle_abi::PODS_MAX;

/// Serves one connection until it closes.
pub fn serve(fd: &OwnedFd, peer: Peer, shared: &Shared) {
    let number = shared.lock().session_number();
    let mut session = Session::new(number, peer);
    loop {
        match receive::<wire::Request>(fd.as_fd()) {
            Ok(Some((wire::Request { request: Some(request) }, fds))) => {
                let watch = matches!(request, Request::Watch(_));
                let outcome = session.handle(request, fds, shared);
                let going_on = outcome.is_ok();
                answer(fd.as_fd(), outcome);
                if watch
                    && going_on
                    && let Ok(socket) = fd.try_clone()
                {
                    shared.lock().watch(number, session.instance, socket);
                }
            }
            Ok(Some((wire::Request { request: None }, _))) => {
                answer(fd.as_fd(), Err((Kind::Malformed, "a request this keeper does not know: is it older?".into())));
            }
            Ok(None) => break,
            Err(error) => {
                tracing::info!(pid = session.peer.pid, %error, "keeper session ends");
                answer(fd.as_fd(), Err((Kind::Malformed, error.to_string())));
                break;
            }
        }
    }
    shared.lock().session_ended(number);
}

type Outcome = Result<(Reply, Vec<OwnedFd>), Refusal>;

fn answer(socket: BorrowedFd<'_>, outcome: Outcome) {
    let (reply, fds) = outcome
        .unwrap_or_else(|(kind, message)| (Reply::Error(wire::Error { kind: kind.into(), message }), Vec::new()));
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    match send(socket, &wire::Reply { reply: Some(reply) }, &borrowed) {
        Ok(()) => {}
        // Said, or the client would wait for it until its patience ends.
        Err(error @ DatapathError::Protocol(_)) => {
            tracing::error!(%error, "a reply is too large");
            refuse(socket, Kind::Limit, &format!("the reply is too large: {error}"));
        }
        Err(error) => tracing::debug!(%error, "a reply was not delivered"),
    }
}

/// Says why a connection is not served. Fits any socket's empty buffer, so it does not block.
pub fn refuse(socket: BorrowedFd<'_>, kind: Kind, why: &str) {
    let error = Reply::Error(wire::Error { kind: kind.into(), message: why.to_owned() });
    if let Err(error) = send(socket, &wire::Reply { reply: Some(error) }, &[]) {
        tracing::debug!(%error, "a refusal was not delivered");
    }
}

/// Who is on the other end, from the kernel.
pub struct Peer {
    pid: i32,
    uid: u32,
}

impl Peer {
    /// Whoever is on the other end; refuses who may not be.
    pub fn of(socket: BorrowedFd<'_>, shared: &Shared) -> Option<Self> {
        let credentials = match getsockopt(&socket, sockopt::PeerCredentials) {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::warn!(%error, "a peer without credentials");
                return None;
            }
        };
        let agent_uid = shared.lock().config().agent_uid;
        if credentials.uid() != 0 && credentials.uid() != agent_uid {
            tracing::warn!(
                pid = credentials.pid(),
                uid = credentials.uid(),
                "refused: neither root nor the agent's user"
            );
            refuse(socket, Kind::NotAllowed, "only root and the agent's user may talk to the keeper");
            return None;
        }
        Some(Self { pid: credentials.pid(), uid: credentials.uid() })
    }

    /// Whether it is an operator's tool rather than an agent.
    pub const fn is_root(&self) -> bool {
        self.uid == 0
    }
}

struct Session {
    number: u64,
    peer: Peer,
    role: Role,
    /// Which agent process it is.
    instance: u64,
    attached: bool,
    /// Parts of a `SetPods` so far.
    wanted: Vec<Wanted>,
    /// The same, of pods that could not be read: uid and why.
    unreadable: BTreeMap<String, String>,
}

impl Session {
    fn new(number: u64, peer: Peer) -> Self {
        let (wanted, unreadable) = Default::default();
        Self { number, peer, role: Role::Unspecified, instance: 0, attached: false, wanted, unreadable }
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>, shared: &Shared) -> Outcome {
        if self.role == Role::Unspecified && !matches!(request, Request::Hello(_)) {
            return Err((Kind::Malformed, "the first request must be Hello".into()));
        }
        let done = || Ok((Reply::Done(wire::Done {}), Vec::new()));
        match request {
            Request::Hello(hello) => self.hello(&hello, shared),
            Request::Inspect(_) => Ok((Reply::Inspect(shared.lock().inspect()?), Vec::new())),
            Request::Release(release) => {
                self.demand_root()?;
                let released = shared.lock().release_node(release.resume)?;
                Ok((Reply::Release(wire::ReleaseReply { released }), Vec::new()))
            }
            Request::Uninstall(_) => {
                self.demand_root()?;
                shared.lock().uninstall();
                done()
            }
            agent_only => {
                if self.role != Role::Agent {
                    return Err((Kind::NotAllowed, "only an agent may ask that".into()));
                }
                self.handle_agent(agent_only, fds, shared)
            }
        }
    }

    fn handle_agent(&mut self, request: Request, mut fds: Vec<OwnedFd>, shared: &Shared) -> Outcome {
        let done = || Ok((Reply::Done(wire::Done {}), Vec::new()));
        match request {
            Request::Attach(_) => {
                let (reply, fds) = shared.lock().attach(self.number)?;
                self.attached = true;
                Ok((Reply::Attach(reply), fds))
            }
            Request::Ready(_) => {
                if !self.attached {
                    return Err((Kind::NotAllowed, "Ready before Attach".into()));
                }
                shared.lock().ready(self.number, self.instance);
                done()
            }
            Request::Watch(_) if shared.lock().is_watching(self.number) => {
                Err((Kind::Malformed, "this connection is being told events already".into()))
            }
            Request::Watch(_) => done(),
            Request::SetPods(part) => self.set_pods(part, shared),
            Request::TakeListeners(take) => {
                let (reply, fds) = shared.lock().take_listeners(&take.uid)?;
                Ok((Reply::Listeners(reply), fds))
            }
            Request::OfferListeners(offer) => {
                shared.lock().offer_listeners(&offer, fds)?;
                done()
            }
            Request::MakeSockets(request) => {
                let fds = shared.lock().make_sockets(&request)?;
                let count = u32::try_from(fds.len()).unwrap_or_default();
                Ok((Reply::Sockets(wire::Sockets { count }), fds))
            }
            Request::PutKeys(_) => {
                let fd = fds.pop().ok_or((Kind::Malformed, "keys: no descriptor".to_owned()))?;
                shared.lock().put_keys(fd)?;
                done()
            }
            Request::GetKeys(_) => {
                let keys = shared.lock().get_keys()?;
                Ok((Reply::Keys(wire::Keys { present: keys.is_some() }), keys.into_iter().collect()))
            }
            Request::Hello(_) | Request::Inspect(_) | Request::Release(_) | Request::Uninstall(_) => {
                Err((Kind::Malformed, "out of order".into()))
            }
        }
    }

    fn hello(&mut self, hello: &wire::Hello, shared: &Shared) -> Outcome {
        let ours = shared.lock().config().version;
        let protocol = PROTOCOL_MAX.min(hello.protocol_max);
        if protocol < PROTOCOL_MIN || protocol < hello.protocol_min {
            return Err((
                Kind::Version,
                format!(
                    "heddle {} speaks keeper protocol {} to {}, this keeper ({ours}) {PROTOCOL_MIN} to {PROTOCOL_MAX}: \
                     bring both within one version",
                    hello.binary_version, hello.protocol_min, hello.protocol_max
                ),
            ));
        }
        let role = hello.role();
        if role == Role::Agent && hello.abi_version != ABI_VERSION {
            return Err((
                Kind::Version,
                format!(
                    "agent {} has datapath ABI {}, this keeper ({ours}) has {ABI_VERSION}: upgrade the keeper first",
                    hello.binary_version, hello.abi_version
                ),
            ));
        }
        if role == Role::Agent && protocol < PROTOCOL_AGENT_MIN {
            return Err((
                Kind::Version,
                format!(
                    "agent {} speaks keeper protocol {} at most, this keeper ({ours}) {PROTOCOL_AGENT_MIN} at least with an \
                     agent: upgrade the agent",
                    hello.binary_version, hello.protocol_max
                ),
            ));
        }
        if role == Role::Unspecified {
            return Err((Kind::Malformed, "Hello without a role".into()));
        }
        self.role = role;
        self.instance = hello.instance;
        let shards = u32::try_from(shared.lock().config().listener_shards).unwrap_or_default();
        let reply = wire::HelloReply {
            protocol,
            abi_version: ABI_VERSION,
            binary_version: ours.into(),
            listener_shards: shards,
        };
        Ok((Reply::Hello(reply), Vec::new()))
    }

    fn set_pods(&mut self, part: wire::SetPods, shared: &Shared) -> Outcome {
        let held = {
            let state = shared.lock();
            if !state.is_agent(self.number) {
                return Err(superseded());
            }
            state.held()
        };
        if self.wanted.len() + self.unreadable.len() + part.pods.len() + part.unreadable.len() > PODS_MAX {
            self.wanted.clear();
            self.unreadable.clear();
            return Err((Kind::Limit, format!("more than {PODS_MAX} pods")));
        }
        // Parsed and looked at part by part, and outside the lock: a path that is slow to look at slows this agent only.
        for wire::Unreadable { uid, reason } in part.unreadable {
            self.unreadable.insert(uid, reason);
        }
        for pod in part.pods {
            let uid = pod.uid.clone();
            match PodSpec::parse(pod) {
                Ok(spec) => self.wanted.push(look(spec, &held)),
                Err(reason) => _ = self.unreadable.insert(uid, reason),
            }
        }
        if !part.last {
            return Ok((Reply::Done(wire::Done {}), Vec::new()));
        }
        let (wanted, unreadable) = (std::mem::take(&mut self.wanted), std::mem::take(&mut self.unreadable));
        let mut state = shared.lock();
        if !state.is_agent(self.number) {
            return Err(superseded());
        }
        let pods = state.set_pods(wanted, &unreadable);
        Ok((Reply::SetPods(wire::SetPodsReply { pods }), Vec::new()))
    }

    fn demand_root(&self) -> Result<(), Refusal> {
        if self.peer.is_root() { Ok(()) } else { Err((Kind::NotAllowed, "only root may ask that".into())) }
    }
}

/// What is at a pod's path. A namespace that is held open already is known by its identity.
fn look(spec: PodSpec, held: &BTreeMap<String, (Identity, u64)>) -> Wanted {
    let outcome = Netns::find(&spec.netns_path).and_then(|found| match held.get(&spec.uid) {
        Some((identity, cookie)) if *identity == found.identity() => Ok((*cookie, None)),
        _ => found.open().map(|netns| (netns.cookie(), Some(netns))),
    });
    let (namespace, netns) = match outcome {
        Ok((cookie, netns)) => (Namespace::Found(cookie), netns),
        Err(OpenError::Gone(why)) => (Namespace::Gone(why), None),
        Err(OpenError::Other(why)) => (Namespace::Unknown(why), None),
    };
    Wanted { spec, namespace, netns }
}

fn superseded() -> Refusal {
    (Kind::NotAllowed, "another agent accepts, or this one is not ready: it is not the node's agent".into())
}
