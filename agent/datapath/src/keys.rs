//! Keys in memory only: a sealed memfd that the keeper holds while no agent runs.
//!
//! The agent writes it with [`seal`] and reads it with [`read`]; the keeper reads nothing, it locks the pages ([`Kept`]) so that they are
//! never swapped out. Neither process can be dumped ([`never_dump`]).

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, munmap};
use nix::sys::prctl;
use zeroize::Zeroizing;

use crate::error::DatapathError;

/// Bytes of key memory, at most: what an agent has to keep is 15 MiB and the roots. The keeper locks as many pages as are given, no more.
pub const KEYS_BYTES_MAX: usize = 16 << 20;

/// What must be sealed before the keeper keeps it: what is kept is what was given.
const SEALS: SealFlag =
    SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// No core dump and no reading of this process's memory by others of its user.
///
/// # Errors
/// The kernel refuses.
pub fn never_dump() -> Result<(), DatapathError> {
    prctl::set_dumpable(false).map_err(DatapathError::errno("make this process undumpable"))
}

/// Key memory that holds `bytes`, and can never be changed or executed.
///
/// # Errors
/// More than [`KEYS_BYTES_MAX`], or the kernel refuses.
pub fn seal(bytes: &[u8]) -> Result<OwnedFd, DatapathError> {
    let what = "key memory";
    if bytes.len() > KEYS_BYTES_MAX {
        return Err(no_room(bytes.len() as u64));
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let no_exec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    // Kernels before 6.3 do not know that flag.
    let memory = memfd_create(c"heddle-keys", flags | no_exec)
        .or_else(|_| memfd_create(c"heddle-keys", flags))
        .map_err(DatapathError::errno(what))?;
    let mut memory = File::from(memory);
    memory.write_all(bytes).map_err(DatapathError::io(what))?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SEALS)).map_err(DatapathError::errno("seal key memory"))?;
    Ok(memory.into())
}

/// What key memory holds. Overwritten when dropped.
///
/// # Errors
/// It is larger than [`KEYS_BYTES_MAX`], or cannot be read.
pub fn read(memory: OwnedFd) -> Result<Zeroizing<Vec<u8>>, DatapathError> {
    let memory = File::from(memory);
    let size = memory.metadata().map_err(DatapathError::io("key memory"))?.len();
    let fits = usize::try_from(size).ok().filter(|size| *size <= KEYS_BYTES_MAX);
    let size = fits.ok_or_else(|| no_room(size))?;
    let mut bytes = Zeroizing::new(vec![0; size]);
    memory.read_exact_at(&mut bytes, 0).map_err(DatapathError::io("read key memory"))?;
    Ok(bytes)
}

fn no_room(bytes: u64) -> DatapathError {
    let source = io::Error::other(format!("no room for {bytes} bytes: it holds {KEYS_BYTES_MAX}"));
    DatapathError::Io { what: "key memory".into(), source }
}

/// Why key memory is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// Not what [`seal`] makes.
    #[error("keys: {0}")]
    Malformed(&'static str),
    /// More than [`KEYS_BYTES_MAX`].
    #[error("keys: no room for {0} bytes: key memory holds {KEYS_BYTES_MAX}")]
    TooLarge(i64),
    /// The kernel refuses.
    #[error("keys: {0}")]
    Kernel(nix::errno::Errno),
}

/// Key memory that is kept, with its pages locked as long as this lives.
#[derive(Debug)]
pub struct Kept {
    memory: OwnedFd,
    /// Held for the lock.
    _pages: Option<Pages>,
}

impl Kept {
    /// Keeps it, if it is sealed.
    ///
    /// # Errors
    /// Not sealed key memory, too large, or the kernel refuses.
    pub fn new(memory: OwnedFd) -> Result<Self, KeepError> {
        let seals = fcntl(&memory, FcntlArg::F_GET_SEALS).map_err(|_| KeepError::Malformed("not a memfd"))?;
        if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
            return Err(KeepError::Malformed("the memfd must be sealed (write, shrink, grow, seal)"));
        }
        let size = nix::sys::stat::fstat(&memory).map_err(KeepError::Kernel)?.st_size;
        let fits = usize::try_from(size).ok().filter(|size| *size <= KEYS_BYTES_MAX);
        let length = fits.ok_or(KeepError::TooLarge(size))?;
        let pages = NonZeroUsize::new(length).and_then(|length| match Pages::lock(memory.as_fd(), length) {
            Ok(pages) => Some(pages),
            Err(error) => {
                tracing::warn!(%error, "keys could be swapped out: their memory cannot be locked");
                None
            }
        });
        Ok(Self { memory, _pages: pages })
    }

    /// Another descriptor of it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.memory.try_clone()
    }
}

/// A mapping that keeps pages in memory and out of dumps. Nothing reads through it.
#[derive(Debug)]
struct Pages {
    at: NonNull<std::ffi::c_void>,
    length: usize,
}

// SAFETY: the address is not used to read or write, only to unmap: any thread may.
unsafe impl Send for Pages {}

impl Pages {
    fn lock(memory: BorrowedFd<'_>, length: NonZeroUsize) -> nix::Result<Self> {
        // SAFETY: a new mapping where the kernel likes; nobody has a reference into it. Its seals keep the file from shrinking below it.
        let at = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, memory, 0)? };
        let pages = Self { at, length: length.get() };
        // SAFETY: the range is the mapping just made, which `pages` owns.
        unsafe {
            madvise(pages.at, pages.length, MmapAdvise::MADV_DONTDUMP)?;
            mlock(pages.at, pages.length)?;
        }
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping, used by nobody else.
        if let Err(error) = unsafe { munmap(self.at, self.length) } {
            tracing::error!(%error, "unmap key memory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_be_kept_read_and_not_changed() {
        let memory = seal(b"secret").expect("seal");
        let seals = SealFlag::from_bits_retain(fcntl(&memory, FcntlArg::F_GET_SEALS).expect("seals"));
        assert!(seals.contains(SEALS), "{seals:?}");
        assert_eq!(seals.bits() & 0x20, 0x20, "F_SEAL_EXEC: it can never be made executable");
        let kept = Kept::new(memory).expect("kept");
        assert!(kept._pages.is_some(), "its pages are locked");
        for _ in 0..2 {
            let shared = kept.share().expect("a descriptor");
            let writable = File::from(shared.try_clone().expect("a descriptor"));
            assert!(writable.write_at(b"forged", 0).is_err() && writable.set_len(0).is_err());
            assert_eq!(&read(shared).expect("read")[..], b"secret");
        }
    }

    #[test]
    fn a_process_that_never_dumps_says_so() {
        // In a process of its own: cargo nextest runs each test so.
        assert!(prctl::get_dumpable().expect("dumpable"), "positive control");
        never_dump().expect("prctl");
        assert!(!prctl::get_dumpable().expect("dumpable"));
    }

    #[test]
    fn nothing_else_is_kept() {
        let file = File::open("/dev/null").expect("open");
        assert_eq!(Kept::new(file.into()).expect_err("a file"), KeepError::Malformed("not a memfd"));
        let open = memfd_create(c"open", MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        assert!(Kept::new(open).expect_err("unsealed").to_string().contains("sealed"));
        assert!(Kept::new(seal(b"").expect("seal")).is_ok(), "empty, with nothing to lock");
        let large = seal(&vec![0; KEYS_BYTES_MAX + 1]).expect_err("too large").to_string();
        assert!(large.contains("key memory: no room for 16777217 bytes: it holds 16777216"), "{large}");
    }
}
