//! The other end of the keeper protocol: what the agent and the CLI call.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use heddle_abi::ABI_VERSION;
use heddle_proto::keeper::v1::{self as wire, Role, error::Kind, reply::Reply, request::Request};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use prost::Message;

use crate::error::DatapathError;
use crate::keeper::socket_path;
use crate::wire::{PACKET_BYTES_MAX, PROTOCOL_MAX, PROTOCOL_MIN, receive, send};

/// No keeper operation takes longer; a keeper that does is stuck.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of pods per `SetPods` packet: what is left of a packet without the frame around them.
const PODS_BYTES_PER_PACKET: usize = PACKET_BYTES_MAX - 1024;

/// One connection to the keeper. Blocking: use it from a thread of its own.
pub struct KeeperClient {
    socket: OwnedFd,
    hello: wire::HelloReply,
}

/// What an attached agent was handed.
pub struct Attached {
    /// Pods enrolled now.
    pub pods: Vec<wire::PodState>,
    /// Enrolment is suspended by hand.
    pub released: bool,
    /// For [`crate::agent::HeartbeatWriter`].
    pub heartbeat: OwnedFd,
    /// For [`crate::agent::ClientPublisher`].
    pub agent_sockets: OwnedFd,
    /// For [`crate::agent::CounterReader`].
    pub counters: OwnedFd,
    /// `<run-dir>/debug.sock`, bound and listening.
    pub debug: UnixListener,
}

/// A pod's listeners: one entry per worker shard, each with IPv4 and perhaps IPv6.
pub struct PodListeners {
    /// On 15001.
    pub outbound: Vec<Vec<TcpListener>>,
    /// On 15006.
    pub inbound: Vec<Vec<TcpListener>>,
    /// On 15008.
    pub hbone: Vec<Vec<TcpListener>>,
    /// Changes when they are made anew.
    pub generation: u64,
    /// Whether there are IPv6 ones.
    pub ipv6: bool,
}

impl PodListeners {
    /// Ends them, whoever has copies: their ports are free when this returns.
    pub fn shut_down(&self) {
        for socket in self.outbound.iter().chain(&self.inbound).chain(&self.hbone).flatten() {
            let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
    }
}

impl KeeperClient {
    /// Connects and agrees on a version.
    ///
    /// # Errors
    /// No keeper, or one of another version.
    pub fn connect(run_dir: &Path, role: Role, version: &str) -> Result<Self, DatapathError> {
        Self::connect_within(run_dir, role, version, REPLY_TIMEOUT)
    }

    /// The same, with a patience of its own for every call.
    ///
    /// # Errors
    /// No keeper, one of another version, or one that does not answer in time.
    pub fn connect_within(
        run_dir: &Path,
        role: Role,
        version: &str,
        patience: Duration,
    ) -> Result<Self, DatapathError> {
        let path = socket_path(run_dir);
        let what = || format!("connect to the keeper at {}", path.display());
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .map_err(DatapathError::errno(what()))?;
        let address = UnixAddr::new(&path).map_err(DatapathError::errno(what()))?;
        let timeout = TimeVal::seconds(i64::try_from(patience.as_secs()).unwrap_or(30));
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(DatapathError::errno(what()))?;
        setsockopt(&fd, sockopt::SendTimeout, &timeout).map_err(DatapathError::errno(what()))?;
        // After the timeouts: a keeper that does not accept must not hold the caller for ever.
        connect(fd.as_raw_fd(), &address).map_err(DatapathError::errno(what()))?;
        let mut client = Self { socket: fd, hello: wire::HelloReply::default() };
        let hello = wire::Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            abi_version: ABI_VERSION,
            binary_version: version.to_owned(),
            role: role.into(),
            instance: instance(),
        };
        match client.call(Request::Hello(hello), &[])? {
            (Reply::Hello(reply), _) => client.hello = reply,
            (other, _) => return Err(unexpected(&other)),
        }
        Ok(client)
    }

