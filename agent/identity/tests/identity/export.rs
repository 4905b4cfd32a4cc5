//! A restarted agent serves at once from what the former one left in the keeper's memory, and believes none of it unchecked.

use std::sync::Arc;
use std::time::Duration;

use heddle_identity::export::{ImportError, parse};
use heddle_identity::metrics::store_collector;
use heddle_identity::{Alpn, ClientConfigs, IssueError, IssueErrorKind, ServerConfigs, State, StoreConfig};
use proptest::prelude::*;

use crate::pki::{Ca, Node, TestClock, TestIssuer, id};
use crate::wire::handshake;

const SECOND: Duration = Duration::from_secs(1);

async fn exported() -> (Vec<u8>, Arc<TestClock>) {
    let node = Node::start(Ca::root("root").intermediate("intermediate"));
    let _leases = [node.lease(&id("web")).await, node.lease(&id("api")).await];
    (node.store.export().unwrap().to_vec(), Arc::clone(&node.clock))
}

/// A new agent whose issuer is down.
fn restarted(clock: Arc<TestClock>) -> Node {
    let issuer = TestIssuer::new(&clock, Ca::root("nobody"));
    issuer.set(|issuer| issuer.error = Some(IssueError::new(IssueErrorKind::Unavailable, "down")));
    Node::with(clock, issuer, StoreConfig::default())
}

#[tokio::test]
async fn a_restarted_agent_serves_at_once_without_a_ca() {
    let (bytes, clock) = exported().await;
    let node = restarted(clock);
    let restored = node.store.restore(&bytes).unwrap();
    assert_eq!((restored.certificates, restored.refused.len()), (2, 0));
    let (web, api) = (node.store.lease(&id("web")).unwrap(), node.store.lease(&id("api")).unwrap());
    assert!(web.is_ready() && api.is_ready(), "no waiting, not even for the driver");
    let client = ClientConfigs::new(&node.store).get(&web, &id("api").into(), Alpn::Heddle).unwrap();
    let server = ServerConfigs::new(&node.store).get(&api, Alpn::Heddle).unwrap();
    assert!(handshake(&client, &server, Alpn::Heddle).is_good());
    assert!(node.store.status().iter().all(|row| row.state == State::Valid));
    // Exported again they are the same bytes: nothing was lost on the way.
    assert_eq!(*node.store.export().unwrap(), bytes);
    // A stranger to the export has to wait for the CA.
    assert!(!node.store.lease(&id("new")).unwrap().is_ready());
}

#[tokio::test]
async fn what_nobody_leased_yet_is_exported_too_and_dropped_after_a_while() {
    let (bytes, clock) = exported().await;
    tokio::time::pause();
    let node = restarted(clock);
    node.store.restore(&bytes).unwrap();
    let _web = node.store.lease(&id("web")).unwrap();
    assert_eq!(*node.store.export().unwrap(), bytes);
    tokio::time::sleep(301 * SECOND).await;
    assert_eq!(parse(&node.store.export().unwrap()).unwrap().len(), 1);
    assert!(!node.store.lease(&id("api")).unwrap().is_ready());
}

/// What there is no room for is left out whole and counted; what is in use comes before what is not.
#[tokio::test]
async fn where_there_is_no_room_for_all_some_are_kept() {
    let (bytes, clock) = exported().await;
    for (room, kept) in [(bytes.len(), 2), (bytes.len() - 1, 1), (bytes.len() * 2 / 3, 1), (100, 0), (0, 0)] {
        let config = StoreConfig { export_bytes_max: room, ..StoreConfig::default() };
        let issuer = TestIssuer::new(&clock, Ca::root("nobody"));
        let node = Node::with(Arc::clone(&clock), issuer, config);
        node.store.restore(&bytes).unwrap();
        let _web = node.store.lease(&id("web")).unwrap();
        let export = node.store.export().unwrap();
        assert!(export.len() <= room.max(44), "{} of {room}", export.len());
        let records = parse(&export).unwrap();
        assert_eq!((records.len(), export.left_out), (kept, 2 - kept), "room for {room}");
        assert!(kept == 0 || records.iter().any(|record| record.id == id("web").as_str()));
        assert_eq!(restarted(Arc::clone(&clock)).store.restore(&export).unwrap().certificates, kept);
        let families = store_collector(&node.store).collect();
        let left_out = families.iter().find(|family| family.name() == "heddle_certificates_left_out").unwrap();
        assert_eq!(left_out.get_metric()[0].get_gauge().get_value(), (2 - kept) as f64);
    }
}

