//! What others get.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use heddle_controller::ca::request::SigningRequest;
use heddle_controller::ca::{ServerOptions, names};
use heddle_identity::{HandshakeFailure, WorkloadKey};
use heddle_proto::ca::v1::SignWorkloadRequest;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::client::{
    Running, call, certified, domain, id, node_certificate, sign, sign_csr, sign_node, unix_now, until,
};

#[tokio::test]
async fn without_credentials_of_a_node_nothing_is_signed() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let (begin, end) = running.token_a.split_at(running.token_a.len() - 1);
    let wrong_end = format!("{begin}{}", if end == "0" { "1" } else { "0" });
    for token in [None, Some(""), Some("x"), Some(&*wrong_end), Some(&*running.token_a.to_uppercase())] {
        let error = sign(&mut client, &id("web"), token).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{token:?}: {error:?}");
        let error = sign_node(&mut client, &WorkloadKey::generate().unwrap(), token).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{token:?}: {error:?}");
    }
    let csr = WorkloadKey::generate().unwrap().certificate_request(&id("web")).unwrap();
    for value in ["Basic x", "Bearer", &running.token_a] {
        let mut request = call(SignWorkloadRequest { csr: csr.clone(), lifetime_seconds: 0 }, None);
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        assert_eq!(client.sign_workload(request).await.unwrap_err().code(), Code::Unauthenticated, "{value}");
    }
    let mut twice = call(SignWorkloadRequest { csr, lifetime_seconds: 0 }, Some(&running.token_a));
    twice.metadata_mut().append("authorization", format!("Bearer {}", running.token_a).parse().unwrap());
    assert_eq!(client.sign_workload(twice).await.unwrap_err().code(), Code::Unauthenticated);
    sign(&mut client, &id("web"), Some(&running.token_a)).await.expect("the control");
}

#[tokio::test]
async fn another_nodes_accounts_are_not_to_be_had() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let node = running.node_certificate(&running.token_b).await;
    let mut as_node = running.client(Some(node));
    for account in ["web", "nobody"] {
        let by_token = sign(&mut client, &id(account), Some(&running.token_b)).await.unwrap_err();
        let by_certificate = sign(&mut as_node, &id(account), None).await.unwrap_err();
        assert_eq!((by_token.code(), by_certificate.code()), (Code::PermissionDenied, Code::PermissionDenied));
    }
    sign(&mut client, &id("api"), Some(&running.token_b)).await.expect("the control");
    sign(&mut as_node, &id("api"), None).await.expect("the control");
    // A bad token is not made good by a good certificate.
    let error = sign(&mut as_node, &id("api"), Some("x")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    // And a token decides for whom, whatever the certificate says.
    sign(&mut as_node, &id("web"), Some(&running.token_a)).await.expect("as node-a");
}

#[tokio::test]
async fn nobody_becomes_the_control_plane_or_another_mesh() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let foreign = "spiffe://other/ns/shop/sa/web".parse().unwrap();
    for id in [names::agent_id(&domain()).unwrap(), names::authority_id(&domain()).unwrap(), foreign] {
        let error = sign(&mut client, &id, Some(&running.token_a)).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{id}");
        assert!(error.metadata().get("grpc-retry-pushback-ms").is_none(), "final: {id}");
    }
    // A node certificate for a workload's id.
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(&id("web")).unwrap();
    let message = heddle_proto::ca::v1::SignNodeRequest { csr, lifetime_seconds: 0 };
    let error = client.sign_node(call(message, Some(&running.token_a))).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("csr: subjectAltName: spiffe://td/ns/shop/sa/web is not"), "{error:?}");
}

