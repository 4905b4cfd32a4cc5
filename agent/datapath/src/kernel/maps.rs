//! The maps, typed. Writers replace whole values; readers in the kernel see the old or the new one.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, SkStorage, SockHash};
use heddle_abi::{
    ABI_VERSION, AgentSocket, EXCLUDED_CIDR_PREFIX_BITS, ExcludedCidr, ExcludedPort, Ip, ListenerKey, Meta, Pod,
    PodAddress, PodPort, Record, RecordKey, SocketAddress, direction, names,
};
use ipnet::IpNet;
use socket2::Socket;

use crate::error::DatapathError;

/// Listeners per pod, port and family, at most.
const SHARDS_MAX: u32 = 32;

/// A map key or value of the ABI crate, as aya wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Kv<T>(pub T);

macro_rules! plain_data {
    ($($name:ty),+) => {
        $(
            // SAFETY: `repr(C)` integers with explicit padding only (proved in the ABI crate): any bytes are a value.
            unsafe impl aya::Pod for Kv<$name> {}
        )+
    };
}

plain_data!(
    AgentSocket,
    ExcludedCidr,
    ExcludedPort,
    heddle_abi::Heartbeat,
    Ip,
    ListenerKey,
    Meta,
    Pod,
    PodAddress,
    PodPort,
    Record,
    RecordKey
);

/// An address as a map key.
#[must_use]
pub fn ip(address: IpAddr) -> Ip {
    match address {
        IpAddr::V4(v4) => Ip::from_octets(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Ip::from_octets(v6.octets()),
    }
}

/// An address and port as in the maps.
#[must_use]
pub fn socket_address(address: SocketAddr) -> SocketAddress {
    SocketAddress { ip: ip(address.ip()), port: u32::from(address.port()) }
}

/// A map key as an address.
#[must_use]
pub fn ip_addr(ip: Ip) -> IpAddr {
    Ipv6Addr::from(ip.octets()).to_canonical()
}

/// One entry of enrolment in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// Its flags.
    pub flags: u32,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Name.
    pub name: &'static str,
    /// Kernel id.
    pub id: u32,
    /// Entries in use; socket storages count 0 (they live in their sockets).
    pub entries: u64,
    /// Capacity.
    pub max_entries: u64,
}

/// All maps the keeper writes.
pub struct Maps {
    meta: Array<MapData, Kv<Meta>>,
    pods: HashMap<MapData, u64, Kv<Pod>>,
    addresses: HashMap<MapData, Kv<Ip>, Kv<PodAddress>>,
    listeners: SockHash<MapData, Kv<ListenerKey>>,
    records: HashMap<MapData, Kv<RecordKey>, Kv<Record>>,
    agent_sockets: SkStorage<MapData, Kv<AgentSocket>>,
    excluded_ports: HashMap<MapData, Kv<ExcludedPort>, u32>,
    excluded_cidrs: LpmTrie<MapData, Kv<ExcludedCidr>, u32>,
    port_modes: HashMap<MapData, Kv<PodPort>, u32>,
    heartbeat: Array<MapData, Kv<heddle_abi::Heartbeat>>,
}

fn pinned(dir: &Path, name: &str) -> Result<MapData, DatapathError> {
    let path = dir.join(name);
    MapData::from_pin(&path).map_err(DatapathError::kernel(format!("open {}", path.display())))
}

