//! Issuers against a real authority in this process: TLS, gRPC and files are the ones of the product.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use heddle_controller::ca::{CaServer, Directory, ServerName, ServerOptions, Step};
use heddle_identity::{
    CertificateRequest, Credential, IssueError, IssueErrorKind, Retry, SpiffeId, SystemClock, WorkloadKey,
};
use heddle_model::{Delta, PodUid, Snapshot, Workload};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use super::*;

fn now() -> Duration {
    SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/{account}").parse().unwrap()
}

fn pods(accounts: &[&str]) -> Arc<Snapshot> {
    let pod = |account: &&str| {
        let pod = Workload::new(account, "shop", account);
        (PodUid::new(account), Some(Workload { service_account: (*account).into(), node: "node-a".into(), ..pod }))
    };
    let workloads = accounts.iter().map(pod).collect();
    Arc::new(Snapshot::new("").apply(Delta { workloads, ..Delta::default() }))
}

/// An authority's directory with the files an agent of node-a is given.
struct Files {
    temporary: TempDir,
    directory: Directory,
}

impl Files {
    fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let directory = Directory::new(temporary.path().join("ca"));
        directory.init(&"td".parse().unwrap(), Duration::from_secs(24 * 3600), None, now()).unwrap();
        let files = Self { temporary, directory };
        files.renew_token("node-a");
        files
    }

    fn renew_token(&self, node: &str) {
        let token = self.directory.issue_token(node, now()).unwrap();
        let path = self.path("token");
        fs::write(&path, format!("{}\n", *token)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    /// What the agent reads at its start.
    fn given(&self, root: &Path) -> CaFiles {
        CaFiles::open(root, &self.path("token")).unwrap()
    }

    fn options(&self, address: SocketAddr, protocol: CaProtocol) -> CaOptions {
        CaOptions {
            url: format!("https://{address}"),
            files: self.given(&self.directory.path().join("root.pem")),
            protocol,
            node: "node-a".into(),
            trust_domain: "td".parse().unwrap(),
        }
    }
}

struct Running {
    address: SocketAddr,
    pods: watch::Sender<Arc<Snapshot>>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// At an address of this process alone: between one authority and the next its port is nobody's.
    async fn start(files: &Files) -> Self {
        let [_, _, a, b] = std::process::id().to_be_bytes();
        let address = format!("127.{}.{a}.{b}:0", 128 + (std::process::id() >> 16));
        Self::at(files, address.parse().unwrap()).await
    }

    async fn at(files: &Files, address: SocketAddr) -> Self {
        let names = vec![ServerName::Address(address.ip())];
        let options = ServerOptions { names, ..ServerOptions::default() };
        let server = CaServer::new(files.directory.clone(), options, Arc::new(SystemClock::default())).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pods, seen) = watch::channel(pods(&["web", "api"]));
        let (stop, stopped) = oneshot::channel::<()>();
        let server =
            tokio::spawn(async move { server.serve(listener, seen, async { drop(stopped.await) }).await.unwrap() });
        Self { address, pods, stop: Some(stop), server: Some(server) }
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.server.take().unwrap().await.unwrap();
    }
}

