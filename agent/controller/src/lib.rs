//! The control plane. Today its certificate authority, which `heddle ca serve` runs stand-alone.
#![forbid(unsafe_code)]

pub mod ca;
