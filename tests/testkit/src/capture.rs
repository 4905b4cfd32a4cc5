//! What an interface carries, read off it: the evidence that a secret did or did not cross a wire.
//!
//! A capture sees both directions of one interface from when it is opened. It keeps whole packets, up to a limit, and fails
//! rather than look at half of what there was.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::place::Place;

/// More than a test ought to send; beyond it the capture fails.
const BYTES_MAX: usize = 512 << 20;
/// Receive buffer of the socket: a burst is kept here while the reader waits for a core.
const BUFFER_BYTES: libc::c_int = 64 << 20;
/// One packet: with offloads on, veth carries segments of up to 64 KiB whole.
const PACKET_MAX: usize = 128 << 10;

/// A packet of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// What TCP carries in it.
    pub payload: Vec<u8>,
}

/// A capture under way. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    what: String,
    seen: Arc<Mutex<Seen>>,
    socket: Arc<Socket>,
    is_over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    packets: Vec<Packet>,
    bytes: usize,
    overflowed: bool,
}

impl Place {
    /// Captures TCP on one of this place's interfaces: `uplink` or `br0` of a node, `eth0` of a pod.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn capture(&self, interface: &str) -> anyhow::Result<Capture> {
        let what = format!("{interface} of {}", self.name());
        let socket = self.netns().inside(|| open(interface))?.with_context(|| format!("capture on {what}"))?;
        let (socket, seen) = (Arc::new(socket), Arc::<Mutex<Seen>>::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let (socket, seen, is_over) = (Arc::clone(&socket), Arc::clone(&seen), Arc::clone(&is_over));
            move || read(&socket, &seen, &is_over)
        });
        Ok(Capture { what, seen, socket, is_over, reader: Some(reader) })
    }
}

impl Capture {
    /// The packets so far.
    ///
    /// # Errors
    /// Some were lost.
    pub fn packets(&self) -> anyhow::Result<Vec<Packet>> {
        // What the kernel has queued for us is read first: the socket is quiet when two looks see the same.
        let count = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).packets.len();
        let mut before = count();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = count();
            if now == before {
                break;
            }
            before = now;
        }
        let dropped = dropped(&self.socket)?;
        ensure!(dropped == 0, "the capture on {} lost {dropped} packets", self.what);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!seen.overflowed, "the capture on {} is over {BYTES_MAX} bytes", self.what);
        Ok(seen.packets.clone())
    }

    /// Whether some direction of some connection carried these bytes, be it across packets.
    ///
    /// # Errors
    /// Packets were lost.
    pub fn contains(&self, secret: &[u8]) -> anyhow::Result<bool> {
        let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> = BTreeMap::new();
        for packet in self.packets()? {
            streams.entry((packet.from, packet.to)).or_default().extend(packet.payload);
        }
        Ok(streams.values().any(|s| s.windows(secret.len()).any(|w| w == secret)))
    }

    /// Bytes of TCP payload to or from this port.
    ///
    /// # Errors
    /// Packets were lost.
    pub fn bytes_of_port(&self, port: u16) -> anyhow::Result<usize> {
        let of_port = |p: &&Packet| p.from.port() == port || p.to.port() == port;
        Ok(self.packets()?.iter().filter(of_port).map(|p| p.payload.len()).sum())
    }

    /// Packets between two places with payload, whatever their ports.
    ///
    /// # Errors
    /// Packets were lost.
    pub fn between(&self, one: &Place, other: &Place) -> anyhow::Result<Vec<Packet>> {
        let is = |place: &Place, address: SocketAddr| place.addresses().contains(&address.ip());
        let mut all = self.packets()?;
        all.retain(|p| {
            let joins = is(one, p.from) && is(other, p.to) || is(other, p.from) && is(one, p.to);
            joins && !p.payload.is_empty()
        });
        Ok(all)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A packet socket on one interface. Runs inside the namespace.
fn open(interface: &str) -> anyhow::Result<Socket> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {interface}: {}", std::io::Error::last_os_error());
    let every = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every))))
        .context("a packet socket (needs root)")?;
    let size = BUFFER_BYTES;
    // SAFETY: a plain setsockopt with an int that lives through the call.
    let forced = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>())?,
        )
    };
    ensure!(forced == 0, "SO_RCVBUFFORCE: {}", std::io::Error::last_os_error());
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll fits into the storage and is the address of this family.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET)?;
    link.sll_protocol = every;
    link.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the storage holds a sockaddr_ll of that length.
    let address = unsafe { SockAddr::new(storage, libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?) };
    socket.bind(&address)?;
    Ok(socket)
}

