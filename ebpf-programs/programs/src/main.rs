//! Heddle's eBPF programs: they look up, decide and count; everything else is user space (DESIGN §4).
//!
//! * `connect`: an enrolled pod's `connect()` goes to the agent's listener in the pod's own network namespace.
//! * `bind`: the agent's ports stay the agent's.
//! * `sockops`: carries the original destination and the true client from one end of a loopback connection to the other.
//! * `names`: `getpeername()`, `getsockname()` and `accept()` tell the truth.
//! * `lookup`: connections from outside go to the agent's inbound listener, on whatever port.
#![no_std]
#![no_main]

mod bind;
mod connect;
mod context;
mod lookup;
mod maps;
mod names;
mod sockops;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program that could get here, for want of an exit.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
