//! The task that does what rotation says: asks the issuer, checks what comes, tells the state machine.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinError, JoinSet};

use super::{CertificateStore, Inner, Shared};
use crate::credential::Credential;
use crate::issuer::{CertificateIssuer, CertificateRequest, IssueError, IssueErrorKind, IssuedCertificate};
use crate::key::WorkloadKey;
use crate::rotation::{Action, Event, RequestId};
use crate::spiffe::SpiffeId;

type Finished = (RequestId, Result<Credential, IssueError>);

/// Requests under way, by the task that makes them.
#[derive(Default)]
struct Requests {
    tasks: JoinSet<Finished>,
    open: HashMap<tokio::task::Id, (SpiffeId, RequestId)>,
    handles: HashMap<RequestId, AbortHandle>,
}

impl CertificateStore {
    /// Keeps certificates fresh until `stop` completes; requests open then are abandoned. To be run once.
    pub async fn run(&self, issuer: Arc<dyn CertificateIssuer>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut requests = Requests::default();
        let mut following = std::pin::pin!(follow_roots(&self.0, &*issuer));
        loop {
            let (actions, wait) = self.0.turn();
            for action in actions {
                match action {
                    Action::Request(id, request) => {
                        let task = ask(Arc::clone(&self.0), Arc::clone(&issuer), id.clone());
                        let handle = requests.tasks.spawn(async move { (request, task.await) });
                        requests.open.insert(handle.id(), (id, request));
                        requests.handles.insert(request, handle);
                    }
                    Action::Cancel(request) => {
                        if let Some(handle) = requests.handles.get(&request) {
                            handle.abort();
                        }
                    }
                    Action::Use(..) => {}
                }
            }
            tokio::select! {
                biased;
                () = &mut stop => break,
                never = &mut following => match never {},
                Some(done) = requests.tasks.join_next_with_id() => {
                    if let Some((id, request, result)) = requests.closed(done) {
                        self.0.finished(&id, request, result);
                    }
                }
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        requests.tasks.shutdown().await;
    }
}

impl Requests {
    fn closed(
        &mut self,
        done: Result<(tokio::task::Id, Finished), JoinError>,
    ) -> Option<(SpiffeId, RequestId, Result<Credential, IssueError>)> {
        let (task, result) = match done {
            Ok((task, (_, result))) => (task, result),
            Err(error) => {
                let failure = IssueError::new(IssueErrorKind::Local, "the request ended in a fault of this agent");
                (error.id(), Err(failure))
            }
        };
        let (id, request) = self.open.remove(&task)?;
        self.handles.remove(&request);
        Some((id, request, result))
    }
}

impl Shared {
    /// What to do now, and how long nothing will be to do.
    fn turn(&self) -> (Vec<Action>, Duration) {
        let now = self.clock.now();
        let mut inner = self.lock();
        self.apply(&mut inner, now, Event::Tick);
        if now.monotonic >= inner.restored_until {
            inner.restored = HashMap::new();
            let Inner { untimely, accounts, .. } = &mut *inner;
            untimely.retain(|id, _| accounts.contains_key(id));
        }
        (std::mem::take(&mut inner.outbox), inner.rotation.next_wake(now))
    }

    fn finished(&self, id: &SpiffeId, request: RequestId, result: Result<Credential, IssueError>) {
        let now = self.clock.now();
        match &result {
            Ok(_) => self.contact().answered(now.monotonic),
            Err(error) => self.contact().failed(now.monotonic, error),
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        // A cancelled request, or one that ended as it was cancelled.
        if !inner.rotation.is_open(id, request) {
            return;
        }
        let Some(account) = inner.accounts.get_mut(id) else { return };
        match result {
            Ok(credential) => {
                self.metrics.issued();
                let validity = credential.facts().validity;
                tracing::debug!(%id, serial = credential.facts().serial, "certificate issued");
                account.brought = Some((request, credential));
                self.apply(inner, now, Event::Issued(id, request, validity));
            }
            Err(error) => {
                self.metrics.failed(error.kind);
                tracing::warn!(%id, %error, "no certificate");
                // The clock was set right meanwhile: better than none.
                if let Some(credential) = inner.untimely.get(id).and_then(|kept| kept.check(&self.bundles, now.unix)) {
                    tracing::info!(%id, "taken over from the former agent, late: it is in time now");
                    let validity = credential.facts().validity;
                    account.brought = Some((request, credential));
                    self.apply(inner, now, Event::Issued(id, request, validity));
                    return;
                }
                let (kind, retry) = (error.kind, error.retry);
                account.slot.fail(error);
                self.apply(inner, now, Event::Failed(id, request, kind, retry));
            }
        }
    }
}

/// Asks for the roots again and again, for as long as it is polled. Those of before count as long as nobody says others.
async fn follow_roots(shared: &Shared, issuer: &dyn CertificateIssuer) -> Infallible {
    loop {
        // Not all nodes at once.
        tokio::time::sleep(shared.config.roots_interval.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        let told = tokio::time::timeout(shared.config.request_timeout, issuer.roots()).await;
        let now = shared.clock.now().monotonic;
        match told.unwrap_or_else(|_| Err(late(shared, issuer))) {
            Ok(Some((trust_domain, roots))) => {
                shared.contact().answered(now);
                let before = shared.bundles.generation();
                shared.bundles.set(&trust_domain, Some(Arc::new(roots)));
                if shared.bundles.generation() != before {
                    tracing::info!(%trust_domain, "the roots that are trusted have changed");
                }
            }
            // Nobody was asked.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "{} does not tell its roots", issuer.name());
                shared.contact().failed(now, &error);
            }
        }
    }
}

fn late(shared: &Shared, issuer: &dyn CertificateIssuer) -> IssueError {
    let within = shared.config.request_timeout.as_secs_f32();
    IssueError::new(IssueErrorKind::Timeout, format!("{} did not answer within {within} s", issuer.name()))
}

/// One request: a new key, the issuer's answer in time, and its check.
async fn ask(shared: Arc<Shared>, issuer: Arc<dyn CertificateIssuer>, id: SpiffeId) -> Result<Credential, IssueError> {
    let local = |error: crate::key::KeyError| IssueError::new(IssueErrorKind::Local, error.to_string());
    let key = WorkloadKey::generate().map_err(local)?;
    let csr = key.certificate_request(&id).map_err(local)?;
    let request = CertificateRequest { id, csr, lifetime: shared.config.lifetime };
    let answer = tokio::time::timeout(shared.config.request_timeout, issuer.issue(&request)).await;
    let IssuedCertificate { chain, roots } = answer.unwrap_or_else(|_| Err(late(&shared, &*issuer)))?;
    let trusted = shared.bundles.authoritative(request.id.trust_domain());
    let now = shared.clock.now().unix;
    Credential::check(&request.id, key, chain, roots, trusted.as_deref(), now)
        .map_err(|error| IssueError::new(IssueErrorKind::BadAnswer, format!("{}: {error}", issuer.name())))
}
