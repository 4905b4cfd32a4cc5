//! A second opinion on HTTP/1: a plain, strict reader (RFC 9112) that shares nothing with the agent's codec, and judges what the
//! agent let through. It is slow and keeps everything.

/// A request as it stands in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Host, if there is one.
    pub host: Option<String>,
    /// As much of the body as there is, without its framing.
    pub body: Vec<u8>,
    /// Whether the body is all there.
    pub is_complete: bool,
    /// What is wrong with the body, if anything is.
    pub is_bad: Option<&'static str>,
    /// Whether it asks to leave HTTP: CONNECT, or an upgrade.
    pub may_tunnel: bool,
}

/// A response as it stands in a stream; interim ones are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Whether the body is all there, as far as the bytes tell.
    pub is_complete: bool,
    /// Whether the end of the connection is the end of the body.
    pub until_close: bool,
    /// Whether the connection ends behind it.
    pub closes: bool,
}

/// What stands behind the last message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing.
    Clean,
    /// The beginning of a head.
    Part,
    /// Bytes that are no HTTP any more.
    Tunnel,
    /// Something that is no HTTP/1, and why.
    Bad(&'static str),
}

type Parsed<T> = Result<Option<T>, &'static str>;

/// All requests of a client's stream.
pub fn requests(bytes: &[u8]) -> (Vec<Request>, End) {
    let (all, end, _) = requests_and_rest(bytes);
    (all, end)
}

/// The same, and what is left where no request could be read.
pub fn requests_and_rest(mut bytes: &[u8]) -> (Vec<Request>, End, &[u8]) {
    let mut all = Vec::new();
    loop {
        // Empty lines before a request line are allowed (§2.2).
        while let Some(rest) = bytes.strip_prefix(b"\r\n") {
            bytes = rest;
        }
        if bytes.is_empty() {
            return (all, End::Clean, bytes);
        }
        // Behind a request that asked to leave HTTP there may be anything, or another request if it was not granted.
        let may_be_tunnel = all.iter().any(|request: &Request| request.may_tunnel);
        match request(bytes) {
            Ok(Some((request, rest))) => {
                let (goes_on, is_bad) = (request.is_complete, request.is_bad);
                all.push(request);
                if let Some(why) = is_bad {
                    return (all, End::Bad(why), b"");
                }
                if !goes_on {
                    return (all, End::Clean, b"");
                }
                bytes = rest;
            }
            Ok(None) | Err(_) if may_be_tunnel => return (all, End::Tunnel, bytes),
            Ok(None) => return (all, End::Part, bytes),
            Err(why) => return (all, End::Bad(why), bytes),
        }
    }
}

fn request(bytes: &[u8]) -> Parsed<(Request, &[u8])> {
    let Some((head, rest)) = Head::read(bytes)? else { return Ok(None) };
    let mut words = head.start.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("request line");
    };
    if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err("method or target");
    }
    let is_old = match version {
        b"HTTP/1.0" => true,
        b"HTTP/1.1" => false,
        _ => return Err("version"),
    };
    let mut hosts = head.values("host");
    let host = hosts.next().map(text);
    if hosts.next().is_some() || (host.is_none() && !is_old) {
        return Err("host");
    }
    let framing = match head.framing()? {
        Framing::UntilClose => Framing::Length(0),
        Framing::Chunked if is_old => return Err("transfer-encoding in HTTP/1.0"),
        framing => framing,
    };
    let body = read_body(rest, framing);
    let is_upgrade = head.has("connection", "upgrade") && head.values("upgrade").next().is_some();
    let request = Request {
        method: text(method),
        target: text(target),
        host,
        body: body.data,
        is_complete: body.is_complete,
        is_bad: body.is_bad,
        may_tunnel: method == b"CONNECT" || (is_upgrade && !is_old),
    };
    Ok(Some((request, &rest[body.consumed..])))
}

/// All responses of a server's stream to these requests, in order. One more may follow, to what is no request; it has no
/// content if that is `HEAD` all the same.
pub fn responses(mut bytes: &[u8], to: &[Request], rest: &[u8]) -> (Vec<Response>, End) {
    let mut all: Vec<Response> = Vec::new();
    let empty_lines = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let last = if rest[empty_lines..].starts_with(b"HEAD ") { "HEAD" } else { "" };
    while !bytes.is_empty() {
        let (method, may_tunnel) = to.get(all.len()).map_or((last, false), |r| (r.method.as_str(), r.may_tunnel));
        match response(bytes, method, may_tunnel) {
            Ok(Some((None, rest))) => bytes = rest,
            Ok(Some((Some(response), _))) if response.status == 101 => {
                all.push(response);
                return (all, End::Tunnel);
            }
            Ok(Some((Some(response), rest))) => {
                let is_tunnel = method == "CONNECT" && (200..300).contains(&response.status);
                all.push(response);
                if is_tunnel {
                    return (all, End::Tunnel);
                }
                bytes = rest;
            }
            Ok(None) => return (all, End::Part),
            Err(why) => return (all, End::Bad(why)),
        }
    }
    (all, End::Clean)
}

