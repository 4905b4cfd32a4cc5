//! Addresses as map keys: one form for IPv4, IPv6 and v4-mapped.

/// An IP address as four 32-bit words in network order; IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Ip(pub [u32; 4]);

/// An IP address with a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SocketAddress {
    /// The address.
    pub ip: Ip,
    /// The port in host order (the upper half is zero).
    pub port: u32,
}

const V4_MAPPED: u32 = 0xffff_u32.to_be();

impl Ip {
    /// From an IPv4 address in network order, as kernel contexts hold it.
    #[must_use]
    #[inline(always)]
    pub const fn from_v4(network_order: u32) -> Self {
        Self([0, 0, V4_MAPPED, network_order])
    }

    /// From the 16 bytes of an IPv6 address.
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The 16 bytes of the IPv6 (or v4-mapped) address.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED
    }

    /// 127.0.0.0/8 or ::1.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            (u32::from_be(self.0[3]) >> 24) == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1u32.to_be()
        }
    }

    /// 0.0.0.0 or ::, which `connect()` takes as loopback.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == V4_MAPPED) && self.0[3] == 0
    }

    /// fe80::/10: means nothing without its interface, which the agent cannot carry.
    #[must_use]
    #[inline(always)]
    pub const fn is_v6_link_local(self) -> bool {
        (u32::from_be(self.0[0]) >> 22) == (0xfe80_0000 >> 22)
    }
}
