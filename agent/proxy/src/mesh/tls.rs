//! One worker's TLS: both sides of a handshake, bounded in time and number, counted by how it ended.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use heddle_identity::{
    Alpn, ClientConfigs, ExpectedIds, HandshakeFailure, Lease, Peer, ServerConfigs, SpiffeId, TrustDomain,
};
use heddle_model::{PodUid, Workload};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::trust::{Lapse, Trust};
use super::way::Called;
use super::{CONNECT_HANDSHAKE_TIMEOUT, greeting};
use crate::budget::Pod;
use crate::hash::FastMap;
use crate::proxy::Identity;
use crate::registry::Conn;

/// Ids kept before the cache starts anew.
const IDS_MAX: usize = 4096;

/// By namespace and service account; of one trust domain.
type Ids = FastMap<(Arc<str>, Arc<str>), ExpectedIds>;

/// By pod, of one trust domain, with the namespace and service account it was made for.
type AllCalled = FastMap<PodUid, (Arc<str>, Arc<str>, Called)>;

/// TLS as a worker uses it.
pub(crate) struct Tls {
    identity: Identity,
    worker: usize,
    /// Handshakes with peers, of all pods and workers.
    turns: Arc<Semaphore>,
    clients: RefCell<ClientConfigs>,
    servers: RefCell<ServerConfigs>,
    ids: RefCell<(Arc<str>, Ids)>,
    called: RefCell<(Arc<str>, AllCalled)>,
}

/// A handshake that failed, and the socket it left behind.
pub(crate) struct Failed {
    pub(crate) failure: HandshakeFailure,
    pub(crate) socket: Option<TcpStream>,
}

impl From<HandshakeFailure> for Failed {
    fn from(failure: HandshakeFailure) -> Self {
        Self { failure, socket: None }
    }
}

impl Tls {
    pub(crate) fn new(identity: Identity, worker: usize, turns: Arc<Semaphore>) -> Self {
        let clients = RefCell::new(ClientConfigs::new(&identity.store));
        let servers = RefCell::new(ServerConfigs::new(&identity.store));
        Self { identity, worker, turns, clients, servers, ids: RefCell::default(), called: RefCell::default() }
    }

    /// Who a workload has to be; nobody if its names make no identity.
    pub(crate) fn ids_of(&self, workload: &Workload, trust_domain: &Arc<str>) -> ExpectedIds {
        let mut ids = self.ids.borrow_mut();
        if ids.0 != *trust_domain || ids.1.len() >= IDS_MAX {
            *ids = (trust_domain.clone(), Ids::default());
        }
        let key = (workload.namespace.clone(), workload.service_account.clone());
        let id = || {
            let domain = trust_domain.parse::<TrustDomain>().ok()?;
            SpiffeId::new(&domain, &workload.namespace, &workload.service_account).ok()
        };
        let make = || ExpectedIds::new(id());
        ids.1.entry(key).or_insert_with(make).clone()
    }

    /// A workload as it is called.
    pub(crate) fn called(&self, workload: &Workload, trust_domain: &Arc<str>) -> Called {
        let mut all = self.called.borrow_mut();
        if all.0 != *trust_domain || all.1.len() >= IDS_MAX {
            *all = (trust_domain.clone(), AllCalled::default());
        }
        if let Some((namespace, account, called)) = all.1.get(&workload.uid)
            && (namespace, account) == (&workload.namespace, &workload.service_account)
        {
            return called.clone();
        }
        let called = Called::new(&workload.uid, self.ids_of(workload, trust_domain));
        let of = (workload.namespace.clone(), workload.service_account.clone(), called.clone());
        all.1.insert(workload.uid.clone(), of);
        called
    }

    /// Waits until the pod can prove who it is: before that there is nothing to connect for.
    pub(crate) async fn prepare(&self, pod: &Pod) -> Result<(), HandshakeFailure> {
        let result = self.ready(pod).await.map(|_| ());
        if result.is_err() {
            self.count(Side::Client, &result);
        }
        result
    }

