//! Carries one action out, step by step; when a step fails, what was done is undone in reverse.
//!
//! The steps are a trait so that a fake kernel can fail at each of them. What the fake cannot prove: that the kernel
//! itself accepts the programs and addresses; the suites under `tests/netns` do.

use std::net::IpAddr;

use heddle_abi::{Pod, PodAddress, agent_role, pod_flags, port_mode};
use socket2::Socket;

use super::PodSpec;
use crate::error::DatapathError;
use crate::kernel::{INBOUND, Kernel, OUTBOUND, ip};
use crate::netns::{self, Netns, Probe};

/// IPv4 or IPv6 sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The listeners of one pod and family, one of each per worker shard.
#[derive(Debug)]
pub struct Listeners<S = Socket> {
    /// On 15001.
    pub outbound: Vec<S>,
    /// On 15006.
    pub inbound: Vec<S>,
    /// On 15008.
    pub hbone: Vec<S>,
}

impl<S> Listeners<S> {
    /// All of them, in the order of the protocol.
    pub fn all(&self) -> impl Iterator<Item = &S> {
        self.outbound.iter().chain(&self.inbound).chain(&self.hbone)
    }
}

/// One pod that is in: every fd into its namespace hangs here and goes with it.
#[derive(Debug)]
pub struct Enrolled<N = Netns, S = Socket> {
    /// With what.
    pub spec: PodSpec,
    /// Its namespace.
    pub netns: N,
    /// Cookie of the namespace.
    pub netns_cookie: u64,
    /// Addresses of the namespace beside the spec's (a second network, say): captured as well.
    pub extra: Vec<IpAddr>,
    /// IPv4 listeners; `None` while a restarted keeper waits for the agent to give them back.
    pub v4: Option<Listeners<S>>,
    /// IPv6 listeners, if the namespace has IPv6.
    pub v6: Option<Listeners<S>>,
    /// Changes when listeners are made anew.
    pub listener_generation: u64,
}

impl<N, S> Enrolled<N, S> {
    /// Every address under which the pod is captured inbound.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let extra = self.extra.iter().filter(|address| !self.spec.addresses.contains(address));
        self.spec.addresses.iter().chain(extra).copied()
    }

    fn listeners(&self, address: IpAddr) -> Option<&Listeners<S>> {
        if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// What the executor asks of the kernel.
pub trait Steps {
    /// An open namespace.
    type Netns;
    /// A listening socket.
    type Listener;

    /// Makes `shards` listeners of each direction. In a pod that is not enrolled yet an application may have an agent
    /// port already: looked for on every address.
    ///
    /// # Errors
    /// A port is taken, or the family is not there.
    fn listen(
        &mut self,
        netns: &Self::Netns,
        family: Family,
        shards: usize,
        probe: Probe,
    ) -> Result<Listeners<Self::Listener>, DatapathError>;
    /// Addresses of the namespace that no other one has.
    ///
    /// # Errors
    /// It cannot be entered.
    fn local_addresses(&mut self, netns: &Self::Netns, netns_cookie: u64) -> Result<Vec<IpAddr>, DatapathError>;
    /// Sets one listener of an address for connections from outside; `port` is the inbound or the HBONE port.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_listener(
        &mut self,
        address: IpAddr,
        port: u16,
        shard: u32,
        listener: &Self::Listener,
    ) -> Result<(), DatapathError>;
    /// Makes the exclusions of a namespace those of `spec`; with `None`, none.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_exclusions(&mut self, netns_cookie: u64, spec: Option<&PodSpec>) -> Result<(), DatapathError>;
    /// Says of one port whether it is STRICT ([`port_mode`]); false if there is no room for it.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_port_mode(&mut self, netns_cookie: u64, port: u16, mode: u32) -> Result<bool, DatapathError>;
    /// Forgets what is said of a namespace's ports but those given.
    ///
    /// # Errors
    /// The kernel refuses.
    fn retain_port_modes(&mut self, netns_cookie: u64, keep: impl Fn(u16) -> bool) -> Result<(), DatapathError>;
    /// Says whose an address is.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_address(&mut self, address: IpAddr, value: PodAddress) -> Result<(), DatapathError>;
    /// Forgets an address and its listener, if they are this namespace's.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_address(&mut self, address: IpAddr, netns_cookie: u64) -> Result<(), DatapathError>;
    /// Starts inbound capture.
    ///
    /// # Errors
    /// The kernel refuses.
    fn attach_lookup(&mut self, netns: &Self::Netns) -> Result<(), DatapathError>;
    /// Ends inbound capture.
    ///
    /// # Errors
    /// The kernel refuses.
    fn detach_lookup(&mut self, netns_cookie: u64) -> Result<(), DatapathError>;
    /// Starts outbound capture.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_pod(&mut self, netns_cookie: u64, pod: Pod) -> Result<(), DatapathError>;
    /// Ends outbound capture.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_pod(&mut self, netns_cookie: u64) -> Result<(), DatapathError>;
}

