//! The authority itself: keys, certificates and the rules by which it signs. No files and no clock: what it is made of and the time come in.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_identity::spiffe::SpiffeError;
use heddle_identity::{SpiffeId, TrustDomain, WorkloadKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::key::CaKey;
use super::names;
use super::request::SigningRequest;

/// How long before its issue a certificate begins: clocks differ.
pub const BACKDATED: Duration = Duration::from_secs(60);
/// Longest lifetime of a leaf unless the directory's state says less.
pub const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Shortest lifetime given.
pub const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// Lifetime of a root made here.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Lifetime of an intermediate, if its root lasts that long.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// The attribute `serialNumber` of a name, which is not the certificate's serial number.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The signing certificate ends, or has ended.
    #[error(
        "the authority's intermediate certificate ends at {} (unix time), too soon to sign anything: rotate it",
        not_after.as_secs()
    )]
    Ending {
        /// Its last moment, since 1970.
        not_after: Duration,
    },
    /// The clock is before the beginning of the signing certificate.
    #[error("the authority's intermediate certificate begins only at {} (unix time): compare clocks", not_before.as_secs())]
    NotYet {
        /// Its first moment, since 1970.
        not_before: Duration,
    },
    /// The system gave no randomness, or memory.
    #[error("signing failed: {0}")]
    Crypto(String),
    /// A name that cannot stand in a certificate.
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    /// The trust domain leaves no room.
    #[error("trust domain: {0}")]
    TrustDomain(#[from] SpiffeError),
}

impl From<rcgen::Error> for SignError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// A CA certificate with its key.
pub struct CaCertificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) key: CaKey,
}

impl CaCertificate {
    /// A new root.
    ///
    /// # Errors
    /// No randomness.
    pub fn root(trust_domain: &TrustDomain, now: Duration) -> Result<Self, SignError> {
        let key = CaKey::generate()?;
        let name = format!("Heddle root {trust_domain} {}", hex(&random::<4>()?));
        let mut params = ca_params(&name, BasicConstraints::Unconstrained, now)?;
        params.not_after = time(now + ROOT_LIFETIME).into();
        let der = params.self_signed(&key)?.der().clone();
        Ok(Self { der, key })
    }

    /// An intermediate under this one: signs leaves only, and does not outlive what is above it.
    ///
    /// # Errors
    /// No randomness, or this one is at its end.
    pub fn intermediate(&self, trust_domain: &TrustDomain, now: Duration) -> Result<Self, SignError> {
        let own = Validity::of(&self.der)?;
        if own.not_after < now + LIFETIME_MAX {
            return Err(SignError::Ending { not_after: own.not_after });
        }
        let key = CaKey::generate()?;
        let name = format!("Heddle intermediate {trust_domain} {}", hex(&random::<4>()?));
        let mut params = ca_params(&name, BasicConstraints::Constrained(0), now.max(own.not_before))?;
        params.not_after = time((now + INTERMEDIATE_LIFETIME).min(own.not_after)).into();
        params.use_authority_key_identifier_extension = true;
        let der = params.signed_by(&key, &Issuer::from_ca_cert_der(&self.der, &self.key)?)?.der().clone();
        Ok(Self { der, key })
    }
}

/// First and last moment, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: Duration,
    pub(super) not_after: Duration,
}

impl Validity {
    pub(super) fn of(der: &[u8]) -> Result<Self, SignError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| SignError::Crypto("not a certificate".into()))?;
        let validity = certificate.validity();
        let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Self {
            not_before: since(validity.not_before.timestamp()),
            not_after: since(validity.not_after.timestamp()),
        })
    }
}

/// Signs for one trust domain with one intermediate.
pub struct Authority {
    trust_domain: TrustDomain,
    agent_id: SpiffeId,
    authority_id: SpiffeId,
    issuer: Issuer<'static, CaKey>,
    intermediate: CertificateDer<'static>,
    validity: Validity,
    roots: Vec<CertificateDer<'static>>,
    lifetime_max: Duration,
}

impl Authority {
    /// Signs with `intermediate` and tells `roots` to be trusted: the one above it, and during a rotation another.
    ///
    /// # Errors
    /// A certificate that is none.
    pub fn new(
        trust_domain: TrustDomain,
        intermediate: CaCertificate,
        roots: Vec<CertificateDer<'static>>,
        lifetime_max: Duration,
    ) -> Result<Self, SignError> {
        Ok(Self {
            agent_id: names::agent_id(&trust_domain)?,
            authority_id: names::authority_id(&trust_domain)?,
            trust_domain,
            validity: Validity::of(&intermediate.der)?,
            issuer: Issuer::from_ca_cert_der(&intermediate.der, intermediate.key)?,
            intermediate: intermediate.der,
            roots,
            lifetime_max,
        })
    }

