//! The pure half of the HTTP engine: bytes in, decisions out. No sockets, no clocks, no tasks (DESIGN §9).
//!
//! * [`h1`]: the HTTP/1 codec: heads, bodies, and what a proxy does to them. Every rule names its RFC section.
//! * [`path`]: the one form of a path that policies match and servers get.
//! * [`translate`]: the same messages as `http` types for HTTP/2, both ways, and the smuggling traps between the two.
//! * [`answer`]: what the agent itself says when it cannot forward, one [`heddle_telemetry::Reason`] each, also to gRPC clients.
//! * [`breaker`]: how much of a Service and of an endpoint may be in use at once.
//! * [`outlier`]: endpoints that fail are left out for a while, then probed.
//! * [`retry`]: whether an attempt that failed is followed by another, and the budget that bounds all of them together.
//! * [`websocket`]: the handshake's keys, for translation between HTTP/1 and extended CONNECT.
//! * [`detect`]: which protocol a connection speaks, from its port's declaration or its first bytes.
#![forbid(unsafe_code)]

pub mod answer;
pub mod breaker;
pub mod detect;
pub mod h1;
pub mod outlier;
pub mod retry;
pub mod translate;
pub mod websocket;

mod limits;
mod reject;
mod syntax;

pub use heddle_model::policy::path;
pub use limits::Limits;
pub use reject::Reject;
