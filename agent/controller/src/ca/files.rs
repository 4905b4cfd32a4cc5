//! Files of the authority: read only as their owner's, written by rename.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use zeroize::Zeroizing;

/// Largest file read.
const BYTES_MAX: u64 = 4 << 20;
const TEMPORARY: &str = ".tmp.";

/// A file that cannot be used, by name.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner can get at it.
    #[error("{} has mode {mode:04o}: {why}; chmod {fix} it", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they let others do.
        why: &'static str,
        /// What they should be.
        fix: &'static str,
    },
    /// It is another user's.
    #[error("{} belongs to user {owner}, not to user {user} who runs this: chown it, or run as its owner", path.display())]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Who runs.
        user: u32,
    },
    /// What is in it.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl FileError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }

    pub(super) fn content(path: &Path, why: impl fmt::Display) -> Self {
        Self::Content { path: path.to_owned(), why: why.to_string() }
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A file that anybody may read.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read_to_end(path, |_| Ok(()))
}

/// A file that only its owner may read and who runs this must own.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read_to_end(path, |metadata| check_owners_only(path, metadata))
}

/// A file that nobody reads now, and only its owner may, if there is one.
pub(super) fn check_private(path: &Path) -> Result<(), FileError> {
    match fs::metadata(path) {
        Ok(metadata) => check_owners_only(path, &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::io("look at", path, error)),
    }
}

fn check_owners_only(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    check_owner(path, metadata)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let why = "others than its owner may read or change it";
        return Err(FileError::Mode { path: path.to_owned(), mode, why, fix: "600" });
    }
    Ok(())
}

/// Who may write into a directory may exchange what is in it, and who may change a link what it leads to.
pub(super) fn check_directory(path: &Path) -> Result<(), FileError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| FileError::io("read", path, error))?;
    if metadata.is_symlink() {
        return Err(FileError::content(path, "a symbolic link: name the directory itself"));
    }
    if !metadata.is_dir() {
        return Err(FileError::content(path, "not a directory"));
    }
    check_owner(path, &metadata)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let why = "others than its owner may change what is in it";
        return Err(FileError::Mode { path: path.to_owned(), mode, why, fix: "go-w" });
    }
    Ok(())
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner == user { Ok(()) } else { Err(FileError::Owner { path: path.to_owned(), owner, user }) }
}

fn read_to_end(
    path: &Path,
    check: impl FnOnce(&fs::Metadata) -> Result<(), FileError>,
) -> Result<Zeroizing<String>, FileError> {
    let failed = |error| FileError::io("read", path, error);
    let file = File::open(path).map_err(failed)?;
    // Of the file that is read, not of what the name may mean a moment later.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::content(path, "not a file"));
    }
    check(&metadata)?;
    let mut text = Zeroizing::new(String::new());
    // Enough at once: a buffer that grows leaves copies behind.
    text.reserve(usize::try_from(metadata.len().min(BYTES_MAX)).unwrap_or(0) + 1);
    match file.take(BYTES_MAX + 1).read_to_string(&mut text) {
        Ok(bytes) if bytes as u64 > BYTES_MAX => Err(FileError::content(path, "larger than 4 MiB")),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(FileError::content(path, "not text (UTF-8)")),
        Err(error) => Err(failed(error)),
    }
}

/// Writes what is to become `name`, down to the disk.
pub(super) fn write_temporary(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    let path = directory.join(format!("{TEMPORARY}{name}"));
    let write = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&path)?;
        // Whatever the umask is: roots are for all to read.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&path);
        FileError::io("write", &path, error)
    })?;
    Ok(path)
}

/// The temporary file becomes `name`, at once and for good.
pub(super) fn publish(directory: &Path, name: &str, temporary: &Path) -> Result<(), FileError> {
    let path = directory.join(name);
    let publish = || {
        fs::rename(temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    publish().map_err(|error| FileError::io("write", &path, error))
}

/// A file that only its owner may read, for who runs this to take elsewhere. It is on the disk beside the file it is to replace, which stays
/// as it is until [`Self::publish`]; dropped before, nothing has happened.
pub(super) struct SecretFile {
    directory: PathBuf,
    name: String,
    temporary: PathBuf,
}

impl SecretFile {
    /// # Errors
    /// There is something at `path` that is no file, or what the system says.
    pub(super) fn write(path: &Path, text: &str) -> Result<Self, FileError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| FileError::content(path, "not the name of a file"))?;
        // A link, a device: a rename would put the file in its place.
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => return Err(FileError::content(path, "is there and is no file")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FileError::io("write", path, error)),
            _ => {}
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = write_temporary(directory, name, text.as_bytes(), 0o600)?;
        Ok(Self { directory: directory.to_owned(), name: name.to_owned(), temporary })
    }

    /// Takes its place.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn publish(self) -> Result<(), FileError> {
        publish(&self.directory, &self.name, &self.temporary)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // Not there any more once it was published.
        let _ = fs::remove_file(&self.temporary);
    }
}

pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}
