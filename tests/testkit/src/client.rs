//! Clients a test runs in its pods: one connection or many, held ones, and what they reported.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::place::{events, names};
use crate::process::Process;
use crate::report::{Connection, End, Event, Named, Summary};
use crate::wait::wait_for;

/// Added to what a client's own limits allow.
pub(crate) const SLACK: Duration = Duration::from_secs(10);
/// How long an event may take to be printed.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client to run. Unless told otherwise it sends `heddle`, wants it back, and closes.
#[derive(Clone, Debug)]
pub struct Dial {
    to: SocketAddr,
    socket: Vec<String>,
    exchange: Vec<String>,
    payload: Vec<String>,
    load: Vec<String>,
    duration: Duration,
    pub(crate) timeout: Duration,
}

/// A client for this address.
#[must_use]
pub fn dial(ip: IpAddr, port: u16) -> Dial {
    Dial {
        to: SocketAddr::new(ip, port),
        socket: Vec::new(),
        exchange: Vec::new(),
        payload: vec!["--send".to_owned(), "heddle".to_owned()],
        load: Vec::new(),
        duration: Duration::ZERO,
        timeout: Duration::from_secs(5),
    }
}

impl Dial {
    /// Where it goes.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.to
    }

    fn socket(mut self, words: &[&str]) -> Self {
        self.socket.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    fn exchange(mut self, words: &[&str]) -> Self {
        self.exchange.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    fn load(mut self, words: &[&str]) -> Self {
        self.load.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    /// Non-blocking `connect()`, completion by `poll()`.
    #[must_use]
    pub fn nonblocking(self) -> Self {
        self.socket(&["--nonblocking"])
    }

    /// Non-blocking `connect()`, completion by edge-triggered epoll.
    #[must_use]
    pub fn epoll(self) -> Self {
        self.socket(&["--epoll"])
    }

    /// Binds the source address first.
    #[must_use]
    pub fn bound_to(self, source: SocketAddr) -> Self {
        self.socket(&["--bind", &source.to_string()])
    }

    /// Binds this source port, the next connection the next port, and so on.
    #[must_use]
    pub fn bound_from(self, first: SocketAddr) -> Self {
        self.bound_to(first).socket(&["--bind-consecutive"])
    }

    /// An MPTCP socket.
    #[must_use]
    pub fn mptcp(self) -> Self {
        self.socket(&["--mptcp"])
    }

    /// `TCP_FASTOPEN_CONNECT`.
    #[must_use]
    pub fn fast_open(self) -> Self {
        self.socket(&["--tfo"])
    }

    /// `sendto(MSG_FASTOPEN)`.
    #[must_use]
    pub fn msg_fastopen(self) -> Self {
        self.socket(&["--msg-fastopen"])
    }

    /// An IPv6 socket to `::ffff:a.b.c.d`.
    #[must_use]
    pub fn v4_mapped(self) -> Self {
        self.socket(&["--v4-mapped"])
    }

    /// `SO_BINDTODEVICE`.
    #[must_use]
    pub fn bound_to_device(self, device: &str) -> Self {
        self.socket(&["--bindtodevice", device])
    }

    /// Limit for `connect()` and for every read and write; 5 s unless set.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends this text and wants it back.
    #[must_use]
    pub fn send(self, text: &str) -> Self {
        Self { payload: vec!["--send".to_owned(), text.to_owned()], ..self }
    }

    /// Sends so many bytes and wants them back.
    #[must_use]
    pub fn bytes(self, count: usize) -> Self {
        Self { payload: vec!["--bytes".to_owned(), count.to_string()], ..self }
    }

    /// Sends nothing.
    #[must_use]
    pub fn silent(self) -> Self {
        Self { payload: Vec::new(), ..self }
    }

    /// Wants nothing back for what it sends.
    #[must_use]
    pub fn without_echo(self) -> Self {
        self.exchange(&["--no-echo"])
    }

    /// Waits for this greeting before it sends.
    #[must_use]
    pub fn expect(self, greeting: &str) -> Self {
        self.exchange(&["--expect", greeting])
    }

    /// Ends its own direction after sending, then reads to the end.
    #[must_use]
    pub fn half_close(self) -> Self {
        self.exchange(&["--half-close"])
    }

    /// Waits for the other side to end.
    #[must_use]
    pub fn wait_end(self) -> Self {
        self.exchange(&["--wait-end"])
    }

    /// Closes with a reset.
    #[must_use]
    pub fn reset(self) -> Self {
        self.exchange(&["--rst"])
    }

    /// `parallel` threads of `repeat` connections each, totals only.
    #[must_use]
    pub fn many(self, parallel: u64, repeat: u64) -> Self {
        let longest = Duration::from_millis(repeat * 20);
        let dial = self.load(&["--parallel", &parallel.to_string(), "--repeat", &repeat.to_string(), "--quiet"]);
        Self { duration: longest, ..dial }
    }

    /// So many new connections per second, totals only.
    #[must_use]
    pub fn rate(self, per_second: u32, duration: Duration) -> Self {
        let seconds = duration.as_secs_f64().to_string();
        Self { duration, ..self.load(&["--rate", &per_second.to_string(), "--seconds", &seconds, "--quiet"]) }
    }

    pub(crate) fn socket_arguments(&self) -> Vec<String> {
        let mut list = vec!["--to".to_owned(), self.to.to_string()];
        list.extend(["--timeout-ms".to_owned(), self.timeout.as_millis().to_string()]);
        list.extend(self.socket.iter().cloned());
        list
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut list = self.socket_arguments();
        list.extend(self.payload.iter().chain(&self.exchange).chain(&self.load).cloned());
        list
    }

    pub(crate) fn limit(&self) -> Duration {
        self.duration + self.timeout * 3 + SLACK
    }
}

/// What a client reported.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Each connection; with [`Dial::many`] and [`Dial::rate`] the first failures only.
    pub connections: Vec<Connection>,
    /// Totals.
    pub summary: Summary,
}

impl Outcome {
    /// The only connection.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn one(&self) -> anyhow::Result<&Connection> {
        let [one] = self.connections.as_slice() else { bail!("not exactly one connection: {self:?}") };
        Ok(one)
    }

    /// Fails unless every connection was complete.
    ///
    /// # Errors
    /// One was not.
    pub fn assert_succeeded(&self) -> anyhow::Result<()> {
        let Summary { attempted, succeeded, skipped, .. } = self.summary;
        ensure!(attempted > 0 && succeeded == attempted && skipped == 0, "not all connections succeeded: {self:#?}");
        Ok(())
    }

    /// Fails unless every connection was refused.
    ///
    /// # Errors
    /// One was not.
    pub fn assert_refused(&self) -> anyhow::Result<()> {
        let Summary { attempted, refused, skipped, .. } = self.summary;
        ensure!(attempted > 0 && refused == attempted && skipped == 0, "not all connections were refused: {self:#?}");
        Ok(())
    }
}

