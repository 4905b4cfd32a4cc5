//! Every certificate an attacker could present, each beside a good one that passes over the same path.

use std::sync::Arc;
use std::time::Duration;

use heddle_identity::{Alpn, ClientConfigs, ExpectedIds, HandshakeFailure as F, Lease, Roots, ServerConfigs};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, ServerConfig};

use crate::peers::{Client, Server};
use crate::pki::{Ca, LeafSpec, Node, certified, id, uri};
use crate::wire::{Outcome, exchange, handshake};

const ALPN: Alpn = Alpn::Heddle;

/// One node with the accounts `web` (calls) and `api` (is called), its CA, and what attackers know.
struct Scene {
    node: Node,
    intermediate: Ca,
    web: Lease,
    api: Lease,
    clients: ClientConfigs,
    servers: ServerConfigs,
}

impl Scene {
    async fn new() -> Self {
        let root = Ca::root("mesh root");
        let intermediate = root.intermediate("mesh intermediate");
        let attackers = root.intermediate("another intermediate of the mesh");
        let node = Node::start(intermediate);
        let (web, api) = (node.lease(&id("web")).await, node.lease(&id("api")).await);
        let (clients, servers) = (ClientConfigs::new(&node.store), ServerConfigs::new(&node.store));
        Self { node, intermediate: attackers, web, api, clients, servers }
    }

    fn client(&mut self, expected: impl Into<ExpectedIds>) -> Arc<ClientConfig> {
        self.clients.get(&self.web, &expected.into(), ALPN).unwrap()
    }

    fn server(&mut self) -> Arc<ServerConfig> {
        self.servers.get(&self.api, ALPN).unwrap()
    }

    fn good(&self, account: &str) -> LeafSpec {
        LeafSpec::new(&id(account), self.node.now())
    }

    /// `bad` presented to our server and to our client, which expects `api`; each next to a good one.
    fn refused_on_both_sides(&mut self, bad: &Arc<CertifiedKey>, want: F) {
        self.refused_by_server(bad, want);
        self.refused_by_client(bad, want);
    }

    fn refused_by_server(&mut self, bad: &Arc<CertifiedKey>, want: F) {
        let server = self.server();
        let control = self.intermediate.peer(&self.good("web"));
        let outcome = handshake(&Client::with(control).config(), &server, ALPN);
        assert_eq!(outcome.server.unwrap().id(), &id("web"), "control");
        let outcome = handshake(&Client::with(Arc::clone(bad)).config(), &server, ALPN);
        assert_eq!(outcome.server.unwrap_err(), want);
        // The attacker is told by an alert, and which one tells it no secret.
        assert_eq!(outcome.client.unwrap_err(), F::RefusedByPeer);
    }

    fn refused_by_client(&mut self, bad: &Arc<CertifiedKey>, want: F) {
        let client = self.client(id("api"));
        let control = self.intermediate.peer(&self.good("api"));
        let outcome = handshake(&client, &Server::with(control).config(), ALPN);
        assert_eq!(outcome.client.unwrap().id(), &id("api"), "control");
        let outcome = handshake(&client, &Server::with(Arc::clone(bad)).config(), ALPN);
        assert_eq!(outcome.client.unwrap_err(), want);
        assert_eq!(outcome.server.unwrap_err(), F::RefusedByPeer);
    }
}

#[tokio::test]
async fn two_workloads_of_the_mesh_know_each_other() {
    let mut scene = Scene::new().await;
    for alpn in [Alpn::Heddle, Alpn::Hbone] {
        let client = scene.clients.get(&scene.web, &id("api").into(), alpn).unwrap();
        let server = scene.servers.get(&scene.api, alpn).unwrap();
        let Outcome { client, server, mut connections } = handshake(&client, &server, alpn);
        assert_eq!((client.unwrap().id(), server.unwrap().id()), (&id("api"), &id("web")));
        for (version, group) in [
            (connections.0.protocol_version(), connections.0.negotiated_key_exchange_group()),
            (connections.1.protocol_version(), connections.1.negotiated_key_exchange_group()),
        ] {
            assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
            assert_eq!(group.map(|group| group.name()), Some(NamedGroup::X25519MLKEM768));
        }
        assert_eq!(connections.0.alpn_protocol(), Some(alpn.as_bytes()));
        // No SNI, no resumption: no ticket was sent.
        assert_eq!(connections.1.server_name(), None);
        assert_eq!(connections.0.tls13_tickets_received(), 0);
        exchange(&mut connections);
    }
}

