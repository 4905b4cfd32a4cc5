//! `heddle ca serve`: joins the files source and the authority's server, until told to stop.

use std::sync::Arc;

use anyhow::{Context, Result};
use heddle_controller::ca::{CaServer, Directory, ServerName, ServerOptions};
use heddle_discovery::files::FilesSource;
use heddle_identity::SystemClock;
use heddle_model::Snapshot;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::ServeOptions;
use crate::cli::Source;
use crate::{logging, privileges};

pub(super) fn serve(options: ServeOptions) -> Result<()> {
    logging::start(&options.log_level)?;
    privileges::raise_open_files();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_name("ca").build().context("runtime")?;
    runtime.block_on(run(options))
}

async fn run(options: ServeOptions) -> Result<()> {
    let Source::Files(dir) = &options.source;
    // No node's view: the authority looks at the pods of all.
    let mut source = FilesSource::open(dir, "")?;
    let first = source.load()?;
    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
    let address = listener.local_addr().context("address listened on")?;
    let mut names = options.names;
    if !address.ip().is_unspecified() {
        names.push(ServerName::Address(address.ip()));
    }
    let server_options =
        ServerOptions { names, connections_max: options.connections_max as usize, ..ServerOptions::default() };
    let directory = Directory::new(&options.dir.dir);
    let server = CaServer::new(directory, server_options, Arc::new(SystemClock::default()))?;
    let (publish, snapshots) = watch::channel::<Arc<Snapshot>>(first);
    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let mut following = tokio::spawn(source.run(publish, wait(stopped.clone())));
    // Who finds the address may stop it from then on.
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    if let Some(path) = &options.address_file {
        write_address(path, &address.to_string()).with_context(|| format!("--address-file {}", path.display()))?;
    }
    tracing::info!(target: "ca", %address, "serving");
    let mut ended = None;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            early = &mut following => ended = Some(early),
        }
    };
    server.serve(listener, snapshots, shutdown).await?;
    let _ = stop.send(true);
    let ended = match ended {
        Some(early) => early,
        None => following.await,
    };
    Ok(ended.context("source")??)
}

/// By rename: who waits for the file finds all of it.
fn write_address(path: &std::path::Path, address: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, format!("{address}\n"))?;
    std::fs::rename(&temporary, path)
}
