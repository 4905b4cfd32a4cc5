//! Response heads (RFC 9112 §4 to §6).

use bytes::BufMut;
use memchr::memchr;

use super::fields::Known;
use super::framing::Framing;
use super::parse::Scanner;
use super::request::{push_field, read_version};
use super::{Body, Fields, Progress, Version};
use crate::syntax;
use crate::{Limits, Reject};

/// What the request was, as far as its response's framing depends on it (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// HEAD: no response has a body.
    pub head: bool,
    /// CONNECT: 2xx begins a tunnel.
    pub connect: bool,
    /// Upgrade was forwarded: 101 is allowed and begins a tunnel.
    pub upgrade: bool,
}

/// A response head that kept every rule. Reuse one per connection: its buffers stay.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    pub(super) fields: Fields,
    status: u16,
    reason: (usize, usize),
    version: Version,
    body: Body,
    pub(super) framing: Framing,
    line_is_ours: bool,
}

impl ResponseHead {
    /// The status code, 100 to 599.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase as sent.
    #[must_use]
    pub fn reason(&self) -> &[u8] {
        &self.fields.bytes[self.reason.0..self.reason.1]
    }

    /// The version the server sent.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The fields, in order.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The fields, to edit. The codec's own (Content-Length, Transfer-Encoding, Connection) cannot be edited.
    pub fn fields_mut(&mut self) -> &mut Fields {
        &mut self.fields
    }

    /// How the body is framed: [`Body::Tunnel`] for 101 and for 2xx to CONNECT.
    #[must_use]
    pub fn body(&self) -> Body {
        self.body
    }

    /// 1xx other than 101: another head follows.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether the server keeps its connection open behind this response.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.framing.persists(self.version) && !matches!(self.body, Body::UntilClose | Body::Tunnel)
    }

    /// Writes the head as HTTP/1.1. Untouched runs of lines are copied as they came; blanks around a value become one space.
    pub fn write(&self, out: &mut impl BufMut) {
        if self.line_is_ours {
            return self.fields.write(0..self.reason.1 + 2, out);
        }
        let digits = [self.status / 100, self.status / 10 % 10, self.status % 10].map(|digit| b'0' + digit as u8);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(&digits);
        out.put_slice(b" ");
        out.put_slice(self.reason());
        out.put_slice(b"\r\n");
        self.fields.write(0..0, out);
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.fields.capacity_bytes()
    }

    /// Empties the head. Buffers of ordinary size are kept.
    pub fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::default() };
    }

    /// Starts a head that did not come over HTTP/1; the framing fields for `body` are added. `Length(0)` announces an empty body, which
    /// `Empty` does not (HEAD, 204, 304).
    pub(crate) fn compose(&mut self, status: u16, body: Body) {
        self.clear();
        self.status = status;
        let phrase = crate::answer::phrase(status);
        self.fields.bytes.extend_from_slice(phrase.as_bytes());
        self.reason = (0, phrase.len());
        match body {
            Body::Length(length) => {
                self.framing.content_length = Some(length);
                self.fields.push(b"Content-Length", length.to_string().as_bytes());
            }
            Body::Chunked => {
                self.framing.chunked = true;
                self.fields.push(b"Transfer-Encoding", b"chunked");
            }
            Body::Empty | Body::UntilClose | Body::Tunnel => {}
        }
        self.body = if body == Body::Length(0) { Body::Empty } else { body };
    }

    pub(crate) fn compose_field(&mut self, name: &[u8], value: &[u8]) {
        self.fields.push(name, value);
    }

    pub(super) fn set_body(&mut self, body: Body) {
        self.body = body;
    }

    /// `HTTP/1.x SP 3DIGIT [ SP reason ]`. The second space is missing in what many servers send, and nothing depends on it.
    fn read_line(&mut self, line: &[u8]) -> Result<(), Reject> {
        let space = memchr(b' ', line).ok_or(Reject::StatusLine)?;
        self.version = read_version(&line[..space]).map_err(|rule| match rule {
            Reject::VersionUnsupported => rule,
            _ => Reject::StatusLine,
        })?;
        let (digits, reason) = line[space + 1..].split_at_checked(3).ok_or(Reject::StatusLine)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(Reject::StatusLine);
        }
        self.status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        if !(100..=599).contains(&self.status) {
            return Err(Reject::Status);
        }
        match reason {
            [] => {}
            [b' ', reason @ ..] if syntax::is_text(reason) => {}
            _ => return Err(Reject::StatusLine),
        }
        self.reason = (line.len() - reason.len().saturating_sub(1), line.len());
        self.line_is_ours = self.version == Version::Http11 && !reason.is_empty();
        Ok(())
    }

    /// The rules that need the whole head and the request (RFC 9112 §6.3).
    fn settle(&mut self, asked: Asked) -> Result<(), Reject> {
        let framing = Framing::of_response(&self.fields, self.version)?;
        self.framing = framing;
        let has_body = framing.chunked || framing.content_length.is_some_and(|length| length > 0);
        self.body = match self.status {
            101 if !asked.upgrade || framing.upgrade.is_none() => return Err(Reject::UpgradeUnasked),
            // What a server announces here must not be sent (RFC 9110 §8.6, RFC 9112 §6.1): whether it is, only it knows.
            100..200 | 204 if has_body => return Err(Reject::FramingForbidden),
            101 => Body::Tunnel,
            100..200 | 204 | 304 => Body::Empty,
            // Length and coding are to be ignored (RFC 9110 §9.3.6).
            200..300 if asked.connect => Body::Tunnel,
            _ if asked.head => Body::Empty,
            _ if framing.chunked => Body::Chunked,
            _ => match framing.content_length {
                Some(0) => Body::Empty,
                Some(length) => Body::Length(length),
                None => Body::UntilClose,
            },
        };
        if framing.respell {
            match framing.content_length {
                Some(length) => self.fields.put(b"Content-Length", length.to_string().as_bytes()),
                None => self.fields.put(b"Transfer-Encoding", b"chunked"),
            }
        }
        if matches!(self.status, 100..200 | 204) || self.body == Body::Tunnel {
            self.fields.remove_if(|known| matches!(known, Known::ContentLength | Known::TransferEncoding));
        }
        Ok(())
    }
}

