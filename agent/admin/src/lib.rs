//! What can be seen of a running agent: metrics and health over TCP, the debug API over a Unix socket for root.
//!
//! Data comes through [`Views`] and [`Health`], owned here and implemented by the binary; [`views`] has the parts that follow
//! from a snapshot alone. Every server bounds connections, header size and patience: a client that does not send, or does not
//! read, costs a slot for seconds, never the agent.
#![forbid(unsafe_code)]

pub mod debug;
pub mod health;
pub mod metrics;
mod reply;
pub mod server;
mod stall;
pub mod views;

#[cfg(test)]
mod tests;

pub use debug::{ConnectionQuery, ExplainQuery, ViewError, ViewFuture, Views};
pub use health::Health;
pub use server::Limits;
