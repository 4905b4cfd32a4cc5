//! What key memory holds: the store's export, and the roots that the authority said last. The latter change long before any certificate
//! does: without them an agent that starts in the middle of a rotation, with nobody to ask, would not know the peers of the new root.
//!
//! Layout, integers big-endian: magic `HEDDLEKM`, version (u16), count of trust domains (u16), per domain its name (u16 length), count of
//! roots (u16) and each root's DER (u32 length); the rest is the export, which has a checksum of its own.

use heddle_datapath::keys::KEYS_BYTES_MAX;
use heddle_identity::export::EXPORT_BYTES_MAX;
use heddle_identity::{Roots, TrustDomain};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"HEDDLEKM";
const VERSION: u16 = 1;
// Beside the largest export there is room for the roots.
const _: () = assert!(EXPORT_BYTES_MAX + (1 << 20) <= KEYS_BYTES_MAX);

/// Parsed key memory: the export is borrowed, keys are copied nowhere.
pub struct Contents<'a> {
    pub roots: Vec<(TrustDomain, Roots)>,
    pub export: &'a [u8],
}

/// Writes it. `None` if a part is too large for its length.
pub fn encode(roots: &[(TrustDomain, &Roots)], export: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_be_bytes());
    head.extend_from_slice(&u16::try_from(roots.len()).ok()?.to_be_bytes());
    for (domain, roots) in roots {
        head.extend_from_slice(&u16::try_from(domain.as_str().len()).ok()?.to_be_bytes());
        head.extend_from_slice(domain.as_str().as_bytes());
        head.extend_from_slice(&u16::try_from(roots.certificates().len()).ok()?.to_be_bytes());
        for root in roots.certificates() {
            head.extend_from_slice(&u32::try_from(root.len()).ok()?.to_be_bytes());
            head.extend_from_slice(root);
        }
    }
    // Allocated once: a vector that grows leaves copies of keys behind.
    let mut whole = Zeroizing::new(Vec::with_capacity(head.len() + export.len()));
    whole.extend_from_slice(&head);
    whole.extend_from_slice(export);
    Some(whole)
}

/// Reads it.
///
/// # Errors
/// Not key memory of this version, or malformed.
pub fn decode(bytes: &[u8]) -> Result<Contents<'_>, String> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or("not key memory of an agent")?;
    let version = u16::from_be_bytes(take(&mut rest)?);
    if version != VERSION {
        return Err(format!("key memory of version {version}, this agent reads {VERSION}"));
    }
    let mut roots = Vec::new();
    for _ in 0..u16::from_be_bytes(take(&mut rest)?) {
        let length = u16::from_be_bytes(take(&mut rest)?);
        let name = std::str::from_utf8(take_slice(&mut rest, length.into())?).map_err(|error| error.to_string())?;
        let domain: TrustDomain = name.parse().map_err(|error| format!("trust domain: {error}"))?;
        let mut certificates = Vec::new();
        for _ in 0..u16::from_be_bytes(take(&mut rest)?) {
            let length = u32::from_be_bytes(take(&mut rest)?);
            let length = usize::try_from(length).map_err(|error| error.to_string())?;
            certificates.push(take_slice(&mut rest, length)?.to_vec().into());
        }
        roots.push((domain, Roots::new(certificates).map_err(|error| error.to_string())?));
    }
    Ok(Contents { roots, export: rest })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or("key memory ends early")?;
    *rest = left;
    Ok(*taken)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, left) = rest.split_at_checked(length).ok_or("key memory ends early")?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Roots {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = heddle_controller::ca::Directory::new(directory.path().join("ca"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let domain = "cluster.local".parse().expect("a domain");
        authority.init(&domain, std::time::Duration::from_secs(3600), None, now).expect("init");
        let pem = std::fs::read(authority.path().join("root.pem")).expect("root.pem");
        use rustls::pki_types::pem::PemObject;
        let certificates: Result<Vec<_>, _> = rustls::pki_types::CertificateDer::pem_slice_iter(&pem).collect();
        Roots::new(certificates.expect("PEM")).expect("roots")
    }

    #[test]
    fn what_goes_in_comes_out_and_anything_else_is_refused() {
        let (domain, roots): (TrustDomain, _) = ("cluster.local".parse().expect("a domain"), root());
        let bytes = encode(&[(domain.clone(), &roots)], b"export").expect("fits");
        let contents = decode(&bytes).expect("ours");
        assert_eq!(contents.export, b"export");
        assert_eq!(contents.roots, [(domain, roots)]);
        let nothing = encode(&[], b"").expect("fits");
        assert!(decode(&nothing).is_ok_and(|c| c.roots.is_empty() && c.export.is_empty()));
        let head = bytes.len() - b"export".len();
        for end in 0..head {
            assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut other = bytes.to_vec();
        other[9] = 9;
        assert!(decode(&other).err().is_some_and(|why| why.contains("version 9")));
        assert!(decode(b"HEDDLEID").is_err());
        for at in 10..head {
            // Never a panic; what is still a root is one.
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x55;
            let _ = decode(&changed);
        }
    }
}