#[tokio::test]
async fn a_workloads_certificate_is_no_nodes() {
    let running = Running::start().await;
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(&id("web")).unwrap();
    let answer = sign_csr(&mut running.client(None), csr, Some(&running.token_a)).await.unwrap();
    let mut client = running.client(Some(certified(key, answer.chain)));
    let error = sign(&mut client, &id("web"), None).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("spiffe://td/ns/shop/sa/web is no agent"), "{error:?}");
    let error = sign_node(&mut client, &WorkloadKey::generate().unwrap(), None).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn requests_that_break_a_rule_are_refused_by_name() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let csr = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(id("web").as_str())];
        change(&mut params);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    };
    let mut broken = csr(&|_| {});
    *broken.last_mut().unwrap() ^= 1;
    let cases: [(Vec<u8>, &str); 6] = [
        (csr(&|params| params.subject_alt_names.push(uri("spiffe://td/ns/shop/sa/api"))), "more than the one URI"),
        (
            csr(&|params| params.subject_alt_names.push(SanType::DnsName("x.y".try_into().unwrap()))),
            "more than the one",
        ),
        (csr(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "CA:true"),
        (broken, "signature"),
        (b"garbage".to_vec(), "PKCS#10"),
        (vec![0; 20_000], "20000 bytes, more than"),
    ];
    for (csr, word) in cases {
        let error = sign_csr(&mut client, csr, Some(&running.token_a)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{word}");
        assert!(error.message().contains(word), "{word}: {error:?}");
    }
    sign_csr(&mut client, csr(&|_| {}), Some(&running.token_a)).await.expect("the control");
}

#[tokio::test]
async fn an_oversized_call_is_refused_and_the_connection_lives() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let error = sign_csr(&mut client, vec![0; 1 << 20], Some(&running.token_a)).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error:?}");
    sign(&mut client, &id("web"), Some(&running.token_a)).await.expect("the control");
}

#[tokio::test]
async fn an_expired_or_revoked_node_certificate_counts_no_more() {
    let running = Running::start().await;
    let node = running.node_certificate(&running.token_a).await;
    let mut open = running.client(Some(node.clone()));
    sign(&mut open, &id("web"), None).await.expect("the control");

    // On a connection made while it was valid: judged at every call.
    running.clock.0.store(25 * 3600, SeqCst);
    let error = sign(&mut open, &id("web"), None).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("expired"), "{error:?}");
    running.clock.0.store(0, SeqCst);
    sign(&mut open, &id("web"), None).await.expect("the control again");

    running.directory.revoke_token("node-a").unwrap();
    until("the revocation counts", || {
        let mut open = open.clone();
        async move { sign(&mut open, &id("web"), None).await.is_err() }
    })
    .await;
    let error = sign(&mut open, &id("web"), None).await.unwrap_err();
    assert!(error.message().contains("the certificate of node `node-a` was revoked"), "{error:?}");
    let error = sign(&mut running.client(None), &id("web"), Some(&running.token_a)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_replaced_token_ends_the_certificates_got_with_the_old_one() {
    let running = Running::start().await;
    let stolen = running.node_certificate(&running.token_a).await;
    let mut thief = running.client(Some(stolen));
    sign(&mut thief, &id("web"), None).await.expect("the control");
    let token = running.directory.issue_token("node-a", unix_now()).unwrap();
    until("the thief is locked out", || {
        let mut thief = thief.clone();
        async move { sign(&mut thief, &id("web"), None).await.is_err() }
    })
    .await;
    sign(&mut running.client(None), &id("web"), Some(&token)).await.expect("the owner goes on");
}

/// Between the new token and the moment the authority hears of it, the old one is good. What it brings then is not good for longer.
#[tokio::test]
async fn a_certificate_got_with_a_token_that_is_replaced_already_ends_with_it() {
    let running = Running::start().await;
    // The authority cannot take in what changes, for as long as the test wants.
    let (roots, key) = (running.roots(), running.directory.path().join("g1/intermediate-key.pem"));
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let token = running.directory.issue_token("node-a", unix_now() - Duration::from_secs(5)).unwrap();
    let by_token = node_certificate(&mut running.client_trusting(&roots, None), Some(&running.token_a)).await;
    let mut thief = running.client_trusting(&roots, Some(by_token));
    sign(&mut thief, &id("web"), None).await.expect("the control: it is good until the authority knows");
    // Renewed over itself, it is of the same token.
    let again = node_certificate(&mut thief, None).await;
    let mut renewed = running.client_trusting(&roots, Some(again));

    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    until("the new token counts", || {
        let (mut owner, token) = (running.client(None), token.clone());
        async move { sign(&mut owner, &id("web"), Some(&token)).await.is_ok() }
    })
    .await;
    for thief in [&mut thief, &mut renewed] {
        let error = sign(thief, &id("web"), None).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated);
        assert!(error.message().contains("the certificate of node `node-a` was revoked"), "{error:?}");
        assert!(sign_node(thief, &WorkloadKey::generate().unwrap(), None).await.is_err(), "and brings no other");
    }
    let own = running.node_certificate(&token).await;
    sign(&mut running.client(Some(own)), &id("web"), None).await.expect("the owner goes on, by certificate too");
}

