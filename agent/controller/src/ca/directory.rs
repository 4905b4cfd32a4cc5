//! The authority's directory. Every change is one rename; what was left behind by a killed command is cleared by the next.
//!
//! ```text
//! state.json         what signs, what is trusted, which phase   0600   the commit point of every rotation step
//! nodes.json         nodes and the hashes of their tokens       0600
//! root.pem           the roots to trust now, for agents         0644   follows from the state
//! g1/, g2/, …        one generation: root(-key).pem, intermediate(-key).pem, 0700
//! .lock              held by whoever changes something
//! ```
//!
//! Only the intermediate signs leaves. A root's key is read by the one command that signs with it, and may be kept elsewhere.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_identity::TrustDomain;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::authority::{Authority, CaCertificate, SignError, Validity, hex};
use super::files::{self, FileError, SecretFile};
use super::key::CaKey;
use super::nodes::{Nodes, NodesError};
use super::rotation::{RotateError, State};

const STATE: &str = "state.json";
const NODES: &str = "nodes.json";
/// The roots to trust now.
pub const BUNDLE: &str = "root.pem";
const LOCK: &str = ".lock";
const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate-key.pem";

/// What went wrong with a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Made already.
    #[error("{} holds an authority already (state.json is there)", .0.display())]
    Exists(PathBuf),
    /// Not made yet.
    #[error("{} holds no authority: `heddle ca init` makes one", .0.display())]
    Missing(PathBuf),
    /// A step that is not to be taken.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// Nodes.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// Signing.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A root was given to a step that takes none.
    #[error("`{0}` takes no root: --from-root-cert and --from-root-key are for `prepare` and `intermediate`")]
    RootNotTaken(&'static str),
    /// The root that was given is in force already: nothing would be rotated.
    #[error("the root given is that of {} already: for a new intermediate under it there is `intermediate`", .0.display())]
    SameRoot(PathBuf),
    /// The root that was given is not the one in force.
    #[error("the root given is not that of {}: for another root there is `prepare`", .0.display())]
    OtherRoot(PathBuf),
    /// The key is kept elsewhere.
    #[error("{} is not here: give the root and its key by --from-root-cert and --from-root-key", .0.display())]
    RootKeyElsewhere(PathBuf),
}

/// The directory, opened.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    #[cfg(test)]
    pub(super) crash: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

/// Everything in it, checked.
pub struct Contents {
    /// Where the rotation stands.
    pub state: State,
    /// Ready to sign.
    pub authority: Authority,
    /// Who may ask.
    pub nodes: Nodes,
    /// The certificates by generation: the signing one first.
    pub generations: Vec<Generation>,
}

/// One root with its intermediate, without keys.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// The root.
    pub root: CertificateDer<'static>,
    /// What signs, or signed.
    pub intermediate: CertificateDer<'static>,
}

/// What people may see of a CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFacts {
    /// Distinguished name.
    pub subject: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// First moment, since 1970.
    pub not_before: Duration,
    /// Last moment, since 1970.
    pub not_after: Duration,
    /// The last moment for people.
    pub not_after_text: String,
}

impl CaFacts {
    /// Of a certificate of a [`Generation`].
    ///
    /// # Errors
    /// It is none.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, SignError> {
        let validity = Validity::of(der)?;
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| SignError::Crypto("not a certificate".into()))?;
        Ok(Self {
            subject: certificate.subject().to_string(),
            serial: hex(certificate.raw_serial()),
            not_before: validity.not_before,
            not_after: validity.not_after,
            not_after_text: certificate.validity().not_after.to_string(),
        })
    }
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make another root and tell it to all.
    Prepare,
    /// Sign with it.
    Activate,
    /// Forget the old one.
    Finish,
    /// Forget the prepared one.
    Cancel,
    /// Another intermediate under the root that signs.
    Intermediate,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Finish => "finish",
            Self::Cancel => "cancel",
            Self::Intermediate => "intermediate",
        }
    }
}

