//! Certificate authorities, issuers and clocks for tests.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_identity::rotation::{Now, Settings};
use heddle_identity::{
    BundleStore, CertificateIssuer, CertificateRequest, CertificateStore, Clock, IssueError, IssuedCertificate,
    Issuing, Roots, SpiffeId, StoreConfig, TellingRoots,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use rustls::sign::CertifiedKey;
use tokio::time::Instant;

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// The wall clock follows tokio's, which tests can pause, plus an offset they can set.
#[derive(Debug)]
pub struct TestClock {
    origin: Instant,
    unix: Duration,
    offset_ms: AtomicI64,
}

impl TestClock {
    pub fn new() -> Arc<Self> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Arc::new(Self { origin: Instant::now(), unix, offset_ms: AtomicI64::new(0) })
    }

    pub fn set_offset(&self, seconds: i64) {
        self.offset_ms.store(seconds * 1000, SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        let monotonic = self.origin.elapsed();
        let offset = self.offset_ms.load(SeqCst);
        let unix = self.unix + monotonic;
        let by = Duration::from_millis(offset.unsigned_abs());
        Now { monotonic, unix: if offset < 0 { unix - by } else { unix + by } }
    }
}

/// A CA certificate with its key, and what stands above it.
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub certificate: CertificateDer<'static>,
    /// Intermediates from this one up, without the root.
    pub above: Vec<CertificateDer<'static>>,
    pub root: CertificateDer<'static>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Ca {
    pub fn root(name: &str) -> Self {
        Self::root_with(ca_params(name))
    }

    pub fn root_valid_until(name: &str, not_after: Duration) -> Self {
        let mut params = ca_params(name);
        params.not_after = (UNIX_EPOCH + not_after).into();
        Self::root_with(params)
    }

    /// The same root signed anew: name and key stay, the end is another.
    pub fn reissued_until(&self, not_after: Duration) -> Self {
        let mut params = self.params.clone();
        params.not_after = (UNIX_EPOCH + not_after).into();
        Self::root_over(params, KeyPair::try_from(self.key.serialize_der()).unwrap())
    }

    fn root_with(params: CertificateParams) -> Self {
        Self::root_over(params, KeyPair::generate().unwrap())
    }

    fn root_over(params: CertificateParams, key: KeyPair) -> Self {
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, root: certificate.clone(), certificate, above: Vec::new() }
    }

    pub fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(ca_params(name))
    }

    pub fn intermediate_valid_until(&self, name: &str, not_after: Duration) -> Self {
        let mut params = ca_params(name);
        params.not_after = (UNIX_EPOCH + not_after).into();
        self.intermediate_with(params)
    }

    fn intermediate_with(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap().der().clone();
        let mut above = vec![certificate.clone()];
        above.extend(self.above.iter().cloned());
        Self { params, key, certificate, above, root: self.root.clone() }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub fn sign(&self, leaf: &LeafSpec, key: &impl PublicKeyData) -> CertificateDer<'static> {
        leaf.params().signed_by(key, &self.issuer()).unwrap().der().clone()
    }

    /// Leaf and chain with a key of its own, as a peer would present it.
    pub fn peer(&self, leaf: &LeafSpec) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().unwrap();
        let mut chain = vec![self.sign(leaf, &key)];
        chain.extend(self.above.iter().cloned());
        certified(chain, &key)
    }
}

pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap()))
}

