//! The authority as clients meet it: real TLS, real gRPC, real files; every attack beside the call that succeeds.

mod attacks;
mod calls;
mod client;
mod reload;
