//! Packets of heddle.keeper.v1 on SOCK_SEQPACKET: one message is one packet, file descriptors beside it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use prost::Message;

use crate::error::DatapathError;

/// Bytes of one packet, at most.
pub const PACKET_BYTES_MAX: usize = 128 * 1024;
/// Descriptors beside one packet, at most (the kernel's SCM_MAX_FD is 253).
pub const FDS_MAX: usize = 240;
/// Versions of the protocol this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 2;
/// An agent speaks this one at least: since then a pod's listeners include those for HBONE. Tools need less.
pub const PROTOCOL_AGENT_MIN: u32 = 2;

/// Sends one message with descriptors.
///
/// # Errors
/// Too large, too many descriptors, or the peer is gone.
pub fn send(socket: BorrowedFd<'_>, message: &impl Message, fds: &[BorrowedFd<'_>]) -> Result<(), DatapathError> {
    send_with(socket, message, fds, MsgFlags::empty())
}

/// Sends one message, or fails at once if the other end has not read what it was sent before.
///
/// # Errors
/// As [`send`], or the buffer is full.
pub fn send_now(socket: BorrowedFd<'_>, message: &impl Message) -> Result<(), DatapathError> {
    send_with(socket, message, &[], MsgFlags::MSG_DONTWAIT)
}

fn send_with(
    socket: BorrowedFd<'_>,
    message: &impl Message,
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<(), DatapathError> {
    let bytes = message.encode_to_vec();
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(DatapathError::Protocol(format!(
            "packet of {} bytes and {} fds: too large",
            bytes.len(),
            fds.len()
        )));
    }
    // An empty packet could not be told from the end: an empty message goes as one unknown field (99), which every
    // protobuf reader skips.
    let bytes = if bytes.is_empty() { vec![0x98, 0x06, 0x01] } else { bytes };
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &control[..0] } else { &control[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL | flags, None)
        {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(DatapathError::errno("send to the keeper socket")(errno)),
        }
    }
}

/// Receives one message with its descriptors; `None` when the peer has closed.
///
/// # Errors
/// Not a packet of the protocol, truncated, or the socket's timeout passed.
pub fn receive<M: Message + Default>(socket: BorrowedFd<'_>) -> Result<Option<(M, Vec<OwnedFd>)>, DatapathError> {
    let mut bytes = vec![0_u8; PACKET_BYTES_MAX];
    let mut control = cmsg_space!([RawFd; 253]);
    let (length, fds, flags) = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut fds = Vec::new();
                for item in message.cmsgs().map_err(DatapathError::errno("keeper socket: control message"))? {
                    if let ControlMessageOwned::ScmRights(raw) = item {
                        // SAFETY: the kernel just made these descriptors for this process; nobody else owns them.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, fds, message.flags);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(DatapathError::errno("receive from the keeper socket")(errno)),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(DatapathError::Protocol("packet or descriptors truncated".into()));
    }
    let message = M::decode(&bytes[..length]).map_err(|e| DatapathError::Protocol(format!("undecodable: {e}")))?;
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_proto::keeper::v1::{Done, PodState, Reply, Request, Sockets, request};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
    }

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (a, b) = pair();
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        send(a.as_fd(), &Sockets { count: 1 }, &[writer.as_fd()]).expect("send");
        drop(writer);
        let (message, mut fds) = receive::<Sockets>(b.as_fd()).expect("receive").expect("a packet");
        assert_eq!(message.count, 1);
        let mut file = std::fs::File::from(fds.remove(0));
        file.write_all(b"x").expect("write");
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "x");
    }

    #[test]
    fn an_empty_message_is_not_the_end() {
        let (a, b) = pair();
        send(a.as_fd(), &Done {}, &[]).expect("send");
        assert!(receive::<Done>(b.as_fd()).expect("receive").is_some());
        drop(a);
        assert!(receive::<Done>(b.as_fd()).expect("receive").is_none());
    }

    #[test]
    fn too_large_is_refused_before_it_is_sent() {
        let (a, _b) = pair();
        let message = PodState { reason: "x".repeat(PACKET_BYTES_MAX + 1), ..PodState::default() };
        assert!(matches!(send(a.as_fd(), &message, &[]), Err(DatapathError::Protocol(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 1..2000)) {
            let (a, b) = pair();
            nix::unistd::write(&a, &bytes).expect("write");
            match receive::<Request>(b.as_fd()) {
                Ok(Some((request, fds))) => {
                    prop_assert!(fds.is_empty());
                    if let Some(request::Request::SetPods(set)) = request.request {
                        for pod in set.pods {
                            let _ = crate::enrol::PodSpec::parse(pod);
                        }
                    }
                }
                Ok(None) => prop_assert!(false, "bytes are not the end"),
                Err(DatapathError::Protocol(_)) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            let _ = Reply::decode(&bytes[..]);
        }
    }
}
