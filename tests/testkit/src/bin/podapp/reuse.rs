//! One socket, used twice: connected, disconnected with AF_UNSPEC, then connected elsewhere or made to listen.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};
use clap::Args;
use heddle_testkit::report::{Event, Named};
use socket2::{Domain, Protocol, Socket, Type};

use crate::emit;
use crate::socket;

/// Options of `podapp reuse`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to connect to first.
    #[arg(long)]
    to: SocketAddr,
    /// Then connect here.
    #[arg(long, required_unless_present = "then_listen")]
    then: Option<SocketAddr>,
    /// Then listen here, and accept a connection of our own.
    #[arg(long, conflicts_with = "then")]
    then_listen: Option<SocketAddr>,
    /// An MPTCP socket.
    #[arg(long)]
    mptcp: bool,
    /// Between the two uses, wait for a line on standard input.
    #[arg(long)]
    pause: bool,
}

/// Prints the socket's names after each step: 0 connected, 1 used again, 2 the connection it accepted.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let protocol = if options.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(options.to), Type::STREAM, Some(protocol))?;
    socket.connect(&options.to.into()).context("first connect")?;
    echo(&socket).context("first connection")?;
    emit(&named(0, &socket));
    if options.pause {
        std::io::stdin().read_line(&mut String::new())?;
    }
    disconnect(&socket).context("disconnect")?;
    if let Some(to) = options.then {
        socket.connect(&to.into()).context("second connect")?;
        echo(&socket).context("second connection")?;
        emit(&named(1, &socket));
    }
    if let Some(on) = options.then_listen {
        socket.bind(&on.into()).context("bind")?;
        socket.listen(1).context("listen")?;
        emit(&named(1, &socket));
        let client = Socket::new(Domain::for_address(on), Type::STREAM, Some(Protocol::TCP))?;
        client.connect(&on.into()).context("connect to ourselves")?;
        let (accepted, _) = socket.accept().context("accept")?;
        emit(&named(2, &accepted));
    }
    emit(&Event::NamedAll);
    Ok(())
}

fn named(index: u64, socket: &Socket) -> Event {
    let (peer, local) = socket::names(socket);
    Event::Named(Named { index, peer, local })
}

fn echo(mut socket: &Socket) -> anyhow::Result<()> {
    socket.write_all(b"again")?;
    let mut answer = [0; 5];
    socket.read_exact(&mut answer)?;
    ensure!(answer == *b"again", "not what was sent: {answer:?}");
    Ok(())
}

/// `connect(AF_UNSPEC)`: dissolves the association.
fn disconnect(socket: &Socket) -> std::io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).unwrap_or(16);
    // SAFETY: the address lives over the call and `length` is its size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
