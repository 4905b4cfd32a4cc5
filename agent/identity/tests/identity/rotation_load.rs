//! Handshakes all the time while certificates are replaced every few milliseconds and roots one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use heddle_identity::{Alpn, ClientConfigs, ExpectedIds, Lease, ServerConfigs, StoreConfig};
use rustls::pki_types::CertificateDer;

use crate::pki::{Ca, Node, TestClock, TestIssuer, fast, id};
use crate::wire::handshake;

/// Two nodes with one CA, and a thread that does handshakes between them, both ways, as fast as it can.
struct Load {
    issuer: Arc<TestIssuer>,
    nodes: [Node; 2],
    leases: [Arc<Lease>; 2],
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    async fn start(ca: Ca, second: StoreConfig) -> Self {
        let clock = TestClock::new();
        let issuer = TestIssuer::new(&clock, ca);
        issuer.set(|issuer| issuer.lifetime = Duration::from_secs(60));
        let nodes = [fast(), second].map(|config| Node::with(Arc::clone(&clock), Arc::clone(&issuer), config));
        let leases = [Arc::new(nodes[0].lease(&id("web")).await), Arc::new(nodes[1].lease(&id("api")).await)];
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let run = handshakes(&nodes, &leases, Arc::clone(&stop), Arc::clone(&done));
        let thread = Some(std::thread::spawn(run));
        Self { issuer, nodes, leases, stop, done, thread }
    }

    fn certificates(&self) -> u64 {
        self.nodes.iter().map(|node| node.store.metrics().issued_total()).sum()
    }

    /// Until both nodes use a certificate asked for from now on, and a number of handshakes saw it.
    async fn settle(&self) {
        let counts = || self.nodes.each_ref().map(|node| node.store.metrics().issued_total());
        let (before, handshakes) = (counts(), self.done.load(SeqCst));
        // Two more each: the first may have been signed before this moment.
        while counts().iter().zip(before).any(|(now, before)| *now < before + 2)
            || self.done.load(SeqCst) < handshakes + 60
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn roots(&self) -> Vec<usize> {
        self.nodes
            .iter()
            .map(|node| node.store.bundles().current().roots("cluster.local").unwrap().certificates().len())
            .collect()
    }

    fn finish(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, SeqCst);
        let failures = self.thread.take().unwrap().join().unwrap();
        (self.done.load(SeqCst), failures)
    }
}

fn handshakes(
    nodes: &[Node; 2],
    leases: &[Arc<Lease>; 2],
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> impl FnOnce() -> Vec<String> + Send + 'static {
    let mut clients = nodes.each_ref().map(|node| ClientConfigs::new(&node.store));
    let mut servers = nodes.each_ref().map(|node| ServerConfigs::new(&node.store));
    let leases = leases.clone();
    move || {
        let mut failures = Vec::new();
        while !stop.load(SeqCst) {
            for (from, to) in [(0, 1), (1, 0)] {
                let expected = ExpectedIds::from(leases[to].id().clone());
                let client = clients[from].get(&leases[from], &expected, Alpn::Heddle).unwrap();
                let server = servers[to].get(&leases[to], Alpn::Heddle).unwrap();
                let outcome = handshake(&client, &server, Alpn::Heddle);
                if !outcome.is_good() {
                    failures.push(format!("{:?} {:?}", outcome.client, outcome.server));
                }
                done.fetch_add(1, SeqCst);
            }
        }
        failures
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_and_roots_rotate_under_load_without_a_failed_handshake() {
    let load = Load::start(Ca::root("root 0").intermediate("intermediate 0"), fast()).await;
    let started = Instant::now();
    let mut old: CertificateDer<'static> = load.issuer.behaviour.lock().unwrap().ca.root.clone();
    for n in 1..=6 {
        load.settle().await;
        let next = Ca::root(&format!("root {n}")).intermediate(&format!("intermediate {n}"));
        let root = next.root.clone();
        // Everybody learns the new root before anybody signs with it, and forgets the old one after nobody does.
        load.issuer.set(|issuer| issuer.roots = vec![old.clone(), root.clone()]);
        load.settle().await;
        assert_eq!(load.roots(), [2, 2]);
        load.issuer.set(|issuer| issuer.ca = Arc::new(next));
        load.settle().await;
        load.issuer.set(|issuer| issuer.roots = vec![root.clone()]);
        load.settle().await;
        assert_eq!(load.roots(), [1, 1]);
        old = root;
    }
    let (certificates, took) = (load.certificates(), started.elapsed());
    let (handshakes, failures) = load.finish();
    println!("{handshakes} handshakes, {certificates} certificates, 6 roots in {took:?}");
    assert!(failures.is_empty(), "{} of {handshakes} failed, first {}", failures.len(), failures[0]);
    assert!(handshakes > 1400 && certificates > 100, "{handshakes} handshakes, {certificates} certificates");
}

/// The control: the same load sees a root that one node has and the other has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rotation_without_overlap_is_seen_by_this_load() {
    // The second node renews after half a minute only.
    let load = Load::start(Ca::root("root 0"), StoreConfig::default()).await;
    let handshakes = load.done.load(SeqCst);
    while load.done.load(SeqCst) < handshakes + 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let next = Ca::root("root 1");
    load.issuer.set(|issuer| {
        issuer.roots = vec![next.root.clone()];
        issuer.ca = Arc::new(next);
    });
    let (certificates, handshakes) = (load.certificates(), load.done.load(SeqCst));
    while load.certificates() < certificates + 2 || load.done.load(SeqCst) < handshakes + 50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(load.leases.iter().all(|lease| lease.is_ready()));
    let (handshakes, failures) = load.finish();
    assert!(!failures.is_empty() && failures.len() + 20 <= handshakes, "{} of {handshakes}", failures.len());
    assert!(failures.iter().any(|failure| failure.contains("UnknownRoot")), "{}", failures[0]);
}