/// A root made elsewhere, checked to be a CA that fits its key.
pub struct ImportedRoot(CaCertificate);

impl ImportedRoot {
    /// From files of PEM; the key's under the same rules as the authority's own.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, DirectoryError> {
        Ok(Self(read_ca(certificate, key)?))
    }
}

impl Directory {
    /// Names a directory; looks at nothing yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            #[cfg(test)]
            crash: std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an authority: a root, made here or `imported`, and an intermediate under it.
    ///
    /// # Errors
    /// There is one already, or a file cannot be written.
    pub fn init(
        &self,
        trust_domain: &TrustDomain,
        lifetime_max: Duration,
        imported: Option<ImportedRoot>,
        now: Duration,
    ) -> Result<(), DirectoryError> {
        match files::check_directory(&self.path) {
            Err(error) if error.is_not_found() => {
                let made = DirBuilder::new().mode(0o755).recursive(true).create(&self.path);
                made.map_err(|error| FileError::io("make", &self.path, error))?;
                files::check_directory(&self.path)?;
            }
            checked => checked?,
        }
        let _lock = self.lock()?;
        if self.path.join(STATE).exists() {
            return Err(DirectoryError::Exists(self.path.clone()));
        }
        let root = match imported {
            Some(ImportedRoot(root)) => root,
            None => CaCertificate::root(trust_domain, now)?,
        };
        self.write_generation(1, &root, RootKey::Kept, trust_domain, now)?;
        let state = State::new(trust_domain, lifetime_max, 1, now);
        self.write(NODES, Nodes::default().to_text().as_bytes(), 0o600)?;
        self.write(BUNDLE, pem_of(std::slice::from_ref(&root.der)).as_bytes(), 0o644)?;
        self.write(STATE, state.to_text().as_bytes(), 0o600)
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// What is wrong with which file, and in it with which field.
    pub fn load(&self) -> Result<Contents, DirectoryError> {
        let state = self.state()?;
        let trust_domain = state.trust_domain().map_err(|why| FileError::content(&self.path.join(STATE), why))?;
        let (active, intermediate) = self.read_generation(state.active())?;
        let mut generations = vec![active];
        if let Some(other) = state.other() {
            generations.push(self.read_generation(other)?.0);
        }
        let mut roots: Vec<_> = generations.iter().map(|generation| generation.root.clone()).collect();
        roots.dedup();
        let authority = Authority::new(trust_domain, intermediate, roots, state.lifetime_max())?;
        Ok(Contents { nodes: self.nodes()?, state, authority, generations })
    }

    /// Clears what a killed command left behind, and makes `root.pem` follow the state.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn repair(&self) -> Result<(), DirectoryError> {
        self.state()?;
        let _lock = self.lock()?;
        self.repair_locked(&self.state()?)
    }

    /// Makes a node's token; what the node had before counts no more.
    ///
    /// # Errors
    /// No name of a node, or a file that cannot be written.
    pub fn issue_token(&self, node: &str, now: Duration) -> Result<Zeroizing<String>, DirectoryError> {
        self.state()?;
        let _lock = self.lock()?;
        let mut nodes = self.nodes()?;
        let token = nodes.issue(node, now)?;
        self.write(NODES, nodes.to_text().as_bytes(), 0o600)?;
        Ok(token)
    }

    /// Makes a node's token and writes it into a file that only its owner may read, in the place of what was there. Whatever goes wrong,
    /// that file is whole: as it was, or with the new token.
    ///
    /// # Errors
    /// As [`Self::issue_token`]. The old token still counts then, but if the system fails between two renames.
    pub fn issue_token_into(&self, node: &str, now: Duration, out: &Path) -> Result<(), DirectoryError> {
        self.state()?;
        // Held to the end: of two who write the same file, one comes after the other.
        let _lock = self.lock()?;
        let mut nodes = self.nodes()?;
        let token = nodes.issue(node, now)?;
        // Allocated once: a string that grows leaves copies behind.
        let mut line = Zeroizing::new(String::with_capacity(token.len() + 1));
        line.extend([&**token, "\n"]);
        // All of it, before the old token is made void.
        let file = SecretFile::write(out, &line)?;
        self.checkpoint(out)?;
        self.write(NODES, nodes.to_text().as_bytes(), 0o600)?;
        Ok(file.publish()?)
    }