/// Enrols, updates and releases through [`Steps`].
pub struct Executor<'a, K: Steps> {
    /// The kernel, or a fake.
    pub kernel: &'a mut K,
    /// Listeners per direction and family.
    pub shards: usize,
}

impl<K: Steps> Executor<'_, K> {
    /// Puts a pod in. On failure nothing of it is left.
    ///
    /// # Errors
    /// The step that failed, with its object.
    pub fn enrol(
        &mut self,
        spec: PodSpec,
        netns: K::Netns,
        netns_cookie: u64,
        listener_generation: u64,
        probe: Probe,
    ) -> Result<Enrolled<K::Netns, K::Listener>, DatapathError> {
        let (v4, v6) = self.listen(&spec, &netns, probe)?;
        let extra = self.kernel.local_addresses(&netns, netns_cookie)?;
        let enrolled = Enrolled { spec, netns, netns_cookie, extra, v4, v6, listener_generation };
        match self.install(&enrolled) {
            Ok(()) => Ok(enrolled),
            Err(error) => {
                for left in self.release(&enrolled) {
                    tracing::error!(pod = enrolled.spec.display(), error = %left, "undo");
                }
                Err(error)
            }
        }
    }

    /// Changes what a pod is enrolled with. On failure it stays enrolled as it was.
    ///
    /// # Errors
    /// The step that failed.
    pub fn update(&mut self, pod: &mut Enrolled<K::Netns, K::Listener>, spec: PodSpec) -> Result<(), DatapathError> {
        let before: Vec<IpAddr> = pod.addresses().collect();
        let extra = self.kernel.local_addresses(&pod.netns, pod.netns_cookie)?;
        let old = (std::mem::replace(&mut pod.spec, spec), std::mem::replace(&mut pod.extra, extra));
        if let Err(error) = self.install(pod) {
            (pod.spec, pod.extra) = old;
            self.install(pod)?;
            return Err(error);
        }
        let now: Vec<IpAddr> = pod.addresses().collect();
        for address in before.into_iter().filter(|address| !now.contains(address)) {
            self.kernel.remove_address(address, pod.netns_cookie)?;
        }
        Ok(())
    }

    /// Makes the listeners of an enrolled pod anew (a restarted keeper to which no agent gave them back).
    ///
    /// # Errors
    /// The step that failed; the pod is then still without.
    pub fn relisten(&mut self, pod: &mut Enrolled<K::Netns, K::Listener>) -> Result<(), DatapathError> {
        (pod.v4, pod.v6) = self.listen(&pod.spec, &pod.netns, Probe::Nothing)?;
        self.install(pod).inspect_err(|_| (pod.v4, pod.v6) = (None, None))
    }

    /// Listeners of both families; a family the pod has no address of may be missing.
    #[allow(clippy::type_complexity, reason = "the pair of families, named by its uses")]
    fn listen(
        &mut self,
        spec: &PodSpec,
        netns: &K::Netns,
        probe: Probe,
    ) -> Result<(Option<Listeners<K::Listener>>, Option<Listeners<K::Listener>>), DatapathError> {
        let mut both = Vec::with_capacity(2);
        for (family, needed) in [
            (Family::V4, spec.addresses.iter().any(IpAddr::is_ipv4)),
            (Family::V6, spec.addresses.iter().any(IpAddr::is_ipv6)),
        ] {
            both.push(match self.kernel.listen(netns, family, self.shards, probe) {
                Ok(listeners) => Some(listeners),
                Err(error) if needed || is_address_in_use(&error) => return Err(error),
                Err(_) => None,
            });
        }
        let v6 = both.pop().flatten();
        Ok((both.pop().flatten(), v6))
    }

    /// Makes an enrolled pod's state in the kernel what its spec says. Outbound capture comes last: everything it
    /// needs is there by then.
    ///
    /// # Errors
    /// The step that failed.
    pub fn install(&mut self, pod: &Enrolled<K::Netns, K::Listener>) -> Result<(), DatapathError> {
        let cookie = pod.netns_cookie;
        let mut flags = flags(&pod.spec, pod.v6.is_some());
        self.kernel.set_exclusions(cookie, Some(&pod.spec))?;
        // What is STRICT before and after is so at every moment between: closed first, opened last.
        if !self.close_ports(pod)? {
            flags |= pod_flags::STRICT;
        }
        for address in pod.addresses() {
            // While a restarted keeper waits for its listeners, those in the map go on.
            // An address of a family without a listener is refused by the program, which does not know it.
            let Some(Listeners { inbound, hbone, .. }) = pod.listeners(address) else {
                continue;
            };
            for (port, group) in [(heddle_abi::INBOUND_PORT, inbound), (heddle_abi::HBONE_PORT, hbone)] {
                for (shard, listener) in (0..).zip(group) {
                    self.kernel.set_listener(address, port, shard, listener)?;
                }
            }
            let shards = u32::try_from(inbound.len()).unwrap_or(1);
            self.kernel.set_address(address, PodAddress { netns_cookie: cookie, flags, shards })?;
        }
        self.open_ports(pod)?;
        self.kernel.attach_lookup(&pod.netns)?;
        self.kernel.set_pod(cookie, pod_value(&pod.spec, flags))
    }

    /// Sets the STRICT ports of a pod whose others are not. Says whether they fit.
    fn close_ports(&mut self, pod: &Enrolled<K::Netns, K::Listener>) -> Result<bool, DatapathError> {
        let ports = if pod.spec.strict { &[][..] } else { &pod.spec.strict_except };
        let mut fit = true;
        for &port in ports {
            // All of them, even after one that does not fit: the entry that another has may say that it is open.
            fit &= self.kernel.set_port_mode(pod.netns_cookie, port, port_mode::STRICT)?;
        }
        if !fit {
            tracing::warn!(pod = pod.spec.display(), "the map of port modes is full: all ports are STRICT");
        }
        Ok(fit)
    }

    /// Sets the ports that are not STRICT of a pod whose others are, as far as they fit, and forgets what is said of
    /// any other.
    fn open_ports(&mut self, pod: &Enrolled<K::Netns, K::Listener>) -> Result<(), DatapathError> {
        self.kernel.retain_port_modes(pod.netns_cookie, |port| pod.spec.strict_except.contains(&port))?;
        let ports = if pod.spec.strict { &pod.spec.strict_except[..] } else { &[] };
        for &port in ports {
            if !self.kernel.set_port_mode(pod.netns_cookie, port, port_mode::LENIENT)? {
                tracing::warn!(pod = pod.spec.display(), port, "the map of port modes is full: this port is STRICT");
            }
        }
        Ok(())
    }

    /// Takes a pod out: outbound capture first, then inbound, then the rest. Goes on after a failed step (there is
    /// nothing better to do) and returns the failures. The caller drops the value, and with it every fd.
    pub fn release(&mut self, pod: &Enrolled<K::Netns, K::Listener>) -> Vec<DatapathError> {
        let cookie = pod.netns_cookie;
        let mut results = vec![self.kernel.remove_pod(cookie), self.kernel.detach_lookup(cookie)];
        for address in pod.addresses() {
            results.push(self.kernel.remove_address(address, cookie));
        }
        results.push(self.kernel.set_exclusions(cookie, None));
        results.push(self.kernel.retain_port_modes(cookie, |_| false));
        results.into_iter().filter_map(Result::err).collect()
    }
}