/// `None` in it: an interim response.
fn response<'a>(bytes: &'a [u8], method: &str, may_tunnel: bool) -> Parsed<(Option<Response>, &'a [u8])> {
    let Some((head, rest)) = Head::read(bytes)? else { return Ok(None) };
    let line = head.start.strip_prefix(b"HTTP/1.1 ").ok_or("status line")?;
    let (digits, reason) = line.split_at_checked(3).ok_or("status line")?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason, [] | [b' ', ..]) {
        return Err("status line");
    }
    let status: u16 = text(digits).parse().map_err(|_| "status")?;
    let framing = head.framing()?;
    if status < 200 && status != 101 {
        return if matches!(framing, Framing::UntilClose) { Ok(Some((None, rest))) } else { Err("framed interim") };
    }
    if status == 101 && !may_tunnel {
        return Err("101 to a request without upgrade");
    }
    let is_tunnel = status == 101 || (method == "CONNECT" && (200..300).contains(&status));
    let framing = match framing {
        framing if is_tunnel || matches!(status, 204) => {
            if !matches!(framing, Framing::UntilClose) {
                return Err("framing where there is no body");
            }
            Framing::Length(0)
        }
        _ if method == "HEAD" || status == 304 => Framing::Length(0),
        framing => framing,
    };
    let until_close = matches!(framing, Framing::UntilClose);
    let body = read_body(rest, framing);
    if let Some(why) = body.is_bad {
        return Err(why);
    }
    let closes = until_close || head.has("connection", "close");
    Ok(Some((Some(Response { status, is_complete: body.is_complete, until_close, closes }), &rest[body.consumed..])))
}

struct Head<'a> {
    start: &'a [u8],
    fields: Vec<(String, &'a [u8])>,
}

enum Framing {
    Length(usize),
    Chunked,
    /// For a request: no body.
    UntilClose,
}

impl<'a> Head<'a> {
    /// Start line and fields, and what follows the empty line.
    fn read(bytes: &'a [u8]) -> Parsed<(Head<'a>, &'a [u8])> {
        let Some((start, rest)) = line(bytes)? else { return Ok(None) };
        let Some((fields, rest)) = read_fields(rest)? else { return Ok(None) };
        Ok(Some((Head { start, fields }, rest)))
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| *value)
    }

    /// Whether a list names a member.
    fn has(&self, name: &str, member: &str) -> bool {
        let is_member = |part: &[u8]| trim(part).eq_ignore_ascii_case(member.as_bytes());
        self.values(name).any(|value| value.split(|&b| b == b',').any(is_member))
    }

    fn framing(&self) -> Result<Framing, &'static str> {
        let (mut codings, mut lengths) = (self.values("transfer-encoding"), self.values("content-length"));
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Framing::UntilClose),
            (Some(_), Some(_)) => Err("both framings"),
            (Some(coding), None) if codings.next().is_none() && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err("transfer-encoding"),
            (None, Some(length)) if lengths.next().is_none() && is_digits(length) => {
                text(length).parse().map(Framing::Length).map_err(|_| "content-length")
            }
            (None, Some(_)) => Err("content-length"),
        }
    }
}

type Fields<'a> = Vec<(String, &'a [u8])>;

/// Field lines, and what follows the empty line behind them.
fn read_fields(mut bytes: &[u8]) -> Parsed<(Fields<'_>, &[u8])> {
    let mut fields = Vec::new();
    loop {
        let Some((field, rest)) = line(bytes)? else { return Ok(None) };
        bytes = rest;
        if field.is_empty() {
            return Ok(Some((fields, bytes)));
        }
        let colon = field.iter().position(|&b| b == b':').ok_or("field without colon")?;
        let (name, value) = (&field[..colon], trim(&field[colon + 1..]));
        if !is_token(name) {
            return Err("field name");
        }
        if !value.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
            return Err("field value");
        }
        fields.push((text(name).to_ascii_lowercase(), value));
    }
}

struct Content {
    data: Vec<u8>,
    consumed: usize,
    is_complete: bool,
    is_bad: Option<&'static str>,
}

