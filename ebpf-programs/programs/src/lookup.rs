//! `sk_lookup` in the pod's network namespace: a TCP connection from outside, to any port, goes to the agent's inbound
//! listener and keeps its addresses. The netns cookie cannot be had here: the local address says which pod it is.

use aya_ebpf::bindings::{bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use core::ptr::{addr_of, read_volatile};
use heddle_abi::{Counter, ExcludedPort, Ip, direction, is_agent_port, pod_flags};

use crate::maps::{HEDDLE_ADDRS, HEDDLE_LISTEN, HEDDLE_XPORTS, agent_is_alive, count};

const PASS: u32 = sk_action::SK_PASS;
const REFUSE: u32 = sk_action::SK_DROP;
const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;

#[sk_lookup]
pub fn heddle_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // Both families are read before one is chosen: a load behind a choice of field would go through a modified context
    // pointer, which the verifier refuses.
    // SAFETY: the context is valid while the program runs; each field is read alone, with the width it has.
    let (protocol, family, port, local4, remote4, local6, remote6) = unsafe {
        (
            read_volatile(addr_of!((*lookup).protocol)),
            read_volatile(addr_of!((*lookup).family)),
            read_volatile(addr_of!((*lookup).local_port)),
            read_volatile(addr_of!((*lookup).local_ip4)),
            read_volatile(addr_of!((*lookup).remote_ip4)),
            local_v6(lookup),
            remote_v6(lookup),
        )
    };
    let (local, remote) =
        if family == AF_INET { (Ip::from_v4(local4), Ip::from_v4(remote4)) } else { (local6, remote6) };
    if protocol != IPPROTO_TCP || local.is_loopback() || local == remote {
        return PASS;
    }
    // SAFETY: addresses are replaced whole and freed after a grace period; this program reads only.
    let Some(pod) = (unsafe { HEDDLE_ADDRS.get(&local) }) else {
        return PASS;
    };
    // One of the pod's own addresses calling another: own traffic too.
    // SAFETY: as above.
    if let Some(own) = unsafe { HEDDLE_ADDRS.get(&remote) }
        && own.netns_cookie == pod.netns_cookie
    {
        return PASS;
    }
    if is_agent_port(port as u16) {
        count(Counter::InboundRefusedAgentPort);
        return REFUSE;
    }
    if pod.flags & pod_flags::RELEASED != 0 {
        return PASS;
    }
    if pod.flags & pod_flags::EXCLUDES_INBOUND_PORTS != 0 {
        let key = ExcludedPort { netns_cookie: pod.netns_cookie, direction: direction::INBOUND, port };
        // SAFETY: as above.
        if unsafe { HEDDLE_XPORTS.get(&key) }.is_some() {
            count(Counter::InboundPassedExcluded);
            return PASS;
        }
    }
    if !agent_is_alive() {
        if pod.flags & pod_flags::FAIL_OPEN != 0 {
            count(Counter::InboundPassedAgentDown);
            return PASS;
        }
        count(Counter::InboundRefusedAgentDown);
        return REFUSE;
    }
    // Flags 0: the kernel spreads over the listener's SO_REUSEPORT group, one member per worker.
    if HEDDLE_LISTEN.redirect_sk_lookup(&ctx, local, 0).is_err() {
        count(Counter::InboundRefusedNoListener);
        return REFUSE;
    }
    count(if local.is_v4() { Counter::InboundCapturedV4 } else { Counter::InboundCapturedV6 });
    PASS
}

#[inline(always)]
unsafe fn local_v6(lookup: *mut bpf_sk_lookup) -> Ip {
    // SAFETY: as in the program.
    unsafe {
        Ip([
            read_volatile(addr_of!((*lookup).local_ip6[0])),
            read_volatile(addr_of!((*lookup).local_ip6[1])),
            read_volatile(addr_of!((*lookup).local_ip6[2])),
            read_volatile(addr_of!((*lookup).local_ip6[3])),
        ])
    }
}

#[inline(always)]
unsafe fn remote_v6(lookup: *mut bpf_sk_lookup) -> Ip {
    // SAFETY: as in the program.
    unsafe {
        Ip([
            read_volatile(addr_of!((*lookup).remote_ip6[0])),
            read_volatile(addr_of!((*lookup).remote_ip6[1])),
            read_volatile(addr_of!((*lookup).remote_ip6[2])),
            read_volatile(addr_of!((*lookup).remote_ip6[3])),
        ])
    }
}
