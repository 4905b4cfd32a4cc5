//! The client: one process on one core puts a closed loop of load on an address and measures what it sees.
//!
//! It also reads the CPU time of the processes it is told to watch, at the same two moments between which it counts: a
//! count and a cost from different windows would not divide.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cpu;

const WARM_UP: Duration = Duration::from_millis(300);
const BULK_WRITE_BYTES: usize = 256 * 1024;
/// One exchange may not take longer than this, or it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do with each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// A new connection for every byte sent and echoed
    Connect,
    /// One byte there and back, over and over, on connections that stay open
    PingPong,
    /// As many bytes as possible, one way
    Bulk,
    /// Only `connect()`, timed, one at a time
    ConnectCall,
}

/// The load to make.
#[derive(Args)]
pub struct Arguments {
    #[arg(long)]
    pattern: Pattern,
    #[arg(long)]
    to: SocketAddr,
    /// Go there by this proxy of SOCKS5
    #[arg(long)]
    socks5: Option<SocketAddr>,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Length of the measured window
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Processes whose CPU time is measured
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
    /// Core to stay on
    #[arg(long)]
    core: Option<usize>,
}

/// What one run of load saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Exchanges, connections or calls completed in the window.
    pub count: u64,
    /// Those that failed, in the window or before.
    pub failed: u64,
    /// The first failure, for a person.
    pub failure: Option<String>,
    /// Bytes written (bulk only).
    pub bytes: u64,
    /// Length of the window.
    pub seconds: f64,
    /// Time of one exchange, connection or call.
    pub p50_ns: u64,
    /// Likewise.
    pub p99_ns: u64,
    /// CPU time of the watched processes in the window.
    pub watched_cpu_ns: u64,
    /// CPU time of the whole machine in the window.
    pub machine_cpu_ns: u64,
    /// Memory the watched processes hold for what is open (idle connections only).
    pub resident_bytes: u64,
}

impl Seen {
    /// What was spent between two moments; nothing is counted yet.
    pub fn between(before: &Meter, after: &Meter) -> Seen {
        Seen {
            count: 0,
            failed: 0,
            failure: None,
            bytes: 0,
            seconds: (after.at - before.at).as_secs_f64(),
            p50_ns: 0,
            p99_ns: 0,
            watched_cpu_ns: nanoseconds(after.watched.saturating_sub(before.watched)),
            machine_cpu_ns: nanoseconds(after.machine.saturating_sub(before.machine)),
            resident_bytes: 0,
        }
    }
}

/// Makes the load and prints [`Seen`] as JSON.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(core) = arguments.core {
        cpu::pin(std::process::id(), core)?;
    }
    let seen = if arguments.pattern == Pattern::ConnectCall { calls(arguments)? } else { streams(arguments)? };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// CPU times at one moment.
pub struct Meter {
    pub at: Instant,
    watched: Duration,
    machine: Duration,
}

impl Meter {
    /// Of these processes, now.
    pub fn read(watch: &[u32]) -> Result<Meter> {
        let watched = watch.iter().map(|pid| cpu::of_process(*pid)).sum::<Result<Duration>>()?;
        Ok(Meter { at: Instant::now(), watched, machine: cpu::of_machine()? })
    }
}

/// What the connections saw.
#[derive(Default)]
pub struct Tally {
    pub times_ns: Vec<u64>,
    bytes: u64,
    failed: u64,
    failure: Option<String>,
}

impl Tally {
    pub fn fail(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        self.failure.get_or_insert_with(|| format!("{error:#}"));
    }

    pub fn add(&mut self, other: Tally) {
        self.times_ns.extend(other.times_ns);
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
    }

