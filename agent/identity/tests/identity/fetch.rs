//! The store with its driver, on a paused clock: what is fetched, kept, renewed, waited for and forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use heddle_identity::metrics::store_collector;
use heddle_identity::store::WaitError;
use heddle_identity::{
    CertificateIssuer, CertificateRequest, CertificateStatus, CertificateStore, IssueError, IssueErrorKind, Issuing,
    Retry, Roots, State, StoreConfig,
};
use rustls::pki_types::CertificateDer;

use crate::pki::{Ca, HOUR, Node, TestClock, TestIssuer, id, uri};

const SECOND: Duration = Duration::from_secs(1);

fn node() -> Node {
    Node::start(Ca::root("root").intermediate("intermediate"))
}

fn row(node: &Node) -> CertificateStatus {
    let rows = node.store.status();
    assert_eq!(rows.len(), 1);
    rows.into_iter().next().unwrap()
}

fn serial(node: &Node) -> String {
    row(node).certificate.unwrap().serial
}

#[tokio::test(start_paused = true)]
async fn a_lease_brings_a_certificate_and_keeps_it_fresh() {
    let node = node();
    let web = node.lease(&id("web")).await;
    let status = row(&node);
    let facts = status.certificate.unwrap();
    assert_eq!((status.id, status.state, facts.id), (id("web"), State::Valid, id("web")));
    assert_eq!((status.failures, status.last_error), (0, None));
    assert_eq!(facts.issuer, "CN=intermediate");
    assert_eq!(facts.validity.not_after.as_secs(), (node.now() + 24 * HOUR).as_secs());
    assert!((10 * HOUR..14 * HOUR).contains(&status.due_in.unwrap()));
    let bundles = node.store.bundles().current();
    assert_eq!(bundles.roots("cluster.local").unwrap().certificates().len(), 1);
    for n in 1..10 {
        let before = serial(&node);
        tokio::time::sleep(row(&node).due_in.unwrap() + SECOND).await;
        assert_ne!(serial(&node), before);
        assert_eq!(node.issuer.asked.load(SeqCst), n + 1);
    }
    drop(web);
    assert!(node.store.status().is_empty());
    assert!(node.store.bundles().current().roots("cluster.local").is_none());
    tokio::time::sleep(48 * HOUR).await;
    assert_eq!(node.issuer.asked.load(SeqCst), 10);
}

#[tokio::test(start_paused = true)]
async fn leases_of_one_account_share_and_the_last_one_counts() {
    let node = node();
    let (first, second) = (node.lease(&id("web")).await, node.lease(&id("web")).await);
    assert!(Arc::ptr_eq(first.slot(), second.slot()));
    assert_eq!(node.issuer.asked.load(SeqCst), 1);
    let slot = Arc::clone(first.slot());
    drop(first);
    assert!(second.is_ready());
    drop(second);
    assert!(slot.credential().is_none());
}

