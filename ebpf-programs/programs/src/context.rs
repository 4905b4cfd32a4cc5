//! Reading and writing kernel contexts field by field.
//!
//! Every access is volatile: compilers merge neighbouring context accesses into one of a width, or through a modified
//! pointer, that the verifier refuses.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};
use heddle_abi::{Ip, SocketAddress};

/// Verdict of a socket-address program: go on.
pub const PASS: i32 = 1;
/// Verdict of a socket-address program: fail the call.
pub const REFUSE: i32 = 0;
pub const ECONNREFUSED: i32 = 111;
pub const EADDRINUSE: i32 = 98;
pub const ENOMEM: i32 = 12;

const TCP_CLOSE: u32 = 7;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// A socket-address context (`connect`, `bind`, `getpeername`, `getsockname`).
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            read_volatile(addr_of!((*self.0).type_)) == SOCK_STREAM
                && read_volatile(addr_of!((*self.0).protocol)) == IPPROTO_TCP
        }
    }

    /// TCP, MPTCP or another stream.
    #[inline(always)]
    pub fn is_stream(&self) -> bool {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).type_)) == SOCK_STREAM }
    }

    /// The socket, for storage helpers.
    #[inline(always)]
    pub fn socket(&self) -> *mut c_void {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).__bindgen_anon_1.sk)).cast() }
    }

    #[inline(always)]
    pub fn bound_interface(&self) -> u32 {
        // SAFETY: as above; the verifier knows `sk` as a socket.
        unsafe { read_volatile(addr_of!((*read_volatile(addr_of!((*self.0).__bindgen_anon_1.sk))).bound_dev_if)) }
    }

    /// Neither connected nor listening: new, or disconnected.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        // SAFETY: as above.
        let state = unsafe { read_volatile(addr_of!((*read_volatile(addr_of!((*self.0).__bindgen_anon_1.sk))).state)) };
        state == TCP_CLOSE
    }

    #[inline(always)]
    pub fn as_ctx(&self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes the context as it is.
        unsafe { bpf_get_netns_cookie(self.as_ctx()) }
    }

    /// The address in an IPv4 context.
    #[inline(always)]
    pub fn v4(&self) -> SocketAddress {
        // SAFETY: as above.
        let ip = unsafe { read_volatile(addr_of!((*self.0).user_ip4)) };
        SocketAddress { ip: Ip::from_v4(ip), port: self.port() }
    }

    /// The address in an IPv6 context; may be v4-mapped.
    #[inline(always)]
    pub fn v6(&self) -> SocketAddress {
        // SAFETY: as above.
        let words = unsafe {
            [
                read_volatile(addr_of!((*self.0).user_ip6[0])),
                read_volatile(addr_of!((*self.0).user_ip6[1])),
                read_volatile(addr_of!((*self.0).user_ip6[2])),
                read_volatile(addr_of!((*self.0).user_ip6[3])),
            ]
        };
        SocketAddress { ip: Ip(words), port: self.port() }
    }

    /// `user_port`, big-endian in the context, in host order.
    #[inline(always)]
    pub fn port(&self) -> u32 {
        // SAFETY: as above.
        let port = unsafe { read_volatile(addr_of!((*self.0).user_port)) };
        u32::from(u16::from_be(port as u16))
    }

    #[inline(always)]
    pub fn set_v4_ip(&self, network_order: u32) {
        // SAFETY: as above; the field is writable in these programs.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip4), network_order) }
    }

    #[inline(always)]
    pub fn set_v6_ip(&self, ip: Ip) {
        // SAFETY: as above.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).user_ip6[0]), ip.0[0]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[1]), ip.0[1]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[2]), ip.0[2]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[3]), ip.0[3]);
        }
    }

    #[inline(always)]
    pub fn set_port(&self, port: u32) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_port), u32::from((port as u16).to_be())) }
    }

    /// Fails the system call with `errno`.
    #[inline(always)]
    pub fn refuse(&self, errno: i32) -> i32 {
        // SAFETY: the helper only stores the number.
        unsafe { bpf_set_retval(-errno) };
        REFUSE
    }
}