    /// An error if nothing succeeded.
    pub fn into_seen(mut self, before: &Meter, after: &Meter) -> Result<Seen> {
        if self.times_ns.is_empty() && self.bytes == 0 {
            bail!("nothing succeeded: {}", self.failure.unwrap_or_else(|| "no attempt was made".into()));
        }
        self.times_ns.sort_unstable();
        Ok(Seen {
            count: self.times_ns.len() as u64,
            failed: self.failed,
            failure: self.failure,
            bytes: self.bytes,
            p50_ns: percentile(&self.times_ns, 50),
            p99_ns: percentile(&self.times_ns, 99),
            ..Seen::between(before, after)
        })
    }
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nearest rank of a sorted list.
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Where connections go, and by which proxy.
#[derive(Clone, Copy)]
struct Way {
    to: SocketAddr,
    socks5: Option<SocketAddr>,
}

/// The measured window; connections run a little before and after it.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

impl Window {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn contains(&self, moment: Instant) -> bool {
        moment >= self.from && moment < self.until
    }
}

fn streams(arguments: &Arguments) -> Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let way = Way { to: arguments.to, socks5: arguments.socks5 };
    runtime.block_on(async {
        let from = Instant::now() + WARM_UP;
        let window = Window { from, until: from + Duration::from_secs_f64(arguments.seconds) };
        let mut connections = JoinSet::new();
        for _ in 0..arguments.connections {
            connections.spawn(one(arguments.pattern, way, window));
        }
        tokio::time::sleep_until(window.from.into()).await;
        let before = Meter::read(&arguments.watch)?;
        tokio::time::sleep_until(window.until.into()).await;
        let after = Meter::read(&arguments.watch)?;

        let mut tally = Tally::default();
        while let Some(part) = connections.join_next().await {
            tally.add(part.context("a connection's task ended badly")?);
        }
        tally.into_seen(&before, &after)
    })
}

async fn one(pattern: Pattern, way: Way, window: Window) -> Tally {
    let mut tally = Tally::default();
    let outcome = match pattern {
        Pattern::Connect => {
            while !window.is_over() {
                let started = Instant::now();
                match patiently(exchange_on_new_connection(way)).await {
                    Ok(()) if window.contains(Instant::now()) => tally.times_ns.push(nanoseconds(started.elapsed())),
                    Ok(()) => {}
                    Err(error) => {
                        tally.fail(&error);
                        // A refusal costs nothing: without a pause the loop would count nothing else.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            Ok(())
        }
        Pattern::PingPong => ping_pong(way, window, &mut tally).await,
        Pattern::Bulk => bulk(way, window, &mut tally).await,
        Pattern::ConnectCall => Ok(()),
    };
    if let Err(error) = outcome {
        tally.fail(&error);
    }
    tally
}

async fn patiently<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.context("no answer in time")?
}

async fn open(way: Way) -> Result<TcpStream> {
    let first = way.socks5.unwrap_or(way.to);
    let mut stream = TcpStream::connect(first).await.with_context(|| format!("connect to {first}"))?;
    stream.set_nodelay(true)?;
    if way.socks5.is_some() {
        ask_socks5(&mut stream, way.to).await.with_context(|| format!("ask {first} for {}", way.to))?;
    }
    Ok(stream)
}

/// RFC 1928 without authentication, for an address.
async fn ask_socks5(stream: &mut TcpStream, to: SocketAddr) -> Result<()> {
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    ensure!(method == [5, 0], "it wants method {}", method[1]);
    let SocketAddr::V4(to) = to else { bail!("only IPv4 is asked for") };
    let mut request = vec![5, 1, 0, 1];
    request.extend(to.ip().octets());
    request.extend(to.port().to_be_bytes());
    stream.write_all(&request).await?;
    // Code, and an address that means nothing here.
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer[..2] == [5, 0], "it answers {}", answer[1]);
    let address = match answer[3] {
        1 => 6,
        4 => 18,
        kind => bail!("its address is of kind {kind}"),
    };
    stream.read_exact(&mut [0; 18][..address]).await?;
    Ok(())
}

async fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [42];
    stream.write_all(&byte).await.context("write")?;
    stream.read_exact(&mut byte).await.context("read")?;
    Ok(())
}

