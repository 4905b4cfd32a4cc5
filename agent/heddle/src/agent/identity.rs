//! Identities of this node's pods: which accounts need a certificate, from the snapshot; a lease for each, so that the store fetches and
//! renews it; and the trust domain they are all in.
//!
//! An account is warm as soon as one of its pods is scheduled here, whether enrolled yet or not, and forgotten when the last has gone and
//! no connection needs it any more. The trust domain is that of the first load and stays: one that changes under way would make every peer
//! a stranger at once. It is refused, said in `heddle check`, and taken when the agent starts anew.

mod check;
mod keys;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use heddle_identity::export::EXPORT_BYTES_MAX;
use heddle_identity::{
    BundleStore, CertificateStatus, CertificateStore, HandshakeMetrics, Lease, SpiffeId, StoreConfig, SystemClock,
    TrustDomain,
};
use heddle_model::{PodUid, Snapshot, Workload};
use heddle_proto::debug::v1;
use heddle_telemetry::time::rfc3339;
use tokio::sync::{Notify, watch};

use crate::cli::IdentityOptions;
use crate::issuer::{self, CaFiles, CaOptions, CaProtocol};

/// What an agent with `--ca` read while it could.
pub struct Authority {
    url: String,
    files: CaFiles,
    options: IdentityOptions,
}

impl Authority {
    /// Reads the files of `--ca-root` and `--ca-token-file`; `None` without `--ca`.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(options: &IdentityOptions) -> Result<Option<Self>> {
        let (Some(url), Some(root), Some(token)) = (&options.ca, &options.ca_root, &options.ca_token_file) else {
            return Ok(None);
        };
        let files = CaFiles::open(root, token).context("--ca")?;
        Ok(Some(Self { url: url.clone(), files, options: options.clone() }))
    }

    fn issuer(self, node: &str, trust_domain: &TrustDomain) -> Result<Arc<dyn heddle_identity::CertificateIssuer>> {
        let options = CaOptions {
            url: self.url,
            files: self.files,
            protocol: self.options.ca_protocol,
            node: node.to_owned(),
            trust_domain: trust_domain.clone(),
        };
        issuer::issuer(&options)
    }
}

/// The identities of this node.
pub struct Identities {
    store: CertificateStore,
    handshakes: HandshakeMetrics,
    authority: String,
    /// The authority tells its roots without being asked for a certificate: those it told last are kept with the keys.
    tells_roots: bool,
    state: Mutex<State>,
    /// The keeper has to be given the keys again: it is another one.
    keys_wanted: Notify,
}

#[derive(Default)]
struct State {
    trust_domain: Option<TrustDomain>,
    /// What the Mesh says now, if it is another one.
    refused_domain: Option<Arc<str>>,
    /// By account.
    warm: BTreeMap<SpiffeId, Lease>,
    /// Pods accepted for, with the account they are accepted for as.
    accepted: BTreeMap<PodUid, Option<SpiffeId>>,
    /// Pods of this node without an identity: why.
    nameless: BTreeMap<PodUid, String>,
    /// Why the keeper does not hold the keys.
    keys_error: Option<String>,
    /// Accounts whose keys it has no room for.
    keys_left_out: usize,
    /// There was a certificate in this agent's life: from then on the keeper is to hold what this agent has, be it nothing.
    has_had_keys: bool,
}

impl Identities {
    /// Empty, for an authority.
    #[must_use]
    pub fn new(authority: &Authority, workers: usize) -> Self {
        let config = StoreConfig {
            lifetime: Duration::from_secs(authority.options.certificate_lifetime_seconds),
            ..StoreConfig::default()
        };
        // Not the same jitter on nodes that start together.
        let seed = RandomState::new().hash_one(std::process::id());
        Self {
            store: CertificateStore::new(config, Arc::new(SystemClock::default()), BundleStore::default(), seed),
            handshakes: HandshakeMetrics::new(workers),
            authority: authority.url.clone(),
            tells_roots: authority.options.ca_protocol == CaProtocol::Heddle,
            state: Mutex::default(),
            keys_wanted: Notify::new(),
        }
    }

    /// What the data plane and the metrics need.
    #[must_use]
    pub fn shared(&self) -> heddle_proxy::Identity {
        heddle_proxy::Identity { store: self.store.clone(), handshakes: self.handshakes.clone() }
    }