    /// Forgets a node.
    ///
    /// # Errors
    /// There is none of that name, or a file that cannot be written.
    pub fn revoke_token(&self, node: &str) -> Result<(), DirectoryError> {
        self.state()?;
        let _lock = self.lock()?;
        let mut nodes = self.nodes()?;
        nodes.revoke(node)?;
        self.write(NODES, nodes.to_text().as_bytes(), 0o600)
    }

    /// Takes one step of a rotation; answers where it stands then. `Intermediate` is signed by the root in force, whose key is `imported`
    /// where it is kept elsewhere, and stays elsewhere.
    ///
    /// # Errors
    /// The step is not to be taken now, or a file cannot be written.
    pub fn rotate(
        &self,
        step: Step,
        imported: Option<ImportedRoot>,
        now: Duration,
        force: bool,
    ) -> Result<State, DirectoryError> {
        self.state()?;
        let _lock = self.lock()?;
        let state = self.state()?;
        self.repair_locked(&state)?;
        let trust_domain = self.load()?.authority.trust_domain().clone();
        let number = state.unused();
        if imported.is_some() && !matches!(step, Step::Prepare | Step::Intermediate) {
            return Err(DirectoryError::RootNotTaken(step.as_str()));
        }
        let next = match step {
            Step::Prepare => {
                let next = state.prepare(number, now)?;
                let in_force = self.generation(state.active()).join(ROOT);
                let root = match imported {
                    // The same certificate, that is: one signed anew over the same key, to last longer, is another root.
                    Some(ImportedRoot(root)) if root.der == read_certificate(&in_force)? => {
                        return Err(DirectoryError::SameRoot(in_force));
                    }
                    Some(ImportedRoot(root)) => root,
                    None => CaCertificate::root(&trust_domain, now)?,
                };
                self.write_generation(number, &root, RootKey::Kept, &trust_domain, now)?;
                next
            }
            Step::Intermediate => {
                let directory = self.generation(state.active());
                let (certificate, key) = (directory.join(ROOT), directory.join(ROOT_KEY));
                let is_here = key.exists();
                let root = match imported {
                    Some(ImportedRoot(root)) if root.der != read_certificate(&certificate)? => {
                        return Err(DirectoryError::OtherRoot(certificate));
                    }
                    Some(ImportedRoot(root)) => root,
                    None if is_here => read_ca(&certificate, &key)?,
                    None => return Err(DirectoryError::RootKeyElsewhere(key)),
                };
                let kept = if is_here { RootKey::Kept } else { RootKey::Elsewhere };
                self.write_generation(number, &root, kept, &trust_domain, now)?;
                state.reissued(number)
            }
            Step::Activate => state.activate(now, force)?,
            Step::Finish => state.finish(now, force)?,
            Step::Cancel => state.cancel(now)?,
        };
        self.write(STATE, next.to_text().as_bytes(), 0o600)?;
        self.repair_locked(&next)?;
        Ok(next)
    }

    /// Changes whenever the state or the nodes do.
    #[must_use]
    pub fn stamp(&self) -> [Option<(u64, i64, i64)>; 2] {
        [STATE, NODES].map(|name| {
            let metadata = fs::metadata(self.path.join(name)).ok()?;
            Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        })
    }