macro_rules! typed {
    ($dir:expr, $name:expr, $kind:ident) => {
        Map::$kind(pinned($dir, $name)?).try_into().map_err(DatapathError::kernel(format!("map {}", $name)))?
    };
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// One is missing or of another shape.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            meta: typed!(dir, names::META, Array),
            pods: typed!(dir, names::PODS, HashMap),
            addresses: typed!(dir, names::ADDRESSES, HashMap),
            listeners: typed!(dir, names::LISTENERS, SockHash),
            records: typed!(dir, names::RECORDS, HashMap),
            agent_sockets: typed!(dir, names::AGENT_SOCKETS, SkStorage),
            excluded_ports: typed!(dir, names::EXCLUDED_PORTS, HashMap),
            excluded_cidrs: typed!(dir, names::EXCLUDED_CIDRS, LpmTrie),
            port_modes: typed!(dir, names::PORT_MODES, HashMap),
            heartbeat: typed!(dir, names::HEARTBEAT, Array),
        })
    }

    /// The version in the pinned meta map.
    pub(super) fn read_abi_version(dir: &Path) -> Result<u32, DatapathError> {
        let meta: Array<MapData, Kv<Meta>> = typed!(dir, names::META, Array);
        Ok(meta.get(&0, 0).map_err(DatapathError::kernel("read the ABI version"))?.0.abi_version)
    }

    pub(super) fn write_meta(&mut self) -> Result<(), DatapathError> {
        let meta = Kv(Meta { abi_version: ABI_VERSION, reserved: 0 });
        self.meta.set(0, meta, 0).map_err(DatapathError::kernel("write the ABI version"))
    }

    /// The agent's last sign of life.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heartbeat(&self) -> Result<heddle_abi::Heartbeat, DatapathError> {
        Ok(self.heartbeat.get(&0, 0).map_err(DatapathError::kernel("read the heartbeat"))?.0)
    }

    /// Makes a socket known as the agent's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mark(&mut self, socket: &Socket, role: u32) -> Result<(), DatapathError> {
        let value = Kv(AgentSocket { role, ..AgentSocket::default() });
        self.agent_sockets.insert(socket, value, 0).map_err(DatapathError::kernel("mark a socket as the agent's"))
    }

    /// The role of a socket, if it is the agent's.
    #[must_use]
    pub fn role(&self, socket: &impl AsRawFd) -> Option<u32> {
        self.agent_sockets.get(socket, 0).ok().map(|value| value.0.role)
    }

    /// Starts (or changes) outbound capture of a namespace.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn set_pod(&mut self, netns_cookie: u64, pod: Pod) -> Result<(), DatapathError> {
        self.pods.insert(netns_cookie, Kv(pod), 0).map_err(DatapathError::kernel("enrol in the pods map"))
    }

    /// Ends outbound capture of a namespace.
    ///
    /// # Errors
    /// The kernel refuses (not: there was none).
    pub fn remove_pod(&mut self, netns_cookie: u64) -> Result<(), DatapathError> {
        absent_is_fine(self.pods.remove(&netns_cookie), "release from the pods map")
    }

    /// Pods captured now.
    #[must_use]
    pub fn pods(&self) -> Vec<Entry> {
        self.pods
            .iter()
            .filter_map(Result::ok)
            .map(|(netns_cookie, pod)| Entry { netns_cookie, flags: pod.0.flags })
            .collect()
    }

    /// Says whose an address is.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn set_address(&mut self, address: IpAddr, value: PodAddress) -> Result<(), DatapathError> {
        self.addresses
            .insert(Kv(ip(address)), Kv(value), 0)
            .map_err(DatapathError::kernel(format!("address {address} in the addresses map")))
    }

    /// Whose an address is.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<PodAddress> {
        self.addresses.get(&Kv(ip(address)), 0).ok().map(|value| value.0)
    }

    /// Forgets an address if it is still this namespace's: a successor may have it already.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_address(&mut self, address: IpAddr, netns_cookie: u64) -> Result<(), DatapathError> {
        if self.address(address).is_some_and(|value| value.netns_cookie != netns_cookie) {
            return Ok(());
        }
        absent_is_fine(self.addresses.remove(&Kv(ip(address))), "release from the addresses map")?;
        for port in [heddle_abi::INBOUND_PORT, heddle_abi::HBONE_PORT] {
            for shard in 0..SHARDS_MAX {
                let key = Kv(ListenerKey { ip: ip(address), port: u32::from(port), shard });
                absent_is_fine(self.listeners.remove(&key), "release from the listeners map")?;
            }
        }
        Ok(())
    }

    /// All addresses with their namespaces.
    #[must_use]
    pub fn addresses(&self) -> Vec<(IpAddr, u64)> {
        self.addresses
            .iter()
            .filter_map(Result::ok)
            .map(|(address, value)| (ip_addr(address.0), value.0.netns_cookie))
            .collect()
    }

    /// Sets one listener of an address; `port` is the inbound or the HBONE port.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn set_listener(
        &mut self,
        address: IpAddr,
        port: u16,
        shard: u32,
        listener: &Socket,
    ) -> Result<(), DatapathError> {
        self.listeners
            .insert(Kv(ListenerKey { ip: ip(address), port: u32::from(port), shard }), listener.as_raw_fd(), 0)
            .map_err(DatapathError::kernel(format!("listener {port} of {address} in the listeners map")))
    }

    /// Leaves a port out of capture.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn exclude_port(&mut self, netns_cookie: u64, direction: u32, port: u16) -> Result<(), DatapathError> {
        let key = Kv(ExcludedPort { netns_cookie, direction, port: u32::from(port) });
        self.excluded_ports.insert(key, 1, 0).map_err(DatapathError::kernel(format!("exclude port {port}")))
    }

    /// Leaves a CIDR out of outbound capture.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn exclude_cidr(&mut self, netns_cookie: u64, cidr: IpNet) -> Result<(), DatapathError> {
        self.excluded_cidrs
            .insert(&cidr_key(netns_cookie, cidr), 1, 0)
            .map_err(DatapathError::kernel(format!("exclude {cidr}")))
    }

    /// Forgets all exclusions of a namespace but those given.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn retain_exclusions(
        &mut self,
        netns_cookie: u64,
        keep_port: impl Fn(u32, u16) -> bool,
        keep_cidr: impl Fn(IpNet) -> bool,
    ) -> Result<(), DatapathError> {
        let ports: Vec<_> = self.excluded_ports.keys().filter_map(Result::ok).collect();
        for key in ports {
            let port = u16::try_from(key.0.port).unwrap_or_default();
            if key.0.netns_cookie == netns_cookie && !keep_port(key.0.direction, port) {
                absent_is_fine(self.excluded_ports.remove(&key), "forget an excluded port")?;
            }
        }
        let cidrs: Vec<_> = self.excluded_cidrs.keys().filter_map(Result::ok).collect();
        for key in cidrs {
            let data = key.data().0;
            if data.netns_cookie == netns_cookie && !cidr_of(&key).is_some_and(&keep_cidr) {
                absent_is_fine(self.excluded_cidrs.remove(&key), "forget an excluded CIDR")?;
            }
        }
        Ok(())
    }

    /// Forgets the exclusions of all namespaces but those given.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn retain_exclusions_of(&mut self, keep: impl Fn(u64) -> bool) -> Result<(), DatapathError> {
        let ports: Vec<_> = self.excluded_ports.keys().filter_map(Result::ok).collect();
        for key in ports.iter().filter(|key| !keep(key.0.netns_cookie)) {
            absent_is_fine(self.excluded_ports.remove(key), "forget an excluded port")?;
        }
        let cidrs: Vec<_> = self.excluded_cidrs.keys().filter_map(Result::ok).collect();
        // One that does not say whose it is would be everybody's.
        let kept = |key: &Key<Kv<ExcludedCidr>>| cidr_of(key).is_some() && keep({ key.data() }.0.netns_cookie);
        for key in cidrs.iter().filter(|key| !kept(key)) {
            absent_is_fine(self.excluded_cidrs.remove(key), "forget an excluded CIDR")?;
        }
        Ok(())
    }

    /// Says of one port whether it is STRICT ([`heddle_abi::port_mode`]); false if the map is full.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_port_mode(&mut self, netns_cookie: u64, port: u16, mode: u32) -> Result<bool, DatapathError> {
        let key = Kv(PodPort { netns_cookie, port: u32::from(port), reserved: 0 });
        match self.port_modes.insert(key, mode, 0) {
            Ok(()) => Ok(true),
            Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Ok(false)
            }
            Err(error) => Err(DatapathError::kernel(format!("mode of port {port}"))(error)),
        }
    }

    /// Forgets what is said of ports but those given, by namespace and port.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn retain_port_modes(&mut self, keep: impl Fn(u64, u16) -> bool) -> Result<(), DatapathError> {
        let keys: Vec<_> = self.port_modes.keys().filter_map(Result::ok).take(heddle_abi::PORT_MODES_MAX).collect();
        let kept = |key: &Kv<PodPort>| {
            key.0.reserved == 0 && u16::try_from(key.0.port).is_ok_and(|port| keep(key.0.netns_cookie, port))
        };
        for key in keys.iter().filter(|key| !kept(key)) {
            absent_is_fine(self.port_modes.remove(key), "forget the mode of a port")?;
        }
        Ok(())
    }

    /// Forgets the listeners of all addresses but those given: one in the map lives on without any descriptor.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn retain_listeners(&mut self, keep: impl Fn(IpAddr) -> bool) -> Result<(), DatapathError> {
        let keys: Vec<_> = self.listeners.keys().filter_map(Result::ok).take(heddle_abi::LISTENERS_MAX).collect();
        for key in keys.iter().filter(|key| !keep(ip_addr(key.0.ip))) {
            absent_is_fine(self.listeners.remove(key), "forget a listener")?;
        }
        Ok(())
    }

    /// How full the maps are.
    #[must_use]
    pub fn usage(&self) -> Vec<MapInfo> {
        fn info<T>(name: &'static str, map: Result<T, aya::maps::MapError>, entries: usize, max: usize) -> MapInfo
        where
            T: Into<u32>,
        {
            let id = map.map(Into::into).unwrap_or_default();
            MapInfo { name, id, entries: entries as u64, max_entries: max as u64 }
        }
        fn id<M: AsMapData>(map: &M) -> Result<u32, aya::maps::MapError> {
            map.data().info().map(|info| info.id())
        }
        vec![
            info(names::PODS, id(&self.pods), self.pods.keys().count(), heddle_abi::PODS_MAX),
            info(names::ADDRESSES, id(&self.addresses), self.addresses.keys().count(), heddle_abi::POD_ADDRESSES_MAX),
            info(names::LISTENERS, id(&self.listeners), self.listeners.keys().count(), heddle_abi::LISTENERS_MAX),
            // Entries come and go while they are counted, and counting starts again where one went: bounded.
            info(
                names::RECORDS,
                id(&self.records),
                self.records.keys().take(heddle_abi::RECORDS_MAX).count(),
                heddle_abi::RECORDS_MAX,
            ),
            info(
                names::EXCLUDED_PORTS,
                id(&self.excluded_ports),
                self.excluded_ports.keys().count(),
                heddle_abi::EXCLUDED_PORTS_MAX,
            ),
            info(
                names::EXCLUDED_CIDRS,
                id(&self.excluded_cidrs),
                self.excluded_cidrs.keys().count(),
                heddle_abi::EXCLUDED_CIDRS_MAX,
            ),
            info(names::PORT_MODES, id(&self.port_modes), self.port_modes.keys().count(), heddle_abi::PORT_MODES_MAX),
        ]
    }
}

