//! What is answered to a call: who asks, whether it may have what it asks for, and the certificate.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use heddle_identity::{CertificateFacts, Clock, Subject};
use heddle_proto::ca::v1::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use heddle_proto::ca::v1::{
    GetBundleRequest, GetBundleResponse, SignNodeRequest, SignNodeResponse, SignWorkloadRequest, SignWorkloadResponse,
};
use heddle_proto::istio::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use heddle_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};
use rustls::pki_types::CertificateDer;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Code, Request, Response, Status};

use super::authority::{Authority, SignError};
use super::directory::pem_of;
use super::nodes::{Node, Nodes};
use super::placement::{Denial, Placement};
use super::request::{RequestError, SigningRequest};

/// Largest call; a request for a certificate has a few hundred bytes.
pub const CALL_BYTES_MAX: usize = 64 * 1024;
/// How long an agent should wait before it asks again for an account whose pod is not known yet.
pub const NOT_KNOWN_YET: Duration = Duration::from_secs(2);
/// gRPC's name for it, in milliseconds (gRPC proposal A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// By what a call is judged; exchanged as a whole when the directory or the pods change.
pub(super) struct Rules {
    pub(super) authority: Authority,
    pub(super) nodes: Nodes,
}

/// Shared by all connections.
pub(super) struct Shared {
    pub(super) rules: RwLock<Arc<Rules>>,
    pub(super) placement: RwLock<Arc<Placement>>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Shared {
    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.placement.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client certificate that held in the handshake. Whether it still counts is asked at every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerCertificate {
    facts: CertificateFacts,
    /// The node's name and [`Node::token_mark`] of the token it was got by.
    subject: Subject,
}

impl PeerCertificate {
    /// Reads what the handshake has verified.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (facts, subject) = CertificateFacts::read(der).ok()?;
        Some(Self { facts, subject })
    }
}

/// Of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionInfo {
    pub(super) peer: Option<Arc<PeerCertificate>>,
}

/// Both services.
#[derive(Clone)]
pub(super) struct Services {
    heddle: CertificateAuthorityServer<Calls>,
    istio: IstioCertificateServiceServer<Calls>,
}

impl Services {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let calls = || Calls(Arc::clone(shared));
        Self {
            heddle: CertificateAuthorityServer::new(calls()).max_decoding_message_size(CALL_BYTES_MAX),
            istio: IstioCertificateServiceServer::new(calls()).max_decoding_message_size(CALL_BYTES_MAX),
        }
    }
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match service.map(|(service, _)| service) {
            Some(<CertificateAuthorityServer<Calls> as NamedService>::NAME) => self.heddle.call(request),
            Some(<IstioCertificateServiceServer<Calls> as NamedService>::NAME) => self.istio.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

/// The calls of both services.
struct Calls(Arc<Shared>);

/// One call, judged by one set of rules from begin to end.
struct Call {
    rules: Arc<Rules>,
    node: Node,
    now: Duration,
}

impl Calls {
    /// Who asks: by the token if there is one, and by that alone; else by the connection's certificate.
    fn begin<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        let (rules, now) = (self.0.rules(), self.0.clock.now().unix);
        let node = match bearer(request.metadata())? {
            Some(token) => {
                let node = rules.nodes.by_token(token);
                node.ok_or_else(|| Status::unauthenticated("the token is no node's (any more)"))?
            }
            None => {
                let info = request.extensions().get::<ConnectionInfo>();
                let peer = info.and_then(|info| info.peer.as_deref());
                let peer = peer.ok_or_else(|| {
                    Status::unauthenticated("neither a token (`authorization: Bearer …`) nor a node certificate")
                })?;
                by_certificate(&rules, peer, now)?
            }
        };
        let node = node.clone();
        Ok(Call { rules, node, now })
    }

    fn workload(
        &self,
        call: &Call,
        request: &SigningRequest,
        lifetime_seconds: u64,
    ) -> Result<Vec<CertificateDer<'static>>, Status> {
        let authority = &call.rules.authority;
        self.0.placement().check(authority.trust_domain(), call.node.name(), request.id()).map_err(|denial| {
            tracing::warn!(target: "ca", node = call.node.name(), %denial, "no certificate");
            denied(&denial)
        })?;
        let chain = authority.sign_workload(request, lifetime(lifetime_seconds), call.now).map_err(failed)?;
        tracing::info!(target: "ca", node = call.node.name(), id = %request.id(), "workload certificate signed");
        Ok(chain)
    }
}

