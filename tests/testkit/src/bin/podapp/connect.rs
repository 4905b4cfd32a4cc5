//! Clients: one connection, many in turn, many at once, or so many per second.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use heddle_testkit::report::{Connection, End, Event};
use socket2::Socket;

use crate::emit;
use crate::socket::{self, SocketOptions};
use crate::tally::Tally;

/// More connections per second than this are refused: the tests share a machine.
const RATE_MAX: u32 = 2_000;
/// Connections of a paced load that may be in flight; beyond it they are counted as skipped.
const IN_FLIGHT_MAX: u64 = 4_096;
/// Failures printed one by one with `--quiet`.
const FAILURES_PRINTED_MAX: u64 = 20;
/// Bytes of an answer that are kept as text.
const TEXT_BYTES_MAX: usize = 512;
/// A stack is enough for one connection.
const STACK_BYTES: usize = 192 * 1024;

/// Options of `podapp connect`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to connect to.
    #[arg(long)]
    pub to: SocketAddr,
    #[command(flatten)]
    pub socket: SocketOptions,
    #[command(flatten)]
    pub exchange: Exchange,
    /// Connections each thread makes in turn.
    #[arg(long, default_value_t = 1)]
    pub repeat: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    pub parallel: u64,
    /// New connections per second, whatever became of the earlier ones.
    #[arg(long, requires = "seconds")]
    pub rate: Option<u32>,
    /// How long, with `--rate`.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Print only the totals and the first failures.
    #[arg(long)]
    pub quiet: bool,
}

/// What happens on a connection.
#[derive(Args, Clone, Debug)]
pub struct Exchange {
    /// Wait for this text before sending anything (the server speaks first).
    #[arg(long)]
    pub expect: Option<String>,
    /// Send this text and want it back.
    #[arg(long)]
    pub send: Option<String>,
    /// Send this many patterned bytes and want them back.
    #[arg(long, conflicts_with = "send")]
    pub bytes: Option<usize>,
    /// Want nothing back for what is sent.
    #[arg(long)]
    pub no_echo: bool,
    /// End our direction after sending, then read until the other side ends.
    #[arg(long)]
    pub half_close: bool,
    /// After the exchange, wait for the other side to end.
    #[arg(long)]
    pub wait_end: bool,
    /// Close with a reset.
    #[arg(long)]
    pub rst: bool,
}

impl Exchange {
    fn payload(&self) -> Vec<u8> {
        match (&self.send, self.bytes) {
            (Some(text), _) => text.clone().into_bytes(),
            // 251 is prime: a lost or doubled block of any usual size shows.
            (None, Some(length)) => (0..length).map(|i| (i % 251) as u8).collect(),
            (None, None) => Vec::new(),
        }
    }
}

/// Runs the client and prints its totals.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut tally = Tally::default();
    let mut failures = 0;
    let (results, inbox) = mpsc::sync_channel::<Option<Connection>>(1024);
    let maker = {
        let options = options.clone();
        thread::spawn(move || match options.rate {
            Some(rate) => paced(&options, rate, &results),
            None => in_turn(&options, &results),
        })
    };
    for result in inbox {
        match result {
            None => tally.skip(),
            Some(connection) => {
                tally.add(&connection);
                failures += u64::from(!connection.succeeded());
                if !options.quiet || (!connection.succeeded() && failures <= FAILURES_PRINTED_MAX) {
                    emit(&Event::Connection(connection));
                }
            }
        }
    }
    emit(&Event::Summary(tally.finish()));
    maker.join().map_err(|_| anyhow::anyhow!("a client thread panicked"))?
}

fn in_turn(options: &Options, results: &mpsc::SyncSender<Option<Connection>>) -> anyhow::Result<()> {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..options.parallel {
            let work = || {
                for _ in 0..options.repeat {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let _ = results.send(Some(once(options, index)));
                }
            };
            thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).context("starting a thread")?;
        }
        Ok(())
    })
}

fn paced(options: &Options, rate: u32, results: &mpsc::SyncSender<Option<Connection>>) -> anyhow::Result<()> {
    ensure!((1..=RATE_MAX).contains(&rate), "--rate must be within 1..={RATE_MAX}");
    let total = (options.seconds.unwrap_or(1.0) * f64::from(rate)) as u64;
    let interval = Duration::from_secs(1) / rate;
    let in_flight = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for index in 0..total {
            let due = start + interval * u32::try_from(index).unwrap_or(u32::MAX);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if in_flight.fetch_add(1, Ordering::Relaxed) >= IN_FLIGHT_MAX {
                in_flight.fetch_sub(1, Ordering::Relaxed);
                let _ = results.send(None);
                continue;
            }
            let in_flight = &in_flight;
            let work = move || {
                let connection = once(options, index);
                in_flight.fetch_sub(1, Ordering::Relaxed);
                let _ = results.send(Some(connection));
            };
            thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).context("starting a thread")?;
        }
        Ok(())
    })
}