/// As authorities of before signed them. Its agent shows its token and gets one that says so.
#[tokio::test]
async fn a_node_certificate_that_does_not_say_which_token_it_is_of_counts_no_more() {
    let running = Running::start().await;
    let of_intermediate = |file: &str| fs::read_to_string(running.directory.path().join("g1").join(file)).unwrap();
    let chain_end = CertificateDer::from_pem_slice(of_intermediate("intermediate.pem").as_bytes()).unwrap();
    let signer = KeyPair::from_pem(&of_intermediate("intermediate-key.pem")).unwrap();
    let signer = Issuer::from_ca_cert_der(&chain_end, signer).unwrap();
    let signed = |marks: &[&str]| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "node-a");
        for mark in marks {
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), *mark);
        }
        params.subject_alt_names = vec![SanType::URI(names::agent_id(&domain()).unwrap().as_str().try_into().unwrap())];
        params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
        let key = WorkloadKey::generate().unwrap();
        let leaf = params.signed_by(&key, &signer).unwrap();
        certified(key, vec![leaf.der().to_vec(), chain_end.to_vec()])
    };
    let (mark, of_b) = (running.mark("node-a"), running.mark("node-b"));
    sign(&mut running.client(Some(signed(&[&mark]))), &id("web"), None).await.expect("the control");
    for (marks, word) in [
        (&[][..], "does not say by which token it was got"),
        (&[""], "was revoked with its token"),
        (&[&of_b], "was revoked with its token"),
        (&[&running.token_a], "was revoked with its token"),
    ] {
        let error = sign(&mut running.client(Some(signed(marks))), &id("web"), None).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{marks:?}");
        assert!(error.message().contains(word), "{marks:?}: {error:?}");
    }
}

#[tokio::test]
async fn certificates_of_other_roots_and_expired_ones_end_the_handshake() {
    let running = Running::start().await;
    let other = Running::start().await;
    let authority = running.directory.load().unwrap().authority;
    let signed_at = |ago: Duration| {
        let key = WorkloadKey::generate().unwrap();
        let request = SigningRequest::parse(&key.certificate_request(authority.agent_id()).unwrap()).unwrap();
        let lifetime = Some(Duration::from_secs(3600));
        let chain =
            authority.sign_node(&request, "node-a", &running.mark("node-a"), lifetime, unix_now() - ago).unwrap();
        certified(key, chain.iter().map(|der| der.to_vec()).collect())
    };
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let (foreign, expired) = (other.node_certificate(&other.token_a).await, signed_at(hours(2)));
    for (what, own) in [("another root", foreign), ("expired", expired)] {
        assert!(sign(&mut running.client(Some(Arc::clone(&own))), &id("web"), None).await.is_err(), "{what}");
        let mut stream = running.connect(Some(own)).await.unwrap();
        let error = stream.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(HandshakeFailure::of_io(&error), HandshakeFailure::RefusedByPeer, "{what}: {error}");
    }
    let mut good = running.connect(Some(signed_at(hours(0)))).await.unwrap();
    assert!(first_byte(&mut good).await.is_ok(), "the control");
}

