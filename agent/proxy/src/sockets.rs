//! What the data plane needs from whoever can enter a pod's network namespace: listeners, sockets, and the kernel's ear.
//!
//! Owned by the consumer (DESIGN §3): the binary implements it over the keeper, tests over plain loopback sockets.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;

use heddle_identity::Lease;
use heddle_model::{ClientAddr, Family, PodUid};

/// A socket to come.
pub type SocketFuture<'a> = Pin<Box<dyn Future<Output = Result<OwnedFd, SocketError>> + Send + 'a>>;

/// Hands out sockets of pods' network namespaces. Called on worker threads: it must not block.
pub trait SocketSource: Send + Sync + 'static {
    /// An unconnected TCP socket of `family` in the pod's network namespace, if one is at hand: non-blocking, close-on-exec,
    /// `SO_LINGER {on, 0}` (so that an agent that is killed resets, never ends cleanly). `worker` lets an implementation keep a
    /// pool per worker.
    fn try_take(&self, worker: usize, pod: &PodUid, family: Family) -> Option<OwnedFd>;

    /// The same when [`SocketSource::try_take`] had none: waits for the pool to be filled. The caller bounds the wait and may
    /// drop the future at any point.
    fn take<'a>(&'a self, worker: usize, pod: &'a PodUid, family: Family) -> SocketFuture<'a>;

    /// Tells the kernel who the client of this not yet connected socket truly is, so that the application it will reach sees
    /// that address.
    ///
    /// # Errors
    /// If the kernel did not take it; the connection is then refused rather than shown with a wrong address.
    fn publish_client(&self, socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()>;
}

/// Why there is no socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The pod was released or deleted.
    #[error("the pod is not enrolled")]
    PodGone,
    /// The pod's network namespace does not speak this family.
    #[error("the pod's network namespace has no {}", family_name(.0))]
    NoFamily(Family),
    /// The keeper does not answer or could not make one.
    #[error("the keeper could not make a socket: {0}")]
    Keeper(String),
}

fn family_name(family: &Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The listeners of one pod.
pub struct PodListeners {
    /// Whose.
    pub uid: PodUid,
    /// The pod's addresses, used until the snapshot knows the pod.
    pub addresses: Vec<IpAddr>,
    /// Its identity, where the agent has any ([`crate::Identity`]): kept fresh as long as connections of the pod may need it.
    pub identity: Option<Lease>,
    /// Members of the SO_REUSEPORT groups. Shard `i` goes to worker `i mod workers`: every one is served, however many there
    /// are.
    pub shards: Vec<ShardListeners>,
}

/// One member of each of a pod's SO_REUSEPORT groups: IPv4 and IPv6 where the pod has them.
#[derive(Default)]
pub struct ShardListeners {
    /// Port 15001.
    pub outbound: Vec<TcpListener>,
    /// Port 15006.
    pub inbound: Vec<TcpListener>,
    /// Port 15008 (HBONE).
    pub hbone: Vec<TcpListener>,
}

impl fmt::Debug for PodListeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodListeners({}, {} shards)", self.uid, self.shards.len())
    }
}
