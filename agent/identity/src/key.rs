//! Private keys: ECDSA P-256, made in this process, never printed, never written anywhere but into the keeper's memory ([`crate::export`]).
//!
//! The secret lives inside AWS-LC, whose allocator overwrites every block it frees; copies made for the export are overwritten on drop.
//! `tests/identity/key_memory.rs` searches the whole process for what is left.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SanType};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use zeroize::Zeroizing;

use crate::spiffe::SpiffeId;

/// The cryptographic library refused; it does so only when the system gives no randomness or no memory, or for bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key could be made.
    #[error("no private key could be made: the system gave no randomness or memory")]
    Generate,
    /// The signature of a certificate signing request failed.
    #[error("the certificate signing request could not be made")]
    Request,
    /// The bytes are not an ECDSA P-256 key in PKCS#8.
    #[error("not an ECDSA P-256 private key in PKCS#8")]
    Parse,
}

/// One private key. Cloning shares it.
#[derive(Clone)]
pub struct WorkloadKey(Arc<EcdsaKeyPair>);

impl WorkloadKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Generate)?;
        Ok(Self(Arc::new(pair)))
    }

    /// PKCS#10 with the id as only name: no subject, no other extension.
    pub fn certificate_request(&self, id: &SpiffeId) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(|_| KeyError::Request)?)];
        let request = params.serialize_request(self).map_err(|_| KeyError::Request)?;
        Ok(request.der().to_vec())
    }

    /// The public half as an uncompressed point, as it stands in a certificate.
    #[must_use]
    pub fn public_point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// For the keeper's memory only: the one way a secret leaves AWS-LC.
    pub(crate) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let document = self.0.to_pkcs8v1().map_err(|_| KeyError::Parse)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// From the keeper's memory.
    pub(crate) fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, bytes).map_err(|_| KeyError::Parse)?;
        Ok(Self(Arc::new(pair)))
    }

    fn sign_message(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec())
    }
}

impl fmt::Debug for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadKey")
    }
}

impl PublicKeyData for WorkloadKey {
    fn der_bytes(&self) -> &[u8] {
        self.public_point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for WorkloadKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_message(message).ok_or(rcgen::Error::RemoteKeyError)
    }
}

impl SigningKey for WorkloadKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for WorkloadKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.sign_message(message).ok_or_else(|| rustls::Error::General("signing failed".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

    use super::*;

    #[test]
    fn a_request_names_the_uri_and_nothing_else() {
        let key = WorkloadKey::generate().unwrap();
        let id: SpiffeId = "spiffe://td/ns/shop/sa/web".parse().unwrap();
        let der = key.certificate_request(&id).unwrap();
        let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        let info = &request.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(&*info.subject_pki.subject_public_key.data, key.public_point());
        let extensions: Vec<_> = request.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = &extensions[..] else {
            panic!("{extensions:?}");
        };
        assert_eq!(names.general_names, [GeneralName::URI("spiffe://td/ns/shop/sa/web")]);
    }

    #[test]
    fn a_key_survives_export_and_prints_nothing() {
        let key = WorkloadKey::generate().unwrap();
        let again = WorkloadKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();
        assert_eq!(again.public_point(), key.public_point());
        assert_eq!(format!("{key:?}"), "WorkloadKey");
        assert_eq!(WorkloadKey::from_pkcs8(b"garbage").unwrap_err(), KeyError::Parse);
        assert_ne!(WorkloadKey::generate().unwrap().public_point(), key.public_point());
    }
}
