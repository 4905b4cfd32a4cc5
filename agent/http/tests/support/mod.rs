//! Reads `strictness.txt`, and runs bytes through the codec in the pieces they are given in. Other suites include this file to run the
//! same cases against live agents.
#![allow(dead_code, reason = "each suite uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use heddle_http::h1::{
    Asked, Body, BodyDecoder, Fields, Progress, RequestHead, RequestParser, ResponseHead, ResponseParser,
};
use heddle_http::{Limits, Reject};

/// One case of the file.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub citation: String,
    /// `None`: a request. Otherwise a response to GET, HEAD, CONNECT or UPGRADE.
    pub response_to: Option<String>,
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// What became of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reject(String),
    More,
    Accept(Accepted),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    pub body: Vec<u8>,
    pub close: bool,
    pub rest: Vec<u8>,
    pub tunnel: bool,
    pub trailers: String,
}

/// All cases of the file.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in include_str!("../strictness.txt").lines().enumerate() {
        if line.starts_with(";;") {
            continue;
        }
        let Some(title) = line.strip_prefix("## ") else {
            if let Some(case) = cases.last_mut() {
                case.bytes.extend(unescape(line));
            }
            continue;
        };
        let parsed = parse_title(title).unwrap_or_else(|| panic!("line {}: {title}", number + 1));
        assert!(cases.iter().all(|case| case.name != parsed.name), "line {}: {} twice", number + 1, parsed.name);
        cases.push(parsed);
    }
    cases
}

fn parse_title(title: &str) -> Option<Case> {
    let (name, rest) = title.split_once(" (")?;
    let (citation, rest) = rest.split_once(") ")?;
    let (direction, verdict) = rest.split_once(": ")?;
    let response_to = match direction {
        "request" => None,
        _ => Some(direction.strip_prefix("response to ")?.to_owned()),
    };
    let verdict = match verdict.split_once(' ').unwrap_or((verdict, "")) {
        ("more", "") => Verdict::More,
        ("reject", word) => {
            assert!(Reject::ALL.iter().any(|rule| rule.as_str() == word), "{name}: no rule {word}");
            Verdict::Reject(word.to_owned())
        }
        ("accept", facts) => Verdict::Accept(parse_facts(facts)?),
        _ => return None,
    };
    Some(Case { name: name.to_owned(), citation: citation.to_owned(), response_to, verdict, bytes: Vec::new() })
}

fn parse_facts(mut facts: &str) -> Option<Accepted> {
    let mut accepted = Accepted::default();
    while !facts.is_empty() {
        facts = if let Some(rest) = facts.strip_prefix("close") {
            accepted.close = true;
            rest
        } else if let Some(rest) = facts.strip_prefix("tunnel") {
            accepted.tunnel = true;
            rest
        } else {
            let (key, rest) = facts.split_once("=\"")?;
            let (value, rest) = rest.split_once('"')?;
            match key {
                "body" => accepted.body = unescape(value),
                "rest" => accepted.rest = unescape(value),
                "trailers" => accepted.trailers = value.to_owned(),
                _ => return None,
            }
            rest
        };
        facts = facts.trim_start();
    }
    Some(accepted)
}

/// `\r \n \t \0 \\ \xNN \{N:text}`
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes();
    let out = unescape_until(&mut bytes, false);
    assert!(bytes.is_empty(), "{text}");
    out
}

fn unescape_until(bytes: &mut &[u8], nested: bool) -> Vec<u8> {
    let mut out = Vec::new();
    while let [first, rest @ ..] = *bytes {
        *bytes = rest;
        match first {
            b'}' if nested => return out,
            b'\\' => {
                let [kind, rest @ ..] = *bytes else { panic!("escape at the end") };
                *bytes = rest;
                match kind {
                    b'r' => out.push(b'\r'),
                    b'n' => out.push(b'\n'),
                    b't' => out.push(b'\t'),
                    b'0' => out.push(0),
                    b'\\' => out.push(b'\\'),
                    b'x' => {
                        let hex = std::str::from_utf8(&bytes[..2]).unwrap();
                        out.push(u8::from_str_radix(hex, 16).unwrap());
                        *bytes = &bytes[2..];
                    }
                    b'{' => {
                        let colon = bytes.iter().position(|&b| b == b':').unwrap();
                        let times: usize = std::str::from_utf8(&bytes[..colon]).unwrap().parse().unwrap();
                        *bytes = &bytes[colon + 1..];
                        out.extend(unescape_until(bytes, true).repeat(times));
                    }
                    other => panic!("escape \\{}", char::from(*other)),
                }
            }
            other => out.push(*other),
        }
    }
    assert!(!nested, "no end of a repetition");
    out
}

/// What a response answers.
pub fn asked(method: &str) -> Asked {
    match method {
        "GET" => Asked::default(),
        "HEAD" => Asked { head: true, ..Asked::default() },
        "CONNECT" => Asked { connect: true, ..Asked::default() },
        "UPGRADE" => Asked { upgrade: true, ..Asked::default() },
        other => panic!("{other}"),
    }
}

/// Runs one message that arrives in these pieces, then the end of the connection. `response_to` as in [`Case`].
pub fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, response_to: Option<Asked>) -> Verdict {
    match try_run(pieces, response_to) {
        Ok(verdict) => verdict,
        Err(rule) => Verdict::Reject(rule.as_str().to_owned()),
    }
}

fn try_run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, response_to: Option<Asked>) -> Result<Verdict, Reject> {
    let limits = Limits::DEFAULT;
    let mut requests = RequestParser::new(limits);
    let mut responses = ResponseParser::new(limits);
    let (mut request, mut response) = (RequestHead::default(), ResponseHead::default());
    let mut buffer: Vec<u8> = Vec::new();
    let mut decoder: Option<BodyDecoder> = None;
    let mut accepted = Accepted::default();
    let mut done = false;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if decoder.is_none() {
            let progress = match response_to {
                None => requests.parse(&buffer, &mut request)?,
                Some(asked) => responses.parse(&buffer, asked, &mut response)?,
            };
            let Progress::Complete { consumed } = progress else { continue };
            buffer.drain(..consumed);
            let (body, keep_alive) = match response_to {
                None => (request.body(), request.keep_alive()),
                Some(_) => (response.body(), response.keep_alive()),
            };
            accepted.close = !keep_alive;
            accepted.tunnel = body == Body::Tunnel;
            done = accepted.tunnel;
            decoder = Some(BodyDecoder::new(body, &limits));
        }
        while let Some(decoder) = decoder.as_mut().filter(|_| !done) {
            let decoded = decoder.decode(&buffer)?;
            assert!(decoded.data.end <= decoded.consumed.max(decoded.data.start) && decoded.consumed <= buffer.len());
            accepted.body.extend_from_slice(&buffer[decoded.data]);
            buffer.drain(..decoded.consumed);
            done = decoded.done;
            if decoded.consumed == 0 {
                break;
            }
        }
    }
    let Some(mut decoder) = decoder else { return Ok(Verdict::More) };
    if !done && decoder.finish().is_err() {
        return Ok(Verdict::More);
    }
    accepted.trailers = decoder.trailers().map(text_of).unwrap_or_default();
    accepted.rest = buffer;
    Ok(Verdict::Accept(accepted))
}

fn text_of(fields: &Fields) -> String {
    let lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
        .collect();
    lines.join("; ")
}
