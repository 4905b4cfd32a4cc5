//! Any bytes in the pinned maps: read without a panic, and written back to the same key, so that they can be removed.
#![no_main]

use heddle_abi::{Heartbeat, Ip};
use heddle_datapath::kernel::{excluded_cidr, ip, ip_addr};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|contents: ([u8; 16], u32, u32, u64, u32, u64)| {
    let (address, prefix_bits, family, stamp_ns, streak, now) = contents;
    assert_eq!(ip(ip_addr(Ip::from_octets(address))).octets(), address);
    if let Some(cidr) = excluded_cidr(prefix_bits, family, address) {
        assert_eq!(ip(cidr.addr()).octets(), address);
    }
    let beat = Heartbeat { stamp_ns, streak, reserved: 0 };
    let _ = beat.is_alive(now);
    assert!(beat.next(now).next(now).is_alive(now));
});
