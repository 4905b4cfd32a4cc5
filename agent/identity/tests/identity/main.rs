//! The room as its users see it: real keys, real chains, real handshakes over memory, issuers that behave and misbehave.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod attacks;
mod bundles;
mod export;
mod fetch;
mod key_memory;
mod memory;
mod peers;
mod pki;
mod review;
mod rotation_load;
mod wire;
