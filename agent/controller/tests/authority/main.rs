//! The authority as clients meet it: real TLS, real gRPC, real files; every attack beside the call that succeeds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod attacks;
mod calls;
mod client;
mod key_memory;
#[path = "../../../identity/tests/identity/memory.rs"]
mod memory;
mod reload;
