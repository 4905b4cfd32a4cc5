//! What is left of a proof while time goes on and roots change.

use std::sync::Arc;
use std::time::Duration;

use heddle_identity::verify::{PeerRole, Standing, review_peer};
use heddle_identity::{HandshakeFailure, Roots, TrustBundles};
use rustls::pki_types::CertificateDer;

use crate::pki::{Ca, HOUR, LeafSpec, id};

const NOW: Duration = Duration::from_secs(2_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn bundles(roots: &[&Ca]) -> TrustBundles {
    let roots = roots.iter().map(|ca| ca.root.clone()).collect();
    TrustBundles::new(1, [("cluster.local".parse().unwrap(), Arc::new(Roots::new(roots).unwrap()))])
}

#[test]
fn a_peer_stands_until_time_or_its_root_is_up() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let (brief, below) =
        (Ca::root_valid_until("brief", NOW + 10 * SECOND), old.intermediate_valid_until("below", NOW + 20 * SECOND));
    let chain = |ca: &Ca| -> Vec<CertificateDer<'static>> { ca.peer(&LeafSpec::new(&id("web"), NOW)).cert.clone() };
    let (plain, of_brief, of_below) = (chain(&old), chain(&brief), chain(&below));
    let end = NOW + HOUR;
    let unknown = Some(HandshakeFailure::UnknownRoot);
    for (what, chain, roots, at, expected) in [
        ("as it was", &plain, &[&old][..], NOW, Ok(end)),
        ("in its last second", &plain, &[&old], end, Ok(end)),
        ("behind it", &plain, &[&old], end + SECOND, Err(None)),
        ("long behind it", &plain, &[&old], end + 1000 * HOUR, Err(None)),
        ("by a clock set back", &plain, &[&old], NOW - HOUR, Ok(end)),
        ("with another root beside", &plain, &[&old, &new], NOW, Ok(end)),
        ("with its root gone", &plain, &[&new], NOW, Err(unknown)),
        ("with its root gone and its time up", &plain, &[&new], end + SECOND, Err(unknown)),
        ("until its root ends", &of_brief, &[&brief], NOW, Ok(NOW + 10 * SECOND)),
        ("behind its root", &of_brief, &[&brief], NOW + 11 * SECOND, Err(None)),
        ("until an intermediate ends", &of_below, &[&old], NOW, Ok(NOW + 20 * SECOND)),
        ("behind an intermediate", &of_below, &[&old], NOW + 21 * SECOND, Err(None)),
        ("looked at again when another root ends", &plain, &[&old, &brief], NOW, Ok(NOW + 10 * SECOND)),
        ("and found good", &plain, &[&old, &brief], NOW + 11 * SECOND, Ok(end)),
    ] {
        let found = match review_peer(chain, PeerRole::Client, &bundles(roots), at) {
            Standing::Good(until) => Ok(until),
            Standing::Expired => Err(None),
            Standing::Withdrawn(refusal) => Err(Some(refusal.failure)),
        };
        assert_eq!(found, expected, "{what}");
    }
    let nobody = TrustBundles::new(1, []);
    for (chain, failure) in [(&plain[..], HandshakeFailure::WrongTrustDomain), (&[], HandshakeFailure::NoCertificate)] {
        let standing = review_peer(chain, PeerRole::Client, &nobody, NOW);
        assert!(matches!(&standing, Standing::Withdrawn(refusal) if refusal.failure == failure), "{standing:?}");
    }
}
