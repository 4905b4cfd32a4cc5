//! Keys and certificates as bytes for the keeper's memory, so that a restarted agent serves at once. Nothing of this ever meets a disk.
//!
//! Layout, integers big-endian: magic `HEDDLEID`, version (u16), count (u16), then per account: id, key (PKCS#8), chain, roots;
//! at the end SHA-256 of everything before. A text or key is a u16 length and bytes; a list of certificates is a u8 count, each
//! certificate a u16 length and DER. Another version is refused, not guessed at: the agent then asks its issuer, as at a first start.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::bundle::BundleStore;
use crate::credential::{Credential, CredentialError};
use crate::key::WorkloadKey;
use crate::spiffe::SpiffeId;

const MAGIC: &[u8; 8] = b"HEDDLEID";
const VERSION: u16 = 1;
/// Largest export: as many accounts as a store holds, with more than 3 KiB for each. What is larger is not parsed.
pub const EXPORT_BYTES_MAX: usize = 15 << 20;

/// Why nothing was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A field does not fit.
    #[error("too large to export")]
    TooLarge,
    /// The cryptographic library did not give a key.
    #[error("a key could not be exported")]
    Key,
}

/// Why bytes are no export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Not ours, or empty memory.
    #[error("not an export of identities")]
    Magic,
    /// Of another agent version.
    #[error("export of version {0}, this agent reads version 1")]
    Version(u16),
    /// Half written, or changed.
    #[error("the checksum does not fit")]
    Checksum,
    /// The checksum fits and the fields do not.
    #[error("malformed at byte {0}")]
    Malformed(usize),
    /// Larger than [`EXPORT_BYTES_MAX`].
    #[error("larger than 15 MiB")]
    TooLarge,
}

/// What goes into the keeper's memory. Overwritten when dropped.
pub struct Export {
    bytes: Zeroizing<Vec<u8>>,
    /// Accounts there was no room for: after a restart their certificates have to be asked for.
    pub left_out: usize,
}

impl std::ops::Deref for Export {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of an export", self.bytes.len())
    }
}

/// An account of an export that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The id as it stood there.
    pub id: String,
    /// Why.
    pub why: String,
}

/// One account as parsed, before anything in it is believed. The key is borrowed from the input and copied nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// SPIFFE id.
    pub id: &'a str,
    key: &'a [u8],
    /// DER, the leaf first.
    pub chain: Vec<&'a [u8]>,
    /// DER.
    pub roots: Vec<&'a [u8]>,
}

/// An account refused for the times of its certificate alone: maybe it is this node's clock that is wrong. Not used, and not lost.
pub(crate) struct Untimely {
    pub(crate) id: SpiffeId,
    key: Zeroizing<Vec<u8>>,
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

impl Untimely {
    fn of(id: SpiffeId, record: &Record<'_>) -> Self {
        let own = |list: &[&[u8]]| list.iter().map(|der| der.to_vec()).collect();
        Self { id, key: Zeroizing::new(record.key.to_vec()), chain: own(&record.chain), roots: own(&record.roots) }
    }

    /// The certificate, if the clock of now takes it.
    pub(crate) fn check(&self, bundles: &BundleStore, now: Duration) -> Option<Credential> {
        check(&self.record(), bundles, now).ok()?.1.ok()
    }

    fn record(&self) -> Record<'_> {
        let [chain, roots] = [&self.chain, &self.roots].map(|list| list.iter().map(Vec::as_slice).collect());
        Record { id: self.id.as_str(), key: &self.key, chain, roots }
    }
}

/// What an export brought, account by account.
#[derive(Default)]
pub(crate) struct Decoded {
    pub(crate) credentials: Vec<Credential>,
    pub(crate) untimely: Vec<Untimely>,
    pub(crate) refused: Vec<Refused>,
}

/// Parses without believing: no clock, no cryptography but the checksum.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record<'_>>, ImportError> {
    if bytes.len() > EXPORT_BYTES_MAX {
        return Err(ImportError::TooLarge);
    }
    if !bytes.starts_with(MAGIC) {
        return Err(ImportError::Magic);
    }
    let Some((body, checksum)) = bytes.split_last_chunk::<SHA256_OUTPUT_LEN>() else {
        return Err(ImportError::Checksum);
    };
    let mut reader = Reader { bytes: body, at: MAGIC.len() };
    let version = reader.u16()?;
    if version != VERSION {
        return Err(ImportError::Version(version));
    }
    if digest(&SHA256, body).as_ref() != checksum {
        return Err(ImportError::Checksum);
    }
    let count = reader.u16()?;
    let mut records = Vec::new();
    for _ in 0..count {
        let at = reader.at;
        let id = std::str::from_utf8(reader.field()?).map_err(|_| ImportError::Malformed(at))?;
        records.push(Record { id, key: reader.field()?, chain: reader.list()?, roots: reader.list()? });
    }
    if reader.at == body.len() { Ok(records) } else { Err(ImportError::Malformed(reader.at)) }
}

