//! What an HTTP/2 client sends, counted frame by frame as its bytes pass: control frames and resets that no honest client
//! sends end its connection. The `h2` crate bounds what they may hold; this bounds what they may cost.

/// The connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// Of a frame (RFC 9113 §4.1).
pub(crate) const HEADER_BYTES: usize = 9;

/// Control frames a client may send before it has sent anything of use.
const CONTROL_GRACE: u64 = 1000;
/// Control frames per frame of use (HEADERS, DATA with bytes) it may send beyond that. A reader of many small messages sends
/// a WINDOW_UPDATE or two for each DATA frame it *receives*, so those count for less than others.
const CONTROL_RATIO: u64 = 10;
/// WINDOW_UPDATE frames that weigh as one other control frame.
const WINDOW_UPDATES_PER_CONTROL: u64 = 100;
/// Streams a client may reset before the share of them counts; then at most every second.
const RESET_GRACE: u64 = 500;

/// Counts the frames of one direction.
#[derive(Debug)]
pub(crate) struct FrameMeter {
    /// Bytes to skip before the next frame header.
    skip: u64,
    header: [u8; HEADER_BYTES],
    header_length: usize,
    requests: u64,
    useful: u64,
    control: u64,
    window_updates: u64,
    resets: u64,
}

impl FrameMeter {
    /// For a client's bytes, from the preface on.
    pub(crate) fn new() -> Self {
        Self {
            skip: PREFACE_BYTES as u64,
            header: [0; HEADER_BYTES],
            header_length: 0,
            requests: 0,
            useful: 0,
            control: 0,
            window_updates: 0,
            resets: 0,
        }
    }

    /// Bytes came; false if they are one too many.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skip = self.skip.min(bytes.len() as u64);
            self.skip -= skip;
            bytes = &bytes[skip as usize..];
            if bytes.is_empty() {
                return self.is_honest();
            }
            let take = bytes.len().min(HEADER_BYTES - self.header_length);
            self.header[self.header_length..self.header_length + take].copy_from_slice(&bytes[..take]);
            self.header_length += take;
            bytes = &bytes[take..];
            if self.header_length == HEADER_BYTES {
                self.header_length = 0;
                self.count();
            }
        }
    }

    fn count(&mut self) {
        let [a, b, c, kind, ..] = self.header;
        let length = u64::from(u32::from_be_bytes([0, a, b, c]));
        self.skip = length;
        match kind {
            0x0 if length > 0 => self.useful += 1,
            0x1 => {
                self.requests += 1;
                self.useful += 1;
            }
            0x3 => self.resets += 1,
            0x8 => self.window_updates += 1,
            // Empty DATA, PRIORITY, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION, unknown types.
            _ => self.control += 1,
        }
    }

    fn is_honest(&self) -> bool {
        let control = self.control + self.window_updates / WINDOW_UPDATES_PER_CONTROL;
        let floods = control > CONTROL_GRACE + CONTROL_RATIO * self.useful;
        let resets = self.resets > RESET_GRACE && self.resets * 2 > self.requests;
        !floods && !resets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(0, length.into()));
        frame
    }

    fn honest(frames: &[(u8, u8, usize)], step: usize) -> bool {
        let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, length, count) in frames {
            (0..*count).for_each(|_| wire.extend(frame(*kind, *length)));
        }
        let mut meter = FrameMeter::new();
        let verdicts: Vec<bool> = wire.chunks(step).map(|part| meter.read(part)).collect();
        verdicts.iter().all(|v| *v)
    }

    #[test]
    fn floods_are_told_from_work() {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const PRIORITY: u8 = 2;
        const RST: u8 = 3;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const WINDOW: u8 = 8;
        type Row = (&'static str, &'static [(u8, u8, usize)], bool);
        let table: [Row; 12] = [
            ("a long upload", &[(HEADERS, 50, 1), (DATA, 200, 5000)], true),
            ("a long download", &[(HEADERS, 50, 1), (WINDOW, 4, 90_000)], true),
            ("a window update flood", &[(HEADERS, 50, 1), (WINDOW, 4, 110_000)], false),
            ("a ping flood", &[(HEADERS, 50, 1), (PING, 8, 1100)], false),
            ("pings between requests", &[(HEADERS, 50, 500), (PING, 8, 1100)], true),
            ("a settings flood", &[(SETTINGS, 0, 1100)], false),
            ("empty data", &[(HEADERS, 50, 1), (DATA, 0, 1100)], false),
            ("priority", &[(PRIORITY, 5, 1100)], false),
            ("continuation", &[(HEADERS, 50, 1), (9, 0, 1100)], false),
            ("a client that gives up often", &[(HEADERS, 50, 2000), (RST, 4, 900)], true),
            ("a rapid reset", &[(HEADERS, 50, 600), (RST, 4, 501)], false),
            ("few resets", &[(HEADERS, 50, 400), (RST, 4, 400)], true),
        ];
        for (what, frames, expected) in table {
            for step in [1, 7, 9, 4096] {
                assert_eq!(honest(frames, step), expected, "{what} in steps of {step}");
            }
        }
    }
}
