//! Trust bundles: which roots vouch for which trust domain, and how they change without a failed handshake.
//!
//! A bundle may hold several roots, so that the old and the new overlap during a rotation. Every change makes a new generation; a TLS
//! config belongs to one generation for ever, so nothing has to be invalidated inside it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::certificate::read_ca;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Most roots of one trust domain. Of more, taken together from several certificates in use, those that end last count.
pub const ROOTS_MAX: usize = 64;

/// Why roots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A domain without a root trusts nobody: remove it instead.
    #[error("no root certificate")]
    Empty,
    /// More than [`ROOTS_MAX`].
    #[error("{0} root certificates, more than 64")]
    TooMany(usize),
    /// One of them is none.
    #[error("root certificate {index}: {why}")]
    Root {
        /// Counted from 0.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// The roots of one trust domain, parsed.
#[derive(Clone)]
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    not_after: Vec<Duration>,
}

impl Roots {
    /// Parses; doubles are dropped, order does not matter.
    pub fn new(mut certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        if certificates.len() > ROOTS_MAX {
            return Err(BundleError::TooMany(certificates.len()));
        }
        let mut anchors = Vec::with_capacity(certificates.len());
        let mut not_after = Vec::with_capacity(certificates.len());
        for (index, certificate) in certificates.iter().enumerate() {
            read_ca(certificate).map_err(|why| BundleError::Root { index, why })?;
        }
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        for (index, certificate) in certificates.iter().enumerate() {
            not_after.push(read_ca(certificate).map_err(|why| BundleError::Root { index, why })?);
            let anchor = webpki::anchor_from_trusted_cert(certificate)
                .map_err(|_| BundleError::Root { index, why: "cannot be used as a trust anchor" })?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { certificates, anchors, not_after })
    }

    /// The certificates, sorted.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// When the last of them ends, as time since 1970.
    #[must_use]
    pub fn not_after(&self) -> Duration {
        self.not_after.iter().copied().max().unwrap_or_default()
    }

    /// When each of them ends.
    pub(crate) fn ends(&self) -> &[Duration] {
        &self.not_after
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Until when chains that lead to `anchor`, one of [`Self::anchors`], hold. A root that was signed anew over its key to last longer
    /// makes the same anchor as before: the one of them that ends last vouches for what the key has signed.
    pub(crate) fn anchor_not_after(&self, anchor: &TrustAnchor<'_>) -> Option<Duration> {
        let same = self.anchors.iter().zip(&self.not_after).filter(|(own, _)| *own == anchor);
        same.map(|(_, not_after)| *not_after).max()
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Roots {}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} roots", self.certificates.len())
    }
}

/// All trust domains at one moment.
#[derive(Debug, Default)]
pub struct TrustBundles {
    generation: u64,
    domains: BTreeMap<TrustDomain, Arc<Roots>>,
}

impl TrustBundles {
    /// For tests and tools; the agent has a [`BundleStore`].
    #[must_use]
    pub fn new(generation: u64, domains: impl IntoIterator<Item = (TrustDomain, Arc<Roots>)>) -> Self {
        Self { generation, domains: domains.into_iter().collect() }
    }

    /// Grows with every change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The roots of a trust domain.
    #[must_use]
    pub fn roots(&self, trust_domain: &str) -> Option<&Arc<Roots>> {
        self.domains.get(trust_domain)
    }

    /// All domains with their roots.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Roots>)> {
        self.domains.iter()
    }
}

/// Where bundles come from and how readers see them. Cloning shares it.
///
/// Roots *set* (by configuration, federation or discovery) are authoritative for their domain. For a domain without any, the roots that
/// came with the certificates in use are trusted, all of them together: while one certificate of this node stands on the old root and
/// another on the new one, both count.
#[derive(Clone, Default)]
pub struct BundleStore(Arc<Inner>);

#[derive(Default)]
struct Inner {
    current: ArcSwap<TrustBundles>,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    set: BTreeMap<TrustDomain, Arc<Roots>>,
    issued: BTreeMap<SpiffeId, Arc<Roots>>,
}

impl BundleStore {
    /// What counts now.
    #[must_use]
    pub fn current(&self) -> Arc<TrustBundles> {
        self.0.current.load_full()
    }

    /// The current generation, cheaper than [`Self::current`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.current.load().generation
    }

    /// Sets, or with `None` removes, the authoritative roots of a domain.
    pub fn set(&self, trust_domain: &TrustDomain, roots: Option<Arc<Roots>>) {
        self.change(|sources| match roots {
            Some(roots) => {
                sources.set.insert(trust_domain.clone(), roots);
            }
            None => {
                sources.set.remove(trust_domain);
            }
        });
    }

    /// The authoritative roots of a domain, if there are any.
    #[must_use]
    pub fn authoritative(&self, trust_domain: &str) -> Option<Arc<Roots>> {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner).set.get(trust_domain).cloned()
    }

    /// The roots that came with `id`'s certificate in use, or `None` when it is forgotten.
    pub(crate) fn set_issued(&self, id: &SpiffeId, roots: Option<Arc<Roots>>) {
        self.change(|sources| match roots {
            Some(roots) => {
                sources.issued.insert(id.clone(), roots);
            }
            None => {
                sources.issued.remove(id);
            }
        });
    }

    fn change(&self, apply: impl FnOnce(&mut Sources)) {
        // The lock is held while publishing, so that generations reach readers in order.
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        apply(&mut sources);
        let domains = sources.merged();
        let old = self.0.current.load();
        if old.domains != domains {
            self.0.current.store(Arc::new(TrustBundles { generation: old.generation + 1, domains }));
        }
    }
}

impl fmt::Debug for BundleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.current.load().fmt(f)
    }
}

impl Sources {
    fn merged(&self) -> BTreeMap<TrustDomain, Arc<Roots>> {
        let mut domains = self.set.clone();
        let mut issued: BTreeMap<&str, Vec<&Arc<Roots>>> = BTreeMap::new();
        for (id, roots) in &self.issued {
            if !self.set.contains_key(id.trust_domain()) {
                let known = issued.entry(id.trust_domain()).or_default();
                if !known.contains(&roots) {
                    known.push(roots);
                }
            }
        }
        for (domain, parts) in issued {
            let union = match &parts[..] {
                [one] => Some(Arc::clone(one)),
                many => {
                    let all = many.iter().flat_map(|roots| roots.not_after.iter().zip(&roots.certificates));
                    let mut all: Vec<_> = all.collect();
                    all.sort_unstable_by(|a, b| b.0.cmp(a.0).then_with(|| a.1.as_ref().cmp(b.1.as_ref())));
                    all.dedup();
                    if all.len() > ROOTS_MAX {
                        let too_many = all.len();
                        tracing::warn!(domain, too_many, "too many roots: the {ROOTS_MAX} that end last are trusted");
                    }
                    all.truncate(ROOTS_MAX);
                    Roots::new(all.into_iter().map(|(_, root)| root.clone()).collect()).ok().map(Arc::new)
                }
            };
            if let (Ok(domain), Some(union)) = (domain.parse(), union) {
                domains.insert(domain, union);
            }
        }
        domains
    }
}
