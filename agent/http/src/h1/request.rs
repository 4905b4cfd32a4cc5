//! Request heads (RFC 9112 §3, §5, §6).

use bytes::BufMut;
use memchr::memchr;

use super::fields::Known;
use super::framing::Framing;
use super::parse::{Line, Scanner, field_line};
use super::{Asked, Body, Fields, Progress};
use crate::syntax::{self, HostPort};
use crate::{Limits, Reject};

/// The HTTP/1 minor version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// The four forms of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

/// What a client offers to switch to. `h2c` is ignored (RFC 9113 §3.1), so it is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    WebSocket,
    /// Some other protocol; forwarded as it is.
    Other,
}

/// A place in the head's buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: usize,
    end: usize,
}

/// A request head that kept every rule. Reuse one per connection: its buffers stay, and a head of ordinary size allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    pub(super) fields: Fields,
    method: Span,
    target: Span,
    /// Of the target, if it has one.
    target_authority: Span,
    path: Span,
    form: TargetForm,
    version: Version,
    body: Body,
    pub(super) framing: Framing,
    /// The start line in the buffer is the one to be sent.
    line_is_ours: bool,
}

/// Longest method answered with anything but 501.
const METHOD_BYTES_MAX: usize = 32;
/// ` HTTP/1.1` CRLF.
const VERSION_BYTES: usize = 11;

impl RequestHead {
    /// The method as sent (case matters).
    #[must_use]
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// The target as sent.
    #[must_use]
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// The target's form.
    #[must_use]
    pub fn form(&self) -> TargetForm {
        self.form
    }

    /// `/path?query` of origin-form and of absolute-form, `*`, or empty for CONNECT. Absolute-form may lack the path: then it is empty or
    /// begins with `?`, and means `/`.
    #[must_use]
    pub fn path_and_query(&self) -> &str {
        self.text(self.path)
    }

