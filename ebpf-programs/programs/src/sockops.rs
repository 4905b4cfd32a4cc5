//! Both ends of a connection inside one network namespace: what the connecting end knows (original destination, true
//! client) reaches the accepting end through a record with the whole 4-tuple, written when the connecting end is
//! established, consumed when the accepting end is, and deleted if that never happens.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};
use heddle_abi::{
    AppSocket, Counter, Ip, Record, RecordKey, SocketAddress, agent_flags, agent_role, app_kind, record_kind,
};

use crate::maps::{HEDDLE_AGENT_SK, HEDDLE_APP_SK, HEDDLE_PODS, HEDDLE_RECORDS, count};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const STATE_CB_FLAG: i32 = 4;
const TCP_CLOSE: u32 = 7;
const AF_INET: u32 = 2;
const BPF_ANY: u64 = 0;

#[sock_ops]
pub fn heddle_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        ACTIVE_ESTABLISHED => connecting_side(&ctx),
        PASSIVE_ESTABLISHED => accepting_side(&ctx),
        STATE => {
            if ctx.arg(1) == TCP_CLOSE {
                let key = key(&ctx, true);
                let _ = HEDDLE_RECORDS.remove(&key);
            }
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting_side(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    if let Some(agent) = HEDDLE_AGENT_SK.get(sk) {
        if agent.role == agent_role::UPSTREAM
            && agent.flags & agent_flags::HAS_ADDRESS != 0
            && !publish(ctx, agent.address, record_kind::TRUE_CLIENT)
        {
            agent.flags |= agent_flags::RECORD_LOST;
        }
        return;
    }
    if let Some(facts) = HEDDLE_APP_SK.get(sk)
        && facts.kind == app_kind::CAPTURED
    {
        // Without a record the agent resets the connection.
        publish(ctx, facts.peer, record_kind::ORIGINAL_DESTINATION);
    }
}

#[inline(always)]
fn publish(ctx: &SockOpsContext, address: SocketAddress, kind: u32) -> bool {
    let key = key(ctx, true);
    if HEDDLE_RECORDS.insert(&key, Record { address, kind }, BPF_ANY).is_err() {
        count(Counter::RecordRefusedMapFull);
        warn!(ctx, "connection record refused: map full");
        return false;
    }
    count(Counter::RecordWritten);
    // SAFETY: plain helper on the context.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, STATE_CB_FLAG) };
    true
}

#[inline(always)]
fn accepting_side(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    if let Some(agent) = HEDDLE_AGENT_SK.get(sk) {
        if agent.role == agent_role::OUTBOUND {
            match take(&key(ctx, false)) {
                Some(record) if record.kind == record_kind::ORIGINAL_DESTINATION => {
                    agent.address = record.address;
                    agent.flags |= agent_flags::HAS_ADDRESS;
                }
                _ => count(Counter::RecordMissing),
            }
        }
        return;
    }
    let key = key(ctx, false);
    // SAFETY: pods are replaced whole and freed after a grace period; this program reads only.
    if unsafe { HEDDLE_PODS.get(&key.netns_cookie) }.is_none() {
        return;
    }
    let Some(record) = take(&key).filter(|record| record.kind == record_kind::TRUE_CLIENT) else {
        return;
    };
    match HEDDLE_APP_SK.get_or_create(sk) {
        Some(slot) => *slot = AppSocket { kind: app_kind::ACCEPTED, peer: record.address, own: Ip::default() },
        None => {
            count(Counter::RecordNotKept);
            warn!(ctx, "the true client of an accepted connection could not be kept: no memory");
        }
    }
}

/// Reads and deletes: a record serves one connection.
#[inline(always)]
fn take(key: &RecordKey) -> Option<Record> {
    // SAFETY: only the two ends of one connection touch a key, one after the other.
    let record = unsafe { HEDDLE_RECORDS.get(key) }.copied()?;
    let _ = HEDDLE_RECORDS.remove(key);
    count(Counter::RecordConsumed);
    Some(record)
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: the context is valid while the program runs.
    unsafe { read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)).cast() }
}

/// The record's key, seen from the connecting side or from the accepting one.
#[inline(always)]
fn key(ctx: &SockOpsContext, connecting: bool) -> RecordKey {
    let (local, remote) = addresses(ctx.ops);
    // SAFETY: the helper takes the context as it is.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    if connecting {
        RecordKey { netns_cookie, source: local, destination: remote }
    } else {
        RecordKey { netns_cookie, source: remote, destination: local }
    }
}

/// Local and remote address. A v4-mapped IPv6 socket is IPv4 here: its two ends may be of different families.
/// All fields are read before a family is chosen, see `lookup.rs`.
#[inline(always)]
fn addresses(ops: *mut bpf_sock_ops) -> (SocketAddress, SocketAddress) {
    // SAFETY: the context is valid while the program runs; each field is read alone, with the width it has.
    let (family, local_port, remote_port, local4, remote4, local6, remote6) = unsafe {
        (
            read_volatile(addr_of!((*ops).family)),
            read_volatile(addr_of!((*ops).local_port)),
            u32::from_be(read_volatile(addr_of!((*ops).remote_port))),
            read_volatile(addr_of!((*ops).local_ip4)),
            read_volatile(addr_of!((*ops).remote_ip4)),
            Ip([
                read_volatile(addr_of!((*ops).local_ip6[0])),
                read_volatile(addr_of!((*ops).local_ip6[1])),
                read_volatile(addr_of!((*ops).local_ip6[2])),
                read_volatile(addr_of!((*ops).local_ip6[3])),
            ]),
            Ip([
                read_volatile(addr_of!((*ops).remote_ip6[0])),
                read_volatile(addr_of!((*ops).remote_ip6[1])),
                read_volatile(addr_of!((*ops).remote_ip6[2])),
                read_volatile(addr_of!((*ops).remote_ip6[3])),
            ]),
        )
    };
    let (local, remote) = if family == AF_INET || remote6.is_v4() {
        (Ip::from_v4(local4), Ip::from_v4(remote4))
    } else {
        (local6, remote6)
    };
    (SocketAddress { ip: local, port: local_port }, SocketAddress { ip: remote, port: remote_port })
}
