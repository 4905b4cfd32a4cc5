//! Sources that write the Snapshot: they watch where objects come from, and publish what changed, batched.
//!
//! [`reducer`] turns objects into a model delta and is pure; [`files`] reads a directory. Later sources (controller,
//! Kubernetes) feed the same reducer.
#![forbid(unsafe_code)]

pub mod files;
mod overruled;
mod policies;
pub mod reducer;
mod routing;

pub use files::{FilesError, FilesSource, FilesStatus};
pub use reducer::Reducer;
