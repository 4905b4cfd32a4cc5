//! Servers a test runs in its pods.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

use anyhow::Context;

use crate::place::{Place, events, names};
use crate::process::Process;
use crate::report::{Accepted, End, Event, Named};
use crate::wait::wait_for;

/// How long an event may take to be printed.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server to run: on which addresses, doing what.
#[derive(Clone, Debug)]
pub struct Serve {
    port: u16,
    on: Listen,
    mode: &'static str,
    greeting: Option<String>,
    flags: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listen {
    Any,
    Loopback,
    PodAddresses,
}

/// An echo server on every address.
#[must_use]
pub fn tcp(port: u16) -> Serve {
    Serve { port, on: Listen::Any, mode: "echo", greeting: None, flags: Vec::new() }
}

impl Serve {
    fn mode(self, mode: &'static str) -> Self {
        Self { mode, ..self }
    }

    fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// Greets before the client has spoken, then echoes.
    #[must_use]
    pub fn server_first(self, greeting: &str) -> Self {
        Self { greeting: Some(greeting.to_owned()), ..self.mode("server-first") }
    }

    /// Answers HTTP/1.1 with the addresses it sees.
    #[must_use]
    pub fn http(self) -> Self {
        self.mode("http")
    }

    /// Reads to the end of the client's direction, then sends everything back.
    #[must_use]
    pub fn echoes_after_half_close(self) -> Self {
        self.mode("half-close-echo")
    }

    /// Greets, ends its own direction, then reads to the end.
    #[must_use]
    pub fn greets_and_half_closes(self, greeting: &str) -> Self {
        Self { greeting: Some(greeting.to_owned()), ..self.mode("greet-close") }
    }

    /// Reads and forgets.
    #[must_use]
    pub fn discards(self) -> Self {
        self.mode("discard")
    }

    /// Accepts and never reads.
    #[must_use]
    pub fn never_reads(self) -> Self {
        self.mode("sink-never-read")
    }

    /// Resets every connection as soon as it is accepted.
    #[must_use]
    pub fn resets(self) -> Self {
        self.mode("rst-on-accept")
    }

    /// Resets every connection after its first bytes.
    #[must_use]
    pub fn resets_on_data(self) -> Self {
        self.mode("rst-on-data")
    }

    /// Listens on 127.0.0.1 and ::1 only.
    #[must_use]
    pub fn on_loopback(self) -> Self {
        Self { on: Listen::Loopback, ..self }
    }

    /// Listens on the pod's own addresses only, not on loopback.
    #[must_use]
    pub fn on_pod_addresses(self) -> Self {
        Self { on: Listen::PodAddresses, ..self }
    }

    /// Listens with MPTCP sockets, as Go does.
    #[must_use]
    pub fn mptcp(self) -> Self {
        self.flag("--mptcp")
    }

    /// Accepts TCP Fast Open.
    #[must_use]
    pub fn fast_open(self) -> Self {
        self.flag("--tfo")
    }

    /// Sets SO_REUSEPORT.
    #[must_use]
    pub fn reuse_port(self) -> Self {
        self.flag("--reuseport")
    }

    /// Prints no connections, for many of them.
    #[must_use]
    pub fn quiet(self) -> Self {
        self.flag("--quiet")
    }

    pub(crate) fn addresses(&self, place: &Place) -> Vec<String> {
        let all: Vec<IpAddr> = match self.on {
            Listen::Any => return vec![format!("*:{}", self.port)],
            Listen::Loopback => vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()],
            Listen::PodAddresses => place.addresses.clone(),
        };
        all.into_iter().map(|ip| SocketAddr::new(ip, self.port).to_string()).collect()
    }

    pub(crate) fn arguments(&self, addresses: &[String]) -> Vec<String> {
        let mut list = vec!["--mode".to_owned(), self.mode.to_owned()];
        list.extend(addresses.iter().flat_map(|a| ["--listen".to_owned(), a.clone()]));
        list.extend(self.flags.iter().map(|f| (*f).to_owned()));
        list.extend(self.greeting.iter().flat_map(|g| ["--greeting".to_owned(), g.clone()]));
        list
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    pub(crate) process: Process,
}

impl Server {
    /// Everything it printed.
    ///
    /// # Errors
    /// A line is no event.
    pub fn events(&self) -> anyhow::Result<Vec<Event>> {
        events(&self.process)
    }

    /// The addresses of the connections accepted so far.
    ///
    /// # Errors
    /// A line is no event.
    pub fn accepted(&self) -> anyhow::Result<Vec<Accepted>> {
        let pick = |event| if let Event::Accepted(accepted) = event { Some(accepted) } else { None };
        Ok(self.events()?.into_iter().filter_map(pick).collect())
    }

    /// How the connections that are over ended.
    ///
    /// # Errors
    /// A line is no event.
    pub fn ends(&self) -> anyhow::Result<Vec<End>> {
        let pick = |event| if let Event::Closed { end, .. } = event { Some(end) } else { None };
        Ok(self.events()?.into_iter().filter_map(pick).collect())
    }

    /// errno names of the addresses it could not listen on.
    ///
    /// # Errors
    /// A line is no event.
    pub fn listen_errors(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.events()?.iter().filter_map(listen_error).collect())
    }

    /// Waits until it has accepted at least `count` connections, and returns them.
    ///
    /// # Errors
    /// It did not in time.
    pub fn wait_accepted(&self, count: usize) -> anyhow::Result<Vec<Accepted>> {
        wait_for(&format!("{} accepts {count} connections", self.process.name()), EVENT_TIMEOUT, || {
            Ok(Some(self.accepted()?).filter(|a| a.len() >= count))
        })
        .with_context(|| self.process.tail())
    }

    /// Waits until at least `count` connections are over, and returns their ends.
    ///
    /// # Errors
    /// They were not in time.
    pub fn wait_ended(&self, count: usize) -> anyhow::Result<Vec<End>> {
        wait_for(&format!("{count} connections of {} end", self.process.name()), EVENT_TIMEOUT, || {
            Ok(Some(self.ends()?).filter(|e| e.len() >= count))
        })
        .with_context(|| self.process.tail())
    }

    /// What the kernel calls its open connections now.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn names(&self) -> anyhow::Result<Vec<Named>> {
        names(&self.process)
    }

    /// Connections accepted and open, also of a quiet server.
    ///
    /// # Errors
    /// It has ended.
    pub fn stats(&self) -> anyhow::Result<Stats> {
        let pick = |events: &[Event]| {
            let all = events.iter().filter_map(|e| match e {
                Event::Stats { accepted, open, bytes } => {
                    Some(Stats { accepted: *accepted, open: *open, bytes: *bytes })
                }
                _ => None,
            });
            all.collect::<Vec<_>>()
        };
        let before = pick(&self.events()?).len();
        self.process.send_line("stats")?;
        wait_for("statistics of a server", EVENT_TIMEOUT, || Ok(pick(&self.events()?).into_iter().nth(before)))
    }
}

impl Deref for Server {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Counts of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes read from connections that are over.
    pub bytes: u64,
}

pub(crate) fn listen_error(event: &Event) -> Option<String> {
    if let Event::Listening { error, .. } = event { error.clone() } else { None }
}
