//! What is signed and what is not. Every attack stands beside the same request without it, which is signed.

use std::collections::HashSet;

use heddle_identity::Credential;
use rcgen::{CertificateParams, KeyPair, KeyUsagePurpose};
use x509_parser::extensions::ParsedExtension;

use super::*;
use crate::ca::request::{CSR_BYTES_MAX, RequestError};

const NOW: Duration = Duration::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const WEB: &str = "spiffe://td/ns/shop/sa/web";

fn domain() -> TrustDomain {
    "td".parse().unwrap()
}

fn authority() -> Authority {
    let root = CaCertificate::root(&domain(), NOW).unwrap();
    let intermediate = root.intermediate(&domain(), NOW).unwrap();
    Authority::new(domain(), intermediate, vec![root.der], LIFETIME_MAX).unwrap()
}

fn request(key: &WorkloadKey, id: &str) -> SigningRequest {
    SigningRequest::parse(&key.certificate_request(&id.parse().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_workload_gets_what_the_certificate_store_accepts() {
    let (authority, key) = (authority(), WorkloadKey::generate().unwrap());
    let chain = authority.sign_workload(&request(&key, WEB), Some(HOUR), NOW).unwrap();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    let roots = authority.roots().to_vec();
    let credential = Credential::check(&WEB.parse().unwrap(), key, chain.clone(), roots, None, NOW).unwrap();
    let validity = credential.facts().validity;
    assert_eq!((validity.not_before, validity.not_after), (NOW - BACKDATED, NOW + HOUR));
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let mut seen = HashSet::new();
    for extension in leaf.extensions() {
        seen.insert(match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                assert!(!constraints.ca && extension.critical);
                "basicConstraints"
            }
            ParsedExtension::KeyUsage(usage) => {
                assert!(usage.digital_signature() && !usage.key_cert_sign() && usage.flags.count_ones() == 1);
                "keyUsage"
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                assert!(usage.client_auth && usage.server_auth && !usage.any && usage.other.is_empty());
                "extKeyUsage"
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                // RFC 5280 §4.2.1.6: critical where the subject is empty.
                assert!(names.general_names.len() == 1 && extension.critical);
                "subjectAltName"
            }
            ParsedExtension::AuthorityKeyIdentifier(_) => "aki",
            ParsedExtension::SubjectKeyIdentifier(_) => "ski",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn serial_numbers_are_random_and_lifetimes_bounded() {
    let (authority, key) = (authority(), WorkloadKey::generate().unwrap());
    let request = request(&key, WEB);
    let sign = |lifetime| {
        let chain = authority.sign_workload(&request, lifetime, NOW).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        (leaf.raw_serial().to_vec(), Validity::of(&chain[0]).unwrap().not_after - NOW)
    };
    let serials: HashSet<_> = (0..50).map(|_| sign(None).0).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 16 && serial[0] & 0x80 == 0), "positive, 16 bytes");
    for (wanted, given) in [
        (None, LIFETIME_MAX),
        (Some(HOUR), HOUR),
        (Some(100 * LIFETIME_MAX), LIFETIME_MAX),
        (Some(Duration::from_secs(1)), LIFETIME_MIN),
        (Some(Duration::MAX), LIFETIME_MAX),
    ] {
        assert_eq!(sign(wanted).1, given, "{wanted:?}");
    }
}

#[test]
fn nothing_outlives_what_is_above_it() {
    let root = CaCertificate::root(&domain(), NOW).unwrap();
    let end = NOW + ROOT_LIFETIME;
    let late = root.intermediate(&domain(), end - 2 * LIFETIME_MAX).unwrap();
    assert_eq!(Validity::of(&late.der).unwrap().not_after, end);
    assert_eq!(root.intermediate(&domain(), end).err(), Some(SignError::Ending { not_after: end }));
    let authority = Authority::new(domain(), late, vec![root.der], LIFETIME_MAX).unwrap();
    let key = WorkloadKey::generate().unwrap();
    let request = request(&key, WEB);
    let chain = authority.sign_workload(&request, None, end - HOUR).unwrap();
    assert_eq!(Validity::of(&chain[0]).unwrap().not_after, end);
    for now in [end - Duration::from_secs(30), end + HOUR] {
        let error = authority.sign_workload(&request, None, now).unwrap_err();
        assert_eq!(error, SignError::Ending { not_after: end });
    }
    assert!(matches!(authority.sign_workload(&request, None, NOW), Err(SignError::NotYet { .. })));
}

#[test]
fn a_node_is_named_in_its_certificate_not_by_its_request() {
    let (authority, key) = (authority(), WorkloadKey::generate().unwrap());
    let id = authority.agent_id().clone();
    let chain = authority.sign_node(&request(&key, id.as_str()), "node-a", "7f3a", None, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=node-a, serialNumber=7f3a");
    assert!(Credential::check(&id, key, chain, authority.roots().to_vec(), None, NOW).is_ok());
}

#[test]
fn a_server_certificate_has_the_names_istio_agents_look_for() {
    let authority = authority();
    let names = ["10.0.0.1".parse().unwrap(), "CA.heddle-system.svc".parse().unwrap(), "::1".parse().unwrap()];
    let made = authority.server_certificate(&names, NOW).unwrap();
    assert_eq!(made.renew_at, NOW + LIFETIME_MAX / 2);
    let (_, leaf) = X509Certificate::from_der(&made.certified.cert[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 4);
    for wrong in ["", "a b", "*.x", "-"] {
        assert!(wrong.parse::<ServerName>().is_err(), "{wrong}");
    }
}

/// A request as an attacker makes it.
fn csr(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn requests_for_more_than_one_id_are_refused_by_name() {
    let parse = |change: fn(&mut CertificateParams)| {
        SigningRequest::parse(&csr(change)).map(|request| request.id().to_string())
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    assert_eq!(parse(|_| {}), Ok(WEB.to_owned()), "the control");
    // What asks for nothing more is no attack.
    assert!(parse(|params| params.is_ca = IsCa::ExplicitNoCa).is_ok());
    assert!(parse(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]).is_ok());
    assert!(parse(|params| params.distinguished_name.push(DnType::CommonName, "admin")).is_ok(), "never copied");

    let two = parse(|params| params.subject_alt_names.push(SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap())));
    assert_eq!(two, Err(RequestError::Names("more than the one URI that is allowed")));
    let dns = parse(|params| params.subject_alt_names.push(SanType::DnsName("api.shop".try_into().unwrap())));
    assert_eq!(dns, Err(RequestError::Names("more than the one URI that is allowed")));
    let only_dns = parse(|params| params.subject_alt_names = vec![SanType::DnsName("api.shop".try_into().unwrap())]);
    assert_eq!(only_dns, Err(RequestError::Names("the one name must be a URI")));
    let none = parse(|params| params.subject_alt_names = Vec::new());
    assert_eq!(none, Err(RequestError::Names("missing: it holds the SPIFFE id")));
    let ca = parse(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(ca, Err(RequestError::Authority("basicConstraints CA:true")));
    let signs = parse(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    assert_eq!(signs, Err(RequestError::Authority("keyUsage keyCertSign or cRLSign")));
    let other = parse(|params| {
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    assert_eq!(other, Err(RequestError::Extension("1.2.3.4".into())));
    for id in ["spiffe://td/ns/shop", "https://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b?x", "SPIFFE://td/ns/a/sa/b"] {
        let der = csr(|params| params.subject_alt_names = vec![uri(id)]);
        assert!(matches!(SigningRequest::parse(&der), Err(RequestError::Id(_))), "{id}");
    }
}

#[test]
fn requests_with_another_key_or_a_broken_signature_are_refused() {
    let good = csr(|_| {});
    assert!(SigningRequest::parse(&good).is_ok(), "the control");
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(SigningRequest::parse(&broken).err(), Some(RequestError::Signature));
    // Another name under the same signature.
    let at = good.windows(8).position(|window| window == b"/shop/sa").unwrap();
    let mut renamed = good.clone();
    renamed[at + 1..at + 5].copy_from_slice(b"bank");
    assert_eq!(SigningRequest::parse(&renamed).err(), Some(RequestError::Signature));
    let mut long = good.clone();
    long.push(0);
    assert_eq!(SigningRequest::parse(&long).err(), Some(RequestError::Malformed));
    for cut in [0, 1, 10, good.len() / 2, good.len() - 1] {
        assert_eq!(SigningRequest::parse(&good[..cut]).err(), Some(RequestError::Malformed), "{cut}");
    }
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for key in [p384, ed25519] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        assert_eq!(SigningRequest::parse(&der).err(), Some(RequestError::Algorithm));
    }
    // Made by `openssl req -newkey rsa:2048 -subj / -addext subjectAltName=URI:…`.
    let rsa = include_str!("rsa_request.pem");
    assert_eq!(SigningRequest::parse_pem(rsa).err(), Some(RequestError::Algorithm));
    assert!(matches!(SigningRequest::parse(&vec![0x30; CSR_BYTES_MAX + 1]), Err(RequestError::TooLong(_))));
}

#[test]
fn no_bit_changes_what_is_asked_for() {
    let good = csr(|_| {});
    let read = SigningRequest::parse(&good).unwrap();
    let mut refused = 0;
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // What is outside the signature may be written in another way and mean the same.
        match SigningRequest::parse(&flipped) {
            Ok(same) => assert_eq!((same.id(), same.der_bytes()), (read.id(), read.der_bytes()), "bit {bit}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > good.len() * 8 - 40, "{refused} of {}", good.len() * 8);
}

#[test]
fn pem_is_one_request_and_nothing_else() {
    let good = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr(|_| {})));
    assert!(SigningRequest::parse_pem(&good).is_ok(), "the control");
    assert!(SigningRequest::parse_pem(&good.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")).is_ok());
    for wrong in ["", "x", &good.replace(" REQUEST", ""), &format!("{good}{good}"), &good[..good.len() / 2]] {
        assert_eq!(SigningRequest::parse_pem(wrong).err(), Some(RequestError::Pem), "{wrong}");
    }
    let long = "A".repeat(3 * CSR_BYTES_MAX);
    assert!(matches!(SigningRequest::parse_pem(&long), Err(RequestError::TooLong(_))));
}