    /// What the keeper said of itself.
    #[must_use]
    pub const fn hello(&self) -> &wire::HelloReply {
        &self.hello
    }

    fn call(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), DatapathError> {
        let sent = send(self.socket.as_fd(), &wire::Request { request: Some(request) }, fds);
        if let Err(error @ DatapathError::Protocol(_)) = sent {
            return Err(error);
        }
        // A keeper that serves us not says so and closes, perhaps before we have asked: what it said is still to be read,
        // behind the error that our request was not.
        let received = match receive::<wire::Reply>(self.socket.as_fd()) {
            Err(DatapathError::Io { source, .. }) if source.kind() == std::io::ErrorKind::ConnectionReset => {
                receive::<wire::Reply>(self.socket.as_fd())
            }
            other => other,
        };
        let Some((reply, fds)) = received? else {
            return Err(sent
                .err()
                .unwrap_or_else(|| DatapathError::Protocol("the keeper closed the connection".into())));
        };
        match reply.reply {
            Some(Reply::Error(error)) => Err(DatapathError::Refused { kind: error.kind(), message: error.message }),
            Some(reply) => Ok((reply, fds)),
            None => Err(DatapathError::Protocol("a reply this build does not know: is the keeper newer?".into())),
        }
    }

    fn call_done(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), DatapathError> {
        match self.call(request, fds)? {
            (Reply::Done(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Prepares to become this node's agent: see [`KeeperClient::ready`].
    ///
    /// # Errors
    /// Not allowed, or the kernel refuses.
    pub fn attach(&self) -> Result<Attached, DatapathError> {
        let (reply, fds) = match self.call(Request::Attach(wire::Attach {}), &[])? {
            (Reply::Attach(reply), fds) => (reply, fds),
            (other, _) => return Err(unexpected(&other)),
        };
        let [heartbeat, agent_sockets, counters, debug]: [OwnedFd; 4] = fds
            .try_into()
            .map_err(|fds: Vec<_>| DatapathError::Protocol(format!("attach: {} descriptors, not 4", fds.len())))?;
        let debug = UnixListener::from(debug);
        Ok(Attached { pods: reply.pods, released: reply.released, heartbeat, agent_sockets, counters, debug })
    }

    /// Tells the keeper that this agent accepts: a former one is told to drain.
    ///
    /// # Errors
    /// Superseded meanwhile.
    pub fn ready(&self) -> Result<(), DatapathError> {
        self.call_done(Request::Ready(wire::Ready {}), &[])
    }

    /// Turns this connection into a stream of events.
    ///
    /// # Errors
    /// Not allowed.
    pub fn watch(self) -> Result<Watcher, DatapathError> {
        self.call_done(Request::Watch(wire::Watch {}), &[])?;
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::zero())
            .map_err(DatapathError::errno("keeper events"))?;
        Ok(Watcher(self.socket))
    }

    /// Sets the desired pods and returns what came of each.
    ///
    /// # Errors
    /// Superseded, or too many.
    pub fn set_pods(&self, pods: &[wire::PodSpec]) -> Result<Vec<wire::PodState>, DatapathError> {
        let (fitting, oversized): (Vec<_>, Vec<_>) =
            pods.iter().cloned().partition(|pod| pod.encoded_len() <= PODS_BYTES_PER_PACKET);
        let unreadable = oversized
            .into_iter()
            .map(|pod| wire::Unreadable {
                reason: format!(
                    "pod {}/{}: its exclusions take {} bytes, more than {PODS_BYTES_PER_PACKET}: list fewer",
                    pod.namespace,
                    pod.name,
                    pod.encoded_len()
                ),
                uid: pod.uid,
            })
            .collect();
        let mut parts = parts(fitting);
        let last = parts.pop().unwrap_or_default();
        for pods in parts {
            self.call_done(Request::SetPods(wire::SetPods { pods, last: false, unreadable: Vec::new() }), &[])?;
        }
        match self.call(Request::SetPods(wire::SetPods { pods: last, last: true, unreadable }), &[])? {
            (Reply::SetPods(reply), _) => Ok(reply.pods),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The listeners of an enrolled pod.
    ///
    /// # Errors
    /// Unknown pod, or they cannot be made.
    pub fn take_listeners(&self, uid: &str) -> Result<PodListeners, DatapathError> {
        let (reply, fds) = match self.call(Request::TakeListeners(wire::TakeListeners { uid: uid.to_owned() }), &[])? {
            (Reply::Listeners(reply), fds) => (reply, fds),
            (other, _) => return Err(unexpected(&other)),
        };
        let shards = usize::try_from(reply.shards).unwrap_or_default();
        let families = if reply.ipv6 { 2 } else { 1 };
        if shards == 0 || fds.len() != shards * families * 3 {
            return Err(DatapathError::Protocol(format!("{} descriptors for {shards} shards", fds.len())));
        }
        let mut sockets = fds.into_iter().map(TcpListener::from);
        let empty = || (0..shards).map(|_| Vec::with_capacity(families)).collect::<Vec<Vec<TcpListener>>>();
        let (mut outbound, mut inbound, mut hbone) = (empty(), empty(), empty());
        for _ in 0..families {
            for direction in [&mut outbound, &mut inbound, &mut hbone] {
                for (shard, socket) in direction.iter_mut().zip(sockets.by_ref()) {
                    shard.push(socket);
                }
            }
        }
        Ok(PodListeners { outbound, inbound, hbone, generation: reply.listener_generation, ipv6: reply.ipv6 })
    }

    /// Gives listeners back to a restarted keeper.
    ///
    /// # Errors
    /// It has them, or they are not the pod's.
    pub fn offer_listeners(&self, uid: &str, listeners: &PodListeners) -> Result<(), DatapathError> {
        let shards = listeners.outbound.len();
        let mut fds = Vec::new();
        for family in 0..if listeners.ipv6 { 2 } else { 1 } {
            for direction in [&listeners.outbound, &listeners.inbound, &listeners.hbone] {
                fds.extend(direction.iter().filter_map(|shard| shard.get(family)).map(AsFd::as_fd));
            }
        }
        let offer = wire::OfferListeners {
            uid: uid.to_owned(),
            shards: u32::try_from(shards).unwrap_or_default(),
            ipv6: listeners.ipv6,
        };
        self.call_done(Request::OfferListeners(offer), &fds)
    }

    /// Unconnected sockets inside a pod.
    ///
    /// # Errors
    /// Unknown pod, or too many.
    pub fn make_sockets(&self, uid: &str, ipv6: bool, count: u32) -> Result<Vec<OwnedFd>, DatapathError> {
        let request = Request::MakeSockets(wire::MakeSockets { uid: uid.to_owned(), ipv6, count });
        match self.call(request, &[])? {
            (Reply::Sockets(_), fds) => Ok(fds),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Leaves a sealed memfd with the keeper.
    ///
    /// # Errors
    /// Not sealed, or too large.
    pub fn put_keys(&self, memfd: BorrowedFd<'_>) -> Result<(), DatapathError> {
        self.call_done(Request::PutKeys(wire::PutKeys {}), &[memfd])
    }

    /// The memfd left with the keeper.
    ///
    /// # Errors
    /// Not allowed.
    pub fn get_keys(&self) -> Result<Option<OwnedFd>, DatapathError> {
        match self.call(Request::GetKeys(wire::GetKeys {}), &[])? {
            (Reply::Keys(_), mut fds) => Ok(fds.pop()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Programs, maps, pods.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn inspect(&self) -> Result<wire::InspectReply, DatapathError> {
        match self.call(Request::Inspect(wire::Inspect {}), &[])? {
            (Reply::Inspect(reply), _) => Ok(reply),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Frees all pods, or (`resume`) lets them in again.
    ///
    /// # Errors
    /// Not root.
    pub fn release(&self, resume: bool) -> Result<u32, DatapathError> {
        match self.call(Request::Release(wire::Release { resume }), &[])? {
            (Reply::Release(reply), _) => Ok(reply.released),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Removes Heddle from this node; the keeper ends.
    ///
    /// # Errors
    /// Not root.
    pub fn uninstall(&self) -> Result<(), DatapathError> {
        self.call_done(Request::Uninstall(wire::Uninstall {}), &[])
    }
}

/// A number for this process, the same in all its connections.
fn instance() -> u64 {
    static INSTANCE: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    *INSTANCE
}

/// Events for an agent.
pub struct Watcher(OwnedFd);

/// Ends a [`Watcher`] on another thread when dropped.
pub struct WatchGuard(OwnedFd);

impl Drop for WatchGuard {
    fn drop(&mut self) {
        // The other end sees it too, and gives the place back.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

impl Watcher {
    /// What ends the wait from outside.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn guard(&self) -> Result<WatchGuard, DatapathError> {
        self.0.try_clone().map(WatchGuard).map_err(DatapathError::io("keeper events"))
    }

    /// The next event; `None` when the keeper is gone. Blocks.
    ///
    /// # Errors
    /// Not a packet of the protocol.
    pub fn next(&self) -> Result<Option<wire::event::Event>, DatapathError> {
        Ok(receive::<wire::Event>(self.0.as_fd())?.and_then(|(event, _)| event.event))
    }
}

/// Divides pods, each of which fits, into packets that do. A pod's own tag and length take 4 bytes at most.
fn parts(pods: Vec<wire::PodSpec>) -> Vec<Vec<wire::PodSpec>> {
    let mut parts: Vec<Vec<wire::PodSpec>> = Vec::new();
    let mut room = 0;
    for pod in pods {
        let size = pod.encoded_len() + 4;
        match parts.last_mut().filter(|_| size <= room) {
            Some(part) => part.push(pod),
            None => {
                parts.push(vec![pod]);
                room = PODS_BYTES_PER_PACKET + 4;
            }
        }
        room = room.saturating_sub(size);
    }
    parts
}

fn unexpected(reply: &Reply) -> DatapathError {
    DatapathError::Protocol(format!("unexpected reply {reply:?}"))
}

impl DatapathError {
    /// Whether the keeper said that another agent has taken over, or that we may not.
    #[must_use]
    pub const fn is_not_allowed(&self) -> bool {
        matches!(self, Self::Refused { kind: Kind::NotAllowed, .. })
    }

    /// Whether the connection to the keeper is gone, so that a new one may help.
    #[must_use]
    pub const fn is_disconnected(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Protocol(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize, exclusions: usize) -> wire::PodSpec {
        let cidrs = (0..exclusions).map(|n| format!("2001:db8:{number:x}:{n:x}::/64")).collect();
        wire::PodSpec { uid: format!("uid-{number}"), exclude_outbound_cidrs: cidrs, ..wire::PodSpec::default() }
    }

    #[test]
    fn every_part_fits_a_packet_and_none_is_lost() {
        for exclusions in [0, 10, 256, 4000] {
            let pods: Vec<_> = (0..200).map(|n| pod(n, exclusions)).collect();
            assert!(pods.iter().all(|pod| pod.encoded_len() <= PODS_BYTES_PER_PACKET), "as the caller sees to");
            let parts = parts(pods.clone());
            for part in &parts {
                let set = wire::SetPods { pods: part.clone(), last: true, unreadable: Vec::new() };
                let request = wire::Request { request: Some(Request::SetPods(set)) };
                assert!(request.encoded_len() <= PACKET_BYTES_MAX, "{} bytes", request.encoded_len());
            }
            assert_eq!(parts.concat(), pods);
        }
        assert_eq!(parts(Vec::new()), Vec::<Vec<_>>::new());
    }
}
