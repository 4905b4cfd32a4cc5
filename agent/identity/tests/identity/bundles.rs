//! Which roots count when they come from several sides.

use std::sync::Arc;
use std::time::Duration;

use heddle_identity::bundle::{BundleError, ROOTS_MAX};
use heddle_identity::{BundleStore, Clock, IssueError, IssueErrorKind, Roots, TrustDomain};
use rustls::pki_types::CertificateDer;

use crate::pki::{Ca, HOUR, LeafSpec, Node, id};

fn roots_of(store: &BundleStore) -> Vec<CertificateDer<'static>> {
    store.current().roots("cluster.local").map(|roots| roots.certificates().to_vec()).unwrap_or_default()
}

fn sorted<const N: usize>(mut roots: [CertificateDer<'static>; N]) -> Vec<CertificateDer<'static>> {
    roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.to_vec()
}

#[tokio::test(start_paused = true)]
async fn the_roots_of_all_certificates_in_use_count_together() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let (old_root, new_root) = (old.root.clone(), new.root.clone());
    let node = Node::start(old);
    let bundles = node.store.bundles().clone();
    let web = node.lease(&id("web")).await;
    let first = bundles.generation();
    let api = node.lease(&id("api")).await;
    assert_eq!((roots_of(&bundles), bundles.generation()), (vec![old_root.clone()], first), "the same roots again");
    // The next account's certificate comes with the new root alone: the others still stand on the old one.
    node.issuer.set(|issuer| {
        issuer.roots = vec![new_root.clone()];
        issuer.ca = Arc::new(new);
    });
    let third = node.lease(&id("third")).await;
    assert_eq!((roots_of(&bundles), bundles.generation()), (sorted([old_root.clone(), new_root.clone()]), first + 1));
    // Authoritative roots take the domain over, and give it back.
    let domain: TrustDomain = "cluster.local".parse().unwrap();
    let set = Ca::root("set").root;
    bundles.set(&domain, Some(Arc::new(Roots::new(vec![set.clone()]).unwrap())));
    assert_eq!((roots_of(&bundles), bundles.generation()), (vec![set], first + 2));
    bundles.set(&domain, None);
    assert_eq!((roots_of(&bundles), bundles.generation()), (sorted([old_root, new_root.clone()]), first + 3));
    // The old root goes with the last certificate that came with it.
    drop(web);
    assert_eq!(roots_of(&bundles).len(), 2);
    tokio::time::sleep(15 * HOUR).await;
    assert!(api.is_ready() && third.is_ready());
    assert_eq!(roots_of(&bundles), [new_root]);
}

/// Together they may be more than are kept: which of them count is no matter of chance.
#[tokio::test(start_paused = true)]
async fn of_too_many_roots_those_that_end_last_count() {
    let ca = Ca::root("in use");
    let in_use = ca.root.clone();
    let node = Node::start(ca);
    let now = node.clock.now().unix;
    let ended = |n: u32| Ca::root_valid_until(&format!("old {n}"), now + HOUR * n).root;
    let old: Vec<_> = (1..ROOTS_MAX as u32).map(ended).collect();
    let mut leases = Vec::new();
    for (account, more) in [("web", &old[..40]), ("api", &old[40..]), ("third", &[ended(100), ended(101)])] {
        node.issuer.set(|issuer| issuer.roots = [std::slice::from_ref(&in_use), more].concat());
        leases.push(node.lease(&id(account)).await);
    }
    let trusted = roots_of(node.store.bundles());
    assert_eq!(trusted.len(), ROOTS_MAX);
    assert!(trusted.contains(&in_use), "it lasts longer than any other");
    assert!(!trusted.contains(&old[0]) && !trusted.contains(&old[1]), "they end first");
    assert!(old[2..].iter().all(|root| trusted.contains(root)));
}

#[test]
fn roots_that_cannot_be_used_are_named() {
    let (a, b) = (Ca::root("a"), Ca::root("b"));
    let leaf = a.peer(&LeafSpec::new(&id("web"), 2_000_000_000 * std::time::Duration::from_secs(1))).cert[0].clone();
    let error = |roots: Vec<CertificateDer<'static>>| Roots::new(roots).unwrap_err();
    assert_eq!(error(vec![]), BundleError::Empty);
    assert_eq!(error(vec![a.root.clone(); ROOTS_MAX + 1]), BundleError::TooMany(65));
    assert_eq!(error(vec![a.root.clone(), leaf]).to_string(), "root certificate 1: not a CA certificate");
    let garbage = CertificateDer::from(b"garbage".to_vec());
    assert_eq!(
        error(vec![a.root.clone(), b.root.clone(), garbage]).to_string(),
        "root certificate 2: not an X.509 certificate"
    );
    let mut longer = a.root.to_vec();
    longer.push(0);
    assert_eq!(error(vec![longer.into()]).to_string(), "root certificate 0: bytes follow the certificate");
    let twice = Roots::new(vec![b.root.clone(), a.root.clone(), b.root.clone()]).unwrap();
    assert_eq!(twice.certificates(), sorted([a.root, b.root]));
}

#[tokio::test(start_paused = true)]
async fn roots_are_followed_long_before_a_certificate_is_renewed() {
    let ca = Ca::root("first");
    let (first, second) = (ca.root.clone(), Ca::root("second").root);
    let node = Node::start(ca);
    let _lease = node.lease(&id("web")).await;
    let trusted = || node.store.bundles().current().roots("cluster.local").unwrap().certificates().to_vec();
    let within = Duration::from_secs(60);
    // An issuer that does not tell them changes nothing.
    node.issuer.set(|issuer| issuer.roots = vec![first.clone(), second.clone()]);
    tokio::time::sleep(within).await;
    assert_eq!(trusted(), [first.clone()].to_vec());
    node.issuer.set(|issuer| issuer.tells_roots = true);
    tokio::time::sleep(within).await;
    assert_eq!(trusted().len(), 2);
    // One that cannot be reached takes none away.
    node.issuer.set(|issuer| {
        issuer.roots = vec![second.clone()];
        issuer.error = Some(IssueError::new(IssueErrorKind::Unavailable, "down"));
    });
    tokio::time::sleep(within).await;
    assert_eq!(trusted().len(), 2);
    node.issuer.set(|issuer| issuer.error = None);
    tokio::time::sleep(within).await;
    assert_eq!(trusted(), [second].to_vec());
    assert_eq!(node.store.metrics().issued_total(), 1, "and no certificate was asked for");
}
