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

/// A root that was signed anew over its key is another certificate and the same anchor: neither takes the other's place, in whichever order
/// they come, and the one that ends last decides.
#[test]
fn roots_of_one_key_stand_side_by_side() {
    let ends = [NOW + 10 * SECOND, NOW + 20 * SECOND];
    for first_end in ends {
        let other_end = ends.into_iter().find(|end| *end != first_end).unwrap();
        let first = Ca::root_valid_until("root", first_end);
        let other = first.reissued_until(other_end);
        assert_ne!(first.root, other.root);
        let chain = |ca: &Ca| ca.intermediate("below").peer(&LeafSpec::new(&id("web"), NOW)).cert.clone();
        let standing = |chain: &[CertificateDer<'static>], roots: &[&Ca], at| {
            review_peer(chain, PeerRole::Server, &bundles(roots), at)
        };
        for chain in [chain(&first), chain(&other)] {
            let both = [&first, &other];
            assert_eq!(bundles(&both).roots("cluster.local").unwrap().certificates().len(), 2, "none is a double");
            assert_eq!(standing(&chain, &both, NOW), Standing::Good(ends[0]), "looked at again when one of them ends");
            assert_eq!(standing(&chain, &both, ends[0] + SECOND), Standing::Good(ends[1]), "and found good");
            assert_eq!(standing(&chain, &both, ends[1] + SECOND), Standing::Expired);
            // Each vouches alone for what the key signed, and for no longer than itself.
            for (alone, end) in [(&first, first_end), (&other, other_end)] {
                assert_eq!(standing(&chain, &[alone], NOW), Standing::Good(end));
                assert_eq!(standing(&chain, &[alone], end + SECOND), Standing::Expired);
            }
        }
    }
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
