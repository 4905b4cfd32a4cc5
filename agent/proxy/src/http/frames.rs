//! What an HTTP/2 peer sends, counted frame by frame as its bytes pass, beside what it is sent: control frames and resets that
//! no honest peer sends end its connection. The `h2` crate bounds what they may hold; this bounds what they may cost.

use std::collections::VecDeque;

use crate::mesh::STREAMS_MAX;

/// The connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: u64 = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Control frames a peer may send before anything of use was sent either way.
const CONTROL_GRACE: u64 = 1000;
/// Control frames it may send beyond that per frame of use (HEADERS, DATA with bytes), in either direction: gRPC answers a burst
/// of data it *receives* with a PING, to learn the bandwidth.
const CONTROL_RATIO: u64 = 10;
/// WINDOW_UPDATE frames that weigh as one other control frame: one or two for each DATA frame it receives are the rule.
const WINDOW_UPDATES_PER_CONTROL: u64 = 10;
/// Streams a client may reset, or have refused unread, before the share of them counts; then at most every second.
const RESET_GRACE: u64 = 500;
/// The same of another agent: all clients of a pod may leave at once, and again.
const RESET_GRACE_OF_PEER: u64 = 4 * STREAMS_MAX as u64;

/// Splits one direction's bytes into frames.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes left of the preface or of the frame under way.
    skip: u64,
    header: [u8; HEADER_BYTES],
    header_length: usize,
    is_inside: bool,
}

/// What happens in a direction.
enum Event {
    /// A frame begins.
    Begin { length: u64, kind: u8, flags: u8, stream: u32 },
    /// It is complete.
    End,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8], mut on: impl FnMut(Event)) {
        loop {
            let skip = self.skip.min(bytes.len() as u64);
            self.skip -= skip;
            bytes = &bytes[skip as usize..];
            if self.skip == 0 && std::mem::take(&mut self.is_inside) {
                on(Event::End);
            }
            if bytes.is_empty() {
                return;
            }
            let take = bytes.len().min(HEADER_BYTES - self.header_length);
            self.header[self.header_length..self.header_length + take].copy_from_slice(&bytes[..take]);
            self.header_length += take;
            bytes = &bytes[take..];
            if self.header_length == HEADER_BYTES {
                self.header_length = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]).into();
                self.is_inside = true;
                let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
                on(Event::Begin { length: self.skip, kind, flags, stream });
            }
        }
    }
}

/// Counts the frames of a connection.
#[derive(Debug, Default)]
pub(crate) struct FrameMeter {
    incoming: Frames,
    outgoing: Frames,
    is_of_server: bool,
    is_of_peer: bool,
    /// Frames of use that came, and that were sent.
    received: u64,
    sent: u64,
    requests: u64,
    control: u64,
    window_updates: u64,
    resets: u64,
    has_greeted: bool,
    /// The header block under way: its stream, and whether its last frame has begun.
    block: Option<(u32, bool)>,
    blocks: u64,
    newest_stream: u32,
    /// A client's streams whose head came: those that are not served yet, and those that `h2` refused by itself.
    opened: VecDeque<u32>,
    refused: Vec<u32>,
}

impl FrameMeter {
    /// Of a client, from the preface on.
    pub(crate) fn of_client() -> Self {
        Self { incoming: Frames { skip: PREFACE_BYTES, ..Frames::default() }, ..Self::default() }
    }

    /// Of another agent, from the preface on.
    pub(crate) fn of_peer() -> Self {
        Self { is_of_peer: true, ..Self::of_client() }
    }

    /// Of a server.
    pub(crate) fn of_server() -> Self {
        let outgoing = Frames { skip: PREFACE_BYTES, ..Frames::default() };
        Self { outgoing, is_of_server: true, ..Self::default() }
    }

