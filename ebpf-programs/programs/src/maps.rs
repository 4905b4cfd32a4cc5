//! The maps. Facts of one socket live in its storage; nothing that decides is ever evicted (no LRU).

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, SockHash};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use core::ffi::c_void;
use heddle_abi::{
    AgentSocket, AppSocket, Counter, ExcludedCidr, ExcludedPort, Heartbeat, Ip, ListenerKey, Meta, Pod, PodAddress,
    PodPort, Record, RecordKey,
};

#[btf_map]
pub static HEDDLE_META: Array<Meta, 1> = Array::new();
#[btf_map]
pub static HEDDLE_PODS: HashMap<u64, Pod, { heddle_abi::PODS_MAX }> = HashMap::new();
#[btf_map]
pub static HEDDLE_ADDRS: HashMap<Ip, PodAddress, { heddle_abi::POD_ADDRESSES_MAX }> = HashMap::new();
#[btf_map]
pub static HEDDLE_LISTEN: SockHash<ListenerKey, { heddle_abi::LISTENERS_MAX }> = SockHash::new();
#[btf_map]
pub static HEDDLE_RECORDS: HashMap<RecordKey, Record, { heddle_abi::RECORDS_MAX }> = HashMap::new();
#[btf_map]
pub static HEDDLE_XPORTS: HashMap<ExcludedPort, u32, { heddle_abi::EXCLUDED_PORTS_MAX }> = HashMap::new();
#[btf_map]
pub static HEDDLE_XCIDRS: LpmTrie<ExcludedCidr, u32, { heddle_abi::EXCLUDED_CIDRS_MAX }> = LpmTrie::new();
#[btf_map]
pub static HEDDLE_MODES: HashMap<PodPort, u32, { heddle_abi::PORT_MODES_MAX }> = HashMap::new();
#[btf_map]
pub static HEDDLE_BEAT: Array<Heartbeat, 1> = Array::new();
#[btf_map]
pub static HEDDLE_COUNTS: PerCpuArray<u64, { heddle_abi::counter::COUNTERS_MAX }> = PerCpuArray::new();
/// Inherited by accepted sockets (`BPF_F_CLONE`): what the agent accepts is known to be the agent's.
#[btf_map]
pub static HEDDLE_AGENT_SK: SocketStorage<AgentSocket, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> =
    SocketStorage::new();
/// Never inherited: a listening socket that once connected must not lend its peer to those it accepts.
#[btf_map]
pub static HEDDLE_APP_SK: SocketStorage<AppSocket, { BPF_F_NO_PREALLOC as usize }> = SocketStorage::new();

/// Socket storage usable from every program type and with flags of our choice
/// (`aya_ebpf::btf_maps::SkStorage` serves socket-address programs only and fixes the flags).
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders that the loader reads from BTF; no code dereferences them.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The value of a socket, if it has one. `sk` must be a socket pointer that the verifier knows, not null.
    #[inline(always)]
    pub fn get(&self, sk: *mut c_void) -> Option<&mut T> {
        // SAFETY: the verifier proves `sk` and the returned pointer; a value lives as long as its socket, which the
        // running hook holds. Another CPU may write the same plain words: readers tolerate that (one socket, one owner).
        unsafe {
            bpf_sk_storage_get(core::ptr::from_ref(self).cast_mut().cast(), sk, core::ptr::null_mut(), 0)
                .cast::<T>()
                .as_mut()
        }
    }

    /// The value of a socket, made (zeroed) if it has none; `None` if memory is short.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut c_void) -> Option<&mut T> {
        // SAFETY: as in `get`.
        unsafe {
            bpf_sk_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                sk,
                core::ptr::null_mut(),
                u64::from(BPF_SK_STORAGE_GET_F_CREATE),
            )
            .cast::<T>()
            .as_mut()
        }
    }
}

/// Counts one verdict.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(cell) = HEDDLE_COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU slot; preemption within the program can lose one count at worst.
        unsafe { *cell = (*cell).wrapping_add(1) };
    }
}

/// Whether the agent beats.
#[inline(always)]
pub fn agent_is_alive() -> bool {
    match HEDDLE_BEAT.get(0) {
        // SAFETY: the helper takes nothing and cannot fail.
        Some(beat) => beat.is_alive(unsafe { bpf_ktime_get_ns() }),
        None => false,
    }
}
