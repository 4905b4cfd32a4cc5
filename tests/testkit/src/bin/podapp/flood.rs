//! The noisy neighbour: opens connections as fast as it may and writes into them without ever reading.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use heddle_testkit::report::{Connection, End, Event};
use socket2::Socket;

use crate::emit;
use crate::socket::{self, SocketOptions};
use crate::tally::Tally;

/// Options of `podapp flood`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to connect to.
    #[arg(long)]
    to: SocketAddr,
    #[command(flatten)]
    socket: SocketOptions,
    /// Connections it wants to have open.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// New connections per second at most.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Floods for the given time, or until standard input ends.
pub fn run(options: &Options) -> anyhow::Result<()> {
    static OVER: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        OVER.store(true, Ordering::Relaxed);
    });
    let deadline = Instant::now() + Duration::from_secs_f64(options.seconds);
    let interval = Duration::from_secs(1) / options.rate.clamp(1, 2_000);
    let mut tally = Tally::default();
    let mut open: Vec<(u64, Socket)> = Vec::new();
    let block = vec![0x5a; 64 * 1024];
    let (mut index, mut turn) = (0, 0_usize);
    let mut due = Instant::now();
    while Instant::now() < deadline && !OVER.load(Ordering::Relaxed) {
        if open.len() < options.connections {
            let start = Instant::now();
            match options.socket.connect(options.to, &[], index) {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    open.push((index, socket));
                }
                Err(error) => tally.add(&failed(index, start, Some(socket::error_name(&error)), End::NotConnected)),
            }
            index += 1;
        }
        // A few sockets per turn, so that opening keeps its pace.
        for _ in 0..8 {
            if open.is_empty() {
                break;
            }
            turn = turn.wrapping_add(1);
            let at = turn % open.len();
            match (&mut &open[at].1).write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    let (number, _) = open.swap_remove(at);
                    tally.add(&failed(number, Instant::now(), None, socket::end_of(&error)));
                }
            }
        }
        due += interval;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    for (number, _) in open {
        let mut held = failed(number, Instant::now(), None, End::Closed);
        held.complete = true;
        tally.add(&held);
    }
    emit(&Event::Summary(tally.finish()));
    Ok(())
}

fn failed(index: u64, start: Instant, connect_error: Option<String>, end: End) -> Connection {
    Connection {
        index,
        connect_error,
        peer: None,
        local: None,
        connect_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
        exchange_us: None,
        sent: 0,
        received: 0,
        text: String::new(),
        complete: false,
        end,
    }
}
