//! A CA's private key, and its way between PEM and AWS-LC: every copy that is made on it here is overwritten when it is dropped.
//!
//! The `pem` crate and rcgen's own PEM leave text and bytes of a key behind in freed memory, so neither is used for keys.
//! `tests/authority/key_memory.rs` searches the whole process for what is left.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivateKeyDer;
use zeroize::{Zeroize, Zeroizing};

use super::authority::SignError;

/// What a private key is called in PEM: PKCS#8 (RFC 7468 §10), SEC 1 (RFC 5915), PKCS#1 (RFC 8017).
const LABELS: [&str; 3] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
/// Characters of a line of PEM (RFC 7468 §2).
const LINE: usize = 64;

/// Why a text is no key. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyTextError {
    /// No block of one of [`LABELS`].
    #[error("no PEM of a PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY")]
    Missing,
    /// Nobody is there to ask for the password.
    #[error("encrypted: write it without a password, into a file that only its owner may read")]
    Encrypted,
    /// The block does not end, or holds something else.
    #[error("not base64 between BEGIN and END")]
    Base64,
    /// Not a key, or of a kind that is not signed with.
    #[error("not a key that can sign: ECDSA, Ed25519 or RSA in PKCS#8, SEC 1 or PKCS#1")]
    Key,
}

/// A CA's private key: overwritten when dropped, as every reload drops one.
pub struct CaKey(KeyPair);

impl CaKey {
    pub(super) fn generate() -> Result<Self, SignError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// From PKCS#8, SEC 1 or PKCS#1 in PEM; what else stands in the text does not matter.
    pub(super) fn from_pem(text: &str) -> Result<Self, KeyTextError> {
        let der = decode(text)?;
        KeyPair::try_from(der.as_slice()).map(Self).map_err(|_| KeyTextError::Key)
    }

    /// In the form it came in, PKCS#8 for one that was made here.
    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        let der = self.0.serialized_der();
        let label = match PrivateKeyDer::try_from(der) {
            Ok(PrivateKeyDer::Sec1(_)) => "EC PRIVATE KEY",
            Ok(PrivateKeyDer::Pkcs1(_)) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        encode(label, der)
    }
}

impl Drop for CaKey {
    fn drop(&mut self) {
        // What AWS-LC holds beside it is overwritten by AWS-LC.
        self.0.zeroize();
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// The bytes of the first private key in a text of PEM.
fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyTextError> {
    let block = LABELS.iter().find_map(|label| {
        let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
        Some(rest.split_once(&format!("-----END {label}-----")).map(|(body, _)| body))
    });
    let is_encrypted =
        text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED");
    let body = match block {
        _ if is_encrypted => return Err(KeyTextError::Encrypted),
        Some(body) => body.ok_or(KeyTextError::Base64)?,
        None => return Err(KeyTextError::Missing),
    };
    // Both allocated once: a vector that grows leaves copies behind.
    let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
    digits.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(digits.len())]);
    let length = STANDARD.decode_slice(&*digits, &mut der).map_err(|_| KeyTextError::Base64)?;
    der.truncate(length);
    Ok(der)
}

/// A key in PEM, in lines as OpenSSL writes them.
fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let length = der.len().div_ceil(3) * 4;
    let mut digits = Zeroizing::new(vec![0; length]);
    // Cannot fail: there is room for every one.
    let written = STANDARD.encode_slice(der, &mut digits).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(length + length / LINE + 2 * label.len() + 40));
    let room = text.capacity();
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in digits[..written].chunks(LINE) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    debug_assert_eq!(text.capacity(), room, "allocated once");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> Option<KeyTextError> {
        CaKey::from_pem(text).err()
    }

    #[test]
    fn a_key_comes_back_as_it_was_written() {
        for key in [CaKey::generate().unwrap(), CaKey(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap())] {
            let text = key.to_pem();
            assert_eq!(*text, key.0.serialize_pem(), "as rcgen writes it");
            let again = CaKey::from_pem(&text).unwrap();
            assert_eq!((again.der_bytes(), &*again.to_pem()), (key.der_bytes(), &*text));
            assert!(again.sign(b"message").is_ok());
            // As other programs write them: other ends of line, and things around.
            let around =
                format!("# a key\n-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n{}", *text);
            for text in [text.replace('\n', "\r\n"), around, text.trim_end().to_owned()] {
                assert_eq!(CaKey::from_pem(&text).unwrap().der_bytes(), key.der_bytes());
            }
        }
    }

    #[test]
    fn sec1_stays_sec1() {
        let key = CaKey::generate().unwrap();
        let before = [0x02, 0x01, 0x01, 0x04, 0x20];
        let der = key.0.serialized_der();
        let at = der.windows(5).position(|window| window == before).unwrap();
        // RFC 5915 §3: version, key, P-256, public key.
        let head = [&[0x30, 0x77], &der[at..at + 37], &[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]];
        let sec1 = [&head.concat()[..], &[0xa1, 0x44, 0x03, 0x42, 0x00], key.der_bytes()].concat();
        let text = encode("EC PRIVATE KEY", &sec1);
        let again = CaKey::from_pem(&text).unwrap();
        assert_eq!((again.der_bytes(), &*again.to_pem()), (key.der_bytes(), &*text));
    }

    #[test]
    fn what_is_no_key_says_why_and_nothing_of_itself() {
        let good = CaKey::generate().unwrap().to_pem();
        let encrypted = good.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let old = good.replace("-----\nM", "-----\nProc-Type: 4,ENCRYPTED\nM");
        for (text, error) in [
            ("", KeyTextError::Missing),
            ("no key", KeyTextError::Missing),
            (&good.replace("PRIVATE", "PUBLIC"), KeyTextError::Missing),
            (&encrypted, KeyTextError::Encrypted),
            (&old, KeyTextError::Encrypted),
            (&good[..good.len() / 2], KeyTextError::Base64),
            (&good.replace("-----END", "!-----END"), KeyTextError::Base64),
            ("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", KeyTextError::Key),
            (&encode("PRIVATE KEY", b"nonsense"), KeyTextError::Key),
        ] {
            assert_eq!(error_of(text), Some(error), "{text:.40}");
        }
        assert_eq!(error_of(&good), None, "the control");
    }
}
