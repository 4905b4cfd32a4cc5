//! What a leaf certificate says, read strictly: exactly one SPIFFE id, no CA, usages that fit.
//!
//! Rules beyond X.509 are those of the X.509-SVID standard (§2, §4, §5.2).

use std::fmt::Write;
use std::time::Duration;

use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::Oid;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_SERIALNUMBER};
use x509_parser::prelude::FromDer;

use crate::failure::Refusal;
use crate::spiffe::SpiffeId;

/// When a certificate is valid, as time since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Duration,
    /// Last moment.
    pub not_after: Duration,
}

/// What people may see of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose.
    pub id: SpiffeId,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// From when until when.
    pub validity: Validity,
    /// Distinguished name of who signed it.
    pub issuer: String,
}

impl CertificateFacts {
    /// Reads a leaf, with all checks that need no roots and no clock: what a verified peer says of itself, in the one way that it is read.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn read(der: &[u8]) -> Result<(Self, Subject), Refusal> {
        let leaf = Leaf::parse(der)?;
        Ok((leaf.facts(), leaf.subject()))
    }
}

/// What a leaf's subject says, of attributes that stand there once. Workloads have none; an authority tells nodes apart by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `CN`.
    pub common_name: Option<String>,
    /// The attribute `serialNumber`, which is not the certificate's serial number (RFC 5280 §4.1.2.4).
    pub serial_number: Option<String>,
}

/// A leaf as it was read: its facts, and what the checks of the issuer's answer need.
#[derive(Debug)]
pub(crate) struct Leaf<'a> {
    certificate: X509Certificate<'a>,
    pub(crate) id: SpiffeId,
    /// Whether it carries names besides the id.
    pub(crate) has_other_names: bool,
}

impl<'a> Leaf<'a> {
    /// Reads and checks all that needs no roots and no clock.
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, Refusal> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| Refusal::bad("not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(Refusal::bad("bytes follow the certificate"));
        }
        let mut names = None;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(_) if names.is_some() => {
                    return Err(Refusal::bad("two subjectAltName extensions"));
                }
                ParsedExtension::SubjectAlternativeName(found) => names = Some(found),
                ParsedExtension::BasicConstraints(found) if found.ca => {
                    return Err(Refusal::bad("a CA certificate is no workload's certificate"));
                }
                ParsedExtension::KeyUsage(found) if found.key_cert_sign() || found.crl_sign() => {
                    return Err(Refusal::bad("key usage of a CA (keyCertSign or cRLSign) on a leaf"));
                }
                ParsedExtension::KeyUsage(found) if !found.digital_signature() => {
                    return Err(Refusal::bad("key usage without digitalSignature"));
                }
                ParsedExtension::ParseError { .. } => {
                    return Err(Refusal::bad(format!("extension {} cannot be read", extension.oid)));
                }
                _ => {}
            }
        }
        let names = names.map(|names| &names.general_names[..]).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (uri, more) = (uris.next(), uris.count());
        let uri = uri.ok_or_else(|| Refusal::bad("no URI in subjectAltName, so no SPIFFE id"))?;
        if more > 0 {
            return Err(Refusal::bad(format!("{} URIs in subjectAltName where one is allowed", more + 1)));
        }
        // A URI that is no UTF-8 counts as a name of another kind with x509-parser; together with a good one it is refused here.
        if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(Refusal::bad("a name in subjectAltName cannot be read"));
        }
        let id = uri.parse().map_err(|why| Refusal::bad(format!("{} is no identity: {why}", shortened(uri))))?;
        let has_other_names = names.len() > 1;
        Ok(Self { certificate, id, has_other_names })
    }

    pub(crate) fn public_point(&self) -> &[u8] {
        &self.certificate.public_key().subject_public_key.data
    }

    pub(crate) fn validity(&self) -> Validity {
        let validity = self.certificate.validity();
        Validity {
            not_before: since_epoch(validity.not_before.timestamp()),
            not_after: since_epoch(validity.not_after.timestamp()),
        }
    }

    fn subject(&self) -> Subject {
        let only = |attribute: &Oid<'_>| {
            let mut values = self.certificate.subject().iter_by_oid(attribute);
            match (values.next(), values.next()) {
                (Some(one), None) => one.as_str().ok().map(str::to_owned),
                _ => None,
            }
        };
        Subject { common_name: only(&OID_X509_COMMON_NAME), serial_number: only(&OID_X509_SERIALNUMBER) }
    }

    pub(crate) fn facts(&self) -> CertificateFacts {
        let mut serial = String::new();
        for byte in self.certificate.raw_serial() {
            let _ = write!(serial, "{byte:02x}");
        }
        CertificateFacts {
            id: self.id.clone(),
            serial,
            validity: self.validity(),
            issuer: self.certificate.issuer().to_string(),
        }
    }
}

/// The last moment of a CA certificate; an error unless it is one.
pub(crate) fn read_ca(der: &[u8]) -> Result<Duration, &'static str> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "not an X.509 certificate")?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate");
    }
    if !certificate.is_ca() {
        return Err("not a CA certificate");
    }
    Ok(since_epoch(certificate.validity().not_after.timestamp()))
}

fn since_epoch(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// For messages: a name somebody else wrote, never long and never with control characters.
fn shortened(text: &str) -> String {
    let start: String = text.chars().take(120).flat_map(char::escape_default).collect();
    if text.chars().nth(120).is_some() { format!("`{start}…`") } else { format!("`{start}`") }
}
