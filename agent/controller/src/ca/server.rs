//! The authority on the network: TLS 1.3 over TCP, both services behind it, and what changes under it while it runs.
//!
//! Every bound has a name here. A client certificate is optional in the handshake; one that is presented must hold.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream;
use heddle_identity::tls::server_config;
use heddle_identity::{Clock, HandshakeFailure, Roots, TrustBundles};
use heddle_model::Snapshot;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, Server};

use super::authority::{ServerName, SignError};
use super::directory::{Contents, Directory, DirectoryError};
use super::placement::Placement;
use super::service::{ConnectionInfo, PeerCertificate, Rules, Services, Shared};

/// gRPC over TLS is HTTP/2.
const ALPN: &[u8] = b"h2";
/// Calls of one connection at once.
const STREAMS_MAX: u32 = 64;
/// Largest set of headers of a call: a token of Kubernetes has a few KiB.
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection is told to go and come again.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long calls may go on at the end.
const GRACE: Duration = Duration::from_secs(5);
/// How often the directory is looked at.
pub const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// How long what could not be taken in is left alone, if it stays as it is: the reason may lie elsewhere and pass, such as a lack of
/// files, or the mode of a key.
pub const RELOAD_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long nothing is accepted when the system has no more files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Names besides the SPIFFE id that its certificate carries.
    pub names: Vec<ServerName>,
    /// Most connections, those in their handshake included.
    pub connections_max: usize,
    /// Most connections of one address: one client cannot keep the others out.
    pub connections_per_address_max: usize,
    /// Longest handshake.
    pub handshake_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            connections_max: 4096,
            connections_per_address_max: 64,
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

/// Why the server ended, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its own certificate.
    #[error("server certificate: {0}")]
    Sign(#[from] SignError),
    /// Its TLS config, or the roots.
    #[error("TLS: {0}")]
    Tls(String),
    /// HTTP/2.
    #[error("gRPC: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// An authority, ready to serve.
pub struct CaServer {
    directory: Directory,
    options: ServerOptions,
    shared: Arc<Shared>,
    tls: watch::Sender<Arc<ServerConfig>>,
    renew_at: Duration,
    /// Of what is in force.
    stamp: Stamp,
    failed: Option<FailedReload>,
}

/// The last attempt.
struct FailedReload {
    stamp: Stamp,
    /// By the monotonic clock.
    again_at: Duration,
}

type Stamp = [Option<(u64, i64, i64)>; 2];

impl CaServer {
    /// Reads the directory.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn new(directory: Directory, options: ServerOptions, clock: Arc<dyn Clock>) -> Result<Self, ServeError> {
        directory.repair()?;
        let stamp = directory.stamp();
        let Contents { authority, nodes, .. } = directory.load()?;
        let rules = Rules { authority, nodes };
        let (config, renew_at) = tls_config(&rules, &options, clock.now().unix)?;
        let shared = Arc::new(Shared {
            rules: RwLock::new(Arc::new(rules)),
            placement: RwLock::new(Arc::new(Placement::default())),
            clock,
        });
        Ok(Self { directory, options, shared, tls: watch::Sender::new(config), renew_at, stamp, failed: None })
    }

    /// Answers calls until `shutdown` completes. Pods come from `snapshots`, before the first one no account has any.
    ///
    /// # Errors
    /// None in operation: what fails concerns one connection or one reload, and is logged.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let (ready, mut accepted) = mpsc::channel(64);
        let acceptor = Acceptor {
            places: Places::new(&self.options),
            handshake_timeout: self.options.handshake_timeout,
            tls: self.tls.subscribe(),
        };
        let incoming = stream::poll_fn(move |context| accepted.poll_recv(context).map(|io| io.map(io::Result::Ok)));
        let (stop, mut stopped) = watch::channel(false);
        let stopping = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .timeout(CALL_TIMEOUT)
            .max_connection_age(CONNECTION_AGE_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .serve_with_incoming_shutdown(Services::new(&self.shared), incoming, stopping);
        let mut server = std::pin::pin!(server);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut accepting = std::pin::pin!(acceptor.run(listener, ready));
        let mut reload = tokio::time::interval(RELOAD_INTERVAL);
        self.place(&snapshots.borrow_and_update().clone());
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = &mut accepting => break,
                ended = &mut server => return Ok(ended?),
                Ok(()) = snapshots.changed() => {
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.place(&snapshot);
                }
                _ = reload.tick() => self.refresh(),
            }
        }
        let _ = stop.send(true);
        let _ = tokio::time::timeout(GRACE, server).await;
        Ok(())
    }

    fn place(&self, snapshot: &Snapshot) {
        let placement = Arc::new(Placement::of(snapshot));
        *self.shared.placement.write().unwrap_or_else(PoisonError::into_inner) = placement;
    }

    /// Takes in what changed in the directory, and renews the server's own certificate. The last good state stays when that fails, until
    /// it succeeds: a revocation must not get lost.
    fn refresh(&mut self) {
        let now = self.shared.clock.now();
        let stamp = self.directory.stamp();
        let is_changed = stamp != self.stamp;
        if !is_changed && now.unix < self.renew_at {
            return;
        }
        if self.failed.as_ref().is_some_and(|failed| failed.stamp == stamp && now.monotonic < failed.again_at) {
            return;
        }
        match self.reload(now.unix) {
            Ok(()) => {
                if is_changed {
                    tracing::info!(target: "ca", dir = %self.directory.path().display(), "reloaded");
                }
                self.stamp = stamp;
                self.failed = None;
            }
            Err(error) => {
                tracing::error!(target: "ca", %error, "the former state stays in force; trying again");
                self.failed = Some(FailedReload { stamp, again_at: now.monotonic + RELOAD_RETRY_PAUSE });
            }
        }
    }

    fn reload(&mut self, now: Duration) -> Result<(), ServeError> {
        let Contents { authority, nodes, .. } = self.directory.load()?;
        let rules = Rules { authority, nodes };
        let (config, renew_at) = tls_config(&rules, &self.options, now)?;
        *self.shared.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.tls.send_replace(config);
        self.renew_at = renew_at;
        Ok(())
    }
}