/// One connection from `connect()` to its end.
fn once(options: &Options, index: u64) -> Connection {
    let payload = options.exchange.payload();
    let start = Instant::now();
    let opened = options.socket.connect(options.to, &payload, index);
    let mut report = Connection {
        index,
        connect_error: None,
        peer: None,
        local: None,
        connect_us: micros(start.elapsed()),
        exchange_us: None,
        sent: 0,
        received: 0,
        text: String::new(),
        complete: false,
        end: End::NotConnected,
    };
    match opened {
        Err(error) => report.connect_error = Some(socket::error_name(&error)),
        Ok((socket, sent)) => {
            report.sent = sent as u64;
            if !options.socket.tfo {
                look_up_addresses(&mut report, &socket);
            }
            report.end = exchange(&options.exchange, &socket, &payload, sent, start, &mut report);
            if report.peer.is_none() {
                look_up_addresses(&mut report, &socket);
            }
            if options.exchange.rst {
                socket::reset(socket);
            }
        }
    }
    report
}

fn look_up_addresses(report: &mut Connection, socket: &Socket) {
    report.peer = socket.peer_addr().ok().and_then(|a| a.as_socket());
    report.local = socket.local_addr().ok().and_then(|a| a.as_socket());
}

fn exchange(
    plan: &Exchange,
    socket: &Socket,
    payload: &[u8],
    sent: usize,
    start: Instant,
    report: &mut Connection,
) -> End {
    let mut text = Vec::new();
    let end = talk(plan, socket, payload, sent, start, report, &mut text);
    report.text = String::from_utf8_lossy(&text).into_owned();
    end.unwrap_or_else(|error| socket::end_of(&error))
}

fn talk(
    plan: &Exchange,
    socket: &Socket,
    payload: &[u8],
    already_sent: usize,
    start: Instant,
    report: &mut Connection,
    text: &mut Vec<u8>,
) -> std::io::Result<End> {
    if let Some(expected) = &plan.expect
        && let Some(end) = read_wanted(socket, expected.as_bytes(), report, text)?
    {
        return Ok(end);
    }
    let rest = &payload[already_sent.min(payload.len())..];
    let wanted = if plan.no_echo { &[] } else { payload };
    let (written, ended) = thread::scope(|scope| {
        let write = move || -> std::io::Result<u64> {
            (&mut &*socket).write_all(rest)?;
            if plan.half_close {
                socket.shutdown(Shutdown::Write)?;
            }
            Ok(rest.len() as u64)
        };
        // Small payloads fit the socket's buffer; for large ones reading and writing must overlap.
        if rest.len() <= 16 * 1024 {
            let written = write();
            let ended = if written.is_ok() { read_wanted(socket, wanted, report, text) } else { Ok(None) };
            (written, ended)
        } else {
            let writer = scope.spawn(write);
            let ended = read_wanted(socket, wanted, report, text);
            if !matches!(ended, Ok(None)) {
                let _ = socket.shutdown(Shutdown::Both);
            }
            (writer.join().unwrap_or(Ok(0)), ended)
        }
    });
    // What was read tells more than the error of a write that it caused.
    if let Some(end) = ended? {
        return Ok(end);
    }
    report.sent += written?;
    report.complete = true;
    report.exchange_us = Some(micros(start.elapsed()));
    if plan.half_close || plan.wait_end { read_to_end(socket, report, text) } else { Ok(End::Closed) }
}

/// Reads exactly `wanted`; `Some(end)` if the connection ended or brought something else.
fn read_wanted(
    socket: &Socket,
    wanted: &[u8],
    report: &mut Connection,
    text: &mut Vec<u8>,
) -> std::io::Result<Option<End>> {
    let mut buffer = vec![0; wanted.len().min(64 * 1024)];
    let mut seen = 0;
    while seen < wanted.len() {
        let room = buffer.len().min(wanted.len() - seen);
        let length = (&mut &*socket).read(&mut buffer[..room])?;
        if length == 0 {
            return Ok(Some(End::Eof));
        }
        note(&buffer[..length], report, text);
        if buffer[..length] != wanted[seen..seen + length] {
            return Ok(Some(End::Mismatch));
        }
        seen += length;
    }
    Ok(None)
}

fn read_to_end(socket: &Socket, report: &mut Connection, text: &mut Vec<u8>) -> std::io::Result<End> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = (&mut &*socket).read(&mut buffer)?;
        if length == 0 {
            return Ok(End::Eof);
        }
        note(&buffer[..length], report, text);
    }
}

fn note(bytes: &[u8], report: &mut Connection, text: &mut Vec<u8>) {
    report.received += bytes.len() as u64;
    let room = TEXT_BYTES_MAX.saturating_sub(text.len());
    text.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
