//! The data plane over real loopback sockets, with fakes for what needs a kernel with our programs in it: the original
//! destination is the listener's own address, which the snapshot knows as a Service.

mod abuse;
mod attempts;
mod balancing;
mod bounds;
mod carry;
mod detect;
mod endpoints;
mod h1_to_h2;
mod h2_to_h1;
mod http1;
mod http1_ends;
mod http2;
mod inbound;
mod life;
mod mesh;
mod mesh_attacks;
mod mesh_greetings;
mod mesh_handshakes;
mod mesh_keys;
mod mesh_limits;
mod mesh_trust;
mod patience;
#[path = "../../../identity/tests/identity/peers.rs"]
mod peers;
mod policy;
mod policy_explained;
mod pool_h2;
mod pools;
mod resilience;
mod route_explained;
mod routes;
mod routing;
mod sessions;
mod support;
mod windows;