fn tls_config(
    rules: &Rules,
    options: &ServerOptions,
    now: Duration,
) -> Result<(Arc<ServerConfig>, Duration), ServeError> {
    let authority = &rules.authority;
    let certificate = authority.server_certificate(&options.names, now)?;
    let roots = Roots::new(authority.roots().to_vec()).map_err(|error| ServeError::Tls(error.to_string()))?;
    let bundles = TrustBundles::new(0, [(authority.trust_domain().clone(), Arc::new(roots))]);
    let config = server_config(Arc::new(bundles), certificate.certified, ALPN);
    let config = config.map_err(|error| ServeError::Tls(error.to_string()))?;
    Ok((Arc::new(config), certificate.renew_at))
}

/// Accepts, and has handshakes made side by side.
struct Acceptor {
    places: Arc<Places>,
    handshake_timeout: Duration,
    tls: watch::Receiver<Arc<ServerConfig>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, ready: mpsc::Sender<Connection>) {
        // Ends with the server: handshakes under way are abandoned with it.
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        let Some(place) = self.places.take(from) else {
                            tracing::warn!(target: "ca", %from, "too many connections");
                            continue;
                        };
                        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.borrow()));
                        let (timeout, ready) = (self.handshake_timeout, ready.clone());
                        handshakes.spawn(async move {
                            let handshake = handshake(&acceptor, stream, place);
                            match tokio::time::timeout(timeout, handshake).await {
                                Ok(Ok(connection)) => drop(ready.send(connection).await),
                                Ok(Err(error)) => {
                                    let reason = HandshakeFailure::of_io(&error);
                                    tracing::debug!(target: "ca", %from, %reason, %error, "no handshake");
                                }
                                Err(_) => tracing::debug!(target: "ca", %from, "no handshake in time"),
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(target: "ca", %error, "accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = handshakes.join_next() => {}
            }
        }
    }
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream, place: Place) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let state = stream.get_ref().1;
    if state.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no ALPN `h2`"));
    }
    let leaf = state.peer_certificates().and_then(|chain| chain.first());
    let peer = leaf.and_then(PeerCertificate::read).map(Arc::new);
    Ok(Connection { stream, info: ConnectionInfo { peer }, _place: place })
}

/// Who is connected.
struct Places {
    max: usize,
    per_address_max: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Places {
    fn new(options: &ServerOptions) -> Arc<Self> {
        let (max, per_address_max) = (options.connections_max, options.connections_per_address_max);
        Arc::new(Self { max, per_address_max, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, from: SocketAddr) -> Option<Place> {
        let address = from.ip().to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let of_address = by_address.get(&address).copied().unwrap_or(0);
        if *all >= self.max || of_address >= self.per_address_max {
            return None;
        }
        *all += 1;
        by_address.insert(address, of_address + 1);
        Some(Place { places: Arc::clone(self), address })
    }
}

/// One connection's place, given back on drop.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        *all -= 1;
        if let Some(of_address) = by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// A connection past its handshake.
struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
