//! HTTP load. A closed loop is h2load's, the load generator of nghttp2. A fixed rate is our own: each request has its moment,
//! spread evenly, and its time counts from that moment, sent late or not, as wrk2 does (h2load's `--rps` counts from when a
//! request was sent, so a stall of the server would hide itself). New connections and idle ones are our own as well.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::cpu;
use crate::http_client::{Connection, Version};
use crate::load::{Meter, Seen, Tally, nanoseconds, percentile};

/// Before a fixed rate is measured, and before the memory of idle connections is read.
const WARM_UP: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_secs(3);

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// As fast as responses come, by h2load
    Closed,
    /// The same, with the time of every request, which h2load writes to a file
    Timed,
    /// At a fixed rate
    Paced,
    /// Each on a connection of its own
    Connect,
    /// One per connection, which then stays open
    Idle,
}

/// The load to make.
#[derive(Args)]
pub struct Arguments {
    #[arg(long = "loop")]
    kind: Loop,
    #[arg(long)]
    version: Version,
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    path: String,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests at a time on each connection (closed loop)
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Requests per second (fixed rate)
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Length of the measured window
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Processes whose CPU time and memory are measured
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
    /// Core to stay on
    #[arg(long)]
    core: Option<usize>,
}

/// Makes the load and prints [`Seen`] as JSON.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(core) = arguments.core {
        cpu::pin(std::process::id(), core)?;
    }
    let seen = match arguments.kind {
        Loop::Closed => closed(arguments, None)?,
        Loop::Timed => timed(arguments)?,
        Loop::Paced => paced(arguments)?,
        Loop::Connect => connect(arguments)?,
        Loop::Idle => idle(arguments)?,
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// The whole life of an h2load: what it counts, over what its run cost. The few requests under way when its time is up are
/// paid for and not counted.
fn closed(arguments: &Arguments, log: Option<&Path>) -> Result<Seen> {
    let mut h2load = Command::new("h2load");
    h2load.args(["--threads=1", &format!("--clients={}", arguments.connections)]);
    h2load.args([
        format!("--max-concurrent-streams={}", arguments.streams),
        format!("--duration={}ms", (arguments.seconds * 1000.0) as u64),
    ]);
    h2load.arg(match arguments.version {
        Version::H1 => "--h1",
        Version::H2 => "--no-tls-proto=h2c",
    });
    h2load.arg(format!("http://{}{}", arguments.to, arguments.path));
    if let Some(log) = log {
        h2load.arg("--log-file").arg(log);
    }
    let before = Meter::read(&arguments.watch)?;
    let output = h2load.output().context("h2load is missing: apt-get install nghttp2-client")?;
    let after = Meter::read(&arguments.watch)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let what = || format!("h2load ended with {}:\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), what());
    let Counted { succeeded, failed } = counted(&text).with_context(what)?;
    ensure!(succeeded > 0, what());
    let mut seen = Seen::between(&before, &after);
    (seen.count, seen.failed, seen.seconds) = (succeeded, failed, arguments.seconds);
    seen.failure = (failed > 0).then(what);
    Ok(seen)
}

/// A closed loop with percentiles: those of requests that waited for each other as well as for the server.
fn timed(arguments: &Arguments) -> Result<Seen> {
    let log = std::env::temp_dir().join(format!("heddle-bench-{}.tsv", std::process::id()));
    let seen = closed(arguments, Some(&log));
    let text = std::fs::read_to_string(&log);
    let _ = std::fs::remove_file(&log);
    let (mut seen, text) = (seen?, text.with_context(|| format!("read {}", log.display()))?);
    let mut times = times_ns(&text).context("h2load's log is not `start, status, µs`")?;
    ensure!(!times.is_empty(), "h2load logged no request");
    times.sort_unstable();
    (seen.p50_ns, seen.p99_ns) = (percentile(&times, 50), percentile(&times, 99));
    Ok(seen)
}

/// Lines of start, status and duration, both in microseconds.
fn times_ns(log: &str) -> Option<Vec<u64>> {
    log.lines().map(|line| line.split('\t').nth(2)?.parse::<u64>().ok()?.checked_mul(1000)).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Counted {
    succeeded: u64,
    failed: u64,
}

/// The line `requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout`, of which `succeeded`
/// counts statuses below 400 (none of ours redirects).
fn counted(text: &str) -> Option<Counted> {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let of = |word: &str| {
        let mut parts = line.split(", ").filter_map(|part| part.split_once(' '));
        parts.find(|(_, name)| *name == word)?.0.parse::<u64>().ok()
    };
    // `errored` requests are among the failed ones.
    Some(Counted { succeeded: of("succeeded")?, failed: of("failed")? + of("timeout")? })
}

/// One thread per connection: a thread that sleeps wakes to the microsecond, a timer wheel to the millisecond.
fn paced(arguments: &Arguments) -> Result<Seen> {
    nix::sys::prctl::set_timerslack(1).context("the timer slack")?;
    let step = Duration::from_secs(1) / arguments.rate;
    let (barrier, from) = (Barrier::new(arguments.connections + 1), std::sync::OnceLock::new());
    let length = Duration::from_secs_f64(arguments.seconds);
    std::thread::scope(|scope| {
        let connections: Vec<_> = (0..arguments.connections)
            .map(|index| {
                let (barrier, from) = (&barrier, &from);
                scope.spawn(move || {
                    let opened = Connection::open(arguments.to, arguments.version).and_then(|mut connection| {
                        connection.get(&arguments.path, false)?;
                        Ok(connection)
                    });
                    barrier.wait();
                    barrier.wait();
                    let (from, mut tally) = (*from.get_or_init(Instant::now), Tally::default());
                    if let Err(error) = opened.and_then(|connection| {
                        let begin = from + step * u32::try_from(index)?;
                        let each = step * u32::try_from(arguments.connections)?;
                        keep_pace(connection, &arguments.path, begin, each, from + length, &mut tally)
                    }) {
                        tally.fail(&error);
                    }
                    tally
                })
            })
            .collect();
        barrier.wait();
        std::thread::sleep(WARM_UP);
        let before = Meter::read(&arguments.watch)?;
        from.get_or_init(Instant::now);
        barrier.wait();
        let mut tally = Tally::default();
        for connection in connections {
            tally.add(connection.join().map_err(|_| anyhow::anyhow!("a connection's thread ended badly"))?);
        }
        tally.into_seen(&before, &Meter::read(&arguments.watch)?)
    })
}

fn keep_pace(
    mut connection: Connection,
    path: &str,
    begin: Instant,
    each: Duration,
    end: Instant,
    tally: &mut Tally,
) -> Result<()> {
    let mut due = begin;
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        connection.get(path, false)?;
        tally.times_ns.push(nanoseconds(due.elapsed()));
        due += each;
    }
    Ok(())
}

fn connect(arguments: &Arguments) -> Result<Seen> {
    let before = Meter::read(&arguments.watch)?;
    let end = before.at + Duration::from_secs_f64(arguments.seconds);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut tally = Tally::default();
                    while Instant::now() < end {
                        let started = Instant::now();
                        let exchanged = Connection::open(arguments.to, arguments.version)
                            .and_then(|mut connection| connection.get(&arguments.path, true));
                        match exchanged {
                            Ok(()) => tally.times_ns.push(nanoseconds(started.elapsed())),
                            Err(error) => tally.fail(&error),
                        }
                    }
                    tally
                })
            })
            .collect();
        for thread in threads {
            tally.add(thread.join().map_err(|_| anyhow::anyhow!("a connection's thread ended badly"))?);
        }
        tally.into_seen(&before, &Meter::read(&arguments.watch)?)
    })
}

