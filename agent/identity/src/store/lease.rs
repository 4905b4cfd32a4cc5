//! What a data plane holds of the store: a lease per account, and in it the slot that handshakes read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::CertificateStore;
use crate::credential::Credential;
use crate::issuer::{IssueError, Retry};
use crate::spiffe::SpiffeId;

/// The current certificate of one account. Readers take no lock.
pub struct Slot {
    id: SpiffeId,
    current: ArcSwapOption<Credential>,
    last_error: ArcSwapOption<IssueError>,
    changed: Notify,
    waiters: AtomicUsize,
}

impl Slot {
    pub(super) fn new(id: SpiffeId) -> Self {
        Self {
            id,
            current: ArcSwapOption::empty(),
            last_error: ArcSwapOption::empty(),
            changed: Notify::new(),
            waiters: AtomicUsize::new(0),
        }
    }

    /// Whose.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What is in use, also beyond its end: whether to accept that is the peer's decision.
    #[must_use]
    pub fn credential(&self) -> Option<Arc<Credential>> {
        self.current.load_full()
    }

    /// Handshakes that wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiters.load(Relaxed)
    }

    pub(super) fn last_error(&self) -> Option<Arc<IssueError>> {
        self.last_error.load_full()
    }

    pub(super) fn put(&self, credential: Credential) {
        self.current.store(Some(Arc::new(credential)));
        self.last_error.store(None);
        self.changed.notify_waiters();
    }

    pub(super) fn clear(&self) {
        self.current.store(None);
        self.changed.notify_waiters();
    }

    pub(super) fn fail(&self, error: IssueError) {
        self.last_error.store(Some(Arc::new(error)));
        self.changed.notify_waiters();
    }

    fn is_valid(&self, now: Duration) -> bool {
        self.current.load().as_ref().is_some_and(|credential| credential.is_valid(now))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot of {}", self.id)
    }
}

/// Why a handshake got no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// None came in time.
    #[error("no certificate in time{}", .0.as_ref().map(|error| format!("; the last attempt said: {error}")).unwrap_or_default())]
    Timeout(Option<Arc<IssueError>>),
    /// The issuer will not give one.
    #[error("{0}")]
    Refused(Arc<IssueError>),
    /// Too many wait already.
    #[error("{0} handshakes wait for this certificate already")]
    TooMany(usize),
}

/// Keeps an account's certificate fresh as long as it lives. Cheap to share behind an `Arc`; one per pod is the idea.
#[derive(Debug)]
pub struct Lease {
    store: CertificateStore,
    slot: Arc<Slot>,
}

impl Lease {
    pub(super) fn new(store: CertificateStore, slot: Arc<Slot>) -> Self {
        Self { store, slot }
    }

    /// Whose.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.slot.id
    }

    /// For resolvers.
    #[must_use]
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Whether a certificate is there that peers accept now: the common case, without waiting.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.slot.is_valid(self.store.0.clock.now().unix)
    }

    /// Waits until a valid certificate is there, at most `within`. Returns at once when there is one, or when the issuer refused.
    pub async fn ready(&self, within: Duration) -> Result<(), WaitError> {
        if self.is_ready() {
            return Ok(());
        }
        let max = self.store.0.config.waiters_max;
        let _waiting = Waiting::enter(&self.slot.waiters, max).ok_or(WaitError::TooMany(max))?;
        self.store.need_now(&self.slot.id);
        let result = tokio::time::timeout(within, self.changed_until_ready()).await;
        result.unwrap_or_else(|_| {
            self.store.0.metrics.wait_timed_out();
            Err(WaitError::Timeout(self.slot.last_error()))
        })
    }

    async fn changed_until_ready(&self) -> Result<(), WaitError> {
        loop {
            let mut changed = std::pin::pin!(self.slot.changed.notified());
            changed.as_mut().enable();
            if self.is_ready() {
                return Ok(());
            }
            if let Some(error) = self.slot.last_error().filter(|error| error.retry == Retry::Hopeless) {
                return Err(WaitError::Refused(error));
            }
            changed.await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.release(&self.slot);
    }
}

/// One waiter, counted as long as it waits, also when its future is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let enter = |count| if count < max { Some(count + 1) } else { None };
        count.fetch_update(Relaxed, Relaxed, enter).ok().map(|_| Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