    /// Host and port the request is for: of the target, else Host; `None` where Host is empty, or missing in HTTP/1.0.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        let of_target = self.text(self.target_authority);
        if !of_target.is_empty() {
            return Some(of_target);
        }
        let host = self.fields.known(Known::Host).next()?;
        std::str::from_utf8(host).ok().filter(|host| !host.is_empty())
    }

    /// The version the client sent.
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

    /// How the body is framed.
    #[must_use]
    pub fn body(&self) -> Body {
        self.body
    }

    /// Whether the client wants its connection kept (RFC 9112 §9.3).
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.framing.persists(self.version)
    }

    /// `Expect: 100-continue` in an HTTP/1.1 request with a body; elsewhere it means nothing (RFC 9110 §10.1.1).
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.framing.expect && self.version == Version::Http11 && self.body != Body::Empty
    }

    /// The upgrade it asks for.
    #[must_use]
    pub fn upgrade(&self) -> Option<Upgrade> {
        self.framing.upgrade
    }

    /// `TE: trailers`: the client takes trailers.
    #[must_use]
    pub fn te_trailers(&self) -> bool {
        self.framing.te_trailers
    }

    /// What its response parser has to know.
    #[must_use]
    pub fn asked(&self) -> Asked {
        Asked {
            head: self.method() == "HEAD",
            connect: self.form == TargetForm::Authority,
            upgrade: self.framing.upgrade.is_some(),
        }
    }

    /// gRPC by content-type.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.fields.known(Known::ContentType).next().is_some_and(crate::answer::is_grpc)
    }

    /// Whether the method is idempotent (RFC 9110 §9.2.2), so that the request may be sent again after a lost connection.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        is_idempotent(self.method())
    }

    /// Replaces path and query (a rewrite). Only for origin- and absolute-form; must begin with `/`.
    pub fn set_path_and_query(&mut self, path: &str) -> Result<(), Reject> {
        if !matches!(self.form, TargetForm::Origin | TargetForm::Absolute) || !path.starts_with('/') {
            return Err(Reject::TargetForm);
        }
        if !syntax::is_path_and_query(path.as_bytes()) {
            return Err(Reject::TargetByte);
        }
        let prefix = self.fields.bytes[self.target.start..self.path.start].to_vec();
        let start = self.fields.bytes.len();
        self.fields.bytes.extend_from_slice(&prefix);
        self.fields.bytes.extend_from_slice(path.as_bytes());
        let end = self.fields.bytes.len();
        if self.form == TargetForm::Absolute {
            let shift = |at: usize| at - self.target.start + start;
            self.target_authority =
                Span { start: shift(self.target_authority.start), end: shift(self.target_authority.end) };
        }
        self.path = Span { start: start + prefix.len(), end };
        self.target = Span { start, end };
        self.line_is_ours = false;
        Ok(())
    }

    /// Names another host: in Host, which is then the only one that does.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), Reject> {
        HostPort::parse(authority.as_bytes()).ok_or(Reject::HostInvalid)?;
        if self.form == TargetForm::Authority {
            return Err(Reject::TargetForm);
        }
        self.fields.set(b"Host", authority.as_bytes())?;
        if self.form == TargetForm::Absolute {
            let path = match self.path_and_query() {
                path if path.starts_with('/') => path.to_owned(),
                query => format!("/{query}"),
            };
            (self.form, self.target, self.target_authority) = (TargetForm::Origin, Span::default(), Span::default());
            self.path = Span::default();
            self.set_path_and_query(&path)?;
        }
        Ok(())
    }

    /// Writes the head as HTTP/1.1. Untouched runs of lines are copied as they came; blanks around a value become one space.
    pub fn write(&self, out: &mut impl BufMut) {
        if self.line_is_ours {
            return self.fields.write(0..self.target.end + VERSION_BYTES, out);
        }
        out.put_slice(self.method().as_bytes());
        out.put_slice(b" ");
        out.put_slice(self.target().as_bytes());
        out.put_slice(b" HTTP/1.1\r\n");
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

    /// Starts a head that did not come over HTTP/1. The parts have been checked.
    pub(crate) fn compose(&mut self, method: &str, target: &str) -> Result<(), Reject> {
        self.clear();
        let bytes = &mut self.fields.bytes;
        bytes.extend_from_slice(method.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(target.as_bytes());
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        let line = std::mem::take(bytes);
        let result = self.read_line(&line[..line.len() - 2], 0, usize::MAX);
        self.fields.bytes = line;
        result
    }

    /// Ends a composed head: the same rules as for a parsed one.
    pub(crate) fn complete(&mut self) -> Result<(), Reject> {
        self.settle()
    }

    pub(crate) fn compose_field(&mut self, name: &[u8], value: &[u8]) {
        self.fields.push(name, value);
    }

    fn text(&self, span: Span) -> &str {
        // Spans cover bytes that were checked to be ASCII.
        std::str::from_utf8(&self.fields.bytes[span.start..span.end]).unwrap_or_default()
    }

    /// `method SP target SP version`; `line` begins at `start` of the head.
    fn read_line(&mut self, line: &[u8], start: usize, target_max: usize) -> Result<(), Reject> {
        let method_end = memchr(b' ', line).ok_or(Reject::RequestLine)?;
        let rest = &line[method_end + 1..];
        let target_len = memchr(b' ', rest).ok_or(Reject::RequestLine)?;
        let (method, target, version) = (&line[..method_end], &rest[..target_len], &rest[target_len + 1..]);
        if method.is_empty() || target.is_empty() || version.is_empty() {
            return Err(Reject::RequestLine);
        }
        if !syntax::is_token(method) {
            return Err(Reject::Method);
        }
        if method.len() > METHOD_BYTES_MAX {
            return Err(Reject::MethodTooLong);
        }
        if memchr(b' ', version).is_some() {
            return Err(Reject::RequestLine);
        }
        self.version = read_version(version)?;
        if target.len() > target_max {
            return Err(Reject::TargetTooLong);
        }
        self.method = Span { start, end: start + method_end };
        let at = start + method_end + 1;
        self.target = Span { start: at, end: at + target_len };
        self.line_is_ours = self.version == Version::Http11;
        self.read_target(method, target, at)
    }

    fn read_target(&mut self, method: &[u8], target: &[u8], at: usize) -> Result<(), Reject> {
        let end = at + target.len();
        if method == b"CONNECT" {
            let authority = HostPort::parse(target).ok_or(Reject::TargetForm)?;
            if authority.port.is_none_or(|port| port == 0) {
                return Err(Reject::TargetForm);
            }
            self.form = TargetForm::Authority;
            self.target_authority = Span { start: at, end };
            self.path = Span { start: end, end };
        } else if target[0] == b'/' {
            if !syntax::is_path_and_query(target) {
                return Err(Reject::TargetByte);
            }
            self.form = TargetForm::Origin;
            self.path = Span { start: at, end };
        } else if target == b"*" {
            if method != b"OPTIONS" {
                return Err(Reject::TargetForm);
            }
            self.form = TargetForm::Asterisk;
            self.path = Span { start: at, end };
        } else {
            let scheme = [&b"http://"[..], b"https://"]
                .into_iter()
                .find(|s| target.len() > s.len() && target[..s.len()].eq_ignore_ascii_case(s))
                .ok_or_else(|| {
                    if target.iter().all(|&b| syntax::is(b, syntax::QUERY)) {
                        Reject::TargetForm
                    } else {
                        Reject::TargetByte
                    }
                })?;
            let rest = &target[scheme.len()..];
            let authority_len = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
            if !syntax::is_path_and_query(&rest[authority_len..]) {
                return Err(Reject::TargetByte);
            }
            HostPort::parse(&rest[..authority_len]).ok_or(Reject::TargetForm)?;
            self.form = TargetForm::Absolute;
            let start = at + scheme.len();
            self.target_authority = Span { start, end: start + authority_len };
            self.path = Span { start: start + authority_len, end };
        }
        Ok(())
    }

    /// The rules that need the whole head.
    fn settle(&mut self) -> Result<(), Reject> {
        let framing = Framing::of_request(&self.fields, self.version)?;
        self.framing = framing;
        self.check_host()?;
        self.body = match framing.content_length {
            _ if framing.chunked => Body::Chunked,
            Some(length) if length > 0 => Body::Length(length),
            _ => Body::Empty,
        };
        if self.body != Body::Empty && (self.form == TargetForm::Authority || self.method() == "TRACE") {
            return Err(Reject::FramingForbidden);
        }
        if framing.upgrade == Some(Upgrade::WebSocket) && (self.method() != "GET" || self.body != Body::Empty) {
            return Err(Reject::UpgradeInvalid);
        }
        if self.form == TargetForm::Authority {
            self.framing.upgrade = None;
        }
        if framing.respell {
            match framing.content_length {
                Some(length) => self.fields.put(b"Content-Length", length.to_string().as_bytes()),
                None => self.fields.put(b"Transfer-Encoding", b"chunked"),
            }
        }
        Ok(())
    }

    fn check_host(&self) -> Result<(), Reject> {
        match self.framing.hosts {
            0 if self.version == Version::Http11 => return Err(Reject::HostMissing),
            0 => return Ok(()),
            1 => {}
            _ => return Err(Reject::HostDuplicate),
        }
        let value = self.fields.known(Known::Host).next().unwrap_or_default();
        let of_target = HostPort::parse(self.text(self.target_authority).as_bytes());
        if value.is_empty() {
            // RFC 9112 §3.2 wants an empty Host where the target has no authority, and only there.
            return if of_target.is_none() { Ok(()) } else { Err(Reject::HostMismatch) };
        }
        let host = HostPort::parse(value).ok_or(Reject::HostInvalid)?;
        let Some(target) = of_target else { return Ok(()) };
        // Clients leave the port out of Host in CONNECT; the target then says it.
        let default = match self.form {
            TargetForm::Authority => target.port,
            _ if self.target().get(..5).is_some_and(|s| s.eq_ignore_ascii_case("https")) => Some(443),
            _ => Some(80),
        };
        if host.same(target, default) { Ok(()) } else { Err(Reject::HostMismatch) }
    }
}

/// Whether a method is idempotent (RFC 9110 §9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE")
}

