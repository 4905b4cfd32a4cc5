//! Everything a keeper knows, and the operations sessions ask for. Each operation is whole: kernel, then books, then disk.

mod direct;
mod inspect;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use heddle_abi::agent_role;
use heddle_proto::keeper::v1::{self as wire, error::Kind};
use socket2::Socket;

use super::{KeeperConfig, persist};
use crate::agent::monotonic_ns;
use crate::enrol::{Action, Actual, Desired, Enrolled, Executor, Listeners, Namespace, PodSpec, Steps, plan};
use crate::error::DatapathError;
use crate::kernel::Kernel;
use crate::keys::{KeepError, Kept};
use crate::netns::{self, Identity, Netns, Probe};
use crate::{sys, wire as packets};

/// How long a restarted keeper waits for an agent to give the listeners back before it makes new ones.
const GIVE_BACK: Duration = Duration::from_secs(2);
/// How long an agent that has attached may take to its first good beats.
const COMING: Duration = Duration::from_secs(5);
/// Accepted and reset per listener and tick when no agent came back.
const FLUSH_MAX: usize = 4096;

/// A refusal, as it goes to the client.
pub type Refusal = (Kind, String);

/// The keeper's state.
pub struct State {
    config: KeeperConfig,
    kernel: Kernel,
    debug: UnixListener,
    pods: BTreeMap<String, Enrolled>,
    refused: BTreeMap<String, (PodSpec, String)>,
    /// Pods of which connections to STRICT ports could not be ended, and why.
    unended: BTreeMap<String, String>,
    /// Namespaces that were enrolled once: connections from then may still be bound to the agent's ports.
    enrolled_before: BTreeSet<u64>,
    released: bool,
    keys: Option<Kept>,
    /// The agent that accepts: the session that said Ready last.
    agent_session: Option<u64>,
    /// Instances that have been the agent.
    agents: BTreeSet<u64>,
    /// When an agent attached last: its first beats are waited for.
    attached: Option<Instant>,
    /// Connections that want events, by session, with their agent's instance.
    watchers: BTreeMap<u64, (u64, OwnedFd)>,
    next_generation: u64,
    next_session: u64,
    started: Instant,
    flushed: bool,
    /// What nobody wants was removed from the kernel since the start.
    swept: bool,
    uninstalled: bool,
}

/// One pod an agent asked for, looked at before the state is locked.
pub struct Wanted {
    /// What was asked for.
    pub spec: PodSpec,
    /// What is at its path.
    pub namespace: Namespace,
    /// Open, if it is not the one already held.
    pub netns: Option<Netns>,
}

