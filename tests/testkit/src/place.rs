//! Where programs run: a pod, a node, or a host outside the cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cgroup::Cgroup;
use crate::client::{Client, Dial, Held, Outcome, SLACK};
use crate::netns::Netns;
use crate::probe::{TcpSocket, tcp_sockets};
use crate::process::Process;
use crate::report::{Event, Named};
use crate::server::{Serve, Server, listen_error};
use crate::wait::wait_for;

/// How long a server may take to listen, and an event to be printed.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A network namespace and a cgroup, in which programs run.
#[derive(Debug)]
pub struct Place {
    pub(crate) name: String,
    pub(crate) netns: std::sync::Arc<Netns>,
    pub(crate) netns_path: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) directory: PathBuf,
    pub(crate) podapp: PathBuf,
    pub(crate) serial: AtomicU32,
}

impl Place {
    /// What the test calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// All its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        self.address(IpAddr::is_ipv4, "IPv4")
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        self.address(IpAddr::is_ipv6, "IPv6")
    }

    fn address(&self, wanted: impl Fn(&IpAddr) -> bool, family: &str) -> IpAddr {
        let found = self.addresses.iter().copied().find(wanted);
        found.unwrap_or_else(|| panic!("{} has no {family} address", self.name))
    }

    /// Starts any program here.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, what: &str, command: Command) -> anyhow::Result<Process> {
        let name = format!("{}-{what}-{}", self.name, self.serial.fetch_add(1, Ordering::Relaxed));
        Process::spawn(&name, command, &self.netns, &self.cgroup, &self.directory)
    }

    fn podapp(&self, mode: &str, arguments: &[String]) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.podapp);
        command.arg(mode).args(arguments);
        self.spawn(mode, command)
    }

    /// Starts a server and returns when it listens.
    ///
    /// # Errors
    /// A listener did not come up.
    pub fn serve(&self, serve: &Serve) -> anyhow::Result<Server> {
        let server = self.try_serve(serve)?;
        let failed: Vec<Event> = server.events()?.into_iter().filter(|e| listen_error(e).is_some()).collect();
        ensure!(failed.is_empty(), "{} cannot listen: {failed:?}", server.process.name());
        Ok(server)
    }

    /// Starts a server and returns when it has tried to listen on every address; see [`Server::listen_errors`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_serve(&self, serve: &Serve) -> anyhow::Result<Server> {
        let addresses = serve.addresses(self);
        let server = Server { process: self.podapp("serve", &serve.arguments(&addresses))? };
        wait_for(&format!("{} listens", server.process.name()), EVENT_TIMEOUT, || {
            let tried = server.events()?.iter().filter(|e| matches!(e, Event::Listening { .. })).count();
            Ok((tried >= addresses.len()).then_some(()))
        })
        .with_context(|| server.process.tail())?;
        Ok(server)
    }

    /// Runs a client to its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end within its own limits.
    pub fn connect(&self, dial: &Dial) -> anyhow::Result<Outcome> {
        self.start_client(dial)?.finish()
    }

    /// Starts a client and returns at once.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_client(&self, dial: &Dial) -> anyhow::Result<Client> {
        Ok(Client { process: self.podapp("connect", &dial.arguments())?, limit: dial.limit() })
    }

    /// Opens connections that stay open; returns when all are up or have failed.
    ///
    /// # Errors
    /// It cannot be started, or does not come to an end.
    pub fn hold(&self, dial: &Dial, count: u64) -> anyhow::Result<Held> {
        self.open(dial, count, &["--verify"])
    }

    /// Opens connections over which nothing is said; returns when all are up or have failed.
    ///
    /// # Errors
    /// It cannot be started, or does not come to an end.
    pub fn hold_silently(&self, dial: &Dial, count: u64) -> anyhow::Result<Held> {
        self.open(dial, count, &[])
    }

    fn open(&self, dial: &Dial, count: u64, more: &[&str]) -> anyhow::Result<Held> {
        let mut arguments = dial.socket_arguments();
        arguments.extend(["--count".to_owned(), count.to_string()]);
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let held = Held { process: self.podapp("hold", &arguments)? };
        let limit = EVENT_TIMEOUT + Duration::from_millis(count * 2) + dial.timeout;
        wait_for("held connections are open", limit, || held.state()).with_context(|| held.process.tail())?;
        Ok(held)
    }

    /// Connects to `first`, disconnects the socket, and uses it again: connects to `then`, or listens there. Starts it;
    /// see [`Reused`].
    ///
    /// # Errors
    /// It cannot be started, or the first connection does not come up.
    pub fn reuse(&self, first: &Dial, then: Again, mptcp: bool) -> anyhow::Result<Reused> {
        let (word, address) = match then {
            Again::Connects(address) => ("--then", address),
            Again::Listens(address) => ("--then-listen", address),
        };
        let mut arguments = vec!["--to".to_owned(), first.target().to_string(), "--pause".to_owned()];
        arguments.extend([word.to_owned(), address.to_string()]);
        arguments.extend(mptcp.then(|| "--mptcp".to_owned()));
        let reused = Reused { process: self.podapp("reuse", &arguments)? };
        wait_for("a socket's first connection", EVENT_TIMEOUT, || {
            Ok((!named(&reused.process)?.is_empty()).then_some(()))
        })
        .with_context(|| reused.process.tail())?;
        Ok(reused)
    }

    /// Starts a flood: up to `connections` open at once, written into and never read.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn flood(&self, dial: &Dial, connections: usize, duration: Duration) -> anyhow::Result<Client> {
        let mut arguments = dial.socket_arguments();
        arguments.extend(["--connections".to_owned(), connections.to_string()]);
        arguments.extend(["--seconds".to_owned(), duration.as_secs_f64().to_string()]);
        Ok(Client { process: self.podapp("flood", &arguments)?, limit: duration + dial.timeout + SLACK })
    }

    /// Addresses of the sockets that listen here.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn listeners(&self) -> anyhow::Result<Vec<SocketAddr>> {
        Ok(self.tcp_sockets()?.into_iter().filter(|s| s.listens).map(|s| s.local).collect())
    }

    /// The kernel's table of TCP sockets here.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn tcp_sockets(&self) -> anyhow::Result<Vec<TcpSocket>> {
        tcp_sockets(&self.netns)
    }
}

