//! The certificates of this node's service accounts: leased by what needs them, kept fresh by one task, forgotten with the last lease.
//!
//! [`CertificateStore::lease`] says that pods of an account are here; handshakes read the lease's [`Slot`] without a lock.
//! [`CertificateStore::run`] is the driver: it does what [`Rotation`] says and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::bundle::BundleStore;
use crate::certificate::CertificateFacts;
use crate::clock::Clock;
use crate::contact::{Contact, IssuerStatus};
use crate::credential::Credential;
use crate::export::{self, Decoded, EXPORT_BYTES_MAX, Export, ExportError, ImportError, Refused, Untimely};
use crate::issuer::IssueError;
use crate::metrics::StoreMetrics;
use crate::rotation::{Action, Event, Now, Priority, RequestId, Rotation, Settings, State};
use crate::spiffe::SpiffeId;

mod driver;
mod lease;

pub use lease::{Lease, Slot, WaitError};

/// What the store goes by.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Rotation.
    pub rotation: Settings,
    /// Lifetime to ask for.
    pub lifetime: Duration,
    /// How often the issuer is asked for its roots, about.
    pub roots_interval: Duration,
    /// Longest wait for one answer of the issuer.
    pub request_timeout: Duration,
    /// Most handshakes that wait for one account's certificate at once.
    pub waiters_max: usize,
    /// Most accounts.
    pub accounts_max: usize,
    /// How long certificates of a former agent are kept for accounts nobody has leased.
    pub restored_kept: Duration,
    /// Most bytes of an export.
    pub export_bytes_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            rotation: Settings::default(),
            lifetime: Duration::from_secs(24 * 3600),
            roots_interval: Duration::from_secs(20),
            request_timeout: Duration::from_secs(15),
            waiters_max: 1024,
            accounts_max: 4096,
            restored_kept: Duration::from_secs(300),
            export_bytes_max: EXPORT_BYTES_MAX,
        }
    }
}

/// More accounts than [`StoreConfig::accounts_max`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {0} service accounts on this node")]
pub struct TooManyAccounts(pub usize);

/// One row of `heddle certs`. No key, ever.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose.
    pub id: SpiffeId,
    /// Where it stands.
    pub state: State,
    /// Of the certificate in use.
    pub certificate: Option<CertificateFacts>,
    /// Time until the renewal or the next attempt; `None` while one is under way.
    pub due_in: Option<Duration>,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// What the last of them said.
    pub last_error: Option<Arc<IssueError>>,
}

/// What a restore brought.
#[derive(Debug, Default)]
pub struct Restored {
    /// Certificates that can be used.
    pub certificates: usize,
    /// Those that cannot, and why. What was refused for its times alone stays in the export: the clock may be wrong.
    pub refused: Vec<Refused>,
}

/// The store. Cloning shares it.
#[derive(Clone)]
pub struct CertificateStore(Arc<Shared>);

struct Shared {
    config: StoreConfig,
    clock: Arc<dyn Clock>,
    bundles: BundleStore,
    metrics: StoreMetrics,
    contact: Mutex<Contact>,
    /// Wakes the driver.
    wake: Notify,
    /// Grows when the certificates in use change: time to export.
    revision: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

struct Inner {
    rotation: Rotation,
    accounts: HashMap<SpiffeId, Account>,
    /// Requests and cancels for the driver.
    outbox: Vec<Action>,
    /// Of a former agent, not leased yet, until then by the monotonic clock.
    restored: HashMap<SpiffeId, Credential>,
    /// Of a former agent, unusable by the clock of now. Kept for accounts that are leased and have nothing better, and until then for all.
    untimely: HashMap<SpiffeId, Untimely>,
    restored_until: Duration,
}

struct Account {
    slot: Arc<Slot>,
    leases: usize,
    /// Checked, not in use yet.
    brought: Option<(RequestId, Credential)>,
}

impl CertificateStore {
    /// `seed` makes the jitter of rotation; another one on every node.
    #[must_use]
    pub fn new(config: StoreConfig, clock: Arc<dyn Clock>, bundles: BundleStore, seed: u64) -> Self {
        let rotation = Rotation::new(config.rotation.clone(), seed);
        let inner = Inner {
            rotation,
            accounts: HashMap::new(),
            outbox: Vec::new(),
            restored: HashMap::new(),
            untimely: HashMap::new(),
            restored_until: Duration::ZERO,
        };
        Self(Arc::new(Shared {
            config,
            clock,
            bundles,
            metrics: StoreMetrics::default(),
            contact: Mutex::default(),
            wake: Notify::new(),
            revision: watch::Sender::new(0),
            inner: Mutex::new(inner),
        }))
    }

    /// The roots that count.
    #[must_use]
    pub fn bundles(&self) -> &BundleStore {
        &self.0.bundles
    }

    /// Counters of this store.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        &self.0.metrics
    }

    /// What its certificates are judged by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// A pod of this account is here. Its certificate is fetched (or taken over) and kept fresh until the last lease is dropped.
    pub fn lease(&self, id: &SpiffeId) -> Result<Lease, TooManyAccounts> {
        let shared = &self.0;
        let now = shared.clock.now();
        let mut inner = shared.lock();
        if let Some(account) = inner.accounts.get_mut(id) {
            account.leases += 1;
            return Ok(Lease::new(self.clone(), Arc::clone(&account.slot)));
        }
        if inner.accounts.len() >= shared.config.accounts_max {
            return Err(TooManyAccounts(shared.config.accounts_max));
        }
        let slot = Arc::new(Slot::new(id.clone()));
        inner.accounts.insert(id.clone(), Account { slot: Arc::clone(&slot), leases: 1, brought: None });
        match inner.restored.remove(id) {
            Some(credential) => {
                let validity = credential.facts().validity;
                shared.put(&slot, credential);
                shared.apply(&mut inner, now, Event::Restored(id, validity));
            }
            None => shared.apply(&mut inner, now, Event::Need(id, Priority::WarmUp)),
        }
        drop(inner);
        shared.wake.notify_one();
        Ok(Lease::new(self.clone(), slot))
    }

