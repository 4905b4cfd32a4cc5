//! Measures full mutual handshakes over memory, both sides on one thread, and what they are made of. Prints one JSON object per line,
//! `{"metric": …, "unit": "us", "value": …}`, medians; run it in release.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use heddle_identity::tls::no_server_name;
use heddle_identity::verify::{PeerRole, verify_peer};
use heddle_identity::{
    Alpn, BundleStore, CertificateIssuer, CertificateRequest, CertificateStore, ClientConfigs, ExpectedIds,
    IssuedCertificate, Issuing, ServerConfigs, SpiffeId, StoreConfig, SystemClock, WorkloadKey,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

const ROUNDS: usize = 4000;

struct Ca {
    root: CertificateDer<'static>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate()?)?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate()?, &root)?;
        Ok(Self { root: root.der().clone(), intermediate })
    }

    fn sign(&self, request: &CertificateRequest) -> Result<IssuedCertificate, rcgen::Error> {
        let csr = CertificateSigningRequestDer::from(&request.csr[..]);
        let mut csr = CertificateSigningRequestParams::from_der(&csr)?;
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = csr.signed_by(&self.intermediate)?.der().clone();
        Ok(IssuedCertificate { chain: vec![leaf, self.intermediate.der().clone()], roots: vec![self.root.clone()] })
    }
}

impl CertificateIssuer for Ca {
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
        let answer = self.sign(request);
        Box::pin(async { answer.map_err(|error| heddle_identity::IssueError::refused(error.to_string())) })
    }

    fn name(&self) -> String {
        "bench".into()
    }
}

fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<(), Box<dyn Error>> {
    let mut client = ClientConnection::new(Arc::clone(client), no_server_name())?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    let mut wire = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        let mut bytes = &wire[..];
        while !bytes.is_empty() {
            server.read_tls(&mut bytes)?;
        }
        server.process_new_packets()?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire)?;
        }
        let mut bytes = &wire[..];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes)?;
        }
        client.process_new_packets()?;
    }
    Ok(())
}

fn measure(
    metric: &str,
    rounds: usize,
    mut run: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        run()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let median = times[rounds / 2].as_nanos() as f64 / 1000.0;
    println!("{{\"metric\": \"{metric}\", \"unit\": \"us\", \"value\": {median:.1}}}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let store =
        CertificateStore::new(StoreConfig::default(), Arc::new(SystemClock::default()), BundleStore::default(), 1);
    let (driven, ca) = (store.clone(), Arc::new(Ca::new()?));
    let driver = tokio::spawn(async move { driven.run(ca, std::future::pending()).await });
    let (web, api): (SpiffeId, SpiffeId) = ("spiffe://td/ns/a/sa/web".parse()?, "spiffe://td/ns/a/sa/api".parse()?);
    let (web, api) = (store.lease(&web)?, store.lease(&api)?);
    web.ready(Duration::from_secs(5)).await?;
    api.ready(Duration::from_secs(5)).await?;
    let expected = ExpectedIds::from(api.id().clone());
    let client = ClientConfigs::new(&store).get(&web, &expected, Alpn::Heddle)?;
    let server = ServerConfigs::new(&store).get(&api, Alpn::Heddle)?;

    measure("identity_full_handshake_both_sides", ROUNDS, || handshake(&client, &server))?;

    let credential = api.slot().credential().ok_or("no certificate")?;
    let (leaf, above) = credential.chain().split_first().ok_or("no chain")?;
    let bundles = store.bundles().current();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    measure("identity_verify_peer", ROUNDS, || {
        verify_peer(leaf, above, PeerRole::Server, &bundles, Some(&expected), now)?;
        Ok(())
    })?;
    measure("identity_key_and_request", ROUNDS, || {
        WorkloadKey::generate()?.certificate_request(api.id())?;
        Ok(())
    })?;
    measure("identity_config_lookup_x100", ROUNDS, {
        let mut configs = ClientConfigs::new(&store);
        let web = &web;
        let expected = &expected;
        move || {
            for _ in 0..100 {
                configs.get(web, expected, Alpn::Heddle)?;
            }
            Ok(())
        }
    })?;
    measure("identity_export_two", ROUNDS, || {
        store.export()?;
        Ok(())
    })?;
    driver.abort();
    Ok(())
}