/// Directions, for callers outside the ABI crate.
pub const OUTBOUND: u32 = direction::OUTBOUND;
/// See [`OUTBOUND`].
pub const INBOUND: u32 = direction::INBOUND;

fn cidr_key(netns_cookie: u64, cidr: IpNet) -> Key<Kv<ExcludedCidr>> {
    let (family, bits) = match cidr {
        IpNet::V4(v4) => (4, 96 + u32::from(v4.prefix_len())),
        IpNet::V6(v6) => (6, u32::from(v6.prefix_len())),
    };
    let data = ExcludedCidr { netns_cookie, family, network: ip(cidr.network()).octets() };
    Key::new(EXCLUDED_CIDR_PREFIX_BITS + bits, Kv(data))
}

fn cidr_of(key: &Key<Kv<ExcludedCidr>>) -> Option<IpNet> {
    let data = key.data().0;
    excluded_cidr(key.prefix_len(), data.family, data.network)
}

/// The CIDR of an LPM key, if it is one that a pod could have asked for.
#[must_use]
pub fn excluded_cidr(prefix_bits: u32, family: u32, network: [u8; 16]) -> Option<IpNet> {
    let bits = u8::try_from(prefix_bits.checked_sub(EXCLUDED_CIDR_PREFIX_BITS)?).ok()?;
    let network = Ipv6Addr::from(network);
    match family {
        4 => IpNet::new(network.to_ipv4_mapped()?.into(), bits.checked_sub(96)?).ok(),
        6 => IpNet::new(network.into(), bits).ok(),
        _ => None,
    }
}