    /// What every command begins with: whose directory it is, and what is in force.
    fn state(&self) -> Result<State, DirectoryError> {
        let path = self.path.join(STATE);
        let checked = files::check_directory(&self.path).and_then(|()| files::read_private(&path));
        let text = checked.map_err(|error| match error {
            error if error.is_not_found() => DirectoryError::Missing(self.path.clone()),
            error => error.into(),
        })?;
        Ok(State::parse(&text).map_err(|why| FileError::content(&path, why))?)
    }

    fn nodes(&self) -> Result<Nodes, DirectoryError> {
        let path = self.path.join(NODES);
        let text = files::read_private(&path)?;
        Ok(Nodes::parse(&text).map_err(|why| FileError::content(&path, why))?)
    }

    fn lock(&self) -> Result<File, DirectoryError> {
        let path = self.path.join(LOCK);
        // Its owner's only: whoever can open it could hold it for ever.
        let open = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        // Given back with the file, also when this process is killed.
        let locked = open.and_then(|file| file.lock().map(|()| file));
        Ok(locked.map_err(|error| FileError::io("lock", &path, error))?)
    }

    fn generation(&self, number: u64) -> PathBuf {
        self.path.join(format!("g{number}"))
    }

    fn read_generation(&self, number: u64) -> Result<(Generation, CaCertificate), DirectoryError> {
        let directory = self.generation(number);
        files::check_directory(&directory)?;
        let root = read_ca_certificate(&directory.join(ROOT))?;
        files::check_private(&directory.join(ROOT_KEY))?;
        let path = directory.join(INTERMEDIATE);
        let intermediate = read_ca(&path, &directory.join(INTERMEDIATE_KEY))?;
        check_signed_by(&path, &intermediate.der, &root)?;
        let generation = Generation { number, root, intermediate: intermediate.der.clone() };
        Ok((generation, intermediate))
    }

    /// Nothing refers to it before the state does.
    fn write_generation(
        &self,
        number: u64,
        root: &CaCertificate,
        root_key: RootKey,
        trust_domain: &TrustDomain,
        now: Duration,
    ) -> Result<(), DirectoryError> {
        let intermediate = root.intermediate(trust_domain, now)?;
        let directory = self.generation(number);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|error| FileError::io("remove", &directory, error))?;
        }
        self.checkpoint(&directory)?;
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|error| FileError::io("make", &directory, error))?;
        let write = |name: &str, bytes: &[u8], mode: u32| self.write_in(&directory, name, bytes, mode);
        write(ROOT, pem_of(std::slice::from_ref(&root.der)).as_bytes(), 0o644)?;
        if root_key == RootKey::Kept {
            write(ROOT_KEY, root.key.to_pem().as_bytes(), 0o600)?;
        }
        write(INTERMEDIATE, pem_of(std::slice::from_ref(&intermediate.der)).as_bytes(), 0o644)?;
        write(INTERMEDIATE_KEY, intermediate.key.to_pem().as_bytes(), 0o600)?;
        Ok(())
    }

    fn repair_locked(&self, state: &State) -> Result<(), DirectoryError> {
        let numbers: BTreeSet<u64> = [Some(state.active()), state.other()].into_iter().flatten().collect();
        let mut roots = Vec::new();
        for number in [Some(state.active()), state.other()].into_iter().flatten() {
            roots.push(read_certificate(&self.generation(number).join(ROOT))?);
        }
        roots.dedup();
        let (bundle, path) = (pem_of(&roots), self.path.join(BUNDLE));
        if fs::read(&path).ok().as_deref() != Some(bundle.as_bytes()) {
            self.write(BUNDLE, bundle.as_bytes(), 0o644)?;
        }
        // Only now: nobody is told to trust them any more.
        let entries = fs::read_dir(&self.path).map_err(|error| FileError::io("read", &self.path, error))?;
        for entry in entries.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_prefix('g').and_then(|number| number.parse().ok());
            let is_left = number.is_some_and(|number: u64| !numbers.contains(&number));
            let removed = if is_left {
                self.checkpoint(&path)?;
                fs::remove_dir_all(&path)
            } else if files::is_temporary(name) {
                fs::remove_file(&path)
            } else {
                Ok(())
            };
            removed.map_err(|error| FileError::io("remove", &path, error))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), DirectoryError> {
        self.write_in(&self.path, name, bytes, mode)
    }

    fn write_in(&self, directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), DirectoryError> {
        let temporary = files::write_temporary(directory, name, bytes, mode)?;
        self.checkpoint(&temporary)?;
        files::publish(directory, name, &temporary)?;
        self.checkpoint(&directory.join(name))
    }

    /// Tests end the process here, as it were.
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "does something in tests")]
    fn checkpoint(&self, _before: &Path) -> Result<(), DirectoryError> {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::SeqCst;
            let left = self.crash.load(SeqCst);
            if left == 0 {
                return Err(FileError::io("reach", _before, std::io::Error::other("killed here by the test")).into());
            }
            self.crash.store(left.saturating_sub(usize::from(left != usize::MAX)), SeqCst);
        }
        Ok(())
    }
}