    /// Bytes came; false if they are one too many.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> bool {
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.read(bytes, |event| match event {
            Event::Begin { length, kind, flags, stream } => self.begin(length, kind, flags, stream),
            Event::End => self.end(),
        });
        self.incoming = incoming;
        self.is_honest()
    }

    /// Bytes were sent.
    pub(crate) fn wrote(&mut self, bytes: &[u8]) {
        let Self { outgoing, sent, opened, refused, .. } = self;
        outgoing.read(bytes, |event| {
            let Event::Begin { length, kind, stream, .. } = event else { return };
            *sent += u64::from(matches!(kind, DATA | HEADERS) && length > 0);
            if matches!(kind, HEADERS | RST_STREAM)
                && let Some(index) = opened.iter().position(|s| *s == stream)
            {
                opened.remove(index);
                refused.push(stream);
            }
        });
    }

    fn begin(&mut self, length: u64, kind: u8, flags: u8, stream: u32) {
        match kind {
            DATA if length > 0 => self.received += 1,
            HEADERS => {
                self.requests += 1;
                self.received += 1;
                self.block = Some((stream, flags & END_HEADERS != 0));
            }
            RST_STREAM => self.resets += 1,
            WINDOW_UPDATE => self.window_updates += 1,
            // Empty DATA, PRIORITY, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION, unknown types.
            _ => self.control += 1,
        }
        if let (CONTINUATION, Some((_, is_last))) = (kind, &mut self.block) {
            *is_last = flags & END_HEADERS != 0;
        }
    }

    fn end(&mut self) {
        self.has_greeted = true;
        if let Some((stream, true)) = self.block {
            self.block = None;
            self.blocks += 1;
            if stream > self.newest_stream && !self.is_of_server {
                self.newest_stream = stream;
                self.opened.push_back(stream);
            }
        }
    }

    /// The header block, by its number, whose rest the peer owes; or its first frame.
    pub(crate) fn owed(&self) -> Option<u64> {
        (!self.has_greeted || self.block.is_some()).then_some(self.blocks)
    }

    /// Whether its first frame, which is SETTINGS, is complete (RFC 9113 §3.4).
    pub(crate) fn has_greeted(&self) -> bool {
        self.has_greeted
    }

    /// Frames of use that came.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// A client's stream is served.
    pub(crate) fn accept(&mut self, stream: u32) {
        self.opened.retain(|s| *s != stream);
        // Its client broke a rule behind the head.
        self.refused.retain(|s| *s != stream);
    }

    /// How many streams were refused unread since the last call.
    pub(crate) fn take_refused(&mut self) -> u64 {
        let refused = self.refused.len() as u64;
        self.refused.clear();
        self.resets += refused;
        refused
    }

    /// Streams that were opened and never served, at the end.
    pub(crate) fn unserved(&mut self) -> u64 {
        std::mem::take(&mut self.opened).len() as u64
    }

    fn is_honest(&self) -> bool {
        let (resets, control) =
            if self.is_of_server { (0, self.control + self.resets) } else { (self.resets, self.control) };
        let control = control + self.window_updates / WINDOW_UPDATES_PER_CONTROL;
        let floods = control > CONTROL_GRACE + CONTROL_RATIO * (self.received + self.sent);
        let grace = if self.is_of_peer { RESET_GRACE_OF_PEER } else { RESET_GRACE };
        let resets = resets > grace && resets * 2 > self.requests;
        // Only behind our GOAWAY, which it ignores, are there as many.
        let ignored = self.opened.len() as u64 > grace;
        !floods && !resets && !ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIORITY: u8 = 2;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u32, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(std::iter::repeat_n(0, length.into()));
        frame
    }

    fn wire(frames: &[(u8, u8, usize)]) -> Vec<u8> {
        frames.iter().flat_map(|(kind, length, count)| frame(*kind, END_HEADERS, 1, *length).repeat(*count)).collect()
    }

    type Row = (&'static str, &'static [(u8, u8, usize)], &'static [(u8, u8, usize)], bool);

    #[test]
    fn floods_are_told_from_work() {
        let of_clients: [Row; 15] = [
            ("a long upload", &[(HEADERS, 50, 1), (DATA, 200, 5000)], &[], true),
            ("a long download", &[(HEADERS, 50, 1), (WINDOW_UPDATE, 4, 200_000)], &[(DATA, 200, 100_000)], true),
            (
                "a download with a probe for every burst",
                &[(HEADERS, 50, 1), (PING, 8, 20_000)],
                &[(DATA, 9, 20_000)],
                true,
            ),
            ("a window update flood", &[(HEADERS, 50, 1), (WINDOW_UPDATE, 4, 11_000)], &[(HEADERS, 9, 1)], false),
            ("a ping flood", &[(HEADERS, 50, 1), (PING, 8, 1100)], &[(HEADERS, 9, 1)], false),
            ("a flood of what is answered in kind", &[(PING, 8, 1100)], &[(PING, 8, 1100)], false),
            ("pings between requests", &[(HEADERS, 50, 500), (PING, 8, 1100)], &[], true),
            ("a settings flood", &[(SETTINGS, 0, 1100)], &[], false),
            ("empty data", &[(HEADERS, 50, 1), (DATA, 0, 1100)], &[], false),
            ("priority", &[(PRIORITY, 5, 1100)], &[], false),
            ("continuation", &[(HEADERS, 50, 1), (CONTINUATION, 0, 1100)], &[], false),
            ("a client that gives up often", &[(HEADERS, 50, 2000), (RST_STREAM, 4, 900)], &[], true),
            ("a rapid reset", &[(HEADERS, 50, 600), (RST_STREAM, 4, 501)], &[], false),
            ("few resets", &[(HEADERS, 50, 400), (RST_STREAM, 4, 400)], &[], true),
            ("nothing", &[], &[], true),
        ];
        let of_servers: [Row; 6] = [
            ("a long download", &[(DATA, 200, 5000)], &[(HEADERS, 50, 1)], true),
            ("a long upload", &[(WINDOW_UPDATE, 4, 200_000)], &[(DATA, 200, 100_000)], true),
            ("a ping flood", &[(HEADERS, 50, 1), (PING, 8, 1100)], &[(HEADERS, 9, 1)], false),
            ("a settings flood", &[(SETTINGS, 0, 1100)], &[(HEADERS, 9, 1)], false),
            ("every stream refused", &[(RST_STREAM, 4, 5000)], &[(HEADERS, 9, 5000)], true),
            ("resets of nothing", &[(RST_STREAM, 4, 1100)], &[(HEADERS, 9, 1)], false),
        ];
        let clients = of_clients.iter().map(|row| (row, FrameMeter::of_client as fn() -> FrameMeter));
        let servers = of_servers.iter().map(|row| (row, FrameMeter::of_server as fn() -> FrameMeter));
        for ((what, received, sent, expected), meter) in clients.chain(servers) {
            for step in [1, 7, 9, 4096] {
                let mut meter = meter();
                let (mut received, mut sent) = (wire(received), wire(sent));
                if meter.is_of_server { &mut sent } else { &mut received }.splice(..0, PREFACE.iter().copied());
                sent.chunks(step).for_each(|part| meter.wrote(part));
                let verdicts: Vec<bool> = received.chunks(step).map(|part| meter.read(part)).collect();
                assert_eq!(verdicts.iter().all(|v| *v), *expected, "{what} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_peer_owes_what_it_began() {
        let mut meter = FrameMeter::of_client();
        let mut owes = |bytes: &[u8], expected| {
            for byte in bytes {
                assert!(meter.owed().is_some(), "at {byte} of {bytes:?}");
                meter.read(&[*byte]);
            }
            assert_eq!(meter.owed().is_some(), expected);
        };
        owes(PREFACE, true);
        owes(&frame(SETTINGS, 0, 0, 6), false);
        meter.read(&frame(HEADERS, END_HEADERS, 1, 3));
        // Frames that are no head owe nothing.
        meter.read(&frame(DATA, 0, 1, 9)[..12]);
        assert_eq!(meter.owed(), None);
        meter.read(&frame(DATA, 0, 1, 9)[12..]);
        for (kind, flags, owed) in [
            (HEADERS, 0, Some(1)),
            (CONTINUATION, 0, Some(1)),
            (CONTINUATION, END_HEADERS, None),
            (HEADERS, 0, Some(2)),
        ] {
            meter.read(&frame(kind, flags, 3, 3));
            assert_eq!(meter.owed(), owed);
        }
    }

    #[test]
    fn what_was_refused_unread_is_counted() {
        let mut meter = FrameMeter::of_client();
        meter.read(PREFACE);
        for stream in [1, 3, 5, 5, 7, 9, 11] {
            meter.read(&frame(HEADERS, END_HEADERS, stream, 3));
        }
        meter.accept(1);
        // 3: refused; 5: answered unread; 7: broken behind its head, and served nevertheless; 9: served.
        for (kind, stream) in [(RST_STREAM, 3), (HEADERS, 5), (RST_STREAM, 5), (RST_STREAM, 7)] {
            meter.wrote(&frame(kind, END_HEADERS, stream, 4));
        }
        meter.accept(7);
        meter.accept(9);
        meter.wrote(&frame(HEADERS, END_HEADERS, 9, 4));
        assert_eq!((meter.take_refused(), meter.take_refused(), meter.unserved()), (2, 0, 1));
        let all = (0..RESET_GRACE as u32 + 2).map(|n| 101 + 2 * n);
        let mut is_honest = true;
        for stream in all {
            is_honest &= meter.read(&frame(HEADERS, END_HEADERS, stream, 3));
            meter.wrote(&frame(RST_STREAM, 0, stream, 4));
            meter.take_refused();
        }
        assert!(!is_honest, "nothing of it was fit to be served");
    }
}
