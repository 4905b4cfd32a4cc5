//! A blocking HTTP client that is as small as it can be: it opens thousands of connections at little cost, sends at the very
//! moment it is told to, and knows when a response is complete. Both versions are written down byte by byte, so that
//! nothing of the programs under test measures itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

/// One exchange may not take longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
const AUTHORITY: &str = "origin";
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Which HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Version {
    /// HTTP/1.1
    H1,
    /// HTTP/2 with prior knowledge
    H2,
}

/// One open connection.
pub struct Connection {
    stream: TcpStream,
    version: Version,
    /// Of the next HTTP/2 request.
    stream_id: u32,
    /// Read and not yet looked at.
    ahead: Vec<u8>,
}

impl Connection {
    /// Connects and, for HTTP/2, sends what comes before the first request.
    pub fn open(to: SocketAddr, version: Version) -> Result<Connection> {
        let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if version == Version::H2 {
            let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            // INITIAL_WINDOW_SIZE 1 MiB, and a connection window no run uses up.
            hello.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0]));
            hello.extend(frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()));
            stream.write_all(&hello)?;
        }
        Ok(Connection { stream, version, stream_id: 1, ahead: Vec::new() })
    }

    /// Sends one GET and reads its response to the end. `closes` asks an HTTP/1 server to close the connection behind it,
    /// and waits until it did.
    pub fn get(&mut self, path: &str, closes: bool) -> Result<()> {
        match self.version {
            Version::H1 => self.get_h1(path, closes),
            Version::H2 => self.get_h2(path),
        }
    }

    fn get_h1(&mut self, path: &str, closes: bool) -> Result<()> {
        let connection = if closes { "Connection: close\r\n" } else { "" };
        self.stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: {AUTHORITY}\r\n{connection}\r\n").as_bytes())
            .context("write")?;
        let head_end = loop {
            if let Some(at) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(self.ahead.len() < HEAD_BYTES_MAX, "a response without an end of its head");
            self.read_more()?;
        };
        let body = body_bytes(&self.ahead[..head_end])?;
        while self.ahead.len() < head_end + body {
            self.read_more()?;
        }
        self.ahead.drain(..head_end + body);
        if closes {
            ensure!(self.stream.read(&mut [0]).context("end of stream")? == 0, "more bytes than a response has");
        }
        Ok(())
    }

    fn get_h2(&mut self, path: &str) -> Result<()> {
        let id = self.stream_id;
        self.stream_id += 2;
        // RFC 7541, appendix A: GET, http, then two literals that are not indexed: path and authority.
        let mut fields = vec![0x82, 0x86];
        for (name, value) in [(0x04, path), (0x01, AUTHORITY)] {
            fields.extend([name, u8::try_from(value.len())?]);
            fields.extend_from_slice(value.as_bytes());
        }
        self.stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, id, &fields)).context("write")?;
        loop {
            while self.ahead.len() < FRAME_HEAD_BYTES {
                self.read_more()?;
            }
            let [a, b, c, kind, flags, d, e, f, g, ..] = self.ahead[..] else { bail!("no frame") };
            let end = FRAME_HEAD_BYTES + u32::from_be_bytes([0, a, b, c]) as usize;
            while self.ahead.len() < end {
                self.read_more()?;
            }
            let payload: Vec<u8> = self.ahead.drain(..end).skip(FRAME_HEAD_BYTES).collect();
            let is_ours = u32::from_be_bytes([d, e, f, g]) == id;
            match kind {
                SETTINGS if flags & ACK == 0 => self.stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => self.stream.write_all(&frame(PING, ACK, 0, &payload))?,
                HEADERS if is_ours && !is_ok(&payload) => bail!("the response is not 200: {payload:02x?}"),
                RST_STREAM if is_ours => bail!("the stream was reset: {payload:02x?}"),
                GOAWAY => bail!("the server ends the connection: {payload:02x?}"),
                _ => {}
            }
            if is_ours && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return Ok(());
            }
        }
    }

    fn read_more(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the connection ended inside a response"),
            Ok(count) => self.ahead.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("no answer in time"),
            Err(error) => return Err(error).context("read"),
        }
        Ok(())
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_HEAD_BYTES: usize = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Whether a header block begins with `:status: 200`, behind a table size update or two.
fn is_ok(block: &[u8]) -> bool {
    let mut rest = block;
    while let [first, after @ ..] = rest
        && first & 0xe0 == 0x20
    {
        rest = after;
        if first & 0x1f == 0x1f {
            let varint = rest.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
            rest = rest.get(varint..).unwrap_or_default();
        }
    }
    rest.first() == Some(&0x88)
}

/// The length of the body that follows a head.
fn body_bytes(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head).context("a head that is not ASCII")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the response is not 200: {head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.with_context(|| format!("a response without a length: {head}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that reads once and answers with `wire`, over and over.
    fn server(wire: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                // In two parts, as a network may do.
                let (a, b) = wire.split_at(wire.len() / 2);
                stream.write_all(a).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                stream.write_all(b).unwrap();
            }
        });
        at
    }

    #[test]
    fn a_response_is_read_to_its_end_and_the_next_request_goes_out() {
        let at = server(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhello");
        let mut connection = Connection::open(at, Version::H1).unwrap();
        connection.get("/", false).unwrap();
        connection.get("/", false).unwrap();
        let refused = server(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
        let error = Connection::open(refused, Version::H1).unwrap().get("/", false).unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }

    #[test]
    fn a_stream_ends_with_its_flag_whatever_else_comes() {
        // SETTINGS; HEADERS of stream 1 behind a table size update; DATA with the end.
        let wire = b"\0\0\0\x04\0\0\0\0\0\0\0\x04\x01\x04\0\0\0\x01\x3f\xe1\x1f\x88\0\0\x02\0\x01\0\0\0\x01ok";
        Connection::open(server(wire), Version::H2).unwrap().get("/", false).unwrap();
        let failed = server(b"\0\0\x01\x01\x05\0\0\0\x01\x8e");
        let error = Connection::open(failed, Version::H2).unwrap().get("/", false).unwrap_err();
        assert!(error.to_string().contains("not 200"), "{error}");
    }
}