/// Ends with our FIN and the other side's, so that every contestant pays for a whole life.
async fn exchange_on_new_connection(way: Way) -> Result<()> {
    let mut stream = open(way).await?;
    exchange(&mut stream).await?;
    stream.shutdown().await.context("shutdown")?;
    if stream.read(&mut [0]).await.context("end of stream")? != 0 {
        bail!("more bytes than were sent");
    }
    Ok(())
}

async fn ping_pong(way: Way, window: Window, tally: &mut Tally) -> Result<()> {
    let mut stream = patiently(open(way)).await?;
    while !window.is_over() {
        let started = Instant::now();
        patiently(exchange(&mut stream)).await?;
        if window.contains(Instant::now()) {
            tally.times_ns.push(nanoseconds(started.elapsed()));
        }
    }
    Ok(())
}

async fn bulk(way: Way, window: Window, tally: &mut Tally) -> Result<()> {
    let mut stream = patiently(open(way)).await?;
    let chunk = vec![0u8; BULK_WRITE_BYTES];
    while !window.is_over() {
        let count = patiently(async { stream.write(&chunk).await.context("write") }).await?;
        if window.contains(Instant::now()) {
            tally.bytes += count as u64;
        }
    }
    Ok(())
}

/// Blocking `connect()` calls, timed one by one; the rest of each connection's life is not in the time.
fn calls(arguments: &Arguments) -> Result<Seen> {
    let mut tally = Tally::default();
    let before = Meter::read(&arguments.watch)?;
    let until = before.at + Duration::from_secs_f64(arguments.seconds);
    while Instant::now() < until {
        let started = Instant::now();
        match std::net::TcpStream::connect(arguments.to) {
            Ok(_) => tally.times_ns.push(nanoseconds(started.elapsed())),
            Err(error) => tally.fail(&anyhow::Error::from(error)),
        }
        // Paced, so that the cost of a call is seen and not the queue of a busy accepting side.
        std::thread::sleep(Duration::from_micros(500));
    }
    tally.into_seen(&before, &Meter::read(&arguments.watch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let list: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&list, 50), 100);
        assert_eq!(percentile(&list, 99), 198);
        assert_eq!(percentile(&[7], 99), 7);
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn a_run_in_which_nothing_succeeded_is_an_error_that_says_why() {
        let mut tally = Tally::default();
        tally.fail(&anyhow::anyhow!("connection refused"));
        let meter = || Meter::read(&[]).unwrap();
        assert!(tally.into_seen(&meter(), &meter()).unwrap_err().to_string().contains("connection refused"));
    }

    #[test]
    fn the_load_counts_what_an_echo_answers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        for (pattern, connections) in [(Pattern::Connect, 2), (Pattern::PingPong, 2)] {
            let arguments = Arguments {
                pattern,
                to,
                socks5: None,
                connections,
                seconds: 0.2,
                watch: vec![std::process::id()],
                core: None,
            };
            let seen = streams(&arguments).unwrap();
            assert_eq!((seen.failed, seen.failure.clone()), (0, None));
            assert!(seen.count > 10 && seen.p99_ns >= seen.p50_ns && seen.watched_cpu_ns > 0, "{seen:?}");
        }
    }

    #[test]
    fn a_proxy_of_socks5_is_asked_and_a_refusal_is_an_error() {
        use std::io::{Read, Write};
        for (code, succeeds) in [(0, true), (5, false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let proxy = listener.local_addr().unwrap();
            let asked = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut hello, mut request) = ([0; 3], [0; 10]);
                stream.read_exact(&mut hello).unwrap();
                stream.write_all(&[5, 0]).unwrap();
                stream.read_exact(&mut request).unwrap();
                stream.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).unwrap();
                }
                request
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let way = Way { to: "10.1.2.3:9000".parse().unwrap(), socks5: Some(proxy) };
            let exchanged = runtime.block_on(async { exchange(&mut open(way).await?).await });
            assert_eq!(exchanged.is_ok(), succeeds, "{exchanged:?}");
            assert_eq!(asked.join().unwrap(), [5, 1, 0, 1, 10, 1, 2, 3, 0x23, 0x28]);
        }
    }
}