    /// Fixes the trust domain, takes the first leases, and makes the issuer that [`CertificateStore::run`] needs.
    ///
    /// # Errors
    /// The trust domain or the authority's address is none.
    pub fn begin(
        &self,
        authority: Authority,
        snapshot: &Snapshot,
    ) -> Result<Arc<dyn heddle_identity::CertificateIssuer>> {
        let name = &snapshot.mesh.trust_domain;
        let domain: TrustDomain = name.parse().with_context(|| format!("Mesh default: spec.trustDomain `{name}`"))?;
        let issuer = authority.issuer(&snapshot.node, &domain)?;
        tracing::info!(target: "identity", trust_domain = %domain, authority = issuer.name(), "identities are on");
        self.lock().trust_domain = Some(domain);
        self.follow(snapshot);
        Ok(issuer)
    }

    /// The store, to be run.
    #[must_use]
    pub const fn store(&self) -> &CertificateStore {
        &self.store
    }

    /// The snapshot as the agent goes by it: in the trust domain of the first load.
    fn in_own_domain(&self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let mut state = self.lock();
        let wanted = &snapshot.mesh.trust_domain;
        let Some(own) = state.trust_domain.clone().filter(|own| own.as_str() != &**wanted) else {
            if state.refused_domain.take().is_some() {
                tracing::info!(target: "identity", "the Mesh has its former trust domain again");
            }
            return snapshot;
        };
        if state.refused_domain.as_ref() != Some(wanted) {
            tracing::error!(target: "identity", %own, wanted = &**wanted, "another trust domain is not taken while the agent runs");
            state.refused_domain = Some(Arc::clone(wanted));
        }
        drop(state);
        let mut pinned = (*snapshot).clone();
        let mut mesh = (*pinned.mesh).clone();
        mesh.trust_domain = own.as_str().into();
        pinned.mesh = Arc::new(mesh);
        Arc::new(pinned)
    }

    /// Whose a pod is.
    fn id_of(domain: Option<&TrustDomain>, pod: &Workload) -> Result<SpiffeId, String> {
        let domain = domain.ok_or("the trust domain is not known yet")?;
        SpiffeId::new(domain, &pod.namespace, &pod.service_account)
            .map_err(|error| format!("pod {}/{}: no identity: {error}", pod.namespace, pod.name))
    }

    /// Leases for the accounts that have a pod here, and no others. Returns the pods that are accepted for under another account than
    /// they have now.
    pub fn follow(&self, snapshot: &Snapshot) -> Vec<PodUid> {
        let mut state = self.lock();
        let state = &mut *state;
        let mut wanted = BTreeSet::new();
        let mut changed = Vec::new();
        state.nameless.clear();
        for pod in snapshot.workloads().filter(|pod| *pod.node == *snapshot.node && pod.wants_capture()) {
            let id = match Self::id_of(state.trust_domain.as_ref(), pod) {
                Ok(id) => Some(id),
                Err(why) => {
                    state.nameless.insert(pod.uid.clone(), why);
                    None
                }
            };
            if state.accepted.get(&pod.uid).is_some_and(|accepted| *accepted != id) {
                changed.push(pod.uid.clone());
            }
            let Some(id) = id else { continue };
            if !state.warm.contains_key(&id) {
                match self.store.lease(&id) {
                    Ok(lease) => _ = state.warm.insert(id.clone(), lease),
                    Err(error) => {
                        state.nameless.insert(pod.uid.clone(), format!("pod {}/{}: {error}", pod.namespace, pod.name));
                        continue;
                    }
                }
            }
            wanted.insert(id);
        }
        state.warm.retain(|id, _| wanted.contains(id));
        changed
    }

    /// A lease for a pod that is about to be accepted for.
    pub fn accept(&self, snapshot: &Snapshot, uid: &PodUid) -> Option<Lease> {
        let mut state = self.lock();
        let pod = snapshot.workload(uid)?;
        let lease = Self::id_of(state.trust_domain.as_ref(), pod)
            .and_then(|id| self.store.lease(&id).map_err(|error| error.to_string()))
            .inspect_err(
                |error| tracing::error!(target: "identity", pod = %uid, error, "accepted for without an identity"),
            )
            .ok();
        state.accepted.insert(uid.clone(), lease.as_ref().map(|lease| lease.id().clone()));
        lease
    }

    /// It is not accepted for any more.
    pub fn release(&self, uid: &PodUid) {
        self.lock().accepted.remove(uid);
    }

    /// For `heddle status`.
    #[must_use]
    pub fn summary(&self) -> String {
        let usable = |row: &&CertificateStatus| check::is_usable(row.state);
        let all = self.store.status();
        let domain = self.lock().trust_domain.as_ref().map(ToString::to_string).unwrap_or_default();
        format!(
            "{} of {} accounts have a certificate (trust domain {domain}, authority {})",
            all.iter().filter(usable).count(),
            all.len(),
            self.authority
        )
    }

