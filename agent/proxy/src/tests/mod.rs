//! The data plane over real loopback sockets, with fakes for what needs a kernel with our programs in it: the original
//! destination is the listener's own address, which the snapshot knows as a Service.

mod carry;
mod endpoints;
mod inbound;
mod life;
mod support;