/// One certificate, checked as the store checks it.
async fn ask(issuer: &dyn CertificateIssuer, id: &SpiffeId) -> Result<Credential, IssueError> {
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(id).unwrap();
    let request = CertificateRequest { id: id.clone(), csr, lifetime: Duration::from_secs(3600) };
    let answer = issuer.issue(&request).await?;
    Ok(Credential::check(id, key, answer.chain, answer.roots, None, now()).unwrap())
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn both_protocols_bring_certificates() {
    let files = Files::new();
    let running = Running::start(&files).await;
    for protocol in [CaProtocol::Heddle, CaProtocol::Istio] {
        let issuer = issuer(&files.options(running.address, protocol)).unwrap();
        let credential = ask(&*issuer, &id("web")).await.unwrap();
        let validity = credential.facts().validity;
        assert_eq!(validity.not_after - validity.not_before, Duration::from_secs(3660), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_pod_not_known_yet_is_asked_for_again_after_a_while() {
    let files = Files::new();
    let running = Running::start(&files).await;
    for protocol in [CaProtocol::Heddle, CaProtocol::Istio] {
        let issuer = issuer(&files.options(running.address, protocol)).unwrap();
        running.pods.send_replace(pods(&["web"]));
        until("gone", || async { ask(&*issuer, &id("api")).await.is_err() }).await;
        let error = ask(&*issuer, &id("api")).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (IssueErrorKind::Refused, Retry::After(Duration::from_secs(2))));
        assert!(error.message.contains("no pod of spiffe://td/ns/shop/sa/api is known on node node-a"), "{error}");
        running.pods.send_replace(pods(&["web", "api"]));
        until("known", || async { ask(&*issuer, &id("api")).await.is_ok() }).await;
    }
}

#[tokio::test]
async fn after_first_contact_the_token_is_not_needed() {
    let files = Files::new();
    let running = Running::start(&files).await;
    let issuer = HeddleIssuer::new(&files.options(running.address, CaProtocol::Heddle)).unwrap();
    // Many at once make first contact once.
    let all = ["web", "api", "web", "api"].map(id);
    let (a, b, c, d) =
        tokio::join!(ask(&issuer, &all[0]), ask(&issuer, &all[1]), ask(&issuer, &all[2]), ask(&issuer, &all[3]));
    for outcome in [a, b, c, d] {
        outcome.unwrap();
    }
    fs::remove_file(files.path("token")).unwrap();
    ask(&issuer, &id("web")).await.unwrap();
    assert_eq!(issuer.first_contacts(), 1);
}

#[tokio::test]
async fn it_comes_back_after_the_authority_was_away() {
    let files = Files::new();
    let mut running = Running::start(&files).await;
    let address = running.address;
    let issuers =
        [CaProtocol::Heddle, CaProtocol::Istio].map(|protocol| issuer(&files.options(address, protocol)).unwrap());
    for issuer in &issuers {
        ask(&**issuer, &id("web")).await.unwrap();
    }
    running.stop().await;
    for issuer in &issuers {
        let error = ask(&**issuer, &id("web")).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (IssueErrorKind::Unavailable, Retry::Backoff), "{error}");
    }
    let _running = Running::at(&files, address).await;
    for issuer in &issuers {
        until("it answers again", || async { ask(&**issuer, &id("web")).await.is_ok() }).await;
    }
}

#[tokio::test]
async fn a_replaced_token_ends_the_node_certificate_and_begins_another() {
    let files = Files::new();
    let running = Running::start(&files).await;
    let issuer = HeddleIssuer::new(&files.options(running.address, CaProtocol::Heddle)).unwrap();
    ask(&issuer, &id("web")).await.unwrap();
    files.directory.revoke_token("node-a").unwrap();
    until("it is refused", || async { ask(&issuer, &id("web")).await.is_err() }).await;
    let error = ask(&issuer, &id("web")).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (IssueErrorKind::Refused, Retry::Hopeless), "{error}");
    files.renew_token("node-a");
    until("the new token is taken from the file", || async { ask(&issuer, &id("web")).await.is_ok() }).await;
}

#[tokio::test]
async fn a_whole_rotation_passes_by() {
    let files = Files::new();
    let mut running = Running::start(&files).await;
    // Roots of the first contact, which nobody renews.
    let first_root = files.path("first-root.pem");
    fs::copy(files.directory.path().join("root.pem"), &first_root).unwrap();
    let issuers = [CaProtocol::Heddle, CaProtocol::Istio].map(|protocol| {
        let options = CaOptions { files: files.given(&first_root), ..files.options(running.address, protocol) };
        issuer(&options).unwrap()
    });
    for (step, roots) in [(Step::Prepare, 2), (Step::Activate, 2), (Step::Finish, 1)] {
        for issuer in &issuers {
            ask(&**issuer, &id("web")).await.unwrap();
        }
        files.directory.rotate(step, None, now(), true).unwrap();
        let trusted = files.directory.load().unwrap().authority.roots().len();
        assert_eq!(trusted, roots);
        for issuer in &issuers {
            until("the step has arrived", || async {
                ask(&**issuer, &id("web")).await.unwrap().roots().certificates().len() == roots
            })
            .await;
        }
        // Connections outlive the step; new ones must hold as well.
        running.stop().await;
        running = Running::at(&files, running.address).await;
        for issuer in &issuers {
            until("it connects again", || async { ask(&**issuer, &id("web")).await.is_ok() }).await;
        }
    }
    let error = {
        let late = CaOptions { files: files.given(&first_root), ..files.options(running.address, CaProtocol::Heddle) };
        ask(&HeddleIssuer::new(&late).unwrap(), &id("web")).await.unwrap_err()
    };
    assert_eq!(error.kind, IssueErrorKind::Unavailable, "who slept through it trusts the old root only: {error}");
    assert!(error.message.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn who_slept_through_a_rotation_comes_back_with_the_new_root_file() {
    let files = Files::new();
    let mut running = Running::start(&files).await;
    let address = running.address;
    let root = files.path("given-root.pem");
    let give = || fs::copy(files.directory.path().join("root.pem"), &root).unwrap();
    give();
    let issuers = [CaProtocol::Heddle, CaProtocol::Istio].map(|protocol| {
        let options = CaOptions { files: files.given(&root), ..files.options(address, protocol) };
        issuer(&options).unwrap()
    });
    for issuer in &issuers {
        ask(&**issuer, &id("web")).await.unwrap();
    }
    running.stop().await;
    for step in [Step::Prepare, Step::Activate, Step::Finish] {
        files.directory.rotate(step, None, now(), true).unwrap();
    }
    let _running = Running::at(&files, address).await;
    for issuer in &issuers {
        for _ in 0..3 {
            let error = ask(&**issuer, &id("web")).await.unwrap_err();
            assert_eq!(error.kind, IssueErrorKind::Unavailable, "the old root is no reason to believe: {error}");
        }
    }
    give();
    for issuer in &issuers {
        until("it answers again", || async { ask(&**issuer, &id("web")).await.is_ok() }).await;
    }
}

#[tokio::test]
async fn another_nodes_token_is_noticed() {
    let files = Files::new();
    files.renew_token("node-b");
    let running = Running::start(&files).await;
    let issuer = HeddleIssuer::new(&files.options(running.address, CaProtocol::Heddle)).unwrap();
    let error = ask(&issuer, &id("web")).await.unwrap_err();
    assert!(error.message.contains("the token is that of node node-b; this node is node-a"), "{error}");
}

#[tokio::test]
async fn an_impostor_is_not_believed() {
    let (files, other) = (Files::new(), Files::new());
    let impostor = Running::start(&other).await;
    for protocol in [CaProtocol::Heddle, CaProtocol::Istio] {
        let error = ask(&*issuer(&files.options(impostor.address, protocol)).unwrap(), &id("web")).await.unwrap_err();
        assert_eq!(error.kind, IssueErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("UnknownIssuer"), "{error}");
    }
    // Of the right root, and a workload: it has stolen no authority's identity.
    let contents = files.directory.load().unwrap();
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(&id("web")).unwrap();
    let request = heddle_controller::ca::request::SigningRequest::parse(&csr).unwrap();
    let chain = contents.authority.sign_workload(&request, None, now()).unwrap();
    let own = Arc::new(rustls::sign::CertifiedKey::new(chain, Arc::new(key)));
    let roots = heddle_identity::Roots::new(contents.authority.roots().to_vec()).unwrap();
    let bundles = heddle_identity::TrustBundles::new(0, [("td".parse().unwrap(), Arc::new(roots))]);
    let config = heddle_identity::tls::server_config(Arc::new(bundles), own, b"h2").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.err()
    });
    let error =
        ask(&HeddleIssuer::new(&files.options(address, CaProtocol::Heddle)).unwrap(), &id("web")).await.unwrap_err();
    assert!(
        error.message.contains("the peer is spiffe://td/ns/shop/sa/web; expected spiffe://td/ns/heddle-system/sa/ca"),
        "{error}"
    );
    drop(server);
}

#[test]
fn bad_options_are_named() {
    let files = Files::new();
    let good = files.options("127.0.0.1:1".parse().unwrap(), CaProtocol::Heddle);
    assert!(issuer(&good).is_ok(), "the control");
    for (url, word) in [
        ("http://127.0.0.1:1", "`http://127.0.0.1:1`: write https://HOST:PORT"),
        ("https://127.0.0.1", "write https://HOST:PORT"),
        ("https://127.0.0.1:1/x", "write https://HOST:PORT"),
        ("nonsense", "write https://HOST:PORT"),
    ] {
        for protocol in [CaProtocol::Heddle, CaProtocol::Istio] {
            let error = issuer(&CaOptions { url: url.into(), protocol, ..good.clone() }).err();
            let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    let secret = |name: &str, text: &str, mode: u32| {
        fs::write(files.path(name), text).unwrap();
        fs::set_permissions(files.path(name), Permissions::from_mode(mode)).unwrap();
        files.path(name)
    };
    let (root, token, missing) = (files.directory.path().join("root.pem"), files.path("token"), files.path("missing"));
    for (root, token, word) in [
        (&missing, &token, "missing: No such file"),
        (&token, &token, "token: no certificate in it"),
        (&root, &missing, "missing: No such file"),
        (&root, &secret("open", "x", 0o644), "open: mode 0644: others than its owner"),
        (&root, &secret("empty", "\n", 0o600), "empty: is empty"),
        (&root, &secret("odd", "a\nb", 0o600), "odd: holds characters that are in no token"),
    ] {
        let error = CaFiles::open(root, token).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn a_node_certificate_is_renewed_over_itself() {
    let temporary = TempDir::new().unwrap();
    let directory = Directory::new(temporary.path().join("ca"));
    // So short that the first certificate ends within this test.
    let lifetime = Duration::from_secs(8);
    directory.init(&"td".parse().unwrap(), lifetime, None, now()).unwrap();
    let files = Files { temporary, directory };
    files.renew_token("node-a");
    let running = Running::start(&files).await;
    let issuer = HeddleIssuer::new(&files.options(running.address, CaProtocol::Heddle)).unwrap();
    let begin = now();
    until("the first node certificate is over", || async {
        ask(&issuer, &id("web")).await.unwrap();
        now() > begin + lifetime + Duration::from_secs(2)
    })
    .await;
    assert_eq!(issuer.first_contacts(), 1, "the token was needed once");
}
