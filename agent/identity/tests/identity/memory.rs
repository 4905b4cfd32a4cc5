//! The search for a secret in the whole writable memory of this process. The authority's tests use it as well, by path.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

const MASK: u8 = 0xa5;

/// A secret kept masked, so that the search does not find itself.
pub struct Masked([u8; 32]);

impl Masked {
    /// The scalar inside the first PKCS#8 of an ECDSA P-256 key in `bytes`.
    pub fn of_pkcs8(bytes: &[u8]) -> Self {
        const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = bytes.windows(5).position(|window| window == BEFORE).expect("an EC key in PKCS#8") + 5;
        Self::of(&bytes[at..])
    }

    /// The first 32 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(std::array::from_fn(|i| bytes[i] ^ MASK))
    }

    fn is_at(&self, window: &[u8]) -> bool {
        let forwards = window.iter().zip(&self.0).all(|(byte, masked)| byte ^ MASK == *masked);
        // AWS-LC computes with little-endian words.
        forwards || window.iter().rev().zip(&self.0).all(|(byte, masked)| byte ^ MASK == *masked)
    }

    /// Every place in writable memory.
    pub fn places(&self) -> usize {
        let mut memory = File::open("/proc/self/mem").unwrap();
        let mut buffer = vec![0_u8; 1 << 20];
        let own = buffer.as_ptr() as u64..buffer.as_ptr() as u64 + buffer.len() as u64;
        let mut found = 0;
        for line in BufReader::new(File::open("/proc/self/maps").unwrap()).lines() {
            let line = line.unwrap();
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            if !rights.starts_with("rw") || line.ends_with("[vvar]") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            while at < end {
                let length = (end - at).min(buffer.len() as u64);
                buffer.fill(0);
                if memory.seek(SeekFrom::Start(at)).is_err()
                    || memory.read_exact(&mut buffer[..length as usize]).is_err()
                {
                    break;
                }
                for (i, window) in buffer[..length as usize].windows(32).enumerate() {
                    if self.is_at(window) && !own.contains(&(at + i as u64)) {
                        found += 1;
                    }
                }
                // Secrets across the border of two reads count too.
                at += if length > 31 && at + length < end { length - 31 } else { length };
            }
        }
        buffer.fill(0);
        found
    }
}
