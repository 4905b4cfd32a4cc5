//! A running authority and clients of it, honest or not.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_controller::ca::{CaServer, Directory, ServerName, ServerOptions, names};
use heddle_identity::rotation::Now;
use heddle_identity::tls::{client_config, no_server_name};
use heddle_identity::{Clock, Credential, ExpectedIds, Roots, SpiffeId, TrustBundles, TrustDomain, WorkloadKey};
use heddle_model::{Delta, PodUid, Snapshot, Workload};
use heddle_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use heddle_proto::ca::v1::{SignNodeRequest, SignNodeResponse, SignWorkloadRequest, SignWorkloadResponse};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

pub type Client = CertificateAuthorityClient<Channel>;

pub fn domain() -> TrustDomain {
    "td".parse().unwrap()
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The machine's clock, moved by tests.
#[derive(Debug, Default)]
pub struct MovedClock(pub AtomicI64);

impl Clock for MovedClock {
    fn now(&self) -> Now {
        let by = self.0.load(SeqCst);
        let at = unix_now();
        let moved = Duration::from_secs(by.unsigned_abs());
        Now { monotonic: at, unix: if by < 0 { at - moved } else { at + moved } }
    }
}

pub fn pod(name: &str, account: &str, node: &str) -> Workload {
    let pod = Workload::new(name, "shop", name);
    Workload { service_account: account.into(), node: node.into(), ..pod }
}

pub fn snapshot(pods: impl IntoIterator<Item = Workload>) -> Arc<Snapshot> {
    let workloads = pods.into_iter().map(|pod| (PodUid::new(&pod.name), Some(pod))).collect();
    Arc::new(Snapshot::new("").apply(Delta { workloads, ..Delta::default() }))
}

/// Pods of `web` on node-a and of `api` on node-b.
pub struct Running {
    pub directory: Directory,
    pub address: SocketAddr,
    pub clock: Arc<MovedClock>,
    pub pods: watch::Sender<Arc<Snapshot>>,
    pub token_a: String,
    pub token_b: String,
    _temporary: TempDir,
    stop: Option<oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl Running {
    pub async fn start() -> Self {
        Self::with(ServerOptions::default()).await
    }

    pub async fn with(options: ServerOptions) -> Self {
        let temporary = TempDir::new().unwrap();
        let directory = Directory::new(temporary.path().join("ca"));
        // Two days ago, so that there can be certificates that have expired.
        let begin = unix_now() - Duration::from_secs(48 * 3600);
        directory.init(&domain(), Duration::from_secs(24 * 3600), None, begin).unwrap();
        let token_a = directory.issue_token("node-a", unix_now()).unwrap().to_string();
        let token_b = directory.issue_token("node-b", unix_now()).unwrap().to_string();
        let clock = Arc::new(MovedClock::default());
        let names = vec![ServerName::Address([127, 0, 0, 1].into())];
        let options = ServerOptions { names, ..options };
        let server = CaServer::new(directory.clone(), options, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pods, seen) = watch::channel(snapshot([pod("web-1", "web", "node-a"), pod("api-1", "api", "node-b")]));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(listener, seen, stopped).await.unwrap();
        });
        let (stop, server) = (Some(stop), Some(server));
        Self { directory, address, clock, pods, token_a, token_b, _temporary: temporary, stop, server }
    }

    pub fn roots(&self) -> Arc<Roots> {
        let contents = self.directory.load().unwrap();
        Arc::new(Roots::new(contents.authority.roots().to_vec()).unwrap())
    }

    /// A connection past its handshake, as far as the client knows.
    pub async fn connect(&self, own: Option<Arc<CertifiedKey>>) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.address, self.roots(), own).await
    }

    pub fn client(&self, own: Option<Arc<CertifiedKey>>) -> Client {
        self.client_trusting(&self.roots(), own)
    }

    /// For when the directory cannot be read.
    pub fn client_trusting(&self, roots: &Arc<Roots>, own: Option<Arc<CertifiedKey>>) -> Client {
        let (address, roots) = (self.address, Arc::clone(roots));
        let connector = tower::service_fn(move |_: Uri| {
            let (roots, own) = (Arc::clone(&roots), own.clone());
            async move { connect(address, roots, own).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("https://ca").timeout(Duration::from_secs(20));
        Client::new(endpoint.connect_with_connector_lazy(connector))
    }

    /// A node certificate, got with a token.
    pub async fn node_certificate(&self, token: &str) -> Arc<CertifiedKey> {
        node_certificate(&mut self.client(None), Some(token)).await
    }

    /// What certificates of a node bear now.
    pub fn mark(&self, node: &str) -> String {
        let nodes = self.directory.load().unwrap().nodes;
        nodes.all().iter().find(|known| known.name() == node).unwrap().token_mark()
    }

    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.server.take().unwrap().await.unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn connect(
    address: SocketAddr,
    roots: Arc<Roots>,
    own: Option<Arc<CertifiedKey>>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let bundles = TrustBundles::new(0, [(domain(), roots)]);
    let expected = ExpectedIds::from(names::authority_id(&domain()).unwrap());
    let config = client_config(Arc::new(bundles), expected, own, b"h2").unwrap();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(no_server_name(), stream).await
}

pub fn certified(key: WorkloadKey, chain: Vec<Vec<u8>>) -> Arc<CertifiedKey> {
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    Arc::new(CertifiedKey::new(chain, Arc::new(key)))
}

pub fn call<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

pub async fn sign_csr(client: &mut Client, csr: Vec<u8>, token: Option<&str>) -> Result<SignWorkloadResponse, Status> {
    let message = SignWorkloadRequest { csr, lifetime_seconds: 3600 };
    client.sign_workload(call(message, token)).await.map(tonic::Response::into_inner)
}

/// A workload's certificate, checked as the store checks it.
pub async fn sign(client: &mut Client, id: &SpiffeId, token: Option<&str>) -> Result<Credential, Status> {
    let key = WorkloadKey::generate().unwrap();
    let answer = sign_csr(client, key.certificate_request(id).unwrap(), token).await?;
    let ders = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
    Ok(Credential::check(id, key, ders(answer.chain), ders(answer.roots), None, unix_now()).unwrap())
}

pub async fn sign_node(
    client: &mut Client,
    key: &WorkloadKey,
    token: Option<&str>,
) -> Result<SignNodeResponse, Status> {
    let csr = key.certificate_request(&names::agent_id(&domain()).unwrap()).unwrap();
    let message = SignNodeRequest { csr, lifetime_seconds: 0 };
    client.sign_node(call(message, token)).await.map(tonic::Response::into_inner)
}

/// A node certificate, got with a token or by the client's own certificate.
pub async fn node_certificate(client: &mut Client, token: Option<&str>) -> Arc<CertifiedKey> {
    let key = WorkloadKey::generate().unwrap();
    let answer = sign_node(client, &key, token).await.unwrap();
    certified(key, answer.chain)
}

/// Waits for a condition, never for a time.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
