//! `connect()`: an enrolled pod's TCP goes to the agent's outbound listener on loopback inside the pod's own network
//! namespace; what the application meant is kept in the socket's storage.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_setsockopt, bpf_skc_to_mptcp_sock};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use heddle_abi::{
    AppSocket, Counter, EXCLUDED_CIDR_PREFIX_BITS, ExcludedCidr, ExcludedPort, Ip, OUTBOUND_PORT, Pod, SocketAddress,
    app_kind, direction, is_agent_port, pod_flags,
};

use crate::context::{ECONNREFUSED, ENOMEM, PASS, SockAddr};
use crate::maps::{
    HEDDLE_ADDRS, HEDDLE_AGENT_SK, HEDDLE_APP_SK, HEDDLE_PODS, HEDDLE_XCIDRS, HEDDLE_XPORTS, agent_is_alive, count,
};

const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
const LOOPBACK_V6: Ip = Ip([0, 0, 0, 1u32.to_be()]);
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

#[cgroup_sock_addr(connect4)]
pub fn heddle_connect4(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    if !addr.is_tcp() {
        return PASS;
    }
    let destination = addr.v4();
    match decide(&ctx, &addr, destination, true) {
        Verdict::Capture => {
            addr.set_v4_ip(LOOPBACK_V4);
            addr.set_port(u32::from(OUTBOUND_PORT));
            count(Counter::OutboundCapturedV4);
            PASS
        }
        Verdict::Return(code) => code,
    }
}

#[cgroup_sock_addr(connect6)]
pub fn heddle_connect6(ctx: SockAddrContext) -> i32 {
    let addr = SockAddr::new(&ctx);
    if !addr.is_tcp() {
        return PASS;
    }
    let destination = addr.v6();
    let mapped = destination.ip.is_v4();
    match decide(&ctx, &addr, destination, mapped) {
        Verdict::Capture => {
            // A v4-mapped socket speaks IPv4: it reaches the IPv4 listener.
            if mapped {
                addr.set_v6_ip(Ip::from_v4(LOOPBACK_V4));
                count(Counter::OutboundCapturedV4);
            } else {
                addr.set_v6_ip(LOOPBACK_V6);
                count(Counter::OutboundCapturedV6);
            }
            addr.set_port(u32::from(OUTBOUND_PORT));
            PASS
        }
        Verdict::Return(code) => code,
    }
}

enum Verdict {
    Capture,
    Return(i32),
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, addr: &SockAddr, destination: SocketAddress, v4: bool) -> Verdict {
    let cookie = addr.netns_cookie();
    // SAFETY: pods are replaced whole and freed after a grace period; this program reads only.
    let Some(pod) = (unsafe { HEDDLE_PODS.get(&cookie) }) else {
        // The pod may have left the mesh since this socket was captured.
        forget(addr);
        return Verdict::Return(PASS);
    };
    let sk = addr.socket();
    if HEDDLE_AGENT_SK.get(sk).is_some() {
        return Verdict::Return(PASS);
    }
    if is_agent_port(destination.port as u16) {
        count(Counter::OutboundRefusedAgentPort);
        return Verdict::Return(addr.refuse(ECONNREFUSED));
    }
    if let Some(reason) = passes(pod, cookie, destination) {
        count(reason);
        forget(addr);
        return Verdict::Return(PASS);
    }
    let open = pod.flags & pod_flags::FAIL_OPEN != 0;
    if !agent_is_alive() {
        if open {
            count(Counter::OutboundPassedAgentDown);
            forget(addr);
            return Verdict::Return(PASS);
        }
        count(Counter::OutboundRefusedAgentDown);
        return Verdict::Return(addr.refuse(ECONNREFUSED));
    }
    if !v4 && pod.flags & pod_flags::NO_IPV6_LISTENER != 0 {
        if open {
            count(Counter::OutboundPassedNoListener);
            forget(addr);
            return Verdict::Return(PASS);
        }
        count(Counter::OutboundRefusedNoListener);
        return Verdict::Return(addr.refuse(ECONNREFUSED));
    }
    let own = if v4 { Ip::from_v4(pod.ip4) } else { pod.ip6 };
    if !remember(addr, destination, own) {
        warn!(ctx, "connect refused: no memory for socket storage");
        count(Counter::OutboundRefusedNoStorage);
        return Verdict::Return(addr.refuse(ENOMEM));
    }
    // A socket bound to a device could not reach loopback.
    if addr.bound_interface() != 0 {
        let mut nothing = [0u8; 4];
        // SAFETY: the buffer outlives the call; an empty name unbinds.
        unsafe { bpf_setsockopt(addr.as_ctx(), SOL_SOCKET, SO_BINDTODEVICE, nothing.as_mut_ptr().cast(), 4) };
    }
    Verdict::Capture
}