fn is_address_in_use(error: &DatapathError) -> bool {
    matches!(error, DatapathError::Io { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
}

fn flags(spec: &PodSpec, has_v6_listener: bool) -> u32 {
    let bits = [
        (spec.fail_open, pod_flags::FAIL_OPEN),
        (!spec.exclude_outbound_ports.is_empty(), pod_flags::EXCLUDES_OUTBOUND_PORTS),
        (!spec.exclude_outbound_cidrs.is_empty(), pod_flags::EXCLUDES_CIDRS),
        (!spec.exclude_inbound_ports.is_empty(), pod_flags::EXCLUDES_INBOUND_PORTS),
        (!has_v6_listener, pod_flags::NO_IPV6_LISTENER),
        (spec.hbone, pod_flags::HBONE),
        (spec.strict, pod_flags::STRICT),
    ];
    bits.iter().filter(|(set, _)| *set).fold(0, |flags, (_, bit)| flags | bit)
}

fn pod_value(spec: &PodSpec, flags: u32) -> Pod {
    let first = |v4: bool| spec.addresses.iter().copied().find(|a| a.is_ipv4() == v4).map(ip);
    Pod { flags, ip4: first(true).map_or(0, |ip| ip.0[3]), ip6: first(false).unwrap_or_default() }
}

/// Why a port could not be had, for the operator.
fn taken(ipv6: bool, port: u16, source: std::io::Error) -> DatapathError {
    let what = if source.kind() == std::io::ErrorKind::AddrInUse {
        format!("an application in this pod uses port {port}, which Heddle needs: move it to another port")
    } else if ipv6 && source.kind() == std::io::ErrorKind::AddrNotAvailable {
        format!(
            "listen on [::1]:{port} in the pod's network namespace: its loopback has no IPv6 address; set \
             net.ipv6.conf.lo.disable_ipv6=0 there, or give the pod IPv4 addresses only"
        )
    } else {
        format!("listen on port {port} in the pod's network namespace")
    };
    DatapathError::Io { what, source }
}

impl Steps for Kernel {
    type Netns = Netns;
    type Listener = Socket;

    fn listen(
        &mut self,
        netns: &Netns,
        family: Family,
        shards: usize,
        probe: Probe,
    ) -> Result<Listeners, DatapathError> {
        let ipv6 = family == Family::V6;
        let maps = &mut self.maps;
        let mut one_port = |port: u16, role: u32| -> Result<Vec<Socket>, DatapathError> {
            let result = netns.within(|| {
                netns::probe_port_free(probe, ipv6, port, |s| maps.mark(s, role).map_err(std::io::Error::other))?;
                (0..shards)
                    .map(|_| netns::listen(ipv6, port, |s| maps.mark(s, role).map_err(std::io::Error::other)))
                    .collect()
            });
            result.map_err(|source| taken(ipv6, port, source))
        };
        Ok(Listeners {
            outbound: one_port(heddle_abi::OUTBOUND_PORT, agent_role::OUTBOUND)?,
            inbound: one_port(heddle_abi::INBOUND_PORT, agent_role::INBOUND)?,
            hbone: one_port(heddle_abi::HBONE_PORT, agent_role::HBONE)?,
        })
    }

    fn local_addresses(&mut self, netns: &Netns, netns_cookie: u64) -> Result<Vec<IpAddr>, DatapathError> {
        let all = netns.addresses().map_err(DatapathError::io("addresses of the pod's network namespace"))?;
        // An address that another pod is enrolled with stays that pod's: overlapping second networks.
        let free = |address: &IpAddr| self.maps.address(*address).is_none_or(|a| a.netns_cookie == netns_cookie);
        Ok(all.into_iter().filter(free).collect())
    }

    fn set_listener(&mut self, address: IpAddr, port: u16, shard: u32, listener: &Socket) -> Result<(), DatapathError> {
        self.maps.set_listener(address, port, shard, listener)
    }

    fn set_exclusions(&mut self, netns_cookie: u64, spec: Option<&PodSpec>) -> Result<(), DatapathError> {
        if let Some(spec) = spec {
            // New ones first: a connection meets the old or the new set, never an emptier one.
            for &port in &spec.exclude_outbound_ports {
                self.maps.exclude_port(netns_cookie, OUTBOUND, port)?;
            }
            for &port in &spec.exclude_inbound_ports {
                self.maps.exclude_port(netns_cookie, INBOUND, port)?;
            }
            for &cidr in &spec.exclude_outbound_cidrs {
                self.maps.exclude_cidr(netns_cookie, cidr)?;
            }
        }
        self.maps.retain_exclusions(
            netns_cookie,
            |direction, port| {
                spec.is_some_and(|s| {
                    let list = if direction == OUTBOUND { &s.exclude_outbound_ports } else { &s.exclude_inbound_ports };
                    list.contains(&port)
                })
            },
            |cidr| spec.is_some_and(|s| s.exclude_outbound_cidrs.contains(&cidr)),
        )
    }

    fn set_port_mode(&mut self, netns_cookie: u64, port: u16, mode: u32) -> Result<bool, DatapathError> {
        self.maps.set_port_mode(netns_cookie, port, mode)
    }

    fn retain_port_modes(&mut self, netns_cookie: u64, keep: impl Fn(u16) -> bool) -> Result<(), DatapathError> {
        self.maps.retain_port_modes(|cookie, port| cookie != netns_cookie || keep(port))
    }

    fn set_address(&mut self, address: IpAddr, value: PodAddress) -> Result<(), DatapathError> {
        self.maps.set_address(address, value)
    }

    fn remove_address(&mut self, address: IpAddr, netns_cookie: u64) -> Result<(), DatapathError> {
        self.maps.remove_address(address, netns_cookie)
    }

    fn attach_lookup(&mut self, netns: &Netns) -> Result<(), DatapathError> {
        Self::attach_lookup(self, netns)
    }

    fn detach_lookup(&mut self, netns_cookie: u64) -> Result<(), DatapathError> {
        Self::detach_lookup(self, netns_cookie)
    }

    fn set_pod(&mut self, netns_cookie: u64, pod: Pod) -> Result<(), DatapathError> {
        self.maps.set_pod(netns_cookie, pod)
    }

    fn remove_pod(&mut self, netns_cookie: u64) -> Result<(), DatapathError> {
        self.maps.remove_pod(netns_cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    /// A kernel on paper that fails at the n-th step. It cannot prove what the real one accepts.
    #[derive(Default)]
    struct FakeKernel {
        state: BTreeSet<String>,
        steps: usize,
        fail_at: Option<usize>,
        /// No room for modes of ports beyond these many.
        room: Option<usize>,
        modes: BTreeMap<u16, u32>,
        /// The STRICT flag of each address.
        strict: BTreeMap<IpAddr, bool>,
        /// Ports that no step may open.
        closed: Vec<u16>,
    }

    impl FakeKernel {
        fn step(&mut self, what: String) -> Result<(), DatapathError> {
            self.steps += 1;
            if self.fail_at == Some(self.steps) {
                return Err(DatapathError::Kernel { what, cause: "planted".into() });
            }
            self.state.insert(what);
            let open = self.closed.iter().find(|port| !self.is_strict(**port));
            assert_eq!(open, None, "open after step {}: {:?} {:?}", self.steps, self.modes, self.strict);
            Ok(())
        }
        /// As the program decides, at every address.
        fn is_strict(&self, port: u16) -> bool {
            match self.modes.get(&port) {
                Some(mode) => *mode == port_mode::STRICT,
                None => self.strict.values().all(|strict| *strict),
            }
        }
        fn forget(&mut self, prefix: &str) {
            self.state.retain(|entry| !entry.starts_with(prefix));
        }
    }

    impl Steps for FakeKernel {
        type Netns = u64;
        type Listener = &'static str;

        fn listen(
            &mut self,
            _: &u64,
            family: Family,
            shards: usize,
            _: Probe,
        ) -> Result<Listeners<&'static str>, DatapathError> {
            self.steps += 1;
            if self.fail_at == Some(self.steps) {
                return Err(DatapathError::Kernel { what: format!("{family:?}"), cause: "planted".into() });
            }
            Ok(Listeners { outbound: vec!["out"; shards], inbound: vec!["in"; shards], hbone: vec!["hbone"; shards] })
        }
        fn local_addresses(&mut self, _: &u64, _: u64) -> Result<Vec<IpAddr>, DatapathError> {
            Ok(vec!["192.168.9.9".parse().expect("a second network")])
        }
        fn set_listener(
            &mut self,
            address: IpAddr,
            port: u16,
            shard: u32,
            listener: &&'static str,
        ) -> Result<(), DatapathError> {
            self.step(format!("address {address} port {port} {listener} {shard}"))
        }
        fn set_exclusions(&mut self, cookie: u64, spec: Option<&PodSpec>) -> Result<(), DatapathError> {
            match spec {
                Some(_) => self.step(format!("exclusions {cookie}")),
                None => {
                    self.forget(&format!("exclusions {cookie}"));
                    Ok(())
                }
            }
        }
        fn set_port_mode(&mut self, cookie: u64, port: u16, mode: u32) -> Result<bool, DatapathError> {
            let fits = self.modes.contains_key(&port) || self.room.is_none_or(|room| self.modes.len() < room);
            if fits {
                self.modes.insert(port, mode);
            }
            self.step(format!("modes {cookie}")).map(|()| fits)
        }
        fn retain_port_modes(&mut self, _: u64, keep: impl Fn(u16) -> bool) -> Result<(), DatapathError> {
            self.modes.retain(|port, _| keep(*port));
            if self.modes.is_empty() {
                self.forget("modes");
            }
            Ok(())
        }
        fn set_address(&mut self, address: IpAddr, value: PodAddress) -> Result<(), DatapathError> {
            self.strict.insert(address, value.flags & pod_flags::STRICT != 0);
            self.step(format!("address {address} owner"))
        }
        fn remove_address(&mut self, address: IpAddr, _: u64) -> Result<(), DatapathError> {
            self.forget(&format!("address {address} "));
            Ok(())
        }
        fn attach_lookup(&mut self, netns: &u64) -> Result<(), DatapathError> {
            self.step(format!("lookup {netns}"))
        }
        fn detach_lookup(&mut self, cookie: u64) -> Result<(), DatapathError> {
            self.forget(&format!("lookup {cookie}"));
            Ok(())
        }
        fn set_pod(&mut self, cookie: u64, _: Pod) -> Result<(), DatapathError> {
            self.step(format!("pod {cookie}"))
        }
        fn remove_pod(&mut self, cookie: u64) -> Result<(), DatapathError> {
            self.forget(&format!("pod {cookie}"));
            Ok(())
        }
    }

    fn spec() -> PodSpec {
        PodSpec {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            netns_path: "/run/netns/web".into(),
            addresses: vec!["10.0.0.1".parse().expect("v4"), "fd00::1".parse().expect("v6")],
            fail_open: false,
            exclude_outbound_cidrs: vec![],
            exclude_outbound_ports: vec![9000],
            exclude_inbound_ports: vec![],
            hbone: false,
            strict: false,
            strict_except: vec![],
        }
    }

    #[test]
    fn a_failure_at_any_step_leaves_nothing() {
        let mut whole = FakeKernel::default();
        Executor { kernel: &mut whole, shards: 2 }.enrol(spec(), 7, 7, 1, Probe::AnySocket).expect("enrols");
        assert!(whole.state.contains("pod 7") && whole.state.contains("lookup 7"), "{:?}", whole.state);
        for listener in ["address 10.0.0.1 port 15006 in 1", "address fd00::1 port 15008 hbone 0"] {
            assert!(whole.state.contains(listener), "{listener}: {:?}", whole.state);
        }
        for fail_at in 1..=whole.steps {
            let mut kernel = FakeKernel { fail_at: Some(fail_at), ..FakeKernel::default() };
            let result = Executor { kernel: &mut kernel, shards: 2 }.enrol(spec(), 7, 7, 1, Probe::AnySocket);
            assert!(result.is_err(), "step {fail_at} failed unnoticed");
            assert!(kernel.state.is_empty(), "step {fail_at} left {:?}", kernel.state);
        }
    }

    #[test]
    fn an_update_that_fails_leaves_the_pod_as_it_was() {
        let mut whole = FakeKernel::default();
        let mut pod =
            Executor { kernel: &mut whole, shards: 2 }.enrol(spec(), 7, 7, 1, Probe::AnySocket).expect("enrols");
        let (before, steps) = (whole.state.clone(), whole.steps);
        let mut moved = spec();
        moved.addresses = vec!["10.0.0.2".parse().expect("v4"), "fd00::1".parse().expect("v6")];
        whole.fail_at = Some(steps + 3);
        Executor { kernel: &mut whole, shards: 2 }.update(&mut pod, moved.clone()).expect_err("planted");
        assert_eq!(pod.spec, spec(), "a second run must see that there is something to do");
        whole.fail_at = None;
        Executor { kernel: &mut whole, shards: 2 }.update(&mut pod, moved).expect("updates");
        assert!(whole.state.contains("address 10.0.0.2 owner"), "{:?}", whole.state);
        assert!(
            !whole.state.iter().any(|entry| entry.contains("10.0.0.1 ")),
            "the old address is left: {:?}",
            whole.state
        );
        assert!(before.contains("address 192.168.9.9 owner"), "a second network is captured too: {before:?}");
    }

    #[test]
    fn release_leaves_nothing() {
        let mut kernel = FakeKernel::default();
        let mut executor = Executor { kernel: &mut kernel, shards: 1 };
        let pod = executor.enrol(spec(), 7, 7, 1, Probe::AnySocket).expect("enrols");
        assert!(executor.release(&pod).is_empty());
        assert!(kernel.state.is_empty(), "{:?}", kernel.state);
    }

    #[test]
    fn a_pod_without_ipv6_says_so_to_the_kernel() {
        let mut only_v4 = spec();
        only_v4.addresses.truncate(1);
        // Step 2 is the IPv6 listener: it may fail where no address needs it.
        let mut kernel = FakeKernel { fail_at: Some(2), ..FakeKernel::default() };
        let pod =
            Executor { kernel: &mut kernel, shards: 1 }.enrol(only_v4, 7, 7, 1, Probe::AnySocket).expect("enrols");
        assert!(pod.v6.is_none());
        assert_eq!(flags(&pod.spec, false) & pod_flags::NO_IPV6_LISTENER, pod_flags::NO_IPV6_LISTENER);
    }

    fn moded(strict: bool, strict_except: &[u16]) -> PodSpec {
        PodSpec { strict, strict_except: strict_except.to_vec(), ..spec() }
    }

    #[test]
    fn ports_that_cannot_be_told_strict_one_by_one_are_so_all_together() {
        let table = [
            (moded(false, &[80, 90]), None, [true, true, false]),
            (moded(false, &[80, 90]), Some(1), [true, true, true]),
            (moded(true, &[80, 90]), None, [false, false, true]),
            (moded(true, &[80, 90]), Some(1), [false, true, true]),
            (moded(false, &[]), Some(0), [false, false, false]),
        ];
        for (spec, room, expected) in table {
            let mut kernel = FakeKernel { room, ..FakeKernel::default() };
            Executor { kernel: &mut kernel, shards: 1 }.enrol(spec.clone(), 7, 7, 1, Probe::AnySocket).expect("enrols");
            assert_eq!([80, 90, 99].map(|port| kernel.is_strict(port)), expected, "{spec:?} {room:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_strict_before_and_after_is_so_at_every_step_between(
            from in (any::<bool>(), proptest::collection::btree_set(1u16..6, 0..5)),
            to in (any::<bool>(), proptest::collection::btree_set(1u16..6, 0..5)),
            room in proptest::option::of(0usize..5),
            fail_after in proptest::option::of(1usize..30),
        ) {
            let spec = |(strict, except): (bool, BTreeSet<u16>)| moded(strict, &Vec::from_iter(except));
            let (from, to) = (spec(from), spec(to));
            let mut kernel = FakeKernel { room, ..FakeKernel::default() };
            let mut pod = Executor { kernel: &mut kernel, shards: 1 }
                .enrol(from.clone(), 7, 7, 1, Probe::AnySocket).expect("enrols");
            kernel.closed = (1..8).filter(|port| from.is_strict(*port) && to.is_strict(*port)).collect();
            // Also when a step fails and all is undone.
            kernel.fail_at = fail_after.map(|after| kernel.steps + after);
            let updated = Executor { kernel: &mut kernel, shards: 1 }.update(&mut pod, to.clone()).is_ok();
            let now = if updated { &to } else { &from };
            prop_assert_eq!(&pod.spec, now);
            for port in 1..8 {
                prop_assert!(kernel.is_strict(port) || !now.is_strict(port), "port {} is open", port);
                prop_assert!(room.is_some() || kernel.is_strict(port) == now.is_strict(port), "port {} is closed", port);
            }
        }
    }

    #[test]
    fn hbone_is_on_where_the_agent_serves_it() {
        assert_eq!(flags(&spec(), true) & pod_flags::HBONE, 0);
        assert_eq!(flags(&PodSpec { hbone: true, ..spec() }, true) & pod_flags::HBONE, pod_flags::HBONE);
    }
}