#[tokio::test]
async fn handshakes_are_always_full_ones() {
    let mut scene = Scene::new().await;
    // Also with a client that would resume: ours never does.
    let eager = Client::with(scene.intermediate.peer(&scene.good("web"))).config();
    let (client, server) = (scene.client(id("api")), scene.server());
    for _ in 0..3 {
        for config in [&eager, &client] {
            let outcome = handshake(config, &server, ALPN);
            assert!(outcome.is_good());
            assert_eq!(outcome.connections.1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
}

#[tokio::test]
async fn peers_without_the_hybrid_group_get_x25519_or_p256() {
    let mut scene = Scene::new().await;
    let server = scene.server();
    let control = scene.intermediate.peer(&scene.good("web"));
    use rustls::crypto::aws_lc_rs::{self, kx_group};
    for group in [kx_group::X25519, kx_group::SECP256R1] {
        let mut config = ClientConfig::clone(&Client::with(Arc::clone(&control)).config());
        let provider = rustls::crypto::CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
        let mut plain = builder.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        std::mem::swap(&mut plain.client_auth_cert_resolver, &mut config.client_auth_cert_resolver);
        plain.alpn_protocols = vec![ALPN.as_bytes().to_vec()];
        // This client trusts nobody, so it ends the handshake itself; the group was agreed on before.
        let outcome = handshake(&Arc::new(plain), &server, ALPN);
        let agreed = outcome.connections.1.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(agreed, Some(group.name()));
    }
}

#[tokio::test]
async fn another_identity_is_not_the_expected_one() {
    let mut scene = Scene::new().await;
    let other = scene.intermediate.peer(&scene.good("other"));
    scene.refused_by_client(&other, F::WrongIdentity);
    // Case, prefix and suffix make another one too; several may be expected; nobody may be.
    for account in ["ap", "api2", "api.x"] {
        let near = scene.intermediate.peer(&scene.good(account));
        scene.refused_by_client(&near, F::WrongIdentity);
    }
    let several = ExpectedIds::new([id("x"), id("other"), id("api")]);
    let client = scene.client(several);
    assert!(handshake(&client, &Server::with(Arc::clone(&other)).config(), ALPN).is_good_for_client());
    let client = scene.client(ExpectedIds::new([]));
    let outcome = handshake(&client, &Server::with(other).config(), ALPN);
    assert_eq!(outcome.client.unwrap_err(), F::WrongTrustDomain);
}

impl Outcome {
    fn is_good_for_client(&self) -> bool {
        self.client.is_ok()
    }
}

#[tokio::test]
async fn another_trust_domain_is_refused_until_federated_and_then_only_on_its_own_roots() {
    let mut scene = Scene::new().await;
    let foreign: heddle_identity::SpiffeId = "spiffe://other.org/ns/shop/sa/api".parse().unwrap();
    // Signed by our own CA: a compromised CA of one domain must not speak for another.
    let ours = scene.intermediate.peer(&LeafSpec::new(&foreign, scene.node.now()));
    scene.refused_on_both_sides(&ours, F::WrongTrustDomain);

    let their_root = Ca::root("their root");
    let theirs = their_root.peer(&LeafSpec::new(&foreign, scene.node.now()));
    scene.refused_on_both_sides(&theirs, F::WrongTrustDomain);
    let roots = Arc::new(Roots::new(vec![their_root.root.clone()]).unwrap());
    scene.node.store.bundles().set(&"other.org".parse().unwrap(), Some(roots));
    // Federated: the server knows it; a client still expects exactly `api` of ours.
    let outcome = handshake(&Client::with(Arc::clone(&theirs)).config(), &scene.server(), ALPN);
    assert_eq!(outcome.server.unwrap().id(), &foreign);
    scene.refused_by_client(&theirs, F::WrongTrustDomain);
    let client = scene.client(foreign.clone());
    assert_eq!(handshake(&client, &Server::with(theirs).config(), ALPN).client.unwrap().id(), &foreign);
    // Our CA for their domain, and theirs for ours: neither.
    scene.refused_by_server(&ours, F::UnknownRoot);
    let crossed = their_root.peer(&scene.good("api"));
    scene.refused_on_both_sides(&crossed, F::UnknownRoot);
    scene.node.store.bundles().set(&"other.org".parse().unwrap(), None);
    scene.refused_by_server(&their_root.peer(&LeafSpec::new(&foreign, scene.node.now())), F::WrongTrustDomain);
}

#[tokio::test]
async fn roots_nobody_trusts() {
    let mut scene = Scene::new().await;
    let unknown = Ca::root("unknown").peer(&scene.good("api"));
    scene.refused_on_both_sides(&unknown, F::UnknownRoot);
    // The same name as ours does not help.
    let same_name = Ca::root("mesh root").intermediate("mesh intermediate").peer(&scene.good("api"));
    scene.refused_on_both_sides(&same_name, F::UnknownRoot);
    // A root sent along is no root.
    let liar = Ca::root("liar");
    let key = KeyPair::generate().unwrap();
    let with_root = certified(vec![liar.sign(&scene.good("api"), &key), liar.root.clone()], &key);
    scene.refused_on_both_sides(&with_root, F::UnknownRoot);
    // A self-signed leaf.
    let key = KeyPair::generate().unwrap();
    let own = scene.good("api").params();
    let own = own.self_signed(&key).unwrap().der().clone();
    scene.refused_on_both_sides(&certified(vec![own], &key), F::UnknownRoot);
}

#[tokio::test]
async fn a_chain_with_a_gap_a_stranger_or_too_many() {
    let mut scene = Scene::new().await;
    let key = KeyPair::generate().unwrap();
    let leaf = scene.intermediate.sign(&scene.good("api"), &key);
    scene.refused_on_both_sides(&certified(vec![leaf.clone()], &key), F::UnknownRoot);
    let stranger = Ca::root("x").intermediate("stranger").certificate;
    scene.refused_on_both_sides(&certified(vec![leaf.clone(), stranger.clone()], &key), F::UnknownRoot);
    // In any order and with a stranger between: a chain is still a chain.
    let good = certified(vec![leaf.clone(), stranger, scene.intermediate.certificate.clone()], &key);
    let server = scene.server();
    assert!(handshake(&Client::with(good).config(), &server, ALPN).server.is_ok());
    let many = std::iter::once(leaf).chain((0..8).map(|_| scene.intermediate.certificate.clone())).collect();
    scene.refused_on_both_sides(&certified(many, &key), F::BadCertificate);
    // A leaf that signs: its issuer is a certificate of the mesh, but no CA.
    let middle_key = KeyPair::generate().unwrap();
    let middle = scene.intermediate.sign(&scene.good("web"), &middle_key);
    let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), middle_key);
    let key = KeyPair::generate().unwrap();
    let spec = scene.good("api").params();
    let forged = spec.signed_by(&key, &issuer).unwrap().der().clone();
    let chain = vec![forged, middle, scene.intermediate.certificate.clone()];
    scene.refused_on_both_sides(&certified(chain, &key), F::UnknownRoot);
}

#[tokio::test]
async fn times() {
    let mut scene = Scene::new().await;
    let now = scene.node.now();
    let second = Duration::from_secs(1);
    let mut spec = scene.good("api");
    spec.not_after = now - second;
    scene.refused_on_both_sides(&scene.intermediate.peer(&spec), F::Expired);
    let mut spec = scene.good("api");
    spec.not_before = now + 65 * second;
    scene.refused_on_both_sides(&scene.intermediate.peer(&spec), F::NotYetValid);
    // Clocks may differ by a minute, and only for the beginning.
    spec.not_before = now + 50 * second;
    let client = scene.client(id("api"));
    let ahead = scene.intermediate.peer(&spec);
    assert!(handshake(&client, &Server::with(ahead).config(), ALPN).client.is_ok());
    // What stands above must hold as well: an intermediate, a root.
    let root = Ca::root("mesh root 2");
    let ended = root.intermediate_valid_until("ended", now - second);
    let ended_root = Ca::root_valid_until("ended root", now - second);
    let roots = Roots::new(vec![root.root.clone(), ended_root.root.clone(), scene.intermediate.root.clone()]).unwrap();
    scene.node.store.bundles().set(&"cluster.local".parse().unwrap(), Some(Arc::new(roots)));
    scene.refused_on_both_sides(&ended.peer(&scene.good("api")), F::Expired);
    scene.refused_on_both_sides(&ended_root.peer(&scene.good("api")), F::Expired);
    let client = scene.client(id("api"));
    let control = root.peer(&scene.good("api"));
    assert!(handshake(&client, &Server::with(control).config(), ALPN).client.is_ok());
    // Time passes under a config that is kept.
    let (peer, server) = (scene.intermediate.peer(&scene.good("web")), scene.server());
    assert!(handshake(&Client::with(Arc::clone(&peer)).config(), &server, ALPN).server.is_ok());
    scene.node.clock.set_offset(3600 + 5);
    assert_eq!(handshake(&Client::with(peer).config(), &server, ALPN).server.unwrap_err(), F::Expired);
}

#[tokio::test]
async fn names_that_are_no_identity() {
    let mut scene = Scene::new().await;
    let api = id("api");
    let dns = || SanType::DnsName("api.shop.svc".try_into().unwrap());
    let cases: [(&str, Vec<SanType>); 8] = [
        ("two ids", vec![uri(api.as_str()), uri(id("web").as_str())]),
        ("the same id twice", vec![uri(api.as_str()), uri(api.as_str())]),
        ("an id and another URI", vec![uri("https://x/"), uri(api.as_str())]),
        ("a DNS name only", vec![dns()]),
        ("no name at all", vec![]),
        ("another scheme", vec![uri("https://cluster.local/ns/shop/sa/api")]),
        ("upper case", vec![uri("spiffe://CLUSTER.local/ns/shop/sa/api")]),
        ("another path", vec![uri("spiffe://cluster.local/shop/api")]),
    ];
    for (what, names) in cases {
        println!("{what}");
        let mut spec = scene.good("api");
        spec.names = names;
        // The common name counts for nothing.
        spec.common_name = Some("spiffe://cluster.local/ns/shop/sa/api");
        let bad = scene.intermediate.peer(&spec);
        scene.refused_on_both_sides(&bad, F::BadCertificate);
    }
    // A DNS name beside the id is allowed by the standard, and is not looked at.
    let mut spec = scene.good("api");
    spec.names.push(dns());
    let client = scene.client(api);
    let beside = scene.intermediate.peer(&spec);
    assert!(handshake(&client, &Server::with(beside).config(), ALPN).client.is_ok());
}

#[tokio::test]
async fn certificates_made_for_something_else() {
    let mut scene = Scene::new().await;
    let mut ca_leaf = scene.good("api");
    ca_leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    scene.refused_on_both_sides(&scene.intermediate.peer(&ca_leaf), F::BadCertificate);
    for usages in [
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
        vec![KeyUsagePurpose::KeyEncipherment],
    ] {
        let mut spec = scene.good("api");
        spec.usages = usages;
        scene.refused_on_both_sides(&scene.intermediate.peer(&spec), F::BadCertificate);
    }
    let mut spec = scene.good("api");
    spec.extended = vec![ExtendedKeyUsagePurpose::ServerAuth];
    scene.refused_by_server(&scene.intermediate.peer(&spec), F::BadCertificate);
    spec.extended = vec![ExtendedKeyUsagePurpose::ClientAuth];
    scene.refused_by_client(&scene.intermediate.peer(&spec), F::BadCertificate);
    spec.extended = vec![ExtendedKeyUsagePurpose::CodeSigning];
    scene.refused_on_both_sides(&scene.intermediate.peer(&spec), F::BadCertificate);
    // No extended usage at all is any usage (RFC 5280 §4.2.1.12).
    spec.extended = vec![];
    let (client, any) = (scene.client(id("api")), scene.intermediate.peer(&spec));
    assert!(handshake(&client, &Server::with(any).config(), ALPN).client.is_ok());
}

#[tokio::test]
async fn a_certificate_without_its_key() {
    let mut scene = Scene::new().await;
    // Taken from the wire: the whole chain of `api`, signed with another key.
    let (stolen, mine) = (scene.api.slot().credential().unwrap().chain().to_vec(), KeyPair::generate().unwrap());
    let outcome = handshake(&Client::with(certified(stolen.clone(), &mine)).config(), &scene.server(), ALPN);
    assert_eq!(outcome.server.unwrap_err(), F::BadCertificate);
    let client = scene.client(id("api"));
    let outcome = handshake(&client, &Server::with(certified(stolen, &mine)).config(), ALPN);
    assert_eq!(outcome.client.unwrap_err(), F::BadCertificate);
}

#[tokio::test]
async fn no_certificate_old_versions_and_other_protocols() {
    let mut scene = Scene::new().await;
    let (client, server) = (scene.client(id("api")), scene.server());
    let web = scene.intermediate.peer(&scene.good("web"));
    let api = scene.intermediate.peer(&scene.good("api"));
    let good_client = || Client::with(Arc::clone(&web));
    let good_server = || Server::with(Arc::clone(&api));
    assert!(handshake(&good_client().config(), &server, ALPN).is_good());
    assert!(handshake(&client, &good_server().config(), ALPN).is_good());

    let none = Client { certificate: None, ..good_client() };
    let outcome = handshake(&none.config(), &server, ALPN);
    assert_eq!((outcome.server.unwrap_err(), outcome.client.unwrap_err()), (F::NoCertificate, F::RefusedByPeer));
    // A server that does not want to know who we are is no mesh server, but it is the expected one: the client's business is the server.
    let careless = Server { asks_for_certificate: false, ..good_server() };
    assert!(handshake(&client, &careless.config(), ALPN).client.is_ok());

    let old = Client { version: &rustls::version::TLS12, ..good_client() };
    let outcome = handshake(&old.config(), &server, ALPN);
    assert_eq!((outcome.server.unwrap_err(), outcome.client.unwrap_err()), (F::ProtocolVersion, F::ProtocolVersion));
    let old = Server { version: &rustls::version::TLS12, ..good_server() };
    let outcome = handshake(&client, &old.config(), ALPN);
    assert_eq!((outcome.client.unwrap_err(), outcome.server.unwrap_err()), (F::ProtocolVersion, F::ProtocolVersion));

    let confused: [Vec<Vec<u8>>; 4] =
        [vec![], vec![b"h2".to_vec()], vec![b"http/1.1".to_vec()], vec![b"heddle/h2x".to_vec()]];
    for alpn in confused {
        let odd = Client { alpn: alpn.clone(), ..good_client() };
        assert_eq!(handshake(&odd.config(), &server, ALPN).server.unwrap_err(), F::BadAlpn, "{alpn:?}");
        let odd = Server { alpn: alpn.clone(), ..good_server() };
        assert_eq!(handshake(&client, &odd.config(), ALPN).client.unwrap_err(), F::BadAlpn, "{alpn:?}");
    }
    // A connection made for one protocol is not one of the other.
    let hbone = scene.servers.get(&scene.api, Alpn::Hbone).unwrap();
    assert_eq!(handshake(&client, &hbone, ALPN).client.unwrap_err(), F::BadAlpn);
}

#[tokio::test]
async fn bytes_that_are_no_tls_and_handshakes_that_stop() {
    let mut scene = Scene::new().await;
    let server = scene.server();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 64]] {
        let mut connection = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
        connection.read_tls(&mut &bytes[..]).unwrap();
        if let Err(error) = connection.process_new_packets() {
            assert_eq!(F::of(&error), F::Protocol);
        }
        assert!(heddle_identity::Peer::of_client(&connection, ALPN).is_err());
    }
    // The ends of a handshake that never finished have no peer.
    let client = scene.client(id("api"));
    let half = rustls::ClientConnection::new(client, heddle_identity::tls::no_server_name()).unwrap();
    assert_eq!(heddle_identity::Peer::of_server(&half, ALPN).unwrap_err().failure, F::Protocol);
}