    /// For `heddle certs`, sorted by id.
    #[must_use]
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = self.0.clock.now();
        let inner = self.0.lock();
        let mut rows: Vec<_> = inner
            .accounts
            .iter()
            .filter_map(|(id, account)| {
                Some(CertificateStatus {
                    id: id.clone(),
                    state: inner.rotation.state(id, now)?,
                    certificate: account.slot.credential().map(|credential| credential.facts().clone()),
                    due_in: inner.rotation.due(id).map(|at| at.saturating_sub(now.monotonic)),
                    failures: inner.rotation.failures(id),
                    last_error: account.slot.last_error(),
                })
            })
            .collect();
        drop(inner);
        rows.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        rows
    }

    /// Whether the issuer answers.
    #[must_use]
    pub fn issuer_status(&self) -> IssuerStatus {
        self.0.contact().status(self.0.clock.now().monotonic)
    }

    /// Requests the issuer has not answered.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.0.lock().rotation.open_requests()
    }

    /// Changes when the certificates in use do: the moment to [`Self::export`] them anew.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Keys and certificates for the keeper's memory, and nothing else. Those in use come first where there is no room for all.
    pub fn export(&self) -> Result<Export, ExportError> {
        let inner = self.0.lock();
        let in_use: Vec<_> = inner.accounts.values().filter_map(|account| account.slot.credential()).collect();
        let mut all: Vec<&Credential> = in_use.iter().map(|credential| &**credential).collect();
        all.extend(inner.restored.values());
        let has = |id: &SpiffeId| all.iter().any(|credential| credential.facts().id == *id);
        let untimely: Vec<&Untimely> = inner.untimely.values().filter(|untimely| !has(&untimely.id)).collect();
        let export = export::encode(&all, &untimely, self.0.config.export_bytes_max)?;
        self.0.metrics.left_out(export.left_out);
        Ok(export)
    }

    /// Whether an account has a certificate that can be used, issued or taken over.
    #[must_use]
    pub fn has_any(&self) -> bool {
        let inner = self.0.lock();
        !inner.restored.is_empty() || inner.accounts.values().any(|account| account.slot.credential().is_some())
    }

    /// Takes over what a former agent exported. Every certificate is checked as if it had just been issued; what does not pass is named
    /// and left out. The rest is used by leases that come within [`StoreConfig::restored_kept`], without asking anybody.
    pub fn restore(&self, bytes: &[u8]) -> Result<Restored, ImportError> {
        let now = self.0.clock.now();
        let Decoded { credentials, untimely, refused } = export::decode(bytes, &self.0.bundles, now.unix)?;
        let mut inner = self.0.lock();
        let certificates = credentials.len();
        let fresh = credentials.into_iter().map(|credential| (credential.facts().id.clone(), credential));
        inner.restored = fresh.filter(|(id, _)| !inner.accounts.contains_key(id)).collect();
        inner.untimely = untimely.into_iter().map(|untimely| (untimely.id.clone(), untimely)).collect();
        inner.restored_until = now.monotonic + self.0.config.restored_kept;
        drop(inner);
        self.0.wake.notify_one();
        Ok(Restored { certificates, refused })
    }

    /// A handshake waits for `slot`.
    fn need_now(&self, id: &SpiffeId) {
        let now = self.0.clock.now();
        let mut inner = self.0.lock();
        if inner.accounts.contains_key(id) {
            self.0.apply(&mut inner, now, Event::Need(id, Priority::NeededNow));
        }
        drop(inner);
        self.0.wake.notify_one();
    }

    fn release(&self, slot: &Slot) {
        let id = slot.id();
        let now = self.0.clock.now();
        let mut inner = self.0.lock();
        let Some(account) = inner.accounts.get_mut(id) else { return };
        account.leases -= 1;
        if account.leases > 0 {
            return;
        }
        inner.accounts.remove(id);
        inner.untimely.remove(id);
        // Configs may still hold the slot; the key goes now.
        slot.clear();
        self.0.bundles.set_issued(id, None);
        self.0.apply(&mut inner, now, Event::Forget(id));
        drop(inner);
        self.0.revision.send_modify(|revision| *revision += 1);
        self.0.wake.notify_one();
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateStore of {} accounts", self.0.lock().accounts.len())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps the rotation; what concerns the slots is done here, the rest is left to the driver.
    fn apply(&self, inner: &mut Inner, now: Now, event: Event<'_>) {
        for action in inner.rotation.step(now, event) {
            let Action::Use(id, request) = action else {
                inner.outbox.push(action);
                continue;
            };
            let Some(account) = inner.accounts.get_mut(&id) else { continue };
            if let Some((brought, credential)) = account.brought.take()
                && brought == request
            {
                self.put(&account.slot, credential);
                inner.untimely.remove(&id);
            }
        }
    }

    fn put(&self, slot: &Slot, credential: Credential) {
        // Its roots first: who sees the certificate can verify peers of the same issue.
        self.bundles.set_issued(slot.id(), Some(Arc::clone(credential.roots())));
        slot.put(credential);
        self.revision.send_modify(|revision| *revision += 1);
    }
}