    /// Proves to a server who the pod is, and has it prove to be one of `expected`.
    pub(crate) async fn connect(
        &self,
        pod: &Pod,
        stream: TcpStream,
        alpn: Alpn,
        expected: &ExpectedIds,
    ) -> Result<(TlsStream<TcpStream>, Trust), HandshakeFailure> {
        let handshake = async {
            let lease = self.ready(pod).await?;
            let _under_way = self.identity.handshakes.begin(self.worker, Side::Client);
            let generation = self.generation();
            let config = self.clients.borrow_mut().get(lease, expected, alpn)?;
            let connecting = TlsConnector::from(config).connect(no_server_name(), stream);
            let stream = connecting.await.map_err(|error| HandshakeFailure::of_io(&error))?;
            let peer = Peer::of_server(stream.get_ref().1, alpn).map_err(|refusal| refusal.failure)?;
            Ok((TlsStream::Client(stream), Trust::new(peer, generation, self.now())))
        };
        let result = timeout(CONNECT_HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(HandshakeFailure::Timeout));
        self.count(Side::Client, &result);
        result
    }

    /// Has a client prove who it is, until then.
    pub(crate) async fn accept(
        &self,
        conn: &Conn,
        stream: TcpStream,
        alpn: Alpn,
        until: Instant,
    ) -> Result<(TlsStream<TcpStream>, Trust), Failed> {
        let pod = &conn.pod;
        let handshake = async {
            // Whoever says nothing, or half a word, holds its own place and nobody's turn. What came by an application's port was heard.
            let stream = match alpn {
                Alpn::Heddle => stream,
                Alpn::Hbone => Box::pin(greeting::whole(conn, stream)).await?,
            };
            let lease = self.ready(pod).await?;
            // Never closed. The pod's first: others do not wait behind its queue.
            let _turns = (pod.budget.handshakes.acquire().await, self.turns.acquire().await);
            let _under_way = self.identity.handshakes.begin(self.worker, Side::Server);
            let generation = self.generation();
            let config = self.servers.borrow_mut().get(lease, alpn)?;
            let accepting = TlsAcceptor::from(config).accept(stream).into_fallible();
            let accepted = timeout(conn.worker.config.mesh_handshake_turn_timeout, accepting);
            let stream = accepted
                .await
                .map_err(|_| HandshakeFailure::Timeout)?
                .map_err(|(error, socket)| Failed { failure: HandshakeFailure::of_io(&error), socket: Some(socket) })?;
            let peer = Peer::of_client(stream.get_ref().1, alpn).map_err(|refusal| refusal.failure)?;
            Ok((TlsStream::Server(stream), Trust::new(peer, generation, self.now())))
        };
        let late = || Err(Failed::from(HandshakeFailure::Timeout));
        let result = timeout_at(until, handshake).await.unwrap_or_else(|_| late());
        match &result {
            Ok(_) => self.identity.handshakes.record(self.worker, Side::Server, Ok(())),
            Err(failed) => self.identity.handshakes.record(self.worker, Side::Server, Err(failed.failure)),
        }
        result
    }

    /// Of the trust bundles of now.
    pub(crate) fn generation(&self) -> u64 {
        self.identity.store.bundles().generation()
    }

    /// As certificates count it, since 1970.
    pub(crate) fn now(&self) -> Duration {
        self.identity.store.clock().now().unix
    }

    /// Verifies a connected peer anew.
    pub(crate) fn review(&self, trust: &Trust, now: Duration) -> Result<(), Lapse> {
        trust.review(&self.identity.store.bundles().current(), now)
    }

    /// The pod's certificate, waited for where it is on its way.
    async fn ready<'a>(&self, pod: &'a Pod) -> Result<&'a Lease, HandshakeFailure> {
        let lease = pod.identity.as_deref().ok_or(HandshakeFailure::NoOwnCertificate)?;
        if !lease.is_ready()
            && let Err(error) = lease.ready(CONNECT_HANDSHAKE_TIMEOUT).await
        {
            tracing::warn!(pod = %pod.uid(), id = %lease.id(), %error, "no certificate for a connection");
            return Err(HandshakeFailure::NoOwnCertificate);
        }
        Ok(lease)
    }

    fn count<T>(&self, side: Side, result: &Result<T, HandshakeFailure>) {
        let result = result.as_ref().map(|_| ()).map_err(|failure| *failure);
        self.identity.handshakes.record(self.worker, side, result);
    }
}

/// How TLS ended a connection, if it did: in TLS 1.3 a client learns only behind its handshake what the server thinks of it.
pub(crate) fn failure_in(error: &io::Error) -> Option<HandshakeFailure> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).map(HandshakeFailure::of)
}