#[tokio::test]
async fn the_export_is_due_whenever_certificates_change() {
    let node = Node::start(Ca::root("root"));
    let mut changes = node.store.changes();
    assert!(!changes.has_changed().unwrap());
    let lease = node.lease(&id("web")).await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    drop(lease);
    assert!(changes.has_changed().unwrap());
    assert!(parse(&node.store.export().unwrap()).unwrap().is_empty());
}

#[tokio::test]
async fn every_certificate_is_checked_as_if_just_issued() {
    let (bytes, clock) = exported().await;
    // Both have ended meanwhile.
    clock.set_offset(25 * 3600);
    let node = restarted(Arc::clone(&clock));
    let restored = node.store.restore(&bytes).unwrap();
    assert_eq!((restored.certificates, restored.refused.len()), (0, 2));
    assert!(restored.refused[0].why.contains("expired"), "{:?}", restored.refused);
    clock.set_offset(0);
    // The roots were replaced meanwhile.
    let node = restarted(clock);
    let other = heddle_identity::Roots::new(vec![Ca::root("other").root]).unwrap();
    node.store.bundles().set(&"cluster.local".parse().unwrap(), Some(Arc::new(other)));
    let restored = node.store.restore(&bytes).unwrap();
    assert_eq!((restored.certificates, restored.refused.len()), (0, 2));
    assert!(restored.refused[0].why.contains("roots"), "{:?}", restored.refused);
}

/// A wrong clock costs nothing but the time until it is right again: what was refused for its times alone is exported with the rest.
#[tokio::test]
async fn what_the_clock_refuses_is_kept_for_an_agent_with_a_better_one() {
    let (bytes, clock) = exported().await;
    for (offset, word) in [(-10 * 365 * 24 * 3600, "not valid yet"), (30 * 24 * 3600, "expired")] {
        clock.set_offset(offset);
        let node = restarted(Arc::clone(&clock));
        let restored = node.store.restore(&bytes).unwrap();
        assert_eq!((restored.certificates, restored.refused.len()), (0, 2));
        assert!(restored.refused.iter().all(|refused| refused.why.contains(word)), "{:?}", restored.refused);
        let web = node.store.lease(&id("web")).unwrap();
        assert!(!web.is_ready() && !node.store.has_any(), "kept, not used");
        assert_eq!(*node.store.export().unwrap(), bytes);

        clock.set_offset(0);
        let next = restarted(Arc::clone(&clock));
        assert_eq!(next.store.restore(&node.store.export().unwrap()).unwrap().certificates, 2);
        assert!(next.store.has_any() && next.store.lease(&id("web")).unwrap().is_ready());
        // It goes with the last pod of its account.
        drop(web);
        let left = node.store.export().unwrap();
        assert_eq!(parse(&left).unwrap().iter().map(|record| record.id).collect::<Vec<_>>(), [id("api").as_str()]);
    }
}

#[tokio::test]
async fn what_the_clock_refuses_is_used_once_the_clock_is_right_though_nobody_issues_anything() {
    let (bytes, clock) = exported().await;
    clock.set_offset(-10 * 365 * 24 * 3600);
    tokio::time::pause();
    let node = restarted(Arc::clone(&clock));
    node.store.restore(&bytes).unwrap();
    let web = node.store.lease(&id("web")).unwrap();
    tokio::time::sleep(10 * SECOND).await;
    assert!(!web.is_ready() && node.store.status()[0].failures > 0, "control: nobody issues anything");
    clock.set_offset(0);
    tokio::time::sleep(160 * SECOND).await;
    assert!(web.is_ready());
    assert_eq!(node.store.status()[0].certificate.as_ref().unwrap().id, id("web"));
    assert_eq!(*node.store.export().unwrap(), bytes, "the same, in use now");
}