fn by_certificate<'a>(rules: &'a Rules, peer: &PeerCertificate, now: Duration) -> Result<&'a Node, Status> {
    let PeerCertificate { facts, subject } = peer;
    if facts.id != *rules.authority.agent_id() {
        return Err(Status::unauthenticated(format!("{} is no agent and has no token", facts.id)));
    }
    // The handshake may have been long ago.
    if now > facts.validity.not_after {
        return Err(Status::unauthenticated("the node certificate has expired"));
    }
    let name = subject.common_name.as_deref().unwrap_or_default();
    let Some(token_mark) = &subject.serial_number else {
        let why = format!("the certificate of node `{name}` does not say by which token it was got: show the token");
        return Err(Status::unauthenticated(why));
    };
    let revoked = || Status::unauthenticated(format!("the certificate of node `{name}` was revoked with its token"));
    rules.nodes.by_certificate(name, token_mark).ok_or_else(revoked)
}

fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let wrong = || Status::unauthenticated("authorization: write `Bearer <token>`, once");
    if values.next().is_some() {
        return Err(wrong());
    }
    let text = value.to_str().map_err(|_| wrong())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(wrong());
    }
    Ok(Some(token.trim()))
}

fn lifetime(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn bad(error: &RequestError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn denied(denial: &Denial) -> Status {
    let mut status = Status::permission_denied(denial.to_string());
    if matches!(denial, Denial::NoPod { .. }) {
        let milliseconds = u64::try_from(NOT_KNOWN_YET.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert(PUSHBACK, milliseconds.into());
    }
    status
}

#[allow(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn failed(error: SignError) -> Status {
    tracing::error!(target: "ca", %error, "nothing can be signed");
    Status::new(Code::Unavailable, error.to_string())
}

fn ders(certificates: &[CertificateDer<'static>]) -> Vec<Vec<u8>> {
    certificates.iter().map(|der| der.to_vec()).collect()
}

#[tonic::async_trait]
impl CertificateAuthority for Calls {
    async fn sign_workload(
        &self,
        request: Request<SignWorkloadRequest>,
    ) -> Result<Response<SignWorkloadResponse>, Status> {
        let call = self.begin(&request)?;
        let message = request.into_inner();
        let wanted = SigningRequest::parse(&message.csr).map_err(|error| bad(&error))?;
        let chain = self.workload(&call, &wanted, message.lifetime_seconds)?;
        let roots = ders(call.rules.authority.roots());
        Ok(Response::new(SignWorkloadResponse { chain: ders(&chain), roots }))
    }

    async fn sign_node(&self, request: Request<SignNodeRequest>) -> Result<Response<SignNodeResponse>, Status> {
        let call = self.begin(&request)?;
        let message = request.into_inner();
        let wanted = SigningRequest::parse(&message.csr).map_err(|error| bad(&error))?;
        let authority = &call.rules.authority;
        if wanted.id() != authority.agent_id() {
            let why = format!("csr: subjectAltName: {} is not {}", wanted.id(), authority.agent_id());
            return Err(Status::invalid_argument(why));
        }
        let lifetime = lifetime(message.lifetime_seconds);
        let (node, token_mark) = (call.node.name(), call.node.token_mark());
        let chain = authority.sign_node(&wanted, node, &token_mark, lifetime, call.now).map_err(failed)?;
        tracing::info!(target: "ca", node, "node certificate signed");
        let (chain, roots) = (ders(&chain), ders(authority.roots()));
        Ok(Response::new(SignNodeResponse { chain, roots, node: node.to_owned() }))
    }

    async fn get_bundle(&self, _: Request<GetBundleRequest>) -> Result<Response<GetBundleResponse>, Status> {
        let rules = self.0.rules();
        let trust_domain = rules.authority.trust_domain().to_string();
        Ok(Response::new(GetBundleResponse { trust_domain, roots: ders(rules.authority.roots()) }))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Calls {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let call = self.begin(&request)?;
        let message = request.into_inner();
        let wanted = SigningRequest::parse_pem(&message.csr).map_err(|error| bad(&error))?;
        // An agent of Istio says for whom it asks a second time; the request that is signed over counts, and they must agree.
        let named = message.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
        if let Some(named) = named {
            use prost_types::value::Kind;
            let is_same = matches!(&named.kind, Some(Kind::StringValue(id)) if id == wanted.id().as_str());
            if !is_same {
                let why = format!("metadata: {IMPERSONATED_IDENTITY} is not {}, which csr names", wanted.id());
                return Err(Status::invalid_argument(why));
            }
        }
        let seconds = u64::try_from(message.validity_duration);
        let seconds = seconds.map_err(|_| Status::invalid_argument("validity_duration: is negative"))?;
        let chain = self.workload(&call, &wanted, seconds)?;
        let mut cert_chain: Vec<String> = chain.iter().map(|der| pem_of(std::slice::from_ref(der))).collect();
        cert_chain.push(pem_of(call.rules.authority.roots()));
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