    /// Whose identities are signed.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What every agent is called.
    #[must_use]
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent_id
    }

    /// To be trusted now.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// A workload's certificate: its id and nothing else. Who may have it was decided before.
    ///
    /// # Errors
    /// The authority's certificate is at its end, or no randomness.
    pub fn sign_workload(
        &self,
        request: &SigningRequest,
        lifetime: Option<Duration>,
        now: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.sign(request, leaf_params(request.id())?, lifetime, now)
    }

    /// An agent's certificate for the authority: the agent's id, the node's name as common name, and as the subject's serial number (RFC
    /// 5280 §4.1.2.4, what tells apart who has the same name) the mark of the token it is got by.
    ///
    /// # Errors
    /// As [`Self::sign_workload`], or a mark that is no PrintableString.
    pub fn sign_node(
        &self,
        request: &SigningRequest,
        node: &str,
        token_mark: &str,
        lifetime: Option<Duration>,
        now: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let mut params = leaf_params(&self.agent_id)?;
        params.distinguished_name.push(DnType::CommonName, node);
        let mark = token_mark.try_into().map_err(|_| SignError::Name(token_mark.to_owned()))?;
        params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), DnValue::PrintableString(mark));
        self.sign(request, params, lifetime, now)
    }

    /// The authority's own server certificate: its id, and the names Istio's agents know servers by.
    ///
    /// # Errors
    /// As [`Self::sign_workload`], or a name that cannot be in a certificate.
    pub fn server_certificate(
        &self,
        server_names: &[ServerName],
        now: Duration,
    ) -> Result<ServerCertificate, SignError> {
        let key = WorkloadKey::generate().map_err(|error| SignError::Crypto(error.to_string()))?;
        let mut params = leaf_params(&self.authority_id)?;
        for name in server_names {
            params.subject_alt_names.push(match name {
                ServerName::Address(address) => SanType::IpAddress(*address),
                ServerName::Dns(name) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|_| SignError::Name(name.clone()))?)
                }
            });
        }
        let chain = self.sign(&key, params, None, now)?;
        let renew_at = now + (Validity::of(&chain[0])?.not_after.saturating_sub(now)) / 2;
        Ok(ServerCertificate { certified: Arc::new(CertifiedKey::new(chain, Arc::new(key))), renew_at })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        mut params: CertificateParams,
        lifetime: Option<Duration>,
        now: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let Validity { not_before, not_after } = self.validity;
        if now < not_before {
            return Err(SignError::NotYet { not_before });
        }
        let wanted = lifetime.unwrap_or(self.lifetime_max);
        let end = (now + wanted.max(LIFETIME_MIN).min(self.lifetime_max)).min(not_after);
        if end < now + LIFETIME_MIN.min(self.lifetime_max) {
            return Err(SignError::Ending { not_after });
        }
        params.not_before = time(now.saturating_sub(BACKDATED).max(not_before)).into();
        params.not_after = time(end).into();
        params.serial_number = Some(serial()?);
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        Ok(vec![leaf, self.intermediate.clone()])
    }
}

/// A name besides the SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// An IP address.
    Address(std::net::IpAddr),
    /// A host name.
    Dns(String),
}

impl std::str::FromStr for ServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match rustls::pki_types::DnsName::try_from(text) {
            Ok(_) => Ok(Self::Dns(text.to_ascii_lowercase())),
            Err(_) => Err(format!("`{text}` is neither an IP address nor a host name")),
        }
    }
}

/// What the authority's server presents.
pub struct ServerCertificate {
    /// Chain and key.
    pub certified: Arc<CertifiedKey>,
    /// When to make the next one, since 1970.
    pub renew_at: Duration,
}

fn leaf_params(id: &SpiffeId) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = id.as_str().try_into().map_err(|_| SignError::Name(id.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca_params(name: &str, constraints: BasicConstraints, now: Duration) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    params.not_before = time(now.saturating_sub(BACKDATED)).into();
    Ok(params)
}

/// 126 random bits, positive and never zero.
fn serial() -> Result<SerialNumber, SignError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], SignError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SignError::Crypto("the system gave no randomness".into()))?;
    Ok(bytes)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn time(at: Duration) -> SystemTime {
    UNIX_EPOCH + at
}

#[cfg(test)]
mod tests;