/// Parses response heads of one upstream connection, one after the other.
#[derive(Clone, Debug)]
pub struct ResponseParser {
    limits: Limits,
    scanner: Scanner,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    StatusLine,
    Fields,
}

impl ResponseParser {
    /// A parser with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, scanner: Scanner::default(), state: State::Idle }
    }

    /// Reads one head, interim or final, from the front of `buffer`; otherwise as [`super::RequestParser::parse`].
    pub fn parse(&mut self, buffer: &[u8], asked: Asked, head: &mut ResponseHead) -> Result<Progress, Reject> {
        if self.state == State::Idle {
            if buffer.is_empty() {
                return Ok(Progress::NeedMore);
            }
            head.clear();
            self.state = State::StatusLine;
        }
        let limit = self.limits.head_bytes_max;
        if self.state == State::StatusLine {
            let Some(line) = self.scanner.next(buffer, limit, Reject::HeadTooLarge)? else {
                return Ok(Progress::NeedMore);
            };
            let bytes = &buffer[line.start..line.end];
            head.read_line(bytes).map_err(|rule| if memchr(b'\r', bytes).is_some() { Reject::BareCr } else { rule })?;
            self.state = State::Fields;
        }
        while let Some(line) = self.scanner.next(buffer, limit, Reject::HeadTooLarge)? {
            if line.start == line.end {
                head.fields.bytes.extend_from_slice(&buffer[..line.start]);
                head.settle(asked)?;
                self.scanner = Scanner::default();
                self.state = State::Idle;
                return Ok(Progress::Complete { consumed: line.end + 2 });
            }
            push_field(buffer, line, 0, &self.limits, &mut head.fields)?;
        }
        Ok(Progress::NeedMore)
    }

    /// Whether any byte of a response was seen: an upstream that closes before that may have its request repeated.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state != State::Idle
    }
}