fn read(mut socket: &Socket, seen: &Mutex<Seen>, is_over: &AtomicBool) {
    let mut buffer = vec![0; PACKET_MAX];
    while !is_over.load(Ordering::Relaxed) {
        let Ok(length) = socket.read(&mut buffer) else { continue };
        let Some(packet) = parse(&buffer[..length]) else { continue };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.bytes += length;
        if seen.bytes > BYTES_MAX {
            seen.overflowed = true;
            return;
        }
        seen.packets.push(packet);
    }
}

/// Packets the kernel dropped for want of room, since the last time it was asked.
fn dropped(socket: &Socket) -> anyhow::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the kernel writes one tpacket_stats, and both places live through the call.
    let asked = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    ensure!(asked == 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    Ok(stats.tp_drops)
}

/// A frame of Ethernet with IPv4 or IPv6 and TCP; everything else is not what tests look for.
fn parse(frame: &[u8]) -> Option<Packet> {
    let (kind, ip) = (frame.get(12..14)?, frame.get(14..)?);
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match kind {
        [0x08, 0x00] => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            (*ip.get(9)? == 6).then_some(())?;
            // Segments larger than the field have 0 there.
            let end = if total == 0 { ip.len() } else { total };
            (address(12)?.into(), address(16)?.into(), ip.get(header..end)?)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            // With a length of 0 comes a header of its own, that of jumbograms.
            let mut at = 40;
            let mut next = *ip.get(6)?;
            if next == 0 {
                next = *ip.get(at)?;
                at += (usize::from(*ip.get(at + 1)?) + 1) * 8;
            }
            (next == 6).then_some(())?;
            let end = if length == 0 { ip.len() } else { 40 + length };
            (address(8)?.into(), address(24)?.into(), ip.get(at..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let payload = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?.to_vec();
    Some(Packet { from: SocketAddr::new(source, port(0)?), to: SocketAddr::new(destination, port(2)?), payload })
}

/// Asks that a capture found what must be there to be found: the control of one that found nothing.
///
/// # Errors
/// It is not there.
pub fn must_contain(capture: &Capture, secret: &[u8]) -> anyhow::Result<()> {
    let found = capture.contains(secret)?;
    found.then_some(()).ok_or_else(|| {
        anyhow!("positive control: {} does not carry {:?}", capture.what, String::from_utf8_lossy(secret))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_both_families_are_read() {
        let tcp = |payload: &[u8]| {
            let mut segment = vec![0x1f, 0x90, 0x3a, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0];
            segment.extend(payload);
            segment
        };
        let mut v4 = vec![0; 12];
        v4.extend([8, 0, 0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 1, 10, 10, 77, 2, 10]);
        v4.extend(tcp(b"abc"));
        // Short frames are padded.
        v4.extend([0; 5]);
        let packet = parse(&v4).unwrap();
        assert_eq!((packet.from, packet.payload.as_slice()), ("10.77.1.10:8080".parse().unwrap(), &b"abc"[..]));
        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 23, 6, 64]);
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend("fd77::2:a".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend(tcp(b"abc"));
        let packet = parse(&v6).unwrap();
        assert_eq!((packet.to, packet.payload.as_slice()), ("[fd77::2:a]:15001".parse().unwrap(), &b"abc"[..]));
        // UDP is none, half a frame is none.
        v6[20] = 17;
        assert_eq!((parse(&v6), parse(&v4[..30])), (None, None));
    }
}
