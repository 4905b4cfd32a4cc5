//! The composition root: rooms meet here as values (snapshots, sockets, events), and the agent lives until something ends it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use heddle_admin::Limits;
use heddle_discovery::files::FilesSource;
use heddle_model::{Family, PodUid, Snapshot};
use heddle_proxy::{Config, Proxy, Telemetry};
use heddle_telemetry::{
    AccessLog, HttpMetrics, PolicyMetrics, ProxyMetrics, Reason, Registry, TcpMetrics, UpstreamMetrics,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::identity::{self, Authority, Identities};
use super::link::{Link, LinkEvent};
use super::sockets::NetnsSockets;
use super::views::AgentViews;
use super::{enrol, metrics};
use crate::cli::{AgentOptions, Source};
use crate::node::default_workers;

/// Time between two heartbeats: a tenth of the kernel's threshold.
const BEAT: Duration = Duration::from_millis(500);
/// A connection outlives a restart of the keeper.
const SOCKET_WAIT: Duration = Duration::from_secs(3);
/// Label sets of `istio_tcp_*` per agent.
const SERIES_MAX: usize = 10_000;
/// Events from the keeper's thread waiting for this one.
const EVENTS_MAX: usize = 256;
/// How long the last access records may take to be written.
const LOG_FLUSH: Duration = Duration::from_secs(2);

/// Why the agent ends.
enum End {
    Signal(&'static str),
    Replaced(&'static str),
    WorkerDied(usize),
    SourceEnded,
}

/// Runs everything on the control runtime.
pub async fn serve(options: AgentOptions, access: AccessLog, authority: Option<Authority>) -> Result<ExitCode> {
    let started = Instant::now();
    let workers = options.workers.map_or_else(default_workers, usize::from);
    let Source::Files(dir) = &options.source;
    let source = FilesSource::open(dir, &options.node)?;
    let source_status = source.status();
    let (publish, mut snapshots) = watch::channel(Arc::new(Snapshot::new(&options.node)));
    let mut tasks = Vec::new();
    // What connections go by to their end, so also while the agent drains: policies and modes of now, certificates that are good.
    let mut through_drain = Vec::new();
    let identities = authority.as_ref().map(|authority| Arc::new(Identities::new(authority, workers)));
    if let Some(identities) = &identities {
        let (pinned, task) = identity::in_own_domain(Arc::clone(identities), snapshots);
        snapshots = pinned;
        through_drain.push(task);
        // Before the first lease: what is taken over is used at once.
        identities.restore(&options.paths.run_dir).await;
    }
    let (stop_source, source_stopped) = tokio::sync::oneshot::channel::<()>();
    let mut source_task = tokio::spawn(source.run(publish, async move {
        let _ = source_stopped.await;
    }));

    let sockets = NetnsSockets::start(workers, options.paths.run_dir.clone()).context("sockets thread")?;
    let telemetry = Telemetry {
        tcp: TcpMetrics::new(workers, SERIES_MAX),
        http: HttpMetrics::new(workers, heddle_telemetry::http::SERIES_MAX_DEFAULT),
        proxy: ProxyMetrics::new(workers),
        policy: PolicyMetrics::new(workers, heddle_telemetry::policy::SERIES_MAX_DEFAULT),
        upstream: UpstreamMetrics::new(heddle_telemetry::upstream::SERIES_MAX_DEFAULT),
        access: access.clone(),
    };
    let config = Config {
        workers,
        node: options.node.as_str().into(),
        socket_wait: SOCKET_WAIT,
        request_head_timeout: Duration::from_secs(options.request_head_timeout_seconds),
        request_body_idle_timeout: Duration::from_secs(options.request_body_idle_timeout_seconds),
        mesh_connection_age_max: Duration::from_secs(options.mesh_connection_age_max_seconds),
        ..Config::default()
    };
    let shared: Arc<dyn heddle_proxy::SocketSource> = sockets.clone();
    let own = identities.as_deref().map(Identities::shared);
    let proxy =
        Arc::new(Proxy::start(config, snapshots.clone(), shared, own, telemetry.clone()).context("data plane")?);

    // What is wanted must be known before the keeper is told: wait for the first load, or say why there is none.
    tokio::select! {
        loaded = snapshots.wait_for(|snapshot| snapshot.generation > 0) => drop(loaded.context("source")?),
        ended = &mut source_task => return Err(source_error(ended)),
    }
    if let (Some(identities), Some(authority)) = (&identities, authority) {
        let issuer = identities.begin(authority, &snapshots.borrow())?;
        let store = identities.store().clone();
        through_drain.push(tokio::spawn(async move { store.run(issuer, std::future::pending()).await }));
        tasks.push(tokio::spawn(Arc::clone(identities).keep(options.paths.run_dir.clone())));
    }
    let hbone = identities.is_some();
    // Taken before the keeper is: an agent that cannot have its addresses must not have replaced the former one.
    let metrics_listener = bind(options.metrics_address, "--metrics-address: metrics")?;
    let health_listener = bind(options.health_address, "--health-address: health")?;
    let (event_sender, mut events) = mpsc::channel(EVENTS_MAX);
    let link = Arc::new(Link::start(options.paths.run_dir.clone(), Arc::clone(&sockets), event_sender)?);
    link.desire(enrol::desired(&snapshots.borrow_and_update(), hbone));

    let registry = Registry::new();
    metrics::register(&registry, &telemetry, &proxy, &link, snapshots.clone())?;
    if let Some(identities) = &identities {
        metrics::register_identities(&registry, identities)?;
    }
    let draining = Arc::new(AtomicBool::new(false));
    let views = Arc::new(AgentViews {
        options: Arc::new(options.shown()),
        started,
        link: Arc::clone(&link),
        proxy: Arc::clone(&proxy),
        policy: telemetry.policy.clone(),
        snapshots: snapshots.clone(),
        source: source_status,
        draining: Arc::clone(&draining),
        workers,
        identities: identities.clone(),
    });
    let limits = Limits::default();
    tasks.extend([
        tokio::spawn(heddle_admin::metrics::run(metrics_listener, registry, limits)),
        tokio::spawn(heddle_admin::health::run(
            health_listener,
            Arc::clone(&views) as Arc<dyn heddle_admin::Health>,
            limits,
        )),
        tokio::spawn(beat(Arc::clone(&link))),
    ]);
    let mut debug: Option<JoinHandle<()>> = None;
    tracing::info!(node = options.node, workers, version = crate::VERSION, "agent started");

    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let died = proxy.died();
    tokio::pin!(died);
    let end = loop {
        tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    for uid in identities.iter().flat_map(|identities| identities.follow(&snapshot)) {
                        link.accept_anew(&uid);
                    }
                    link.desire(enrol::desired(&snapshot, hbone));
                }
                Err(_) => break End::SourceEnded,
            },
            event = events.recv() => match event {
                Some(LinkEvent::Attached(listener)) => {
                    link.beat();
                    if let Some(identities) = &identities {
                        identities.keeper_attached();
                    }
                    if let Some(old) = debug.take() {
                        old.abort();
                    }
                    debug = Some(spawn_debug(listener, options.user.uid, Arc::clone(&views), limits)?);
                }
                Some(LinkEvent::Enrolled(uid, mut listeners, accepting)) => {
                    if let Some(pod) = snapshots.borrow().workload(&uid) {
                        listeners.addresses.clone_from(&pod.addresses);
                    }
                    listeners.identity = identities.as_ref().and_then(|all| all.accept(&snapshots.borrow(), &uid));
                    let families: BTreeSet<Family> = listeners.addresses.iter().map(|&ip| Family::of(ip)).collect();
                    sockets.prefill(&uid, families.into_iter());
                    if let Err(error) = proxy.attach(listeners).await {
                        tracing::error!(pod = %uid, %error, "cannot accept for this pod");
                    }
                    let _ = accepting.send(());
                }
                Some(LinkEvent::Released(uid)) => {
                    if let Some(identities) = &identities {
                        identities.release(&uid);
                    }
                    release(&proxy, &snapshots, &uid).await;
                }
                Some(LinkEvent::Drain(why)) => break End::Replaced(why),
                None => break End::Replaced("the keeper's thread has ended"),
            },
            worker = &mut died => break End::WorkerDied(worker),
            _ = terminate.recv() => break End::Signal("SIGTERM"),
            _ = interrupt.recv() => break End::Signal("SIGINT"),
        }
    };
    draining.store(true, Ordering::Release);
    let code = match end {
        End::Signal(name) => {
            tracing::info!(signal = name, "draining");
            ExitCode::SUCCESS
        }
        End::Replaced(why) => {
            tracing::info!(why, "draining");
            ExitCode::SUCCESS
        }
        End::WorkerDied(worker) => {
            tracing::error!(worker, "a worker died: draining, to be replaced");
            ExitCode::FAILURE
        }
        End::SourceEnded => {
            let error = source_error(source_task.await);
            tracing::error!(error = format!("{error:#}"), "the source has ended: draining, to be replaced");
            link.stop();
            drain(&proxy, options.drain_deadline_seconds).await;
            return Err(error);
        }
    };
    link.stop();
    // A successor wants these addresses; ours would answer for it with old numbers. The keeper's key memory is its own as well.
    for task in tasks {
        task.abort();
    }
    drain(&proxy, options.drain_deadline_seconds).await;
    for task in through_drain {
        task.abort();
    }
    let _ = stop_source.send(());
    if !access.close(LOG_FLUSH) {
        tracing::warn!("the last access records were not written in time");
    }
    tracing::info!("agent ends");
    Ok(code)
}