#[tokio::test]
async fn what_the_clock_refuses_gives_way_to_what_is_issued_and_is_forgotten_where_nobody_asks() {
    let (bytes, clock) = exported().await;
    clock.set_offset(30 * 24 * 3600);
    tokio::time::pause();
    let node = Node::with(Arc::clone(&clock), TestIssuer::new(&clock, Ca::root("root")), StoreConfig::default());
    node.store.restore(&bytes).unwrap();
    let web = node.lease(&id("web")).await;
    assert!(web.is_ready(), "issued");
    let of = |bytes: &[u8]| {
        let records = parse(bytes).unwrap();
        records.iter().map(|record| (record.id.to_owned(), record.chain[0].to_vec())).collect::<Vec<_>>()
    };
    let (before, after) = (of(&bytes), of(&node.store.export().unwrap()));
    let ids = |all: &[(String, Vec<u8>)]| all.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    assert!(before[0] == after[0] && before[1] != after[1], "api's is the old one, web's is not");
    tokio::time::sleep(301 * SECOND).await;
    assert_eq!(ids(&of(&node.store.export().unwrap())), [id("web").to_string()]);
}

/// The checksum put right, so that what it guards is reached.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body);
    body.extend_from_slice(checksum.as_ref());
    body
}

#[tokio::test]
async fn keys_swapped_between_accounts_are_refused() {
    let (bytes, clock) = exported().await;
    let body = bytes[..bytes.len() - 32].to_vec();
    let web = id("web");
    let at = body.windows(web.as_str().len()).position(|window| window == web.as_str().as_bytes()).unwrap();
    let mut swapped = body.clone();
    swapped[at + web.as_str().len() - 3..at + web.as_str().len()].copy_from_slice(b"api");
    let node = restarted(clock);
    let restored = node.store.restore(&sealed(swapped)).unwrap();
    assert_eq!((restored.certificates, restored.refused.len()), (1, 1));
    assert!(restored.refused[0].why.contains("for spiffe://cluster.local/ns/shop/sa/web"), "{:?}", restored.refused);
    assert_eq!(node.store.restore(&sealed(body)).unwrap().certificates, 2, "control");
}

#[tokio::test]
async fn garbage_is_refused_whole() {
    let (bytes, clock) = exported().await;
    let node = restarted(clock);
    let body = &bytes[..bytes.len() - 32];
    let mut other_version = body.to_vec();
    other_version[9] = 2;
    let mut more = body.to_vec();
    more.push(0);
    let mut fewer = body.to_vec();
    fewer[11] = 1;
    for (bytes, want) in [
        (vec![], ImportError::Magic),
        (vec![0; 4096], ImportError::Magic),
        (b"HEDDLEID".to_vec(), ImportError::Checksum),
        (bytes[..bytes.len() - 1].to_vec(), ImportError::Checksum),
        (sealed(other_version), ImportError::Version(2)),
        (sealed(more), ImportError::Malformed(body.len())),
        (sealed(b"HEDDLEID\0\x01\xff\xff".to_vec()), ImportError::Malformed(12)),
    ] {
        assert_eq!(node.store.restore(&bytes).unwrap_err(), want);
    }
    assert!(matches!(node.store.restore(&sealed(fewer)), Err(ImportError::Malformed(_))));
    assert!(node.store.status().is_empty());
    assert!(!node.store.lease(&id("web")).unwrap().is_ready());
}

proptest! {
    /// Any change of any byte is noticed; and with the checksum put right nothing panics and nothing wrong is believed.
    #[test]
    fn changed_bytes_are_noticed_and_never_panic(at: prop::sample::Index, flip in 1..=255_u8, cut: Option<prop::sample::Index>) {
        thread_local! {
            static EXPORT: (Vec<u8>, Arc<TestClock>) =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(exported());
        }
        EXPORT.with(|(good, clock)| {
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(parse(&bytes).is_err());
            let mut body = bytes[..bytes.len() - 32].to_vec();
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            let store = heddle_identity::CertificateStore::new(StoreConfig::default(), Arc::clone(clock) as _, Default::default(), 1);
            if let Ok(restored) = store.restore(&sealed(body)) {
                // A flip in a signature, a key or an id costs that account. (One in an unused bit may cost nothing.)
                prop_assert!(restored.certificates <= 2 && restored.certificates + restored.refused.len() <= 2);
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&sealed([&b"HEDDLEID\0\x01"[..], &bytes].concat()));
    }
}
