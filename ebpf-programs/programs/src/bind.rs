//! `bind()`: inside an enrolled pod nobody but the agent binds, or joins, an agent port; and a socket that was captured,
//! was disconnected and is bound anew has its own name again.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use heddle_abi::{Counter, is_agent_port};

use crate::connect::forget;
use crate::context::{EADDRINUSE, PASS, SockAddr};
use crate::maps::{HEDDLE_AGENT_SK, HEDDLE_PODS, count};

#[cgroup_sock_addr(bind4)]
pub fn heddle_bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

#[cgroup_sock_addr(bind6)]
pub fn heddle_bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx)
}

#[inline(always)]
fn bind(ctx: &SockAddrContext) -> i32 {
    let addr = SockAddr::new(ctx);
    if addr.is_closed() {
        forget(&addr);
    }
    // Not `is_tcp`: an MPTCP listener takes the TCP port as well.
    if !is_agent_port(addr.port() as u16) || !addr.is_stream() {
        return PASS;
    }
    // SAFETY: pods are replaced whole and freed after a grace period; this program reads only.
    if unsafe { HEDDLE_PODS.get(&addr.netns_cookie()) }.is_none() || HEDDLE_AGENT_SK.get(addr.socket()).is_some() {
        return PASS;
    }
    count(Counter::BindRefusedAgentPort);
    addr.refuse(EADDRINUSE)
}
