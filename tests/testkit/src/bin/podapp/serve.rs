//! Servers: for each connection they print the addresses the kernel named, and how it ended.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::bail;
use clap::{Args, ValueEnum};
use heddle_testkit::report::{Accepted, End, Event, Named};
use socket2::Socket;

use crate::emit;
use crate::socket;

/// `half-close-echo` keeps at most this much of a request.
const REQUEST_BYTES_MAX: usize = 64 << 20;
const STACK_BYTES: usize = 128 * 1024;

/// Options of `podapp serve`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address to listen on, `*:PORT` for every address; may be repeated.
    #[arg(long, required = true, value_parser = socket::parse_listen)]
    listen: Vec<SocketAddr>,
    /// What to do with a connection.
    #[arg(long, value_enum, default_value_t = Mode::Echo)]
    mode: Mode,
    /// The first words of `server-first` and `greet-close`, and the body of `http`.
    #[arg(long, default_value = "hello\n")]
    greeting: String,
    /// Listen with MPTCP sockets.
    #[arg(long)]
    mptcp: bool,
    /// Accept TCP Fast Open.
    #[arg(long)]
    tfo: bool,
    /// SO_REUSEPORT.
    #[arg(long)]
    reuseport: bool,
    /// An IPv6 listener takes no IPv4.
    #[arg(long)]
    v6only: bool,
    /// Do not print connections; ask with the line `stats`.
    #[arg(long)]
    quiet: bool,
}

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Send back what comes.
    Echo,
    /// Greet, then echo.
    ServerFirst,
    /// Read and forget.
    Discard,
    /// Answer each HTTP/1.1 request with the greeting and the addresses seen.
    Http,
    /// Never read.
    SinkNeverRead,
    /// Read to the end of the client's direction, then send all of it back.
    HalfCloseEcho,
    /// Greet, end our direction, then read to the end.
    GreetClose,
    /// Reset as soon as accepted.
    RstOnAccept,
    /// Read once, then reset.
    RstOnData,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicU64,
    bytes: AtomicU64,
    /// Open connections by id, unless quiet.
    sockets: Mutex<BTreeMap<u64, Arc<Socket>>>,
}

impl Counts {
    fn sockets(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until standard input ends. Exit code 1 if no listener came up.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let counts = Arc::new(Counts::default());
    let mut listening = 0;
    for &address in &options.listen {
        let listener = match socket::listen(address, options.mptcp, options.tfo, options.reuseport, options.v6only) {
            Ok(listener) => listener,
            Err(error) => {
                emit(&Event::Listening { address, error: Some(socket::error_name(&error)) });
                continue;
            }
        };
        listening += 1;
        emit(&Event::Listening { address, error: None });
        let (options, counts) = (options.clone(), Arc::clone(&counts));
        thread::spawn(move || accept_all(&listener, &options, &counts));
    }
    if listening == 0 {
        bail!("no listener came up");
    }
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "stats" => emit(&Event::Stats {
                accepted: counts.accepted.load(Ordering::Relaxed),
                open: counts.open.load(Ordering::Relaxed),
                bytes: counts.bytes.load(Ordering::Relaxed),
            }),
            "names" => {
                for (&index, socket) in counts.sockets().iter() {
                    let (peer, local) = socket::names(socket);
                    emit(&Event::Named(Named { index, peer, local }));
                }
                emit(&Event::NamedAll);
            }
            other => bail!("unknown command {other:?}; known: stats, names"),
        }
    }
    Ok(())
}

fn accept_all(listener: &Socket, options: &Options, counts: &Arc<Counts>) {
    loop {
        let (socket, address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            Err(_) => continue,
        };
        let id = counts.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        if !options.quiet
            && let Some(accept) = address.as_socket()
        {
            let peer = socket.peer_addr().ok().and_then(|a| a.as_socket());
            let local = socket.local_addr().ok().and_then(|a| a.as_socket());
            emit(&Event::Accepted(Accepted { id, accept, peer, local }));
        }
        counts.open.fetch_add(1, Ordering::Relaxed);
        let (options, shared, socket) = (options.clone(), Arc::clone(counts), Arc::new(socket));
        if !options.quiet {
            counts.sockets().insert(id, Arc::clone(&socket));
        }
        let serve = move || {
            let mut bytes = 0;
            let end = answer(&socket, &options, &mut bytes).unwrap_or_else(|error| socket::end_of(&error));
            shared.sockets().remove(&id);
            match Arc::try_unwrap(socket) {
                Ok(socket) if matches!(options.mode, Mode::RstOnAccept | Mode::RstOnData) => socket::reset(socket),
                _ => {}
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
            shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            if !options.quiet {
                emit(&Event::Closed { id, bytes, end });
            }
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(serve).is_err() {
            counts.open.fetch_sub(1, Ordering::Relaxed);
            counts.sockets().remove(&id);
        }
    }
}

fn answer(socket: &Socket, options: &Options, bytes: &mut u64) -> std::io::Result<End> {
    match options.mode {
        Mode::Echo => echo(socket, bytes),
        Mode::ServerFirst => {
            (&mut &*socket).write_all(options.greeting.as_bytes())?;
            echo(socket, bytes)
        }
        Mode::Discard => read_all(socket, bytes, |_| Ok(())),
        Mode::Http => http(socket, &options.greeting, bytes),
        Mode::SinkNeverRead => loop {
            thread::park();
        },
        Mode::HalfCloseEcho => {
            let mut request = Vec::new();
            let end = read_all(socket, bytes, |part| {
                if request.len() + part.len() > REQUEST_BYTES_MAX {
                    return Err(std::io::ErrorKind::OutOfMemory.into());
                }
                request.extend_from_slice(part);
                Ok(())
            })?;
            (&mut &*socket).write_all(&request)?;
            Ok(end)
        }
        Mode::GreetClose => {
            (&mut &*socket).write_all(options.greeting.as_bytes())?;
            socket.shutdown(Shutdown::Write)?;
            read_all(socket, bytes, |_| Ok(()))
        }
        Mode::RstOnAccept => Ok(End::Closed),
        Mode::RstOnData => {
            *bytes += (&mut &*socket).read(&mut [0; 4096])? as u64;
            Ok(End::Closed)
        }
    }
}

fn echo(socket: &Socket, bytes: &mut u64) -> std::io::Result<End> {
    read_all(socket, bytes, |part| (&mut &*socket).write_all(part))
}

fn read_all(
    socket: &Socket,
    bytes: &mut u64,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<End> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = (&mut &*socket).read(&mut buffer)?;
        if length == 0 {
            return Ok(End::Eof);
        }
        *bytes += length as u64;
        take(&buffer[..length])?;
    }
}

/// Enough HTTP/1.1 for curl: requests without a body, one after the other.
fn http(socket: &Socket, greeting: &str, bytes: &mut u64) -> std::io::Result<End> {
    let address = |a: std::io::Result<socket2::SockAddr>| {
        a.ok().and_then(|a| a.as_socket()).map_or_else(String::new, |a| a.to_string())
    };
    let mut head = Vec::new();
    read_all(socket, bytes, |part| {
        head.extend_from_slice(part);
        while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            head.drain(..end + 4);
            let (client, server) = (address(socket.peer_addr()), address(socket.local_addr()));
            let body = serde_json::json!({"greeting": greeting.trim(), "client": client, "server": server}).to_string();
            let length = body.len() + 1;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            (&mut &*socket).write_all(format!("{head}{body}\n").as_bytes())?;
        }
        Ok(())
    })
}
