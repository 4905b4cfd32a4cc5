//! An authority that speaks `heddle.ca.v1`.
//!
//! ```text
//!            token: SignNode             half of its life: SignNode over mutual TLS
//! (nothing) ─────────────────▶ node certificate ─────────────────▶ the next one
//!      ▲                            │
//!      └────────────────────────────┘ expired, or refused by the authority
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use heddle_controller::ca::names;
use heddle_identity::tls::{client_config, no_server_name};
use heddle_identity::{
    CertificateIssuer, CertificateRequest, Credential, ExpectedIds, HandshakeFailure, IssueError, IssueErrorKind,
    IssuedCertificate, Issuing, Roots, SpiffeId, TellingRoots, TrustBundles, TrustDomain, WorkloadKey,
};
use heddle_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use heddle_proto::ca::v1::{GetBundleRequest, SignNodeRequest, SignWorkloadRequest};
use rustls::pki_types::CertificateDer;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::channel::{ALPN, Address, handshake_failure, issue_error};
use super::{ANSWER_BYTES_MAX, CaFiles, CaOptions};

type Client = CertificateAuthorityClient<Channel>;

/// Asks an authority that speaks `heddle.ca.v1`.
pub struct HeddleIssuer {
    address: Address,
    files: CaFiles,
    node: String,
    trust_domain: TrustDomain,
    own_id: SpiffeId,
    authority_id: SpiffeId,
    state: Mutex<State>,
}

/// What is known of each other. Memory only: the key of the node certificate is a key.
#[derive(Default)]
struct State {
    /// Roots of the last answer; before it, those of the file count.
    roots: Option<Arc<Roots>>,
    /// The authority could not be verified: a rotation may have gone by while we were away, so the file is asked again as well.
    is_lost: bool,
    /// Attempts with the token.
    first_contacts: usize,
    session: Option<Arc<Session>>,
}

/// A node certificate with the connection that presents it.
struct Session {
    client: Client,
    not_before: Duration,
    not_after: Duration,
    /// Seconds since 1970.
    tried_to_renew: AtomicU64,
}

/// A failed renewal is not tried again sooner.
const RENEWAL_INTERVAL_MIN: Duration = Duration::from_secs(5);

impl Session {
    fn is_due(&self, now: Duration) -> bool {
        let life = self.not_after.saturating_sub(self.not_before);
        let tried = Duration::from_secs(self.tried_to_renew.load(Relaxed));
        now >= self.not_before + life / 2 && now >= tried + RENEWAL_INTERVAL_MIN
    }
}

impl HeddleIssuer {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// A URL that is none, by name.
    pub fn new(options: &CaOptions) -> Result<Self> {
        let address = Address::parse(&options.url)?;
        Ok(Self {
            address,
            files: options.files.clone(),
            node: options.node.clone(),
            own_id: names::agent_id(&options.trust_domain).context("trust domain")?,
            authority_id: names::authority_id(&options.trust_domain).context("trust domain")?,
            trust_domain: options.trust_domain.clone(),
            state: Mutex::new(State::default()),
        })
    }

    /// A connection that presents a node certificate, made with whatever is at hand: the one there is, a renewed one, or the token.
    async fn session(&self) -> Result<Arc<Session>, IssueError> {
        // Held while one request makes first contact: the others wait for what it brings.
        let mut state = self.state.lock().await;
        let now = unix_now();
        if let Some(session) = state.session.clone().filter(|session| now < session.not_after) {
            if !session.is_due(now) {
                return Ok(session);
            }
            session.tried_to_renew.store(now.as_secs(), Relaxed);
            match self.sign_node(&mut state, session.client.clone(), false).await {
                Ok(renewed) => return Ok(renewed),
                Err(error) if !error.is_about_us => {
                    tracing::warn!(target: "identity", error = %error.error, "the node certificate could not be renewed");
                    return Ok(session);
                }
                Err(_) => state.session = None,
            }
        }
        let client = self.connect(&state, None)?;
        self.sign_node(&mut state, client, true).await.map_err(|failure| failure.error)
    }

    async fn sign_node(
        &self,
        state: &mut State,
        mut client: Client,
        by_token: bool,
    ) -> Result<Arc<Session>, NodeFailure> {
        let local = |error: heddle_identity::key::KeyError| IssueError::new(IssueErrorKind::Local, error.to_string());
        let key = WorkloadKey::generate().map_err(local)?;
        let csr = key.certificate_request(&self.own_id).map_err(local)?;
        let mut request = Request::new(SignNodeRequest { csr, lifetime_seconds: 0 });
        if by_token {
            state.first_contacts += 1;
            request.metadata_mut().insert("authorization", self.files.token.bearer());
        }
        let answer = client.sign_node(request).await.map_err(|status| self.failed(state, &status))?.into_inner();
        if answer.node != self.node {
            let message =
                format!("{}: the token is that of node {}; this node is {}", self.name(), answer.node, self.node);
            return Err(IssueError::refused(message).into());
        }
        let (chain, roots) = (certificates(answer.chain), certificates(answer.roots));
        let credential = Credential::check(&self.own_id, key, chain, roots, None, unix_now()).map_err(|error| {
            IssueError::new(IssueErrorKind::BadAnswer, format!("{}: node certificate: {error}", self.name()))
        })?;
        state.roots = Some(Arc::clone(credential.roots()));
        state.is_lost = false;
        let validity = credential.facts().validity;
        tracing::info!(target: "identity", serial = credential.facts().serial, by_token, "node certificate issued");
        let session = Arc::new(Session {
            client: self.connect(state, Some(&credential))?,
            not_before: validity.not_before,
            not_after: validity.not_after,
            tried_to_renew: AtomicU64::new(0),
        });
        state.session = Some(Arc::clone(&session));
        Ok(session)
    }