#[tokio::test(start_paused = true)]
async fn many_handshakes_wait_for_one_request() {
    let node = node();
    node.issuer.set(|issuer| issuer.latency = 2 * SECOND);
    let lease = Arc::new(node.store.lease(&id("web")).unwrap());
    let waiting: Vec<_> = (0..256)
        .map(|_| {
            let lease = Arc::clone(&lease);
            tokio::spawn(async move { lease.ready(5 * SECOND).await })
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    assert_eq!((lease.slot().waiters(), row(&node).state), (256, State::NeededNow));
    for waiter in waiting {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!((node.issuer.asked.load(SeqCst), lease.slot().waiters()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_in_time_and_number() {
    let node = node();
    node.issuer.set(|issuer| issuer.error = Some(IssueError::new(IssueErrorKind::Unavailable, "down")));
    let lease = Arc::new(node.store.lease(&id("web")).unwrap());
    let started = tokio::time::Instant::now();
    let error = lease.ready(3 * SECOND).await.unwrap_err();
    let waited = started.elapsed();
    assert!((3 * SECOND..4 * SECOND).contains(&waited), "{waited:?}");
    let text = error.to_string();
    assert!(text.contains("unavailable: down"), "{text}");
    assert!(node.issuer.asked.load(SeqCst) >= 2);

    let waiting: Vec<_> = (0..1024)
        .map(|_| {
            let lease = Arc::clone(&lease);
            tokio::spawn(async move { lease.ready(HOUR).await })
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    assert_eq!(lease.ready(HOUR).await, Err(WaitError::TooMany(1024)));
    // Those that give up make room.
    for waiter in &waiting[..10] {
        waiter.abort();
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(lease.slot().waiters(), 1014);
    node.issuer.set(|issuer| issuer.error = None);
    for waiter in waiting.into_iter().skip(10) {
        waiter.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_at_once() {
    let node = node();
    node.issuer.set(|issuer| {
        issuer.latency = SECOND;
        issuer.error = Some(IssueError::refused("no pod of this account on this node"));
    });
    let lease = node.store.lease(&id("web")).unwrap();
    let started = tokio::time::Instant::now();
    for _ in 0..3 {
        let error = lease.ready(60 * SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "refused: no pod of this account on this node");
    }
    assert!(started.elapsed() < 2 * SECOND);
    assert_eq!((node.issuer.asked.load(SeqCst), row(&node).state), (1, State::Failed));
    assert_eq!(node.store.metrics().failed_total(IssueErrorKind::Refused), 1);
    // Somebody changed something: it is noticed without a restart.
    node.issuer.set(|issuer| issuer.error = None);
    tokio::time::sleep(151 * SECOND).await;
    assert!(lease.is_ready());
}

#[tokio::test(start_paused = true)]
async fn requests_at_once_are_bounded_and_waiting_handshakes_come_first() {
    let node = node();
    node.issuer.set(|issuer| issuer.latency = SECOND);
    let leases: Vec<_> = (0..64).map(|n| node.store.lease(&id(&format!("account-{n}"))).unwrap()).collect();
    // The last one in the queue, but somebody waits: the second round at the latest.
    leases[63].ready(Duration::from_millis(2100)).await.unwrap();
    assert!(!leases[40].is_ready());
    tokio::time::sleep(8 * SECOND).await;
    assert!(leases.iter().all(heddle_identity::Lease::is_ready));
    assert_eq!((node.issuer.open_max.load(SeqCst), node.issuer.asked.load(SeqCst)), (8, 64));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_never_answers_is_given_up_and_asked_again() {
    let node = node();
    node.issuer.set(|issuer| issuer.never_answers = true);
    let lease = node.store.lease(&id("web")).unwrap();
    tokio::time::sleep(Duration::from_millis(15_400)).await;
    let error = row(&node).last_error.unwrap();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (IssueErrorKind::Timeout, "test issuer did not answer within 15 s")
    );
    node.issuer.set(|issuer| issuer.never_answers = false);
    lease.ready(30 * SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_an_issuer_answers_is_checked_before_it_is_used() {
    type Change = fn(&mut crate::pki::Behaviour);
    let cases: [(&str, Change); 14] = [
        ("for another key", |b| {
            b.spoil = Some(Box::new(|issued| {
                let stranger = Ca::root("x").peer(&crate::pki::LeafSpec::new(&id("web"), 2_000_000_000 * SECOND));
                issued.chain = stranger.cert.clone();
            }));
        }),
        ("certificate is for spiffe://cluster.local/ns/shop/sa/admin", |b| {
            b.change = Some(Box::new(|leaf| leaf.names = vec![uri(id("admin").as_str())]));
        }),
        ("names besides", |b| {
            b.change = Some(Box::new(|leaf| leaf.names.push(rcgen::SanType::DnsName("web.shop".try_into().unwrap()))));
        }),
        ("2 URIs", |b| b.change = Some(Box::new(|leaf| leaf.names.push(uri(id("admin").as_str()))))),
        ("no URI", |b| b.change = Some(Box::new(|leaf| leaf.names.clear()))),
        ("CA certificate", |b| {
            b.change = Some(Box::new(|leaf| leaf.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)));
        }),
        ("lead to the roots", |b| {
            b.change = Some(Box::new(|leaf| leaf.extended = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]));
        }),
        ("expired already", |b| b.change = Some(Box::new(|leaf| leaf.not_after = leaf.not_before + SECOND))),
        ("not valid yet", |b| b.change = Some(Box::new(|leaf| leaf.not_before += 200 * SECOND))),
        ("within seconds", |b| b.lifetime = 3 * SECOND),
        ("chain of 0", |b| b.spoil = Some(Box::new(|issued| issued.chain.clear()))),
        ("not an X.509", |b| {
            b.spoil = Some(Box::new(|issued| issued.chain[0] = CertificateDer::from(b"garbage".to_vec())));
        }),
        ("lead to the roots", |b| b.spoil = Some(Box::new(|issued| issued.chain.truncate(1)))),
        ("no root", |b| b.spoil = Some(Box::new(|issued| issued.roots.clear()))),
    ];
    let node = node();
    let lease = node.lease(&id("web")).await;
    for (want, change) in cases {
        let before = serial(&node);
        let (lifetime, failed) = (24 * HOUR, node.store.metrics().failed_total(IssueErrorKind::BadAnswer));
        node.issuer.set(change);
        tokio::time::sleep(row(&node).due_in.unwrap() + SECOND).await;
        let status = row(&node);
        let error = status.last_error.unwrap_or_else(|| panic!("{want}: was taken into use"));
        assert_eq!(error.kind, IssueErrorKind::BadAnswer);
        assert!(error.message.contains(want), "{} is not about {want}", error.message);
        assert_eq!((serial(&node), status.state), (before.clone(), State::Renewing), "the last valid one is kept");
        assert!(node.store.metrics().failed_total(IssueErrorKind::BadAnswer) > failed);
        // The same issuer without the fault is believed.
        node.issuer.set(|issuer| {
            (issuer.change, issuer.spoil, issuer.lifetime) = (None, None, lifetime);
        });
        tokio::time::sleep(200 * SECOND).await;
        assert_ne!(serial(&node), before, "{want}");
        assert!(lease.is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn authoritative_roots_bind_the_issuer_too() {
    let node = node();
    let other = Ca::root("authoritative");
    let domain = "cluster.local".parse().unwrap();
    node.store.bundles().set(&domain, Some(Arc::new(Roots::new(vec![other.root.clone()]).unwrap())));
    let lease = node.store.lease(&id("web")).unwrap();
    assert!(lease.ready(5 * SECOND).await.is_err());
    assert!(row(&node).last_error.unwrap().message.contains("does not lead to the roots"));
    // Both at once, as in a rotation.
    let issuers = node.issuer.behaviour.lock().unwrap().roots.clone();
    let both = Roots::new([vec![other.root.clone()], issuers].concat()).unwrap();
    node.store.bundles().set(&domain, Some(Arc::new(both)));
    lease.ready(300 * SECOND).await.unwrap();
    assert_eq!(node.store.bundles().current().roots("cluster.local").unwrap().certificates().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_lifetime_is_survived() {
    let node = node();
    let (web, api) = (node.lease(&id("web")).await, node.lease(&id("api")).await);
    node.issuer.set(|issuer| issuer.error = Some(IssueError::new(IssueErrorKind::Unavailable, "down")));
    tokio::time::sleep(23 * HOUR).await;
    assert!(web.is_ready() && api.is_ready());
    assert!(node.store.status().iter().all(|row| row.state == State::Renewing && row.failures > 10));
    tokio::time::sleep(2 * HOUR).await;
    assert!(!web.is_ready());
    assert!(node.store.status().iter().all(|row| row.state == State::Expired));
    assert!(web.slot().credential().is_some(), "presented still: whether to accept it is the peer's decision");
    assert!(web.ready(SECOND).await.is_err());
    let asked = node.issuer.asked.load(SeqCst);
    assert!(asked < 2 * (13 * 48 + 40), "{asked} requests");
    node.issuer.set(|issuer| issuer.error = None);
    web.ready(151 * SECOND).await.unwrap();
    api.ready(6 * SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_leads_to_a_fresh_certificate_not_to_an_outage() {
    let node = node();
    let lease = node.lease(&id("web")).await;
    let before = serial(&node);
    // The issuer's clock is right; this node's was two days behind and is set.
    node.clock.set_offset(2 * 86_400);
    assert!(!lease.is_ready());
    lease.ready(35 * SECOND).await.unwrap();
    assert_ne!(serial(&node), before);
    let before = serial(&node);
    node.clock.set_offset(-86_400);
    tokio::time::sleep(13 * HOUR).await;
    assert_ne!(serial(&node), before, "a clock set back does not postpone the renewal");
}

#[tokio::test(start_paused = true)]
async fn forgetting_abandons_the_request() {
    let node = node();
    node.issuer.set(|issuer| issuer.latency = 10 * SECOND);
    let lease = node.store.lease(&id("web")).unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(node.store.open_requests(), 1);
    drop(lease);
    let lease = node.store.lease(&id("web")).unwrap();
    tokio::time::sleep(Duration::from_millis(9500)).await;
    assert!(!lease.is_ready(), "the answer to the first request was used for the second lease");
    lease.ready(SECOND).await.unwrap();
    assert_eq!((node.issuer.asked.load(SeqCst), node.store.metrics().issued_total()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_panics_hurts_one_request() {
    struct Panics(Arc<TestIssuer>);
    impl CertificateIssuer for Panics {
        fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
            assert!(request.id != id("web"), "a fault in the issuer's client");
            self.0.issue(request)
        }
        fn name(&self) -> String {
            "panics".into()
        }
    }
    let clock = TestClock::new();
    let issuer = TestIssuer::new(&clock, Ca::root("root"));
    let store = CertificateStore::new(StoreConfig::default(), clock, Default::default(), 1);
    let (driven, (stop, stopped)) = (store.clone(), tokio::sync::oneshot::channel::<()>());
    let asks = Arc::new(Panics(issuer));
    let driver = tokio::spawn(async move {
        let stopped = async move { drop(stopped.await) };
        driven.run(asks, stopped).await;
    });
    let (web, api) = (store.lease(&id("web")).unwrap(), store.lease(&id("api")).unwrap());
    api.ready(SECOND).await.unwrap();
    assert!(
        matches!(web.ready(SECOND).await, Err(WaitError::Timeout(Some(error))) if error.kind == IssueErrorKind::Local)
    );
    stop.send(()).unwrap();
    driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let node = node();
    let busy = IssueError::new(IssueErrorKind::Unavailable, "busy").with_retry(Retry::After(60 * SECOND));
    node.issuer.set(|issuer| issuer.error = Some(busy));
    let _lease = node.store.lease(&id("web")).unwrap();
    tokio::time::sleep(59 * SECOND).await;
    assert_eq!(node.issuer.asked.load(SeqCst), 1);
    assert!(row(&node).due_in.unwrap() < 10 * SECOND);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(node.issuer.asked.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn accounts_are_bounded() {
    let clock = TestClock::new();
    let config = StoreConfig { accounts_max: 2, ..StoreConfig::default() };
    let store = CertificateStore::new(config, clock, Default::default(), 1);
    let _leases = [store.lease(&id("a")).unwrap(), store.lease(&id("b")).unwrap(), store.lease(&id("a")).unwrap()];
    assert_eq!(store.lease(&id("c")).unwrap_err().to_string(), "more than 2 service accounts on this node");
}

/// The certificate was renewed just now and will not be for half a day: who says that nobody is there?
#[tokio::test(start_paused = true)]
async fn an_issuer_that_falls_silent_is_noticed_between_two_renewals() {
    let node = node();
    node.issuer.set(|issuer| issuer.tells_roots = true);
    let _web = node.lease(&id("web")).await;
    assert!(node.store.issuer_status().answered_ago.is_some());
    let gauge = || {
        let families = store_collector(&node.store).collect();
        let family = families.iter().find(|family| family.name() == "heddle_certificate_issuer_silent_seconds");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    tokio::time::sleep(HOUR).await;
    let status = node.store.issuer_status();
    assert!(status.silence.is_none() && status.answered_ago.unwrap() < 60 * SECOND && gauge() == 0.0, "{status:?}");

    node.issuer.set(|issuer| issuer.error = Some(IssueError::new(IssueErrorKind::Unavailable, "down")));
    tokio::time::sleep(HOUR).await;
    let (status, asked) = (node.store.issuer_status(), node.store.metrics().failed_total(IssueErrorKind::Unavailable));
    let silence = status.silence.unwrap();
    assert!(silence.lasts > HOUR - 60 * SECOND && silence.lasts <= HOUR, "{silence:?}");
    assert!(silence.attempts > 100 && silence.last_error.message == "down", "{silence:?}");
    assert!(status.answered_ago.unwrap() >= silence.lasts);
    assert!((gauge() - silence.lasts.as_secs_f64()).abs() < 1.0);
    assert_eq!((asked, row(&node).state), (0, State::Valid), "no certificate was asked for, and it is well");

    // A refusal is an answer.
    node.issuer.set(|issuer| issuer.error = Some(IssueError::refused("no")));
    tokio::time::sleep(60 * SECOND).await;
    assert!(node.store.issuer_status().silence.is_none() && gauge() == 0.0);
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_states_ends_and_results() {
    let node = node();
    let _web = node.lease(&id("web")).await;
    node.issuer.set(|issuer| issuer.error = Some(IssueError::refused("no")));
    let _api = node.store.lease(&id("api")).unwrap();
    tokio::time::sleep(SECOND).await;
    let families = store_collector(&node.store).collect();
    let value = |name: &str, label: &str| {
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metric = family.get_metric().iter().find(|metric| metric.get_label().iter().any(|l| l.value() == label));
        metric.map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
    };
    assert_eq!(value("heddle_certificates", "valid"), Some(1.0));
    assert_eq!(value("heddle_certificates", "failed"), Some(1.0));
    assert_eq!(value("heddle_certificates", "expired"), Some(0.0));
    assert_eq!(value("heddle_certificate_requests_total", "issued"), Some(1.0));
    assert_eq!(value("heddle_certificate_requests_total", "refused"), Some(1.0));
    assert_eq!(value("heddle_trust_bundle_roots", "cluster.local"), Some(1.0));
    let end = value("heddle_certificate_not_after_timestamp_seconds", id("web").as_str()).unwrap();
    assert!((end - (node.now() + 24 * HOUR).as_secs_f64()).abs() < 10.0);
    assert_eq!(value("heddle_certificate_not_after_timestamp_seconds", id("api").as_str()), None);
}