/// Why a destination is not captured, if it is not.
#[inline(always)]
fn passes(pod: &Pod, cookie: u64, destination: SocketAddress) -> Option<Counter> {
    if destination.ip.is_loopback() || destination.ip.is_unspecified() {
        return Some(Counter::OutboundPassedLoopback);
    }
    if destination.ip.is_v6_link_local() {
        return Some(Counter::OutboundPassedLinkLocal);
    }
    // SAFETY: as for pods.
    if let Some(own) = unsafe { HEDDLE_ADDRS.get(&destination.ip) }
        && own.netns_cookie == cookie
    {
        return Some(Counter::OutboundPassedOwnAddress);
    }
    if pod.flags & pod_flags::EXCLUDES_OUTBOUND_PORTS != 0 {
        let key = ExcludedPort { netns_cookie: cookie, direction: direction::OUTBOUND, port: destination.port };
        // SAFETY: as for pods.
        if unsafe { HEDDLE_XPORTS.get(&key) }.is_some() {
            return Some(Counter::OutboundPassedExcluded);
        }
    }
    if pod.flags & pod_flags::EXCLUDES_CIDRS != 0 {
        let family = if destination.ip.is_v4() { 4 } else { 6 };
        let data = ExcludedCidr { netns_cookie: cookie, family, network: octets(destination.ip) };
        let key = Key::new(EXCLUDED_CIDR_PREFIX_BITS + 128, data);
        if HEDDLE_XCIDRS.get(&key).is_some() {
            return Some(Counter::OutboundPassedExcluded);
        }
    }
    None
}

#[inline(always)]
fn octets(ip: Ip) -> [u8; 16] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(ip.0) }
}

/// Stores what the application meant. For MPTCP the hook sees the first subflow, the application holds the MPTCP
/// socket: both get it.
#[inline(always)]
fn remember(addr: &SockAddr, destination: SocketAddress, own: Ip) -> bool {
    let facts = AppSocket { kind: app_kind::CAPTURED, peer: destination, own };
    match HEDDLE_APP_SK.get_or_create(addr.socket()) {
        Some(slot) => *slot = facts,
        None => return false,
    }
    // SAFETY: the helper answers null for a socket that is no MPTCP subflow.
    let mptcp = unsafe { bpf_skc_to_mptcp_sock(addr.socket()) };
    if !mptcp.is_null()
        && let Some(slot) = HEDDLE_APP_SK.get_or_create(mptcp.cast())
    {
        *slot = facts;
    }
    true
}

/// A socket that was captured once and now goes elsewhere must not keep its former peer. Nor must the MPTCP socket above it.
#[inline(always)]
pub fn forget(addr: &SockAddr) {
    if let Some(slot) = HEDDLE_APP_SK.get(addr.socket()) {
        slot.kind = app_kind::NONE;
        // SAFETY: the helper answers null for a socket that is no MPTCP subflow.
        let mptcp = unsafe { bpf_skc_to_mptcp_sock(addr.socket()) };
        if !mptcp.is_null()
            && let Some(slot) = HEDDLE_APP_SK.get(mptcp.cast())
        {
            slot.kind = app_kind::NONE;
        }
    }
}