#[tokio::test]
async fn without_a_certificate_of_its_own_no_side_begins() {
    let node = Node::start(Ca::root("root"));
    node.issuer.set(|issuer| issuer.never_answers = true);
    let lease = node.store.lease(&id("web")).unwrap();
    let mut clients = ClientConfigs::new(&node.store);
    assert_eq!(clients.get(&lease, &id("api").into(), ALPN).unwrap_err(), F::NoOwnCertificate);
    assert_eq!(ServerConfigs::new(&node.store).get(&lease, ALPN).unwrap_err(), F::NoOwnCertificate);
}

#[tokio::test]
async fn a_config_whose_lease_ended_has_no_key_left() {
    let mut scene = Scene::new().await;
    let (client, server) = (scene.client(id("api")), scene.server());
    assert!(handshake(&client, &server, ALPN).is_good());
    let node = scene.node;
    drop(scene.api);
    assert_eq!(handshake(&client, &server, ALPN).server.unwrap_err(), F::NoOwnCertificate);
    // Leased again, the same question gives another config, which works.
    let api = node.lease(&id("api")).await;
    let server = scene.servers.get(&api, ALPN).unwrap();
    let client = scene.clients.get(&scene.web, &id("api").into(), ALPN).unwrap();
    assert!(handshake(&client, &server, ALPN).is_good());
}

#[tokio::test]
async fn configs_are_made_once_per_generation() {
    let mut scene = Scene::new().await;
    let first = scene.client(id("api"));
    assert!(Arc::ptr_eq(&first, &scene.client(id("api"))));
    assert!(!Arc::ptr_eq(&first, &scene.client(id("other"))));
    assert_eq!(scene.clients.len(), 2);
    let roots = Roots::new(vec![Ca::root("x").root.clone()]).unwrap();
    scene.node.store.bundles().set(&"other.org".parse().unwrap(), Some(Arc::new(roots)));
    assert!(!Arc::ptr_eq(&first, &scene.client(id("api"))));
    assert_eq!(scene.clients.len(), 1);
}
