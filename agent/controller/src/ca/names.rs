//! Who is who in the control plane itself. No workload ever gets one of these ids.

use heddle_identity::spiffe::SpiffeError;
use heddle_identity::{SpiffeId, TrustDomain};

/// The namespace the mesh's own programs are in.
pub const NAMESPACE: &str = "heddle-system";
const AGENT: &str = "agent";
const AUTHORITY: &str = "ca";

/// What every agent's node certificate names; which node it is stands in the subject's common name.
///
/// # Errors
/// None for a domain that leaves room for a path of 27 bytes, as every legal one does.
pub fn agent_id(trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeError> {
    SpiffeId::new(trust_domain, NAMESPACE, AGENT)
}

/// What the authority's own server certificate names.
///
/// # Errors
/// As [`agent_id`].
pub fn authority_id(trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeError> {
    SpiffeId::new(trust_domain, NAMESPACE, AUTHORITY)
}

/// Whether an id is the control plane's own.
#[must_use]
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.namespace() == NAMESPACE && matches!(id.service_account(), AGENT | AUTHORITY)
}