/// As many as there is room for, those that come first and then the untimely.
pub(crate) fn encode(
    credentials: &[&Credential],
    untimely: &[&Untimely],
    bytes_max: usize,
) -> Result<Export, ExportError> {
    let mut keys = Vec::with_capacity(credentials.len());
    for credential in credentials {
        keys.push(credential.key().to_pkcs8().map_err(|_| ExportError::Key)?);
    }
    let mut records = Vec::new();
    for (credential, key) in credentials.iter().zip(&keys) {
        let lists = [credential.chain(), credential.roots().certificates()];
        let [chain, roots] = lists.map(|list| list.iter().map(|der| &**der).collect());
        records.push(Record { id: credential.facts().id.as_str(), key, chain, roots });
    }
    records.extend(untimely.iter().map(|untimely| untimely.record()));
    let (all, mut size, mut count) = (records.len(), MAGIC.len() + 2 + 2 + SHA256_OUTPUT_LEN, 0_u16);
    records.retain(|record| {
        let Some(count_with) = count.checked_add(1) else { return false };
        let fits = record.size().is_some_and(|bytes| size + bytes <= bytes_max);
        if fits {
            size += record.size().unwrap_or_default();
            count = count_with;
        }
        fits
    });
    records.sort_unstable_by(|a, b| a.id.cmp(b.id));
    Ok(Export { bytes: write(&records, size)?, left_out: all - records.len() })
}

impl Record<'_> {
    /// In bytes; `None` if a length does not fit into its field.
    fn size(&self) -> Option<usize> {
        let field = |bytes: &[u8]| (bytes.len() <= u16::MAX.into()).then_some(2 + bytes.len());
        let list = |list: &[&[u8]]| {
            let within = u8::try_from(list.len()).is_ok();
            within.then(|| list.iter().try_fold(1, |sum, der| Some(sum + field(der)?))).flatten()
        };
        Some(field(self.id.as_bytes())? + field(self.key)? + list(&self.chain)? + list(&self.roots)?)
    }
}

fn write(records: &[Record<'_>], size: usize) -> Result<Zeroizing<Vec<u8>>, ExportError> {
    // Allocated once: a vector that grows leaves copies of keys behind.
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&u16::try_from(records.len()).map_err(|_| ExportError::TooLarge)?.to_be_bytes());
    for record in records {
        write_field(&mut out, record.id.as_bytes())?;
        write_field(&mut out, record.key)?;
        write_list(&mut out, &record.chain)?;
        write_list(&mut out, &record.roots)?;
    }
    let checksum = digest(&SHA256, &out);
    out.extend_from_slice(checksum.as_ref());
    debug_assert_eq!(out.len(), size);
    Ok(out)
}

/// Parses and checks each account as if it had just been issued.
pub(crate) fn decode(bytes: &[u8], bundles: &BundleStore, now: Duration) -> Result<Decoded, ImportError> {
    let mut decoded = Decoded::default();
    for record in parse(bytes)? {
        let why = match check(&record, bundles, now) {
            Ok((id, Err(error))) => {
                if matches!(error, CredentialError::Times(_)) {
                    decoded.untimely.push(Untimely::of(id, &record));
                }
                error.to_string()
            }
            Ok((_, Ok(credential))) => {
                decoded.credentials.push(credential);
                continue;
            }
            Err(why) => why,
        };
        decoded.refused.push(Refused { id: record.id.escape_default().take(300).collect(), why });
    }
    Ok(decoded)
}

type Checked = (SpiffeId, Result<Credential, CredentialError>);

fn check(record: &Record<'_>, bundles: &BundleStore, now: Duration) -> Result<Checked, String> {
    let id: SpiffeId = record.id.parse().map_err(|why| format!("no identity: {why}"))?;
    let key = WorkloadKey::from_pkcs8(record.key).map_err(|why| why.to_string())?;
    let own = |list: &[&[u8]]| list.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let trusted = bundles.authoritative(id.trust_domain());
    let checked = Credential::check(&id, key, own(&record.chain), own(&record.roots), trusted.as_deref(), now);
    Ok((id, checked))
}

fn write_field(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ExportError> {
    out.extend_from_slice(&u16::try_from(bytes.len()).map_err(|_| ExportError::TooLarge)?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn write_list(out: &mut Vec<u8>, list: &[&[u8]]) -> Result<(), ExportError> {
    out.push(u8::try_from(list.len()).map_err(|_| ExportError::TooLarge)?);
    list.iter().try_for_each(|der| write_field(out, der))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ImportError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..length));
        let taken = taken.ok_or(ImportError::Malformed(self.at))?;
        self.at += length;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, ImportError> {
        let bytes = self.take(2)?;
        Ok(u16::from(bytes[0]) << 8 | u16::from(bytes[1]))
    }

    fn field(&mut self) -> Result<&'a [u8], ImportError> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn list(&mut self) -> Result<Vec<&'a [u8]>, ImportError> {
        let count = self.take(1)?[0];
        (0..count).map(|_| self.field()).collect()
    }
}