/// Stops accepting for a pod. If it is gone for good, so are its connections: its sockets would keep its network
/// namespace alive. A pod that only left the mesh keeps its open connections.
async fn release(proxy: &Proxy, snapshots: &watch::Receiver<Arc<Snapshot>>, uid: &PodUid) {
    proxy.detach(uid).await;
    let gone = snapshots.borrow().workload(uid).is_none_or(|pod| pod.finished);
    if gone {
        let uid = uid.clone();
        let closed = proxy.registry().close(Reason::PodReleased, move |connection| connection.pod == uid).await;
        tracing::debug!(closed, "connections of a deleted pod closed");
    }
}

async fn drain(proxy: &Proxy, deadline_seconds: u64) {
    let report = proxy.drain(Instant::now() + Duration::from_secs(deadline_seconds)).await;
    for cut in &report.cut {
        tracing::warn!(
            pod = %cut.pod,
            client = %cut.client,
            original_destination = cut.original_destination.map(tracing::field::display),
            age_seconds = cut.age.as_secs(),
            "cut at the drain deadline"
        );
    }
}

fn source_error(
    ended: std::result::Result<std::result::Result<(), heddle_discovery::files::FilesError>, tokio::task::JoinError>,
) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the source has ended"),
        Ok(Err(error)) => anyhow!(error),
        Err(error) => anyhow!(error).context("the source's task"),
    }
}

/// SO_REUSEPORT: a successor binds the same address before the old agent has gone.
fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    let context = || format!("{what} on {address}");
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.with_context(context)?;
    socket.set_reuseport(true).with_context(context)?;
    socket.set_reuseaddr(true).with_context(context)?;
    socket.bind(address).with_context(context)?;
    socket.listen(128).with_context(context)
}

/// A task of its own: whatever else the control runtime waits for, the kernel hears from us.
async fn beat(link: Arc<Link>) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        link.beat();
    }
}

fn spawn_debug(
    listener: std::os::unix::net::UnixListener,
    own_uid: u32,
    views: Arc<AgentViews>,
    limits: Limits,
) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true).context("debug socket")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("debug socket")?;
    Ok(tokio::spawn(async move {
        heddle_admin::debug::run(listener, &[0, own_uid], views, limits).await;
    }))
}
