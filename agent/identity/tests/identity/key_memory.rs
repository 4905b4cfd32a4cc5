//! Where a secret is while a key is in use, and that it is nowhere afterwards: the whole memory of this process is searched.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::Duration;

use heddle_identity::{Alpn, ClientConfigs, ServerConfigs};

use crate::pki::{Ca, Node, id};
use crate::wire::handshake;

const MASK: u8 = 0xa5;

/// A secret kept masked, so that the search does not find itself.
struct Masked([u8; 32]);

impl Masked {
    /// The scalar inside the first PKCS#8 of an export.
    fn of_export(bytes: &[u8]) -> Self {
        const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = bytes.windows(5).position(|window| window == BEFORE).expect("an EC key in PKCS#8") + 5;
        Self(std::array::from_fn(|i| bytes[at + i] ^ MASK))
    }

    fn is_at(&self, window: &[u8]) -> bool {
        let forwards = window.iter().zip(&self.0).all(|(byte, masked)| byte ^ MASK == *masked);
        // AWS-LC computes with little-endian words.
        forwards || window.iter().rev().zip(&self.0).all(|(byte, masked)| byte ^ MASK == *masked)
    }

    /// Every place in writable memory.
    fn places(&self) -> usize {
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

#[tokio::test]
async fn a_key_is_gone_when_its_lease_is() {
    let node = Node::start(Ca::root("root"));
    let (web, api) = (node.lease(&id("web")).await, node.lease(&id("api")).await);
    let client = ClientConfigs::new(&node.store).get(&web, &id("api").into(), Alpn::Heddle).unwrap();
    let server = ServerConfigs::new(&node.store).get(&api, Alpn::Heddle).unwrap();
    for _ in 0..20 {
        assert!(handshake(&client, &server, Alpn::Heddle).is_good());
    }
    let export = node.store.export().unwrap();
    let secret = Masked::of_export(&export);
    let with_export = secret.places();
    drop(export);
    let in_use = secret.places();
    assert!(in_use >= 1 && with_export > in_use, "control: {with_export} places with the export, {in_use} in use");
    // Taken over by a second store, as after a restart, and dropped there too.
    {
        let second = Node::start(Ca::root("other"));
        let export = node.store.export().unwrap();
        assert_eq!(second.store.restore(&export).unwrap().certificates, 2);
        let lease = second.store.lease(&id("api")).unwrap();
        lease.ready(Duration::from_secs(1)).await.unwrap();
        drop(export);
        assert!(secret.places() > in_use, "control");
    }
    drop((web, api));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The configs are still held; the keys are not theirs.
    assert_eq!(secret.places(), 0, "the secret is still in memory");
    drop((client, server));
}

#[tokio::test]
async fn nothing_prints_a_key() {
    let node = Node::start(Ca::root("root"));
    let lease = node.lease(&id("web")).await;
    let credential = lease.slot().credential().unwrap();
    let text = format!("{:?} {:?} {:?} {:?} {:?}", node.store, lease, lease.slot(), credential, node.store.status());
    assert!(text.contains("sa/web") && !text.to_lowercase().contains("key"), "{text}");
}
