//! Certificate authorities of tests: the mesh's own root in the test's hands, and those of strangers.
//!
//! What the product's CA would never sign, an attacker's certificate has to be made from: another trust domain, another time,
//! no id or two. All keys are ECDSA P-256, all files PEM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// The trust domain of a mesh that sets none.
pub const TRUST_DOMAIN: &str = "cluster.local";

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
#[must_use]
pub fn spiffe_id(namespace: &str, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

/// A root with one intermediate that signs.
#[derive(Debug)]
pub struct Authority {
    root: Certificate,
    root_key: KeyPair,
    intermediate: Certificate,
    signs: Issuer<'static, KeyPair>,
}

/// What is to stand in a certificate; good unless something is changed.
#[derive(Clone, Debug)]
pub struct Claims {
    uris: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The files of a credential, as programs take them.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Leaf and intermediate.
    pub chain: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// The root that signed it.
    pub root: PathBuf,
}

/// A certificate for this id, valid from a minute ago for an hour.
#[must_use]
pub fn claims(id: &str) -> Claims {
    let now = SystemTime::now();
    Claims { uris: vec![id.to_owned()], not_before: now - MINUTE, not_after: now + HOUR }
}

impl Claims {
    /// It ended a minute ago.
    #[must_use]
    pub fn expired(self) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - HOUR, not_after: now - MINUTE, ..self }
    }

    /// It begins in half an hour.
    #[must_use]
    pub fn not_yet_valid(self) -> Self {
        Self { not_before: SystemTime::now() + HOUR / 2, ..self }
    }

    /// It names this id as well.
    #[must_use]
    pub fn and(mut self, id: &str) -> Self {
        self.uris.push(id.to_owned());
        self
    }

    /// It names nobody.
    #[must_use]
    pub fn of_nobody(self) -> Self {
        Self { uris: Vec::new(), ..self }
    }
}

impl Authority {
    /// A new root of this name, with an intermediate.
    ///
    /// # Errors
    /// A key cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let root_key = KeyPair::generate().context("root key")?;
        let params = authority(name)?;
        let root = params.self_signed(&root_key).context("root certificate")?;
        let above = Issuer::new(params, &root_key);
        let key = KeyPair::generate().context("intermediate key")?;
        let params = authority(&format!("{name} intermediate"))?;
        let intermediate = params.signed_by(&key, &above).context("intermediate certificate")?;
        Ok(Self { root, root_key, intermediate, signs: Issuer::new(params, key) })
    }

    /// The root as PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// Writes `root.pem` and `root-key.pem` into a directory, for `heddle ca init --from-root-cert --from-root-key`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_root(&self, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (directory.join("root.pem"), directory.join("root-key.pem"));
        write(&certificate, &self.root_pem(), 0o644)?;
        write(&key, &self.root_key.serialize_pem(), 0o600)?;
        Ok((certificate, key))
    }

    /// Signs a certificate with a key of its own, and writes `<name>.pem`, `<name>-key.pem` and `<name>-root.pem`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn issue(&self, directory: &Path, name: &str, claims: &Claims) -> anyhow::Result<Credential> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in &claims.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().context("URI SAN")?));
        }
        (params.not_before, params.not_after) = (claims.not_before.into(), claims.not_after.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("leaf key")?;
        let leaf = params.signed_by(&key, &self.signs).context("leaf certificate")?;
        let file = |suffix: &str| directory.join(format!("{name}{suffix}.pem"));
        let credential = Credential { chain: file(""), key: file("-key"), root: file("-root") };
        write(&credential.chain, &(leaf.pem() + &self.intermediate.pem()), 0o644)?;
        // Readable by the peers, whoever they run as; keys of tests are nobody's secrets.
        write(&credential.key, &key.serialize_pem(), 0o644)?;
        write(&credential.root, &self.root_pem(), 0o644)?;
        Ok(credential)
    }
}

fn authority(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - 2 * HOUR).into(), (now + 48 * HOUR).into());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let set = || {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    set().with_context(|| format!("write {}", path.display()))
}