#[tokio::test]
async fn garbage_ends_one_connection_and_no_other() {
    let running = Running::start().await;
    let mut client = running.client(None);
    sign(&mut client, &id("web"), Some(&running.token_a)).await.unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[22, 3, 1, 0xff, 0xff], b""] {
        let mut plain = TcpStream::connect(running.address).await.unwrap();
        plain.write_all(garbage).await.unwrap();
        plain.shutdown().await.unwrap();
        assert_ended(&mut plain).await;
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A DATA frame on stream 0, a frame beyond the largest size, and no HTTP/2 at all.
    let bad_frames: [&[u8]; 3] =
        [&[0, 0, 1, 0, 0, 0, 0, 0, 0, 7], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], b"nonsense, long enough to be told"];
    for frames in bad_frames {
        let mut stream = running.connect(None).await.unwrap();
        if frames[0] != b'n' {
            stream.write_all(preface).await.unwrap();
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        }
        stream.write_all(frames).await.unwrap();
        assert_ended(&mut stream).await;
    }
    sign(&mut client, &id("web"), Some(&running.token_a)).await.expect("the control");
}

async fn assert_ended(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let read = async {
        let mut buffer = vec![0; 4096];
        // Alerts and a GOAWAY may come first.
        while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
    };
    tokio::time::timeout(Duration::from_secs(15), read).await.expect("the connection is ended");
}

#[tokio::test]
async fn slow_handshakes_and_too_many_connections_are_bounded() {
    let handshake_timeout = Duration::from_secs(6);
    let per_address = ServerOptions { connections_per_address_max: 3, handshake_timeout, ..ServerOptions::default() };
    let in_all = ServerOptions { connections_max: 3, handshake_timeout, ..ServerOptions::default() };
    let bounded = async |options| {
        let running = Running::with(options).await;
        let begin = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(running.address).await.unwrap());
        }
        let mut fourth = TcpStream::connect(running.address).await.unwrap();
        assert_ended(&mut fourth).await;
        assert!(begin.elapsed() < handshake_timeout, "turned away, not waited for");
        for mut stream in silent {
            assert_ended(&mut stream).await;
        }
        assert!(begin.elapsed() >= handshake_timeout, "the others had their time");
        // Their places were given back.
        sign(&mut running.client(None), &id("web"), Some(&running.token_a)).await.expect("the control");
    };
    tokio::join!(bounded(per_address), bounded(in_all));
}

#[tokio::test]
async fn tls_without_alpn_is_not_served() {
    let running = Running::start().await;
    let bundles = heddle_identity::TrustBundles::new(0, [(domain(), running.roots())]);
    let expected = heddle_identity::ExpectedIds::from(names::authority_id(&domain()).unwrap());
    for (alpn, is_served) in [(&b"h2"[..], true), (b"http/1.1", false), (b"heddle/h2", false), (b"", false)] {
        let bundles = heddle_identity::TrustBundles::new(1, bundles.iter().map(|(d, r)| (d.clone(), r.clone())));
        let mut config = heddle_identity::tls::client_config(bundles.into(), expected.clone(), None, alpn).unwrap();
        if alpn.is_empty() {
            config.alpn_protocols.clear();
        }
        let stream = TcpStream::connect(running.address).await.unwrap();
        let connected = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(heddle_identity::tls::no_server_name(), stream)
            .await;
        let answered = match connected {
            Ok(mut stream) => first_byte(&mut stream).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(answered, is_served, "{}", alpn.escape_ascii());
    }
}

async fn first_byte(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) -> io::Result<u8> {
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.read_u8().await
}
