//! The privileged side: loads and pins the eBPF programs, enrols pods, makes sockets inside their network namespaces,
//! and speaks the keeper protocol. The only host crate with `unsafe`.
//!
//! [`keeper`] is the process, [`client`] what others call it with, [`agent`] what an agent does with the map fds it was
//! handed, [`enrol`] the plan and its executor, [`kernel`] programs, links and maps, [`keys`] the
//! memory in which keys outlive an agent. Nothing here parses a tenant's bytes.

pub mod agent;
pub mod client;
mod diag;
pub mod enrol;
pub mod error;
pub mod keeper;
pub mod kernel;
pub mod keys;
pub mod netns;
pub mod node;
pub mod object;
mod sys;
pub mod wire;

pub use error::DatapathError;
