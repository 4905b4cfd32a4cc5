//! A client that keeps its connections open, so that a test can do something to the node meanwhile.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use heddle_testkit::report::{End, Event, Named};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::emit;
use crate::socket::{self, SocketOptions};

/// How often the program looks for a new command while no connection moves.
const COMMAND_INTERVAL_MS: u8 = 20;
/// A `ping` that is not back by then is bad.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PING: &[u8] = b"are you still there?";

/// Options of `podapp hold`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to connect to.
    #[arg(long)]
    to: SocketAddr,
    #[command(flatten)]
    socket: SocketOptions,
    /// Connections to open.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Echo once on every connection before it counts as open.
    #[arg(long)]
    verify: bool,
    /// Connections opened per second at most.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
}

struct Held {
    index: u64,
    socket: Socket,
    /// Bytes of a `ping` still to come back.
    owed: usize,
}

/// Opens the connections and obeys standard input until it ends.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let (commands, inbox) = mpsc::sync_channel::<String>(16);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if commands.send(line).is_err() {
                break;
            }
        }
    });
    let mut held = Vec::new();
    let mut failed = 0;
    for index in 0..options.count {
        match open(options, index) {
            Ok(socket) => held.push(Held { index, socket, owed: 0 }),
            Err(_) => failed += 1,
        }
        thread::sleep(Duration::from_secs(1) / options.rate.max(1));
    }
    emit(&Event::Holding { open: held.len() as u64, failed });
    loop {
        watch(&mut held)?;
        match inbox.try_recv() {
            Ok(command) => obey(&command, &mut held)?,
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn open(options: &Options, index: u64) -> std::io::Result<Socket> {
    let (socket, sent) = options.socket.connect(options.to, PING, index)?;
    if options.verify {
        (&mut &socket).write_all(&PING[sent..])?;
        let mut answer = [0; PING.len()];
        (&mut &socket).read_exact(&mut answer)?;
        if answer != PING {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Reads what is readable and reports the connections that ended.
fn watch(held: &mut Vec<Held>) -> anyhow::Result<()> {
    let ready: Vec<bool> = {
        let mut set: Vec<PollFd<'_>> = held.iter().map(|h| PollFd::new(h.socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut set, PollTimeout::from(COMMAND_INTERVAL_MS)).context("poll")?;
        set.iter().map(|fd| fd.any().unwrap_or(false)).collect()
    };
    let mut ready = ready.into_iter();
    held.retain_mut(|one| {
        if !ready.next().unwrap_or(false) {
            return true;
        }
        match drain(one) {
            None => true,
            Some(end) => {
                emit(&Event::Ended { index: one.index, end });
                false
            }
        }
    });
    Ok(())
}

fn drain(one: &mut Held) -> Option<End> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match (&mut &one.socket).read(&mut buffer) {
            Ok(0) => return Some(End::Eof),
            Ok(length) => one.owed = one.owed.saturating_sub(length),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(socket::end_of(&error)),
        }
    }
}

fn obey(command: &str, held: &mut Vec<Held>) -> anyhow::Result<()> {
    match command {
        "ping" => {
            let before = held.len() as u64;
            let mut bad = 0;
            for one in held.iter_mut() {
                match (&mut &one.socket).write_all(PING) {
                    Ok(()) => one.owed = PING.len(),
                    Err(_) => bad += 1,
                }
            }
            let deadline = Instant::now() + PING_TIMEOUT;
            while held.iter().any(|h| h.owed > 0) && Instant::now() < deadline {
                watch(held)?;
            }
            let ok = (held.iter().filter(|h| h.owed == 0).count() as u64).saturating_sub(bad);
            emit(&Event::Pong { ok, bad: before - ok });
        }
        "names" => {
            for one in held.iter() {
                let (peer, local) = socket::names(&one.socket);
                emit(&Event::Named(Named { index: one.index, peer, local }));
            }
            emit(&Event::NamedAll);
        }
        "half-close" => {
            for one in held.iter() {
                let _ = one.socket.shutdown(Shutdown::Write);
            }
        }
        "rst" => held.drain(..).for_each(|one| socket::reset(one.socket)),
        "close" => held.clear(),
        other => anyhow::bail!("unknown command {other:?}; known: ping, names, half-close, rst, close"),
    }
    Ok(())
}
