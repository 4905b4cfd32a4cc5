//! Is the peer who it must be: one pure function for both directions. Who calls it has bytes, roots and the time; nothing else counts.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::{Roots, TrustBundles};
use crate::certificate::{Leaf, read_ca};
use crate::failure::{HandshakeFailure, Refusal};
use crate::provider::SIGNATURE_ALGORITHMS;
use crate::spiffe::SpiffeId;

/// How far ahead of ours the clock that issued a certificate may be. Ends are exact: renewal leaves half a lifetime for them.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);
/// Most certificates of a chain, the leaf included.
pub const CHAIN_MAX: usize = 8;

/// Which side the peer is on; its certificate must be good for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// We are the server.
    Client,
    /// We are the client.
    Server,
}

/// Whom a client accepts at the other end: sorted, without doubles. Empty accepts nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpectedIds(Arc<[SpiffeId]>);

impl ExpectedIds {
    /// Any of these.
    #[must_use]
    pub fn new(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into())
    }

    /// The ids, sorted.
    #[must_use]
    pub fn ids(&self) -> &[SpiffeId] {
        &self.0
    }

    fn check(&self, id: &SpiffeId) -> Result<(), Refusal> {
        if self.0.binary_search(id).is_ok() {
            return Ok(());
        }
        let is_domain_expected = self.0.iter().any(|expected| expected.trust_domain() == id.trust_domain());
        let failure =
            if is_domain_expected { HandshakeFailure::WrongIdentity } else { HandshakeFailure::WrongTrustDomain };
        let expected = self.0.first().map_or("nobody", SpiffeId::as_str);
        let more = if self.0.len() > 1 { format!(" or {} more", self.0.len() - 1) } else { String::new() };
        Err(Refusal::new(failure, format!("the peer is {id}; expected {expected}{more}")))
    }
}

impl From<SpiffeId> for ExpectedIds {
    fn from(id: SpiffeId) -> Self {
        Self(Arc::new([id]))
    }
}

/// Verifies a peer: one SPIFFE id in the leaf, a chain to the roots of that id's trust domain, good now and for this role, and the id one of
/// `expected` where that is given.
pub fn verify_peer(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: PeerRole,
    bundles: &TrustBundles,
    expected: Option<&ExpectedIds>,
    now: Duration,
) -> Result<SpiffeId, Refusal> {
    let parsed = Leaf::parse(leaf)?;
    let roots = bundles.roots(parsed.id.trust_domain()).ok_or_else(|| {
        Refusal::new(HandshakeFailure::WrongTrustDomain, format!("no roots for the trust domain of {}", parsed.id))
    })?;
    let now = tolerant(now, parsed.validity().not_before);
    verify_chain(leaf, intermediates, role, roots, now)?;
    // Only now is the id more than a claim.
    if let Some(expected) = expected {
        expected.check(&parsed.id)?;
    }
    Ok(parsed.id)
}

/// Where a peer stands that was verified before, by the roots and the time of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It would be let in again; nothing about that changes by itself before this moment has passed.
    Good(Duration),
    /// Its certificate, or one above it, has ended.
    Expired,
    /// No root vouches for it any more, whatever its certificate says about time.
    Withdrawn(Refusal),
}

/// Looks again at a peer that was verified before: its chain, the leaf first.
#[must_use]
pub fn review_peer(chain: &[CertificateDer<'_>], role: PeerRole, bundles: &TrustBundles, now: Duration) -> Standing {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Standing::Withdrawn(Refusal::new(HandshakeFailure::NoCertificate, "no certificate"));
    };
    let parsed = match Leaf::parse(leaf) {
        Ok(parsed) => parsed,
        Err(refusal) => return Standing::Withdrawn(refusal),
    };
    let validity = parsed.validity();
    // Roots are asked as if the leaf were valid: that it ended must not hide that they went. A clock that was set back is no news either.
    let at = now.max(validity.not_before).min(validity.not_after);
    match verify_peer(leaf, intermediates, role, bundles, None, at) {
        Err(refusal) if refusal.failure == HandshakeFailure::Expired => Standing::Expired,
        Err(refusal) => Standing::Withdrawn(refusal),
        Ok(_) if now > validity.not_after => Standing::Expired,
        Ok(_) => {
            let above = intermediates.iter().filter_map(|certificate| read_ca(certificate).ok());
            let roots = bundles.roots(parsed.id.trust_domain()).map(|roots| roots.ends()).unwrap_or_default();
            let ends = above.chain(roots.iter().copied()).filter(|end| *end >= now);
            Standing::Good(ends.fold(validity.not_after, Duration::min))
        }
    }
}

/// The moment to judge at: a leaf that begins within [`CLOCK_SKEW_MAX`] is judged at its beginning, so that everything else about it and
/// its chain still has to hold, then.
pub(crate) fn tolerant(now: Duration, not_before: Duration) -> Duration {
    if not_before > now && not_before - now <= CLOCK_SKEW_MAX { not_before } else { now }
}

/// Verifies signatures, times, constraints and usages up to one of `roots`.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: PeerRole,
    roots: &Roots,
    now: Duration,
) -> Result<(), Refusal> {
    if intermediates.len() >= CHAIN_MAX {
        return Err(Refusal::bad(format!(
            "a chain of {} certificates, more than {CHAIN_MAX}",
            intermediates.len() + 1
        )));
    }
    let leaf = EndEntityCert::try_from(leaf).map_err(|why| refusal(&why))?;
    let usage = match role {
        PeerRole::Client => KeyUsage::client_auth(),
        PeerRole::Server => KeyUsage::server_auth(),
    };
    // webpki takes trust anchors to have no end; roots do.
    let root_is_valid = |path: &webpki::VerifiedPath<'_>| match roots.anchor_not_after(path.anchor()) {
        Some(not_after) if not_after >= now => Ok(()),
        not_after => Err(webpki::Error::CertExpired {
            time: UnixTime::since_unix_epoch(now),
            not_after: UnixTime::since_unix_epoch(not_after.unwrap_or_default()),
        }),
    };
    leaf.verify_for_usage(
        SIGNATURE_ALGORITHMS.all,
        roots.anchors(),
        intermediates,
        UnixTime::since_unix_epoch(now),
        usage,
        None,
        Some(&root_is_valid),
    )
    .map_err(|why| refusal(&why))?;
    Ok(())
}

fn refusal(why: &webpki::Error) -> Refusal {
    let failure = match why {
        webpki::Error::UnknownIssuer => HandshakeFailure::UnknownRoot,
        // A root of the right name and another key: somebody else's, or an older one.
        webpki::Error::InvalidSignatureForPublicKey => HandshakeFailure::UnknownRoot,
        webpki::Error::CertExpired { .. } => HandshakeFailure::Expired,
        webpki::Error::CertNotValidYet { .. } => HandshakeFailure::NotYetValid,
        _ => HandshakeFailure::BadCertificate,
    };
    Refusal::new(failure, why.to_string())
}