/// A running client.
#[derive(Debug)]
pub struct Client {
    pub(crate) process: Process,
    pub(crate) limit: Duration,
}

impl Client {
    /// Waits for its end and reads its report.
    ///
    /// # Errors
    /// It does not end within its own limits, or reported nothing.
    pub fn finish(self) -> anyhow::Result<Outcome> {
        self.process.wait(self.limit)?;
        let (mut connections, mut totals) = (Vec::new(), None);
        for event in events(&self.process)? {
            match event {
                Event::Connection(connection) => connections.push(connection),
                Event::Summary(summary) => totals = Some(summary),
                _ => {}
            }
        }
        let summary = totals.with_context(|| format!("no summary\n{}", self.process.tail()))?;
        Ok(Outcome { connections, summary })
    }
}

impl Deref for Client {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Connections that a program keeps open.
#[derive(Debug)]
pub struct Held {
    pub(crate) process: Process,
}

impl Held {
    pub(crate) fn state(&self) -> anyhow::Result<Option<(u64, u64)>> {
        let pick = |event| if let Event::Holding { open, failed } = event { Some((open, failed)) } else { None };
        Ok(events(&self.process)?.into_iter().find_map(pick))
    }

    /// Connections that came up.
    ///
    /// # Errors
    /// A line is no event.
    pub fn opened(&self) -> anyhow::Result<u64> {
        Ok(self.state()?.map_or(0, |(open, _)| open))
    }

    /// How the connections that are over ended.
    ///
    /// # Errors
    /// A line is no event.
    pub fn ends(&self) -> anyhow::Result<Vec<End>> {
        let pick = |event| if let Event::Ended { end, .. } = event { Some(end) } else { None };
        Ok(events(&self.process)?.into_iter().filter_map(pick).collect())
    }

    /// Waits until `count` connections are over.
    ///
    /// # Errors
    /// They were not in time.
    pub fn wait_ended(&self, count: usize, timeout: Duration) -> anyhow::Result<Vec<End>> {
        wait_for(&format!("{count} held connections end"), timeout, || {
            Ok(Some(self.ends()?).filter(|e| e.len() >= count))
        })
        .with_context(|| self.process.tail())
    }

    /// Echoes once over every open connection; returns how many did and how many did not.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn ping(&self) -> anyhow::Result<(u64, u64)> {
        let pick = |event| if let Event::Pong { ok, bad } = event { Some((ok, bad)) } else { None };
        let all = || anyhow::Ok(events(&self.process)?.into_iter().filter_map(pick).collect::<Vec<_>>());
        let before = all()?.len();
        self.process.send_line("ping")?;
        wait_for("held connections answer a ping", EVENT_TIMEOUT, || Ok(all()?.into_iter().nth(before)))
            .with_context(|| self.process.tail())
    }

    /// What the kernel calls its open connections now.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn names(&self) -> anyhow::Result<Vec<Named>> {
        names(&self.process)
    }

    /// Closes them in order.
    ///
    /// # Errors
    /// The program has ended.
    pub fn close(&self) -> anyhow::Result<()> {
        self.process.send_line("close")
    }

    /// Resets them.
    ///
    /// # Errors
    /// The program has ended.
    pub fn reset(&self) -> anyhow::Result<()> {
        self.process.send_line("rst")
    }
}

impl Deref for Held {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