impl State {
    /// Takes over what a former keeper left in the kernel and on disk.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn adopt(config: KeeperConfig, kernel: Kernel, debug: UnixListener) -> Result<Self, DatapathError> {
        let remembered = persist::load(&config.run_dir);
        let next_generation = u64::from(std::process::id()) << 32;
        let mut state = Self {
            config,
            kernel,
            debug,
            pods: BTreeMap::new(),
            refused: BTreeMap::new(),
            unended: BTreeMap::new(),
            enrolled_before: BTreeSet::new(),
            released: remembered.released,
            keys: None,
            agent_session: None,
            agents: BTreeSet::new(),
            attached: None,
            watchers: BTreeMap::new(),
            next_generation,
            next_session: 0,
            started: Instant::now(),
            flushed: false,
            swept: false,
            uninstalled: false,
        };
        let captured: BTreeSet<u64> = state.kernel.maps.pods().into_iter().map(|entry| entry.netns_cookie).collect();
        for persist::RememberedPod { spec, netns_cookie } in remembered.pods {
            let netns = match Netns::open(&spec.netns_path) {
                Ok(netns) => netns,
                Err(error) => {
                    tracing::info!(pod = spec.display(), %error, "not taken over");
                    continue;
                }
            };
            if netns.cookie() != netns_cookie {
                tracing::info!(pod = spec.display(), "not taken over: another namespace is at its path now");
                continue;
            }
            if captured.contains(&netns_cookie) {
                let extra = state.kernel.local_addresses(&netns, netns_cookie).unwrap_or_default();
                let pod = Enrolled { spec, netns, netns_cookie, extra, v4: None, v6: None, listener_generation: 0 };
                state.enrolled_before.insert(netns_cookie);
                let uid = pod.spec.uid.clone();
                state.pods.insert(uid.clone(), pod);
                // The former keeper may have ended before it was done.
                state.end_direct(&uid, false);
            } else {
                state.enrol(spec, netns);
            }
        }
        tracing::info!(pods = state.pods.len(), released = state.released, "state taken over");
        Ok(state)
    }

    /// A number for a new session.
    pub const fn session_number(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    /// Shown to the other side.
    #[must_use]
    pub const fn config(&self) -> &KeeperConfig {
        &self.config
    }

    /// Whether the node was uninstalled: the keeper ends.
    #[must_use]
    pub const fn uninstalled(&self) -> bool {
        self.uninstalled
    }

    /// Drops every fd into pods.
    pub fn close(&mut self) {
        self.pods.clear();
        self.watchers.clear();
        self.keys = None;
    }

    /// Gives a coming agent the fds it needs. The former one stays the agent until this one is ready.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&mut self, session: u64) -> Result<(wire::AttachReply, Vec<OwnedFd>), Refusal> {
        let mut fds = self.kernel.agent_map_fds().map_err(kernel_refusal)?;
        fds.push(self.debug.as_fd().try_clone_to_owned().map_err(|e| (Kind::Kernel, e.to_string()))?);
        self.attached = Some(Instant::now());
        tracing::info!(session, "agent attached");
        Ok((wire::AttachReply { pods: inspect::compact(self.pod_states()), released: self.released }, fds))
    }

    /// Whether `session` is the agent.
    #[must_use]
    pub fn is_agent(&self, session: u64) -> bool {
        self.agent_session == Some(session)
    }

    /// The session has ended.
    pub fn session_ended(&mut self, session: u64) {
        self.watchers.remove(&session);
        if self.is_agent(session) {
            self.agent_session = None;
            tracing::info!(session, "agent gone; its listeners are kept");
        }
    }

    /// The agent accepts: tells those that were the agent before that they are superseded. One that is only coming is not
    /// told: of two that come at once the one that is ready last must stay.
    pub fn ready(&mut self, session: u64, instance: u64) {
        self.agent_session = Some(session);
        let former = std::mem::replace(&mut self.agents, BTreeSet::from([instance]));
        self.tell(wire::Event { event: Some(wire::event::Event::Superseded(wire::Superseded {})) }, |watcher| {
            watcher != instance && former.contains(&watcher)
        });
    }

    /// Adds a connection that wants events.
    pub fn watch(&mut self, session: u64, instance: u64, socket: OwnedFd) {
        self.watchers.insert(session, (instance, socket));
    }

    /// Whether this connection is being told events.
    #[must_use]
    pub fn is_watching(&self, session: u64) -> bool {
        self.watchers.contains_key(&session)
    }

    /// Never waits: one that does not read what it asked for must not hold up the keeper.
    fn tell(&mut self, event: wire::Event, whom: impl Fn(u64) -> bool) {
        self.watchers.retain(|_, (instance, socket)| {
            if !whom(*instance) {
                return true;
            }
            if let Err(error) = packets::send_now(socket.as_fd(), &event) {
                tracing::info!(instance, %error, "watcher is gone, or does not read");
            }
            false
        });
    }

    /// Which namespace each enrolled pod is in: what is held open needs no second look.
    #[must_use]
    pub fn held(&self) -> BTreeMap<String, (Identity, u64)> {
        self.pods.iter().map(|(uid, pod)| (uid.clone(), (pod.netns.identity(), pod.netns_cookie))).collect()
    }

    /// Makes the enrolled pods those desired. Pods that are wanted but could not be read stay as they are.
    pub fn set_pods(&mut self, wanted: Vec<Wanted>, unreadable: &BTreeMap<String, String>) -> Vec<wire::PodState> {
        let mut namespaces = BTreeMap::new();
        let mut desired = Vec::new();
        for Wanted { spec, namespace, netns } in if self.released { Vec::new() } else { wanted } {
            if let Some(netns) = netns {
                // The plan takes the first of two with one uid.
                namespaces.entry(spec.uid.clone()).or_insert(netns);
            }
            desired.push(Desired { spec, namespace });
        }
        let specs: BTreeMap<String, PodSpec> = desired.iter().map(|d| (d.spec.uid.clone(), d.spec.clone())).collect();
        let actual = self
            .pods
            .iter()
            .map(|(uid, pod)| (uid.clone(), Actual { spec: pod.spec.clone(), netns_cookie: pod.netns_cookie }))
            .collect();
        let kept: BTreeSet<String> = if self.released { BTreeSet::new() } else { unreadable.keys().cloned().collect() };
        let found = |d: &Desired| if let Namespace::Found(cookie) = d.namespace { Some(cookie) } else { None };
        let wanted: BTreeSet<u64> = desired.iter().filter_map(found).collect();
        let told = std::mem::take(&mut self.refused);
        let mut changed = false;
        for action in plan(&desired, &kept, &actual) {
            match action {
                Action::Release { uid } => {
                    changed = true;
                    self.release(&uid);
                }
                Action::Enrol { spec } => {
                    if let Some(netns) = namespaces.remove(&spec.uid) {
                        changed = true;
                        self.enrol(spec, netns);
                    }
                }
                Action::Update { spec } => {
                    changed = true;
                    self.update(spec);
                }
                Action::Refuse { uid, reason } => {
                    if told.get(&uid).map(|(_, before)| before) != Some(&reason) {
                        tracing::warn!(uid, reason, "pod left as it is");
                    }
                    if let Some(spec) = specs.get(&uid) {
                        self.refused.insert(uid, (spec.clone(), reason));
                    }
                }
            }
        }
        if changed || !self.swept {
            self.swept = self.sweep(&wanted);
            if let Err(error) = self.save() {
                tracing::error!(%error, "a restarted keeper will not know the enrolled pods");
            }
        }
        let mut states = inspect::compact(self.pod_states());
        for (uid, reason) in unreadable {
            match states.iter_mut().find(|state| state.uid == *uid) {
                Some(state) => state.reason.clone_from(reason),
                None => states.push(wire::PodState { uid: uid.clone(), reason: reason.clone(), ..Default::default() }),
            }
        }
        states
    }

    fn executor(kernel: &mut Kernel, shards: usize) -> Executor<'_, Kernel> {
        Executor { kernel, shards }
    }

    fn enrol(&mut self, spec: PodSpec, netns: Netns) {
        self.next_generation += 1;
        let (uid, name, cookie) = (spec.uid.clone(), spec.display(), netns.cookie());
        let refused = spec.clone();
        let mut executor = Self::executor(&mut self.kernel, self.config.listener_shards);
        let probe = if self.enrolled_before.insert(cookie) { Probe::AnySocket } else { Probe::Listeners };
        match executor.enrol(spec, netns, cookie, self.next_generation, probe) {
            Ok(pod) => {
                tracing::info!(pod = name, netns_cookie = cookie, "enrolled");
                self.pods.insert(uid.clone(), pod);
                self.end_direct(&uid, true);
            }
            Err(error) => {
                tracing::error!(pod = name, %error, "not enrolled");
                if probe == Probe::AnySocket {
                    self.enrolled_before.remove(&cookie);
                }
                self.refused.insert(uid, (refused, format!("pod {name}: {error}")));
            }
        }
    }

    fn update(&mut self, spec: PodSpec) {
        let Some(pod) = self.pods.get_mut(&spec.uid) else {
            return;
        };
        let (uid, name) = (spec.uid.clone(), spec.display());
        let (stricter, half_open) = (spec.is_stricter_than(&pod.spec), direct::half_open_may_be_direct(&pod.spec));
        match Self::executor(&mut self.kernel, self.config.listener_shards).update(pod, spec) {
            Ok(()) => {
                tracing::info!(pod = name, "updated");
                if stricter {
                    self.end_direct(&uid, half_open);
                }
            }
            Err(error) => {
                // As it was: the next round finds the difference again and tries again.
                tracing::error!(pod = name, %error, "not updated");
                self.refused.insert(uid, (pod.spec.clone(), format!("pod {name}: {error}")));
            }
        }
    }

    fn release(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        self.unended.remove(uid);
        for error in Self::executor(&mut self.kernel, self.config.listener_shards).release(&pod) {
            tracing::error!(pod = pod.spec.display(), %error, "release");
        }
        // The agent has the same sockets and may be slow to let go; until then the pod could not be enrolled again.
        for listeners in [&pod.v4, &pod.v6].into_iter().flatten() {
            for socket in listeners.all() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        tracing::info!(pod = pod.spec.display(), "released");
    }

    /// Removes from the kernel what nobody wants: left by a keeper whose state was lost. A pod that is wanted, was
    /// captured and could not be enrolled again stays captured: its connections are refused, not let through. Says
    /// whether there was none of those.
    fn sweep(&mut self, wanted: &BTreeSet<u64>) -> bool {
        let enrolled: BTreeSet<u64> = self.pods.values().map(|pod| pod.netns_cookie).collect();
        let known: BTreeSet<u64> = enrolled.union(wanted).copied().collect();
        let in_limbo: BTreeSet<u64> = known.difference(&enrolled).copied().collect();
        let addresses: BTreeSet<(IpAddr, u64)> =
            self.pods.values().flat_map(|pod| pod.addresses().map(|address| (address, pod.netns_cookie))).collect();
        let mut results = Vec::new();
        for entry in self.kernel.maps.pods() {
            if !known.contains(&entry.netns_cookie) {
                results.push(self.kernel.maps.remove_pod(entry.netns_cookie));
            }
        }
        for cookie in self.kernel.lookup_cookies() {
            if !known.contains(&cookie) {
                results.push(self.kernel.detach_lookup(cookie));
            }
        }
        for (address, cookie) in self.kernel.maps.addresses() {
            if !addresses.contains(&(address, cookie)) && !in_limbo.contains(&cookie) {
                results.push(self.kernel.maps.remove_address(address, cookie));
            }
        }
        results.push(self.kernel.maps.retain_listeners(|address| addresses.iter().any(|(a, _)| *a == address)));
        results.push(self.kernel.maps.retain_exclusions_of(|cookie| known.contains(&cookie)));
        results.push(self.kernel.maps.retain_port_modes(|cookie, _| known.contains(&cookie)));
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!(%error, "sweep");
        }
        in_limbo.is_empty()
    }

    fn save(&self) -> Result<(), DatapathError> {
        let remembered =
            |pod: &Enrolled| persist::RememberedPod { spec: pod.spec.clone(), netns_cookie: pod.netns_cookie };
        persist::save(&self.config.run_dir, self.released, self.pods.values().map(remembered).collect())
    }

    /// The listeners of a pod, made now if a restart lost them. Order as in the protocol.
    ///
    /// # Errors
    /// Unknown pod, or they cannot be made.
    pub fn take_listeners(&mut self, uid: &str) -> Result<(wire::Listeners, Vec<OwnedFd>), Refusal> {
        let shards = self.config.listener_shards;
        let pod = self.pods.get_mut(uid).ok_or_else(|| unknown(uid))?;
        if pod.v4.is_none() && pod.v6.is_none() {
            self.next_generation += 1;
            pod.listener_generation = self.next_generation;
            Self::executor(&mut self.kernel, shards).relisten(pod).map_err(kernel_refusal)?;
        }
        let mut fds = Vec::new();
        let mut count = 0;
        for listeners in [&pod.v4, &pod.v6].into_iter().flatten() {
            count = listeners.outbound.len();
            for socket in listeners.all() {
                fds.push(socket.as_fd().try_clone_to_owned().map_err(|e| (Kind::Kernel, e.to_string()))?);
            }
        }
        let reply = wire::Listeners {
            uid: uid.to_owned(),
            shards: u32::try_from(count).unwrap_or_default(),
            ipv6: pod.v6.is_some(),
            listener_generation: pod.listener_generation,
        };
        if pod.v4.is_none() {
            return Err((Kind::Kernel, format!("pod {}: no IPv4 loopback in its namespace", pod.spec.display())));
        }
        Ok((reply, fds))
    }

    /// Takes back the listeners an agent kept over a keeper restart.
    ///
    /// # Errors
    /// Unknown pod, it has listeners, or these are not the pod's.
    pub fn offer_listeners(&mut self, offer: &wire::OfferListeners, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let pod = self.pods.get(&offer.uid).ok_or_else(|| unknown(&offer.uid))?;
        if pod.v4.is_some() || pod.v6.is_some() {
            return Err((Kind::Limit, format!("pod {} has its listeners", pod.spec.display())));
        }
        let shards = usize::try_from(offer.shards).unwrap_or(usize::MAX);
        let expected = shards.saturating_mul(if offer.ipv6 { 6 } else { 3 });
        if shards == 0 || fds.len() != expected {
            return Err((
                Kind::Malformed,
                format!("pod {}: {} descriptors for {shards} shards, not {expected}", offer.uid, fds.len()),
            ));
        }
        let mut sockets = fds.into_iter().map(Socket::from);
        let cookie = pod.netns_cookie;
        let kernel = &self.kernel;
        let mut direction = |ipv6: bool, role: u32, port: u16| -> Result<Vec<Socket>, Refusal> {
            let group: Vec<Socket> = sockets.by_ref().take(shards).collect();
            // A connection accepted from a listener has its role and namespace, but does not listen.
            let genuine = |s: &Socket| {
                kernel.maps.role(s) == Some(role)
                    && sys::netns_cookie(s).ok() == Some(cookie)
                    && netns::listens(s, ipv6, port)
            };
            if group.iter().all(genuine) {
                Ok(group)
            } else {
                Err((Kind::NotAllowed, format!("a descriptor offered for pod {} is not its listener", offer.uid)))
            }
        };
        let mut family = |ipv6: bool| -> Result<Listeners, Refusal> {
            Ok(Listeners {
                outbound: direction(ipv6, agent_role::OUTBOUND, heddle_abi::OUTBOUND_PORT)?,
                inbound: direction(ipv6, agent_role::INBOUND, heddle_abi::INBOUND_PORT)?,
                hbone: direction(ipv6, agent_role::HBONE, heddle_abi::HBONE_PORT)?,
            })
        };
        let v4 = family(false)?;
        let v6 = if offer.ipv6 { Some(family(true)?) } else { None };
        if let Some(pod) = self.pods.get_mut(&offer.uid) {
            tracing::info!(pod = pod.spec.display(), "listeners given back");
            pod.v4 = Some(v4);
            pod.v6 = v6;
            // What the former keeper left in the maps is made what was told, whatever it is.
            if let Err(error) = Self::executor(&mut self.kernel, shards).install(pod) {
                (pod.v4, pod.v6) = (None, None);
                return Err(kernel_refusal(error));
            }
        }
        Ok(())
    }

    /// Unconnected sockets inside a pod.
    ///
    /// # Errors
    /// Unknown pod, too many, or the kernel refuses.
    pub fn make_sockets(&mut self, request: &wire::MakeSockets) -> Result<Vec<OwnedFd>, Refusal> {
        let pod = self.pods.get(&request.uid).ok_or_else(|| unknown(&request.uid))?;
        let count = usize::try_from(request.count).unwrap_or(usize::MAX);
        if count == 0 || count > packets::FDS_MAX {
            return Err((Kind::Limit, format!("{count} sockets: must be 1 to {}", packets::FDS_MAX)));
        }
        let maps = &mut self.kernel.maps;
        let made = pod.netns.within(|| {
            (0..count)
                .map(|_| {
                    let socket = netns::agent_socket(request.ipv6)?;
                    maps.mark(&socket, agent_role::UPSTREAM).map_err(std::io::Error::other)?;
                    Ok(OwnedFd::from(socket))
                })
                .collect()
        });
        made.map_err(|error| (Kind::Kernel, format!("sockets in pod {}: {error}", pod.spec.display())))
    }

    /// Keeps the agent's keys: a sealed memfd, so that what is kept is what was given.
    ///
    /// # Errors
    /// Not a sealed memfd, or too large.
    pub fn put_keys(&mut self, fd: OwnedFd) -> Result<(), Refusal> {
        let kept = Kept::new(fd).map_err(|error| {
            let kind = match error {
                KeepError::Malformed(_) => Kind::Malformed,
                KeepError::TooLarge(_) => Kind::Limit,
                KeepError::Kernel(_) => Kind::Kernel,
            };
            (kind, error.to_string())
        })?;
        self.keys = Some(kept);
        Ok(())
    }

    /// The kept keys.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn get_keys(&self) -> Result<Option<OwnedFd>, Refusal> {
        self.keys.as_ref().map(Kept::share).transpose().map_err(|e| (Kind::Kernel, e.to_string()))
    }

    /// Break-glass. Stays in force over restarts until resumed: written down before the first pod is freed.
    ///
    /// # Errors
    /// It could not be written down (pods are freed all the same).
    pub fn release_node(&mut self, resume: bool) -> Result<u32, Refusal> {
        self.released = !resume;
        let remembered = self.save();
        let uids: Vec<String> = if resume { Vec::new() } else { self.pods.keys().cloned().collect() };
        for uid in &uids {
            self.release(uid);
        }
        if !resume {
            self.swept = self.sweep(&BTreeSet::new());
        }
        remembered.and_then(|()| self.save()).map_err(|error| {
            (Kind::Kernel, format!("{} pods released, but a restarted keeper will not know: {error}", uids.len()))
        })?;
        Ok(u32::try_from(uids.len()).unwrap_or(u32::MAX))
    }

    /// Releases everything and marks the end.
    pub fn uninstall(&mut self) {
        if let Err((_, error)) = self.release_node(false) {
            tracing::error!(error, "uninstall");
        }
        self.tell(wire::Event { event: Some(wire::event::Event::Uninstalled(wire::Uninstalled {})) }, |_| true);
        self.uninstalled = true;
    }

    /// Five times a second: programs' messages, lost listeners, and connections that waited for an agent in vain.
    pub fn tick(&mut self) {
        self.kernel.flush_logs();
        if self.started.elapsed() > GIVE_BACK {
            let lost: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, pod)| pod.v4.is_none() && pod.v6.is_none() && self.agent_session.is_none())
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in lost {
                if let Err((_, error)) = self.take_listeners(&uid) {
                    tracing::error!(uid, error, "cannot make listeners");
                }
            }
        }
        self.flush_backlogs();
    }

    /// Once the kernel refuses new connections for want of an agent, those that wait are refused as well.
    fn flush_backlogs(&mut self) {
        let alive = match (self.kernel.maps.heartbeat(), monotonic_ns()) {
            (Ok(beat), Ok(now)) => beat.is_alive(now) || beat.stamp_ns == 0,
            _ => true,
        };
        let coming = self.attached.is_some_and(|at| at.elapsed() < COMING);
        if alive || coming {
            self.flushed = false;
            return;
        }
        let mut reset = 0_usize;
        for pod in self.pods.values() {
            for listeners in [&pod.v4, &pod.v6].into_iter().flatten() {
                for socket in listeners.all() {
                    // SO_LINGER 0 is inherited: dropping resets. Not a byte is read.
                    reset += std::iter::from_fn(|| socket.accept().ok()).take(FLUSH_MAX).count();
                }
            }
        }
        if reset > 0 || !self.flushed {
            tracing::warn!(reset, "no agent for five seconds: waiting connections refused");
        }
        self.flushed = true;
    }
}

fn kernel_refusal(error: DatapathError) -> Refusal {
    (Kind::Kernel, error.to_string())
}

fn unknown(uid: &str) -> Refusal {
    (Kind::UnknownPod, format!("pod {uid} is not enrolled"))
}