/// A leaf to be signed; good unless something is changed.
#[derive(Clone)]
pub struct LeafSpec {
    pub names: Vec<SanType>,
    pub not_before: Duration,
    pub not_after: Duration,
    pub is_ca: IsCa,
    pub usages: Vec<KeyUsagePurpose>,
    pub extended: Vec<ExtendedKeyUsagePurpose>,
    pub common_name: Option<&'static str>,
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl LeafSpec {
    pub fn new(id: &SpiffeId, now: Duration) -> Self {
        Self {
            names: vec![uri(id.as_str())],
            not_before: now - Duration::from_secs(60),
            not_after: now + HOUR,
            is_ca: IsCa::NoCa,
            usages: vec![KeyUsagePurpose::DigitalSignature],
            extended: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            common_name: None,
        }
    }

    pub fn params(&self) -> CertificateParams {
        static SERIAL: AtomicUsize = AtomicUsize::new(1);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = self.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.serial_number = Some(SerialNumber::from(SERIAL.fetch_add(1, SeqCst) as u64));
        params.subject_alt_names = self.names.clone();
        params.not_before = (UNIX_EPOCH + self.not_before).into();
        params.not_after = (UNIX_EPOCH + self.not_after).into();
        params.is_ca = self.is_ca;
        params.key_usages = self.usages.clone();
        params.extended_key_usages = self.extended.clone();
        params
    }
}

type Change = Box<dyn Fn(&mut LeafSpec) + Send + Sync>;
type Spoil = Box<dyn Fn(&mut IssuedCertificate) + Send + Sync>;

/// How an issuer behaves; changed while it is in use.
pub struct Behaviour {
    pub ca: Arc<Ca>,
    /// Roots it tells: also others during a rotation.
    pub roots: Vec<CertificateDer<'static>>,
    pub lifetime: Duration,
    pub latency: Duration,
    pub error: Option<IssueError>,
    pub never_answers: bool,
    /// Tells its roots without a certificate too.
    pub tells_roots: bool,
    pub change: Option<Change>,
    pub spoil: Option<Spoil>,
}

/// A CA in this process: checks the request's signature and that it asks for the id and nothing else, then signs.
pub struct TestIssuer {
    clock: Arc<TestClock>,
    pub behaviour: Mutex<Behaviour>,
    pub asked: AtomicUsize,
    open: AtomicUsize,
    pub open_max: AtomicUsize,
}

impl TestIssuer {
    pub fn new(clock: &Arc<TestClock>, ca: Ca) -> Arc<Self> {
        let behaviour = Behaviour {
            roots: vec![ca.root.clone()],
            ca: Arc::new(ca),
            lifetime: 24 * HOUR,
            latency: Duration::ZERO,
            error: None,
            never_answers: false,
            tells_roots: false,
            change: None,
            spoil: None,
        };
        let clock = Arc::clone(clock);
        Arc::new(Self {
            clock,
            behaviour: Mutex::new(behaviour),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    fn sign(&self, request: &CertificateRequest) -> Result<IssuedCertificate, IssueError> {
        let behaviour = self.behaviour.lock().unwrap();
        if let Some(error) = &behaviour.error {
            return Err(error.clone());
        }
        let csr = CertificateSigningRequestDer::from(&request.csr[..]);
        let csr = CertificateSigningRequestParams::from_der(&csr).expect("a well-formed, signed request");
        assert_eq!(csr.params.subject_alt_names, [uri(request.id.as_str())]);
        let mut leaf = LeafSpec::new(&request.id, self.clock.now().unix);
        leaf.not_after = self.clock.now().unix + behaviour.lifetime;
        if let Some(change) = &behaviour.change {
            change(&mut leaf);
        }
        let mut chain = vec![behaviour.ca.sign(&leaf, &csr.public_key)];
        chain.extend(behaviour.ca.above.iter().cloned());
        let mut issued = IssuedCertificate { chain, roots: behaviour.roots.clone() };
        if let Some(spoil) = &behaviour.spoil {
            spoil(&mut issued);
        }
        Ok(issued)
    }
}

impl CertificateIssuer for TestIssuer {
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
        self.asked.fetch_add(1, SeqCst);
        Box::pin(async move {
            struct Open<'a>(&'a AtomicUsize);
            impl Drop for Open<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, SeqCst);
                }
            }
            self.open_max.fetch_max(self.open.fetch_add(1, SeqCst) + 1, SeqCst);
            let _open = Open(&self.open);
            let (latency, never) = {
                let behaviour = self.behaviour.lock().unwrap();
                (behaviour.latency, behaviour.never_answers)
            };
            if never {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(latency).await;
            self.sign(request)
        })
    }

    fn roots(&self) -> TellingRoots<'_> {
        let behaviour = self.behaviour.lock().unwrap();
        let roots = behaviour.tells_roots.then(|| Roots::new(behaviour.roots.clone()).unwrap());
        let answer = match &behaviour.error {
            Some(error) => Err(error.clone()),
            None => Ok(roots.map(|roots| ("cluster.local".parse().unwrap(), roots))),
        };
        Box::pin(async { answer })
    }

    fn name(&self) -> String {
        "test issuer".into()
    }
}

/// A store with its driver running; stopped on drop.
pub struct Node {
    pub clock: Arc<TestClock>,
    pub issuer: Arc<TestIssuer>,
    pub store: CertificateStore,
    driver: tokio::task::JoinHandle<()>,
}

impl Node {
    pub fn start(ca: Ca) -> Self {
        let clock = TestClock::new();
        let issuer = TestIssuer::new(&clock, ca);
        Self::with(clock, issuer, StoreConfig::default())
    }

    pub fn with(clock: Arc<TestClock>, issuer: Arc<TestIssuer>, config: StoreConfig) -> Self {
        let store = CertificateStore::new(config, Arc::clone(&clock) as Arc<dyn Clock>, BundleStore::default(), 11);
        let (driven, asks) = (store.clone(), Arc::clone(&issuer));
        let driver = tokio::spawn(async move { driven.run(asks, std::future::pending()).await });
        Self { clock, issuer, store, driver }
    }

    pub fn now(&self) -> Duration {
        self.clock.now().unix
    }

    pub async fn lease(&self, id: &SpiffeId) -> heddle_identity::Lease {
        let lease = self.store.lease(id).unwrap();
        lease.ready(Duration::from_secs(20)).await.unwrap();
        lease
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Renews every few milliseconds: for tests that let time pass for real. Lifetimes of a minute go with it.
pub fn fast() -> StoreConfig {
    let rotation = Settings {
        renew_at: 0.0001,
        renew_in_min: Duration::from_millis(1),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(40),
        ..Settings::default()
    };
    StoreConfig { rotation, ..StoreConfig::default() }
}
