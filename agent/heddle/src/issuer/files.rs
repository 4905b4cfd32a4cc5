//! What is read from files: the roots of the first contact, and the node's token.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use heddle_identity::Roots;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// The roots in a file of PEM, and those in `more`.
pub(super) fn roots(path: &Path, more: Option<&Roots>) -> Result<Arc<Roots>> {
    let what = || format!("root file {}", path.display());
    let pem = std::fs::read(path).with_context(what)?;
    let certificates: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let mut certificates = certificates.map_err(|error| anyhow!("not PEM: {error}")).with_context(what)?;
    ensure!(!certificates.is_empty(), "{}: no certificate in it", what());
    certificates.extend(more.iter().flat_map(|roots| roots.certificates().iter().cloned()));
    Ok(Arc::new(Roots::new(certificates).with_context(what)?))
}

/// The node's token, with the file it is from: tokens are renewed there.
pub(super) struct Token {
    path: PathBuf,
    bearer: Mutex<MetadataValue<Ascii>>,
}

impl Token {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bearer = read(path).with_context(|| format!("token file {}", path.display()))?;
        Ok(Self { path: path.to_owned(), bearer: Mutex::new(bearer) })
    }

    /// As it stands in the metadata of a call; kept out of what is printed.
    pub(super) fn bearer(&self) -> MetadataValue<Ascii> {
        // What cannot be read any more, after privileges were given up, is still known. A kubelet renews such files.
        let fresh = read(&self.path);
        let mut bearer = self.bearer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(fresh) = fresh {
            *bearer = fresh;
        }
        bearer.clone()
    }
}

fn read(path: &Path) -> Result<MetadataValue<Ascii>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        bail!("mode {mode:04o}: others than its owner may read or change it; chmod 600 it");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= TOKEN_BYTES_MAX, "longer than {TOKEN_BYTES_MAX} bytes");
    let token = text.trim();
    ensure!(!token.is_empty(), "is empty");
    let mut bearer: MetadataValue<Ascii> =
        Zeroizing::new(format!("Bearer {token}")).parse().context("holds characters that are in no token")?;
    bearer.set_sensitive(true);
    Ok(bearer)
}
