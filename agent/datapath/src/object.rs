//! The compiled eBPF programs inside this binary.

use crate::error::DatapathError;

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/heddle-ebpf.o")));

/// The ELF object, or how to get a binary that has one.
///
/// # Errors
/// This binary was built without the eBPF programs.
pub fn bytes() -> Result<&'static [u8], DatapathError> {
    if OBJECT.0.is_empty() { Err(DatapathError::NoPrograms) } else { Ok(&OBJECT.0) }
}
