//! What is read from files: the roots of the first contact, and the node's token.

use std::fmt;
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

/// What an authority's clients read from files, opened once: after that, what cannot be read any more, because privileges were given up,
/// is still known. Cloning shares it.
#[derive(Clone)]
pub struct CaFiles {
    pub(super) roots: Arc<RootFile>,
    pub(super) token: Arc<Token>,
}

impl CaFiles {
    /// Reads both.
    ///
    /// # Errors
    /// One that cannot be read or used, by name.
    pub fn open(root_file: &Path, token_file: &Path) -> Result<Self> {
        Ok(Self { roots: Arc::new(RootFile::open(root_file)?), token: Arc::new(Token::open(token_file)?) })
    }
}

impl fmt::Debug for CaFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "roots of {}, token of {}", self.roots.path.display(), self.token.path.display())
    }
}

/// The roots of the first contact, with the file they are from.
pub(super) struct RootFile {
    path: PathBuf,
    certificates: Mutex<Vec<CertificateDer<'static>>>,
}

impl RootFile {
    fn open(path: &Path) -> Result<Self> {
        let what = || format!("root file {}", path.display());
        let certificates = read_roots(path).with_context(what)?;
        Roots::new(certificates.clone()).with_context(what)?;
        Ok(Self { path: path.to_owned(), certificates: Mutex::new(certificates) })
    }

    /// The roots in it now, and those in `more`.
    pub(super) fn roots(&self, more: Option<&Roots>) -> Result<Arc<Roots>> {
        let fresh = read_roots(&self.path);
        let mut known = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(fresh) = fresh {
            *known = fresh;
        }
        let mut certificates = known.clone();
        certificates.extend(more.iter().flat_map(|roots| roots.certificates().iter().cloned()));
        Ok(Arc::new(Roots::new(certificates).with_context(|| format!("root file {}", self.path.display()))?))
    }
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    let certificates: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| anyhow!("not PEM: {error}"))?;
    ensure!(!certificates.is_empty(), "no certificate in it");
    Ok(certificates)
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