    /// For `heddle certs`.
    #[must_use]
    pub fn certificates(&self) -> v1::Certificates {
        let now = since_1970();
        let certificates = self.store.status().iter().map(|row| certificate(row, now)).collect();
        let bundles = self.store.bundles().current();
        let bundle = |(domain, roots): (&TrustDomain, &Arc<heddle_identity::Roots>)| v1::TrustBundle {
            trust_domain: domain.to_string(),
            roots: u32::try_from(roots.certificates().len()).unwrap_or(u32::MAX),
            not_after: time(roots.not_after()),
        };
        let state = self.lock();
        v1::Certificates {
            enabled: true,
            authority: self.authority.clone(),
            trust_domain: state.trust_domain.as_ref().map(ToString::to_string).unwrap_or_default(),
            certificates,
            bundles: bundles.iter().map(bundle).collect(),
            keys_error: state.keys_error.clone().unwrap_or_default(),
        }
    }

    /// For `heddle check`.
    #[must_use]
    pub fn check(&self) -> Vec<v1::CheckItem> {
        let rows = self.store.status();
        let state = self.lock();
        let mut items = check::items(&rows, &self.authority, &self.store.issuer_status(), since_1970());
        items.extend(state.nameless.values().map(|why| v1::CheckItem {
            name: "identity".into(),
            ok: false,
            detail: why.clone(),
            fix: "correct the namespace's or the service account's name".into(),
        }));
        if let (Some(own), Some(refused)) = (&state.trust_domain, &state.refused_domain) {
            items.push(v1::CheckItem {
                name: "trust domain".into(),
                ok: false,
                detail: format!(
                    "Mesh default: spec.trustDomain is {refused}; this agent runs in {own} and stays there"
                ),
                fix: format!("restart all agents with an authority for {refused}, or set it back to {own}"),
            });
        }
        if let Some(error) = &state.keys_error {
            items.push(v1::CheckItem {
                name: "keys".into(),
                ok: false,
                detail: format!("the keeper does not hold this agent's keys: {error}"),
                fix: "see the keeper's log; until then a restarted agent waits for the authority".into(),
            });
        }
        if state.keys_left_out > 0 {
            let (left_out, mib) = (state.keys_left_out, EXPORT_BYTES_MAX >> 20);
            items.push(v1::CheckItem {
                name: "keys".into(),
                ok: false,
                detail: format!(
                    "the keeper's memory is full ({mib} MiB): of {} accounts it does not hold the keys of {left_out}",
                    rows.len()
                ),
                fix: "fewer service accounts on this node, or shorter chains and bundles from the authority; \
                      a restarted agent waits for the authority with those"
                    .into(),
            });
        }
        items
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Snapshots in the trust domain of the first load. Ends with their source.
pub fn in_own_domain(
    identities: Arc<Identities>,
    mut source: watch::Receiver<Arc<Snapshot>>,
) -> (watch::Receiver<Arc<Snapshot>>, tokio::task::JoinHandle<()>) {
    let (publish, pinned) = watch::channel(Arc::clone(&source.borrow_and_update()));
    let task = tokio::spawn(async move {
        while source.changed().await.is_ok() {
            let snapshot = Arc::clone(&source.borrow_and_update());
            publish.send_replace(identities.in_own_domain(snapshot));
        }
    });
    (pinned, task)
}

/// For `heddle check` of an agent without `--ca`.
pub fn off() -> v1::CheckItem {
    v1::CheckItem {
        name: "identity".into(),
        ok: true,
        detail: "off: no --ca; connections between pods are plain text and nobody is authenticated".into(),
        fix: String::new(),
    }
}

fn certificate(row: &CertificateStatus, now: Duration) -> v1::Certificate {
    let facts = row.certificate.as_ref();
    v1::Certificate {
        id: row.id.to_string(),
        state: row.state.as_str().into(),
        serial: facts.map(|facts| facts.serial.clone()).unwrap_or_default(),
        not_before: facts.map(|facts| time(facts.validity.not_before)).unwrap_or_default(),
        not_after: facts.map(|facts| time(facts.validity.not_after)).unwrap_or_default(),
        issuer: facts.map(|facts| facts.issuer.clone()).unwrap_or_default(),
        due: row.due_in.map(|due| time(now + due)).unwrap_or_default(),
        failures: row.failures,
        last_error: row.last_error.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn time(since_1970: Duration) -> String {
    std::time::SystemTime::UNIX_EPOCH.checked_add(since_1970).map(rfc3339).unwrap_or_default()
}

fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default()
}
