//! Certificate signing requests, read strictly: what a caller gets past here is a key and the one id it asks for.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use heddle_identity::SpiffeId;
use heddle_identity::spiffe::SpiffeError;
use rcgen::PublicKeyData;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

/// Largest request in DER; one of an agent has about 250 bytes.
pub const CSR_BYTES_MAX: usize = 16 * 1024;

/// Why a request is not signed, whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than [`CSR_BYTES_MAX`].
    #[error("csr: {0} bytes, more than {CSR_BYTES_MAX}")]
    TooLong(usize),
    /// Not what it should be at all.
    #[error("csr: not a PKCS#10 request in DER")]
    Malformed,
    /// Not PEM.
    #[error("csr: not PEM of one CERTIFICATE REQUEST")]
    Pem,
    /// Another kind of key, curve or hash.
    #[error("csr: the key must be ECDSA P-256 and the signature ECDSA with SHA-256")]
    Algorithm,
    /// Who asks does not hold the key.
    #[error("csr: the signature is not that of the key in it")]
    Signature,
    /// None, or several, or more than a URI.
    #[error("csr: subjectAltName: {0}")]
    Names(&'static str),
    /// No id of this mesh.
    #[error("csr: subjectAltName: the URI is no SPIFFE id: {0}")]
    Id(#[from] SpiffeError),
    /// It wants to be an authority.
    #[error("csr: {0}: a workload is no certificate authority")]
    Authority(&'static str),
    /// What this authority does not know it does not grant.
    #[error("csr: extension {0} is not granted")]
    Extension(String),
}

/// A request that holds: whoever made it has the key, and asks for one id. Made by [`SigningRequest::parse`] only.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    id: SpiffeId,
    point: Vec<u8>,
}

impl SigningRequest {
    /// Reads PKCS#10 in DER.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(RequestError::TooLong(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        let info = &request.certification_request_info;
        let key = &info.subject_pki;
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
            || curve != Some(OID_EC_P256)
            || request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
        {
            return Err(RequestError::Algorithm);
        }
        let point = key.subject_public_key.data.to_vec();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| RequestError::Signature)?;
        let uri = only_uri(&request)?;
        Ok(Self { id: uri.parse()?, point })
    }

    /// Reads PKCS#10 in PEM.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse_pem(text: &str) -> Result<Self, RequestError> {
        if text.len() > 2 * CSR_BYTES_MAX {
            return Err(RequestError::TooLong(text.len()));
        }
        let blocks = pem::parse_many(text).map_err(|_| RequestError::Pem)?;
        let [block] = &blocks[..] else { return Err(RequestError::Pem) };
        if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(RequestError::Pem);
        }
        Self::parse(block.contents())
    }

    /// The id asked for.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

impl PublicKeyData for SigningRequest {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

fn only_uri<'a>(request: &'a X509CertificationRequest<'_>) -> Result<&'a str, RequestError> {
    let mut found = None;
    for attribute in request.certification_request_info.iter_attributes() {
        let extensions = match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => &requested.extensions,
            // A challenge password and the like ask for nothing.
            _ => continue,
        };
        for extension in extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    let name = match &names.general_names[..] {
                        [GeneralName::URI(uri)] => *uri,
                        [] => return Err(RequestError::Names("no name in it")),
                        [_] => return Err(RequestError::Names("the one name must be a URI")),
                        _ => return Err(RequestError::Names("more than the one URI that is allowed")),
                    };
                    if found.replace(name).is_some() {
                        return Err(RequestError::Names("there twice"));
                    }
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return Err(RequestError::Authority("basicConstraints CA:true"));
                }
                ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                    return Err(RequestError::Authority("keyUsage keyCertSign or cRLSign"));
                }
                // Wishes the authority does not read: every certificate gets the same usages and its own key identifiers.
                ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectKeyIdentifier(_) => {}
                _ => return Err(RequestError::Extension(extension.oid.to_string())),
            }
        }
    }
    found.ok_or(RequestError::Names("missing: it holds the SPIFFE id"))
}
