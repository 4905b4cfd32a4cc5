//! `getpeername()`, `getsockname()` and the address that `accept()` returns: the application sees the connection it
//! made or got, not the agent's; the agent reads the original destination with an ordinary `getsockname()`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use heddle_abi::{Ip, SELF_TEST, SocketAddress, agent_flags, agent_role, app_kind};

use crate::context::{PASS, SockAddr};
use crate::maps::{HEDDLE_AGENT_SK, HEDDLE_APP_SK};

#[cgroup_sock_addr(getpeername4)]
pub fn heddle_peer4(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    if let Some(facts) = HEDDLE_APP_SK.get(addr.socket())
        && facts.kind != app_kind::NONE
        && facts.peer.ip.is_v4()
    {
        addr.set_v4_ip(facts.peer.ip.0[3]);
        addr.set_port(facts.peer.port);
    }
    PASS
}

#[cgroup_sock_addr(getpeername6)]
pub fn heddle_peer6(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    if let Some(facts) = HEDDLE_APP_SK.get(addr.socket())
        && facts.kind != app_kind::NONE
    {
        addr.set_v6_ip(facts.peer.ip);
        addr.set_port(facts.peer.port);
    }
    PASS
}

#[cgroup_sock_addr(getsockname4)]
pub fn heddle_sock4(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    match own_name(&addr, addr.v4()) {
        Name::Keep => {}
        Name::Port(port) => addr.set_port(port),
        Name::Ip(ip) => addr.set_v4_ip(ip.0[3]),
        Name::Whole(name) => {
            addr.set_v4_ip(name.ip.0[3]);
            addr.set_port(name.port);
        }
    }
    PASS
}

#[cgroup_sock_addr(getsockname6)]
pub fn heddle_sock6(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    match own_name(&addr, addr.v6()) {
        Name::Keep => {}
        Name::Port(port) => addr.set_port(port),
        Name::Ip(ip) => addr.set_v6_ip(ip),
        Name::Whole(name) => {
            addr.set_v6_ip(name.ip);
            addr.set_port(name.port);
        }
    }
    PASS
}

enum Name {
    Keep,
    Port(u32),
    Ip(Ip),
    Whole(SocketAddress),
}

#[inline(always)]
fn own_name(addr: &SockAddr, real: SocketAddress) -> Name {
    let sk = addr.socket();
    if let Some(agent) = HEDDLE_AGENT_SK.get(sk) {
        return match agent.role {
            agent_role::OUTBOUND if agent.flags & agent_flags::HAS_ADDRESS != 0 => Name::Whole(agent.address),
            agent_role::UPSTREAM if agent.flags & agent_flags::RECORD_LOST != 0 => Name::Port(0),
            agent_role::SELF_TEST => Name::Ip(Ip::from_v4(u32::from_ne_bytes(SELF_TEST))),
            _ => Name::Keep,
        };
    }
    // A captured socket that did not bind got a loopback source; the application expects its pod's address.
    let Some(facts) = HEDDLE_APP_SK.get(sk) else {
        return Name::Keep;
    };
    if facts.kind != app_kind::CAPTURED || !real.ip.is_loopback() || facts.own.is_unspecified() {
        return Name::Keep;
    }
    Name::Ip(facts.own)
}