    fn connect(&self, state: &State, own: Option<&Credential>) -> Result<Client, IssueError> {
        let local = |message: String| IssueError::new(IssueErrorKind::Local, message);
        let roots = match &state.roots {
            Some(roots) if !state.is_lost => Arc::clone(roots),
            learned => self.files.roots.roots(learned.as_deref()).map_err(|error| local(format!("{error:#}")))?,
        };
        let bundles = TrustBundles::new(0, [(self.trust_domain.clone(), roots)]);
        let expected = ExpectedIds::from(self.authority_id.clone());
        let own = own.map(Credential::certified);
        let config = client_config(Arc::new(bundles), expected, own, ALPN).map_err(|error| local(error.to_string()))?;
        let channel = self.address.channel(Arc::new(config), no_server_name());
        Ok(Client::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Draws conclusions from a failure for the next attempt.
    fn failed(&self, state: &mut State, status: &Status) -> NodeFailure {
        let handshake = handshake_failure(status);
        state.is_lost |= handshake == Some(HandshakeFailure::UnknownRoot);
        let is_about_us = status.code() == Code::Unauthenticated || handshake == Some(HandshakeFailure::RefusedByPeer);
        if is_about_us || handshake.is_some() {
            state.session = None;
        }
        NodeFailure { error: issue_error(&self.name(), status), is_about_us }
    }

    #[cfg(test)]
    pub(super) fn first_contacts(&self) -> usize {
        self.state.try_lock().map_or(0, |state| state.first_contacts)
    }

    async fn ask(&self, request: &CertificateRequest) -> Result<IssuedCertificate, IssueError> {
        let mut last = None;
        // Twice: if the node certificate turns out to be refused, the token is tried.
        for _ in 0..2 {
            let session = self.session().await?;
            let lifetime_seconds = request.lifetime.as_secs();
            let call = SignWorkloadRequest { csr: request.csr.clone(), lifetime_seconds };
            match session.client.clone().sign_workload(call).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let (chain, roots) = (certificates(answer.chain), certificates(answer.roots));
                    if let Ok(roots) = Roots::new(roots.clone()) {
                        self.learned(&session, roots).await;
                    }
                    return Ok(IssuedCertificate { chain, roots });
                }
                Err(status) => {
                    let mut state = self.state.lock().await;
                    let is_current = state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, &session));
                    let failure = if is_current {
                        self.failed(&mut state, &status)
                    } else {
                        NodeFailure { error: issue_error(&self.name(), &status), is_about_us: true }
                    };
                    if !failure.is_about_us {
                        return Err(failure.error);
                    }
                    last = Some(failure.error);
                }
            }
        }
        Err(last.unwrap_or_else(|| IssueError::new(IssueErrorKind::Unavailable, self.name())))
    }

    /// A connection trusts the roots it was made with. When others are told, the node certificate is renewed at once, and with it those.
    async fn learned(&self, session: &Arc<Session>, roots: Roots) {
        let mut state = self.state.lock().await;
        let is_current = state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session));
        if !is_current || state.roots.as_deref() == Some(&roots) {
            return;
        }
        if let Err(failure) = self.sign_node(&mut state, session.client.clone(), false).await {
            tracing::warn!(target: "identity", error = %failure.error, "no node certificate with the new roots yet");
        }
    }
}

struct NodeFailure {
    error: IssueError,
    /// Our credentials were refused: others may be taken.
    is_about_us: bool,
}

impl From<IssueError> for NodeFailure {
    fn from(error: IssueError) -> Self {
        Self { error, is_about_us: false }
    }
}

impl CertificateIssuer for HeddleIssuer {
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
        Box::pin(self.ask(request))
    }

    fn roots(&self) -> TellingRoots<'_> {
        Box::pin(async {
            let session = self.session().await?;
            let answer = session.client.clone().get_bundle(GetBundleRequest {}).await;
            let answer = answer.map_err(|status| issue_error(&self.name(), &status))?.into_inner();
            let bad = |why: String| {
                let message = format!("{}: bundle: {why}", self.name());
                IssueError::new(IssueErrorKind::BadAnswer, message)
            };
            if answer.trust_domain != self.trust_domain.as_str() {
                return Err(bad(format!("of trust domain {}, not {}", answer.trust_domain, self.trust_domain)));
            }
            let roots = Roots::new(certificates(answer.roots)).map_err(|error| bad(error.to_string()))?;
            self.learned(&session, roots.clone()).await;
            Ok(Some((self.trust_domain.clone(), roots)))
        })
    }

    fn name(&self) -> String {
        format!("authority {}", self.address)
    }
}

fn certificates(ders: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    ders.into_iter().map(CertificateDer::from).collect()
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
