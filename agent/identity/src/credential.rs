//! A certificate with its key, checked before it is taken into use: nothing an issuer answers is believed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::bundle::Roots;
use crate::certificate::{CertificateFacts, Leaf};
use crate::key::WorkloadKey;
use crate::spiffe::SpiffeId;
use crate::verify::{CHAIN_MAX, CLOCK_SKEW_MAX, PeerRole, tolerant, verify_chain};

/// Shortest rest of a lifetime worth taking into use.
pub const LIFETIME_MIN: Duration = Duration::from_secs(5);

/// Why a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The chain is empty or absurdly long.
    #[error("a chain of {0} certificates")]
    ChainLength(usize),
    /// The leaf breaks a rule.
    #[error("the leaf is refused: {0}")]
    Leaf(String),
    /// Signed over another key.
    #[error("the certificate is for another key")]
    Key,
    /// For somebody else.
    #[error("the certificate is for {0}")]
    Identity(SpiffeId),
    /// It names more than the id.
    #[error("the certificate carries names besides the SPIFFE id")]
    OtherNames,
    /// The roots cannot be used.
    #[error("{0}")]
    Roots(#[from] crate::bundle::BundleError),
    /// The chain does not hold.
    #[error("the chain does not lead to the roots: {0}")]
    Chain(String),
    /// It begins too late, has ended, or nearly has.
    #[error("{0}; compare this node's clock with the issuer's")]
    Times(&'static str),
}

/// A certificate in use (or once in use): key, chain, facts, and the roots that came with it.
pub struct Credential {
    key: WorkloadKey,
    certified: Arc<CertifiedKey>,
    facts: CertificateFacts,
    roots: Arc<Roots>,
}

impl Credential {
    /// Checks what was issued for `key` and `id`. The chain must lead to `trusted` where that is given, else to the roots that came with it.
    pub fn check(
        id: &SpiffeId,
        key: WorkloadKey,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        trusted: Option<&Roots>,
        now: Duration,
    ) -> Result<Self, CredentialError> {
        let (Some(first), 1..=CHAIN_MAX) = (chain.first(), chain.len()) else {
            return Err(CredentialError::ChainLength(chain.len()));
        };
        let leaf = Leaf::parse(first).map_err(|refusal| CredentialError::Leaf(refusal.detail))?;
        if leaf.public_point() != key.public_point() {
            return Err(CredentialError::Key);
        }
        if leaf.id != *id {
            return Err(CredentialError::Identity(leaf.id));
        }
        if leaf.has_other_names {
            return Err(CredentialError::OtherNames);
        }
        let validity = leaf.validity();
        if validity.not_before > now + CLOCK_SKEW_MAX {
            return Err(CredentialError::Times("the certificate is not valid yet"));
        }
        if validity.not_after <= now {
            return Err(CredentialError::Times("the certificate has expired already"));
        }
        if validity.not_after < now.max(validity.not_before) + LIFETIME_MIN {
            return Err(CredentialError::Times("the certificate expires within seconds"));
        }
        let roots = Arc::new(Roots::new(roots)?);
        let at = tolerant(now, validity.not_before);
        // A workload is both: it is called and it calls.
        for role in [PeerRole::Client, PeerRole::Server] {
            verify_chain(first, &chain[1..], role, trusted.unwrap_or(&roots), at)
                .map_err(|refusal| CredentialError::Chain(refusal.detail))?;
        }
        let facts = leaf.facts();
        let certified = Arc::new(CertifiedKey::new(chain, Arc::new(key.clone())));
        Ok(Self { key, certified, facts, roots })
    }

    /// What people may see.
    #[must_use]
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// The leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The roots that came with it.
    #[must_use]
    pub fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    /// Whether peers would still accept it.
    #[must_use]
    pub fn is_valid(&self, now: Duration) -> bool {
        let validity = self.facts.validity;
        tolerant(now, validity.not_before) >= validity.not_before && now <= validity.not_after
    }

    /// As rustls presents it.
    #[must_use]
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    pub(crate) fn key(&self) -> &WorkloadKey {
        &self.key
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.fmt(f)
    }
}
