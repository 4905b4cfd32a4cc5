//! `sk_lookup` in the pod's network namespace: a TCP connection from outside, to any port, goes to the agent's inbound
//! listener and keeps its addresses; to port 15008, to its HBONE listener where it serves HBONE. The netns cookie cannot be had here: the local address says which pod it is.

use aya_ebpf::bindings::{bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use core::ptr::{addr_of, read_volatile};
use heddle_abi::{
    Counter, ExcludedPort, HBONE_PORT, INBOUND_PORT, Ip, ListenerKey, PodAddress, PodPort, direction, is_agent_port,
    pod_flags, port_mode,
};

use crate::maps::{HEDDLE_ADDRS, HEDDLE_LISTEN, HEDDLE_MODES, HEDDLE_XPORTS, agent_is_alive, count};

const PASS: u32 = sk_action::SK_PASS;
const REFUSE: u32 = sk_action::SK_DROP;
const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

#[sk_lookup]
pub fn heddle_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // Both families are read before one is chosen: a load behind a choice of field would go through a modified context
    // pointer, which the verifier refuses.
    // SAFETY: the context is valid while the program runs; each field is read alone, with the width it has.
    let (protocol, family, port, remote_port, local4, remote4, local6, remote6) = unsafe {
        (
            read_volatile(addr_of!((*lookup).protocol)),
            read_volatile(addr_of!((*lookup).family)),
            read_volatile(addr_of!((*lookup).local_port)),
            u32::from(u16::from_be(read_volatile(addr_of!((*lookup).remote_port)))),
            read_volatile(addr_of!((*lookup).local_ip4)),
            read_volatile(addr_of!((*lookup).remote_ip4)),
            local_v6(lookup),
            remote_v6(lookup),
        )
    };
    let (local, remote) =
        if family == AF_INET { (Ip::from_v4(local4), Ip::from_v4(remote4)) } else { (local6, remote6) };
    // Own traffic: by way of loopback, or between the pod's own addresses.
    if protocol != IPPROTO_TCP || local.is_loopback() || remote.is_loopback() || local == remote {
        return PASS;
    }
    // SAFETY: addresses are replaced whole and freed after a grace period; this program reads only.
    let Some(pod) = (unsafe { HEDDLE_ADDRS.get(&local) }) else {
        // Attached in enrolled namespaces only: what reaches one by an address nobody told must not go round the agent.
        count(Counter::InboundRefusedUnknownAddress);
        return REFUSE;
    };
    // SAFETY: as above.
    if let Some(own) = unsafe { HEDDLE_ADDRS.get(&remote) }
        && own.netns_cookie == pod.netns_cookie
    {
        return PASS;
    }
    let hbone = port == u32::from(HBONE_PORT) && pod.flags & pod_flags::HBONE != 0;
    if is_agent_port(port as u16) && !hbone {
        count(Counter::InboundRefusedAgentPort);
        return REFUSE;
    }
    if !hbone && pod.flags & pod_flags::EXCLUDES_INBOUND_PORTS != 0 {
        let key = ExcludedPort { netns_cookie: pod.netns_cookie, direction: direction::INBOUND, port };
        // SAFETY: as above.
        if unsafe { HEDDLE_XPORTS.get(&key) }.is_some() {
            count(Counter::InboundPassedExcluded);
            return PASS;
        }
    }
    if !agent_is_alive() {
        if hbone || pod.flags & pod_flags::FAIL_OPEN == 0 {
            count(Counter::InboundRefusedAgentDown);
            return REFUSE;
        }
        if is_strict(pod, port) {
            count(Counter::InboundRefusedStrict);
            return REFUSE;
        }
        count(Counter::InboundPassedAgentDown);
        return PASS;
    }
    // One listener by its own key, not "the group of this one": an application that got into the SO_REUSEPORT group
    // would be given a share.
    let to = u32::from(if hbone { HBONE_PORT } else { INBOUND_PORT });
    let key = ListenerKey { ip: local, port: to, shard: spread(remote, remote_port) % pod.shards.max(1) };
    if HEDDLE_LISTEN.redirect_sk_lookup(&ctx, key, BPF_SK_LOOKUP_F_NO_REUSEPORT).is_err() {
        count(Counter::InboundRefusedNoListener);
        return REFUSE;
    }
    count(match (hbone, local.is_v4()) {
        (true, _) => Counter::InboundCapturedHbone,
        (false, true) => Counter::InboundCapturedV4,
        (false, false) => Counter::InboundCapturedV6,
    });
    PASS
}

/// Whether nothing unauthenticated may reach a port. Any word but "lenient" is taken as strict.
#[inline(always)]
fn is_strict(pod: &PodAddress, port: u32) -> bool {
    let key = PodPort { netns_cookie: pod.netns_cookie, port, reserved: 0 };
    // SAFETY: one word, replaced whole; this program reads only.
    match unsafe { HEDDLE_MODES.get(&key) } {
        Some(mode) => *mode != port_mode::LENIENT,
        None => pod.flags & pod_flags::STRICT != 0,
    }
}

/// Spreads clients over shards: one client's successive ports, and many clients' equal ports.
#[inline(always)]
fn spread(remote: Ip, port: u32) -> u32 {
    let mixed = (remote.0[3] ^ remote.0[2] ^ remote.0[1] ^ remote.0[0]).wrapping_add(port).wrapping_mul(0x9e37_79b1);
    mixed ^ (mixed >> 15)
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
