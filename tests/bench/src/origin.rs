//! The server that every contestant leads to: echoes on one port, swallows on the next.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::cpu;

/// Echoes every read.
pub const ECHO_PORT: u16 = 9000;
/// Reads and forgets.
pub const SINK_PORT: u16 = 9001;

const BACKLOG: u32 = 4096;

/// How to answer.
#[derive(Args)]
pub struct Arguments {
    /// Core to stay on
    #[arg(long)]
    core: Option<usize>,
}

/// Serves until killed.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(core) = arguments.core {
        cpu::pin(std::process::id(), core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (echo, sink) = (listen(ECHO_PORT)?, listen(SINK_PORT)?);
        println!("ready");
        tokio::try_join!(serve(echo, true), serve(sink, false))?;
        Ok(())
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(address).and_then(|()| socket.listen(BACKLOG)).with_context(|| format!("cannot listen on {address}"))
}

async fn serve(listener: TcpListener, is_echo: bool) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                connections.spawn(answer(stream, is_echo));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A client that resets is an ordinary end.
async fn answer(mut stream: TcpStream, is_echo: bool) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; if is_echo { 64 } else { 256 * 1024 }];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if is_echo && stream.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