/// `HTTP/` DIGIT `.` DIGIT, and of those 1.0 and 1.1.
pub(super) fn read_version(bytes: &[u8]) -> Result<Version, Reject> {
    match bytes {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Err(Reject::VersionUnsupported)
        }
        _ => Err(Reject::Version),
    }
}

/// Parses request heads of one connection, one after the other.
#[derive(Clone, Debug)]
pub struct RequestParser {
    limits: Limits,
    scanner: Scanner,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but ignored empty lines.
    Idle,
    RequestLine,
    Fields,
}

impl RequestParser {
    /// A parser with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, scanner: Scanner::default(), state: State::Idle }
    }

    /// Reads one head from the front of `buffer` into `head`. On `NeedMore` call again with the same head and the same bytes with more
    /// behind them; after `Complete` drop what was consumed, and the parser is ready for the next head. After an error the connection is
    /// over: there is no place from which to go on.
    pub fn parse(&mut self, buffer: &[u8], head: &mut RequestHead) -> Result<Progress, Reject> {
        if self.state == State::Idle && !self.begin(buffer, head)? {
            return Ok(Progress::NeedMore);
        }
        let begin = self.scanner.begin;
        let head_end = begin.saturating_add(self.limits.head_bytes_max);
        if self.state == State::RequestLine {
            let line_max = self.limits.target_bytes_max.saturating_add(METHOD_BYTES_MAX + 1 + VERSION_BYTES);
            let limit = begin.saturating_add(line_max).min(head_end);
            let Some(line) = self.scanner.next(buffer, limit, Reject::TargetTooLong)? else {
                return Ok(Progress::NeedMore);
            };
            let bytes = &buffer[line.start..line.end];
            head.read_line(bytes, 0, self.limits.target_bytes_max)
                .map_err(|rule| if memchr(b'\r', bytes).is_some() { Reject::BareCr } else { rule })?;
            self.state = State::Fields;
        }
        while let Some(line) = self.scanner.next(buffer, head_end, Reject::HeadTooLarge)? {
            if line.start == line.end {
                head.fields.bytes.extend_from_slice(&buffer[begin..line.start]);
                head.settle()?;
                self.scanner = Scanner::default();
                self.state = State::Idle;
                return Ok(Progress::Complete { consumed: line.end + 2 });
            }
            push_field(buffer, line, begin, &self.limits, &mut head.fields)?;
        }
        Ok(Progress::NeedMore)
    }

    /// Whether a request has begun: bytes other than leading empty lines were seen. Idle otherwise.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state != State::Idle
    }

    /// Skips empty lines before the request line (RFC 9112 §2.2); `false` while there is nothing else.
    fn begin(&mut self, buffer: &[u8], head: &mut RequestHead) -> Result<bool, Reject> {
        let mut at = 0;
        loop {
            match &buffer[at..] {
                [] | [b'\r'] => return Ok(false),
                [b'\r', b'\n', ..] => {
                    at += 2;
                    if at > self.limits.leading_bytes_max {
                        return Err(Reject::LeadingBytes);
                    }
                }
                [b'\r', ..] => return Err(Reject::BareCr),
                [b'\n', ..] => return Err(Reject::BareLf),
                _ => break,
            }
        }
        head.clear();
        self.scanner = Scanner::at(at);
        self.state = State::RequestLine;
        Ok(true)
    }
}

/// Reads a field line of a head into its list.
#[inline]
pub(super) fn push_field(
    buffer: &[u8],
    line: Line,
    base: usize,
    limits: &Limits,
    fields: &mut Fields,
) -> Result<(), Reject> {
    if fields.list.len() >= limits.fields_max {
        return Err(Reject::TooManyFields);
    }
    if fields.list.capacity() == 0 {
        fields.list.reserve(16);
    }
    fields.list.push(field_line(buffer, line, base)?);
    Ok(())
}