/// Where the key of a generation's root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RootKey {
    /// Beside its certificate.
    Kept,
    /// The operator took it away.
    Elsewhere,
}

/// A certificate and its key, each in a file of PEM, that belong together.
fn read_ca(certificate: &Path, key: &Path) -> Result<CaCertificate, DirectoryError> {
    let der = read_ca_certificate(certificate)?;
    let pem = files::read_private(key)?;
    let pair =
        CaKey::from_pem(&pem).map_err(|error| FileError::content(key, format_args!("no private key: {error}")))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| FileError::content(certificate, "not X.509"))?;
    if *parsed.public_key().subject_public_key.data != *pair.der_bytes() {
        let why = format!("the key is not that of {}", certificate.display());
        return Err(FileError::content(key, why).into());
    }
    Ok(CaCertificate { der, key: pair })
}

fn read_ca_certificate(path: &Path) -> Result<CertificateDer<'static>, DirectoryError> {
    let der = read_certificate(path)?;
    let is_ca = X509Certificate::from_der(&der).is_ok_and(|(_, parsed)| parsed.is_ca());
    if is_ca {
        Ok(der)
    } else {
        Err(FileError::content(path, "not a CA certificate (basicConstraints CA:true)").into())
    }
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, DirectoryError> {
    let pem = files::read(path)?;
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
    let one = found.next().ok_or_else(|| FileError::content(path, "no CERTIFICATE in PEM"))?;
    let one = one.map_err(|error| FileError::content(path, format_args!("not PEM: {error}")))?;
    if found.next().is_some() {
        return Err(FileError::content(path, "more than one certificate").into());
    }
    let parsed = X509Certificate::from_der(&one);
    if !parsed.is_ok_and(|(rest, _)| rest.is_empty()) {
        return Err(FileError::content(path, "not an X.509 certificate").into());
    }
    Ok(one)
}

fn check_signed_by(path: &Path, lower: &[u8], upper: &[u8]) -> Result<(), DirectoryError> {
    let signed = X509Certificate::from_der(lower).ok().zip(X509Certificate::from_der(upper).ok());
    let is_signed = signed.is_some_and(|((_, lower), (_, upper))| {
        lower.issuer() == upper.subject() && lower.verify_signature(Some(upper.public_key())).is_ok()
    });
    if is_signed { Ok(()) } else { Err(FileError::content(path, "not signed by the root.pem beside it").into()) }
}

/// Certificates as PEM, in lines as OpenSSL writes them.
#[must_use]
pub fn pem_of(certificates: &[CertificateDer<'static>]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let encode = |der: &CertificateDer<'_>| pem::encode_config(&Pem::new("CERTIFICATE", der.to_vec()), config);
    certificates.iter().map(encode).collect()
}

#[cfg(test)]
mod tests;