fn absent_is_fine(result: Result<(), aya::maps::MapError>, what: &str) -> Result<(), DatapathError> {
    use aya::maps::MapError;
    match result {
        Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DatapathError::kernel(what)(error)),
    }
}

/// The map behind a typed view.
trait AsMapData {
    fn data(&self) -> &MapData;
}

impl<K: aya::Pod, V: aya::Pod> AsMapData for HashMap<MapData, K, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

impl<K: aya::Pod, V: aya::Pod> AsMapData for LpmTrie<MapData, K, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

impl<K: aya::Pod> AsMapData for SockHash<MapData, K> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cidr_comes_back_as_it_went_and_families_do_not_mix() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/8", "2001:db8::1/128", "::ffff:0:0/96"] {
            let cidr: IpNet = text.parse().expect("a CIDR");
            assert_eq!(cidr_of(&cidr_key(7, cidr)), Some(cidr), "{text}");
        }
        let (v4, v6) = (cidr_key(7, "0.0.0.0/0".parse().expect("v4")), cidr_key(7, "::/0".parse().expect("v6")));
        assert_ne!((v4.data().0.family, v4.prefix_len()), (v6.data().0.family, v6.prefix_len()));
    }

    proptest! {
        #[test]
        fn any_bytes_in_a_map_are_an_entry_or_none(prefix: u32, family in 0u32..8, network: [u8; 16], words: [u32; 4]) {
            let _ = cidr_of(&Key::new(prefix, Kv(ExcludedCidr { netns_cookie: 1, family, network })));
            let address = ip_addr(Ip(words));
            prop_assert_eq!(ip_addr(ip(address)), address);
        }
    }
}