/// What the watched processes hold for connections on which nothing happens. One connection comes and goes first, so that
/// what the first one ever makes a process allocate is not theirs.
fn idle(arguments: &Arguments) -> Result<Seen> {
    let resident = || arguments.watch.iter().map(|pid| cpu::resident_bytes(*pid)).sum::<Result<u64>>();
    let open = || {
        let mut connection = Connection::open(arguments.to, arguments.version)?;
        connection.get(&arguments.path, false)?;
        anyhow::Ok(connection)
    };
    drop(open()?);
    std::thread::sleep(WARM_UP);
    let (before, meter) = (resident()?, Meter::read(&arguments.watch)?);
    let connections = (0..arguments.connections).map(|_| open()).collect::<Result<Vec<Connection>>>()?;
    std::thread::sleep(SETTLE);
    let mut seen = Seen::between(&meter, &Meter::read(&arguments.watch)?);
    seen.count = connections.len() as u64;
    seen.resident_bytes = resident()?.saturating_sub(before);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn h2loads_summary_is_understood() {
        let text = "finished in 2.00s, 31336.00 req/s, 33.90MB/s\n\
                    requests: 62672 total, 62736 started, 62672 done, 62660 succeeded, 12 failed, 4 errored, 3 timeout\n\
                    status codes: 62660 2xx, 0 3xx, 0 4xx, 8 5xx\n";
        assert_eq!(counted(text), Some(Counted { succeeded: 62660, failed: 15 }));
        assert_eq!(counted("requests: many"), None);
        assert_eq!(times_ns("1700000000\t200\t150\n1700000001\t200\t90\n"), Some(vec![150_000, 90_000]));
        assert_eq!(times_ns("1700000000 200 150\n"), None);
    }

    #[test]
    fn a_fixed_rate_counts_from_when_a_request_was_due() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buffer, mut count) = ([0; 1024], 0);
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                count += 1;
                // One stall: those that were due meanwhile are late.
                std::thread::sleep(Duration::from_millis(if count == 10 { 100 } else { 0 }));
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        let arguments = Arguments {
            kind: Loop::Paced,
            version: Version::H1,
            to,
            path: "/".into(),
            connections: 1,
            streams: 1,
            rate: 200,
            seconds: 0.4,
            watch: vec![],
            core: None,
        };
        let seen = paced(&arguments).unwrap();
        assert_eq!((seen.count, seen.failed), (80, 0));
        // 100 ms are the times of 20 requests, a quarter of all.
        assert!(seen.p99_ns > 80_000_000 && seen.p50_ns < 40_000_000, "{seen:?}");
    }
}
