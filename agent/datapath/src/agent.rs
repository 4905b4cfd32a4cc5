//! What an agent does with the map fds it was handed, without any capability: beat, publish true clients, read counters.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::maps::{Array, Map, MapData, PerCpuArray, SkStorage};
use heddle_abi::{AgentSocket, Counter, Heartbeat, agent_flags, agent_role};
use nix::time::{ClockId, clock_gettime};

use crate::error::DatapathError;
use crate::kernel::{Kv, socket_address};
use crate::sys;

/// The agent's sign of life.
pub struct HeartbeatWriter(Array<MapData, Kv<Heartbeat>>);

/// Tells applications who their clients are. Shared by all workers: one system call, no lock.
pub struct ClientPublisher(OwnedFd);

/// Reads what the programs counted.
pub struct CounterReader(PerCpuArray<MapData, u64>);

fn map(fd: OwnedFd, what: &str) -> Result<MapData, DatapathError> {
    MapData::from_fd(fd).map_err(DatapathError::kernel(format!("{what} map from the keeper")))
}

impl HeartbeatWriter {
    /// Wraps the fd from the keeper.
    ///
    /// # Errors
    /// It is not that map.
    pub fn new(fd: OwnedFd) -> Result<Self, DatapathError> {
        let map = Map::Array(map(fd, "heartbeat")?);
        Ok(Self(map.try_into().map_err(DatapathError::kernel("heartbeat map"))?))
    }

    /// Writes one beat and returns it. The interval must be well below [`heddle_abi::heartbeat::THRESHOLD_NS`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn beat(&mut self) -> Result<Heartbeat, DatapathError> {
        let last = self.0.get(&0, 0).map_err(DatapathError::kernel("read the heartbeat"))?.0;
        let next = last.next(monotonic_ns()?);
        self.0.set(0, Kv(next), 0).map_err(DatapathError::kernel("write the heartbeat"))?;
        Ok(next)
    }
}

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
///
/// # Errors
/// Never on Linux.
pub fn monotonic_ns() -> Result<u64, DatapathError> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(DatapathError::errno("clock"))?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or_default()))
}

impl ClientPublisher {
    /// Wraps the fd from the keeper.
    ///
    /// # Errors
    /// It is not that map.
    pub fn new(fd: OwnedFd) -> Result<Self, DatapathError> {
        let duplicate = fd.try_clone().map_err(DatapathError::io("agent-socket map"))?;
        let checked: Result<SkStorage<MapData, Kv<AgentSocket>>, _> =
            Map::SkStorage(map(duplicate, "agent-socket")?).try_into();
        checked.map_err(DatapathError::kernel("agent-socket map"))?;
        Ok(Self(fd))
    }

    /// Makes `getpeername()` of the socket that will accept this connection say `client`. Before `connect()`.
    ///
    /// # Errors
    /// The kernel refuses: the connection must not be made.
    pub fn publish(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        let value = Kv(AgentSocket {
            role: agent_role::UPSTREAM,
            flags: agent_flags::HAS_ADDRESS,
            address: socket_address(client),
        });
        sys::map_update(self.0.as_fd(), &socket.as_raw_fd(), &value)
    }
}

impl CounterReader {
    /// Wraps the (read-only) fd from the keeper.
    ///
    /// # Errors
    /// It is not that map.
    pub fn new(fd: OwnedFd) -> Result<Self, DatapathError> {
        let map = Map::PerCpuArray(map(fd, "counters")?);
        Ok(Self(map.try_into().map_err(DatapathError::kernel("counters map"))?))
    }

    /// All counters, summed over CPUs, with the words of [`Counter::as_str`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&self) -> Result<Vec<(&'static str, u64)>, DatapathError> {
        Counter::ALL
            .iter()
            .map(|&counter| {
                let values = self.0.get(&(counter as u32), 0).map_err(DatapathError::kernel("read the counters"))?;
                Ok((counter.as_str(), values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value))))
            })
            .collect()
    }
}