fn read_body(bytes: &[u8], framing: Framing) -> Content {
    match framing {
        Framing::Length(length) => {
            let end = length.min(bytes.len());
            Content { data: bytes[..end].to_vec(), consumed: end, is_complete: end == length, is_bad: None }
        }
        Framing::UntilClose => Content { data: bytes.to_vec(), consumed: bytes.len(), is_complete: true, is_bad: None },
        Framing::Chunked => {
            let mut data = Vec::new();
            let (rest, is_bad) = match chunked(bytes, &mut data) {
                Ok(rest) => (rest, None),
                Err(why) => (None, Some(why)),
            };
            let consumed = bytes.len() - rest.map_or(0, <[u8]>::len);
            Content { data, consumed, is_complete: rest.is_some(), is_bad }
        }
    }
}

/// What follows the chunks and their trailers.
fn chunked<'a>(mut bytes: &'a [u8], data: &mut Vec<u8>) -> Parsed<&'a [u8]> {
    loop {
        let Some((size_line, rest)) = line(bytes)? else { return Ok(None) };
        let digits = size_line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(size_line.len());
        if digits == 0 || !matches!(trim(&size_line[digits..]), [] | [b';', ..]) {
            return Err("chunk size");
        }
        let size = usize::from_str_radix(&text(&size_line[..digits]), 16).map_err(|_| "chunk size")?;
        if size == 0 {
            return Ok(read_fields(rest)?.map(|(_, rest)| rest));
        }
        data.extend_from_slice(&rest[..size.min(rest.len())]);
        match rest.get(size..) {
            Some([b'\r', b'\n', behind @ ..]) => bytes = behind,
            None | Some([] | [b'\r']) => return Ok(None),
            Some(_) => return Err("chunk end"),
        }
    }
}

/// A line without its CRLF, and what follows; neither CR nor LF may stand alone.
fn line(bytes: &[u8]) -> Parsed<(&[u8], &[u8])> {
    let Some(end) = bytes.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)) else { return Ok(None) };
    match &bytes[end..] {
        [b'\r', b'\n', rest @ ..] => Ok(Some((&bytes[..end], rest))),
        [b'\r'] => Ok(None),
        _ => Err("line end"),
    }
}

fn trim(bytes: &[u8]) -> &[u8] {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = bytes.iter().position(|b| !is_blank(b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !is_blank(b)).map_or(start, |end| end + 1);
    &bytes[start..end]
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn is_digits(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> (Vec<String>, End) {
        let (all, end) = requests(bytes);
        let show = |r: &Request| {
            let (body, is_complete) = (String::from_utf8_lossy(&r.body).into_owned(), r.is_complete);
            format!("{} {} {:?}{}", r.method, r.target, body, if is_complete { "" } else { "…" })
        };
        (all.iter().map(show).collect(), end)
    }

    #[test]
    fn requests_are_told_apart_by_their_framing() {
        for (bytes, expected, end) in [
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
                vec!["GET / \"\"", "GET /2 \"\""],
                End::Clean,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET", vec!["POST / \"abc\""], End::Part),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", vec!["POST / \"ab\"…"], End::Clean),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
                vec!["POST / \"abc\"", "GET /2 \"\""],
                End::Clean,
            ),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nanything", vec!["CONNECT a:1 \"\""], End::Tunnel),
            ("GET / HTTP/1.1\nHost: a\n\n", vec![], End::Bad("line end")),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                vec![],
                End::Bad("both framings"),
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", vec![], End::Bad("content-length")),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", vec![], End::Bad("field name")),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", vec![], End::Bad("field without colon")),
        ] {
            assert_eq!(shown(bytes.as_bytes()), (expected.into_iter().map(str::to_owned).collect(), end), "{bytes:?}");
        }
    }

    #[test]
    fn responses_are_read_by_what_was_asked() {
        let to = requests(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").0;
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi";
        let (all, end) = responses(bytes, &to, b"");
        assert_eq!((all.len(), end), (2, End::Clean));
        assert!(all.iter().all(|response| response.is_complete && !response.closes));
        let (all, end) = responses(&bytes[..bytes.len() - 1], &to, b"");
        assert_eq!((all[1].is_complete, end), (false, End::Clean));
        assert_eq!(responses(b"HTTP/1.1 101 x\r\n\r\n", &to, b"").1, End::Bad("101 to a request without upgrade"));
        assert_eq!(
            responses(b"HTTP/1.1 204 x\r\nContent-Length: 1\r\n\r\n", &[], b"").1,
            End::Bad("framing where there is no body")
        );
        assert!(responses(b"HTTP/1.1 200 x\r\n\r\nrest", &[], b"").0[0].until_close);
    }
}
