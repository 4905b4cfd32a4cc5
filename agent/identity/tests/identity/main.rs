//! The room as its users see it: real keys, real chains, real handshakes over memory, issuers that behave and misbehave.
#![forbid(unsafe_code)]

mod attacks;
mod export;
mod fetch;
mod key_memory;
mod pki;
mod rotation_load;
mod wire;