/// What a disconnected socket does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Connects here.
    Connects(SocketAddr),
    /// Listens here, and accepts a connection of its own.
    Listens(SocketAddr),
}

/// A socket between its two uses.
#[derive(Debug)]
pub struct Reused {
    process: Process,
}

impl Reused {
    /// Goes on; returns its names: while first connected, used again, and (if it listened) what it accepted.
    ///
    /// # Errors
    /// The second use failed.
    pub fn finish(self) -> anyhow::Result<Vec<Named>> {
        self.process.send_line("go on")?;
        let status = self.process.wait(EVENT_TIMEOUT)?;
        ensure!(status.success(), "{status}\n{}", self.process.tail());
        named(&self.process)
    }
}

fn named(process: &Process) -> anyhow::Result<Vec<Named>> {
    let pick = |event| if let Event::Named(named) = event { Some(named) } else { None };
    Ok(events(process)?.into_iter().filter_map(pick).collect())
}

/// Asks a program for the names of its open connections.
pub(crate) fn names(process: &Process) -> anyhow::Result<Vec<Named>> {
    let answers = || -> anyhow::Result<Vec<Event>> {
        let of_names = |e: &Event| matches!(e, Event::Named(_) | Event::NamedAll);
        Ok(events(process)?.into_iter().filter(of_names).collect())
    };
    let before = answers()?.len();
    process.send_line("names")?;
    wait_for("names of open connections", EVENT_TIMEOUT, || {
        let new = answers()?.split_off(before);
        Ok((new.last() == Some(&Event::NamedAll)).then_some(new))
    })
    .with_context(|| process.tail())
    .map(|new| new.into_iter().filter_map(|e| if let Event::Named(named) = e { Some(named) } else { None }).collect())
}

/// The whole lines a program has printed so far.
pub(crate) fn events(process: &Process) -> anyhow::Result<Vec<Event>> {
    let text = read(process.stdout_path())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole.lines().map(|l| serde_json::from_str(l).with_context(|| format!("no event of podapp: {l}"))).collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
