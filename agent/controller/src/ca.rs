//! The certificate authority.

pub mod names;
