//! What a case sends, what it expects, and where it runs: made from the codec's own table (`agent/http/tests/strictness.txt`) and from
//! `sequences.txt`.

#![allow(dead_code, reason = "each suite uses its part")]

use heddle_http::Reject;
use heddle_http::detect::{DETECT_BYTES_MAX, Detection, Protocol, detect};
use serde_json::{Value, json};

use super::codec::{self, Verdict};
use super::stage::{PORT_FIRST, hex};

/// Which origin a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Real servers: a strict and a lenient one.
    Both,
    /// One that answers with given bytes.
    Raw,
    /// The strict one, by agents with short timeouts.
    Slow,
}

/// One thing the client does, as `raw_client.py` reads it.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends byte by byte until something comes back.
    Drip(Vec<u8>),
    /// Reads a response to this method.
    Read(String),
    /// Reads so many bytes of a tunnel.
    Raw(usize),
    End,
    Wait,
    /// Reads to the end of the connection.
    Gone,
}

impl Step {
    fn json(&self) -> Value {
        match self {
            Self::Send(bytes) => json!(["send", hex(bytes)]),
            Self::Drip(bytes) => json!(["drip", hex(bytes), DRIP_SECONDS]),
            Self::Read(method) => json!(["read", method]),
            Self::Raw(count) => json!(["raw", count]),
            Self::End => json!(["end"]),
            Self::Wait => json!(["pause", WAIT_SECONDS]),
            Self::Gone => json!(["gone"]),
        }
    }
}

/// `WAIT` of a case.
const WAIT_SECONDS: f64 = 0.05;

/// Between two bytes of a `DRIP`.
const DRIP_SECONDS: f64 = 0.25;

/// A response the client expects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `None`: what the origin said it answered.
    pub status: Option<u16>,
    /// The agent's word in the header.
    pub reason: Option<String>,
    /// The rule in an access record.
    pub detail: Option<String>,
    /// Interim statuses before it; `None`: any.
    pub interim: Option<Vec<u16>>,
    /// The body; `@` stands for the origin's name.
    pub body: Option<Vec<u8>>,
    pub trailers: String,
    /// The connection is cut inside it. `None`: that, or the agent noticed in time and answers 502.
    pub cut: Option<bool>,
}

/// How the client's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Kept,
    Closed,
    Reset,
    Gone,
    /// Nobody looks.
    Any,
}

/// A request as an origin understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
}

impl Seen {
    fn new(method: &str, target: &str, body: &[u8]) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), body: body.to_vec() }
    }
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub citation: String,
    pub origin: Origin,
    pub port: u16,
    pub steps: Vec<Step>,
    pub answers: Vec<Answer>,
    pub tunnelled: Vec<u8>,
    pub after: After,
    pub saw: Vec<Seen>,
    /// Seconds it takes.
    pub took: Option<(f64, f64)>,
    /// The origin may have seen a part of one more.
    pub partly: bool,
    /// Sent straight to the lenient origin, the bytes make it see this method and target too.
    pub direct: Option<(String, String)>,
    /// The raw origin's greeting and replies, as `raw_origin.py` reads them.
    pub greet: Vec<u8>,
    pub replies: Vec<Vec<Value>>,
}

impl Case {
    fn new(name: &str, citation: &str, origin: Origin) -> Self {
        Self {
            name: name.to_owned(),
            citation: citation.to_owned(),
            origin,
            port: 0,
            steps: Vec::new(),
            answers: Vec::new(),
            tunnelled: Vec::new(),
            after: After::Kept,
            saw: Vec::new(),
            took: None,
            partly: false,
            direct: None,
            greet: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Adds what proves the end: another request, or waiting for it.
    fn finished(mut self) -> Self {
        match self.after {
            After::Kept => {
                let next = format!("GET /after-{} HTTP/1.1\r\nHost: a\r\n\r\n", self.name);
                self.steps.extend([Step::Send(next.into_bytes()), Step::Read("GET".to_owned())]);
                self.answers.push(Answer { status: Some(200), cut: Some(false), ..Answer::default() });
                self.saw.push(Seen::new("GET", &format!("/after-{}", self.name), b""));
            }
            After::Closed | After::Reset | After::Gone => self.steps.push(Step::Gone),
            After::Any => {}
        }
        self
    }

    /// Whether an agent that knows nothing of the port takes it for HTTP/1.
    pub fn begins_like_http(&self) -> bool {
        let Some(Step::Send(bytes)) = self.steps.first() else { return false };
        detect(&bytes[..bytes.len().min(DETECT_BYTES_MAX)]) == Detection::Decided(Protocol::Http1)
    }

    /// For `raw_client.py`.
    pub fn plan(&self, host: &str) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(Step::json).collect();
        json!({"id": self.name, "host": host, "port": self.port, "steps": steps})
    }

    /// For `raw_origin.py`.
    pub fn script(&self) -> Value {
        json!({"greet": hex(&self.greet), "replies": self.replies})
    }
}

/// Gives each case a port.
pub fn numbered(cases: impl IntoIterator<Item = Case>) -> Vec<Case> {
    (PORT_FIRST..).zip(cases).map(|(port, case)| Case { port, ..case }).collect()
}

/// The codec's request cases, for real origins.
pub fn requests() -> Vec<Case> {
    codec::cases().iter().filter(|c| c.response_to.is_none()).map(request).collect()
}

fn request(of: &codec::Case) -> Case {
    let mut case = Case::new(&of.name, &of.citation, Origin::Both);
    case.steps.push(Step::Send(of.bytes.clone()));
    let (method, target) = asked_for(&of.bytes);
    match &of.verdict {
        Verdict::Reject(word) => {
            let rule = rule(word);
            case.steps.push(Step::Read("GET".to_owned()));
            case.answers.push(Answer {
                status: Some(rule.status()),
                reason: Some(rule.request_reason().as_str().to_owned()),
                detail: Some(word.clone()),
                interim: Some(Vec::new()),
                cut: Some(false),
                ..Answer::default()
            });
            case.after = After::Closed;
            case.partly = head_is_accepted(&of.bytes);
        }
        Verdict::More => {
            case.steps.push(Step::End);
            case.after = After::Gone;
            case.partly = true;
        }
        Verdict::Accept(accepted) => {
            let interim = if find(&of.bytes, b"\r\nExpect:").is_some() { None } else { Some(Vec::new()) };
            let answer = Answer { interim, cut: Some(false), ..Answer::default() };
            case.steps.push(Step::Read(method.clone()));
            case.answers.push(answer.clone());
            case.saw.push(Seen::new(&method, &target, &accepted.body));
            // Behind a CONNECT that was declined nobody knows what is meant for the tunnel.
            if accepted.close || method == "CONNECT" && accepted.rest.is_empty() {
                case.after = After::Closed;
            } else if accepted.rest.ends_with(b"\r\n\r\n") {
                let (method, target) = asked_for(&accepted.rest);
                case.steps.push(Step::Read(method.clone()));
                case.answers.push(answer);
                case.saw.push(Seen::new(&method, &target, b""));
            } else if !accepted.rest.is_empty() {
                // The beginning of a request that never comes.
                case.steps.push(Step::End);
                case.after = After::Gone;
            }
        }
    }
    case.finished()
}

/// The codec's response cases, for the origin that answers with given bytes.
pub fn responses() -> Vec<Case> {
    codec::cases().iter().filter_map(|c| Some(response(c, c.response_to.as_deref()?))).collect()
}

fn response(of: &codec::Case, to: &str) -> Case {
    let mut case = Case::new(&of.name, &of.citation, Origin::Raw);
    let (method, target, extra) = match to {
        "CONNECT" => ("CONNECT", "a:80", ""),
        "UPGRADE" => (
            "GET",
            "/",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
        ),
        method => (method, "/", ""),
    };
    let host = if method == "CONNECT" { "a:80" } else { "a" };
    case.steps.push(Step::Send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n").into_bytes()));
    case.steps.push(Step::Read(method.to_owned()));
    case.saw.push(Seen::new(method, target, b""));
    let mut bytes = of.bytes.clone();
    let status: u16 = bytes.get(9..12).and_then(|s| std::str::from_utf8(s).ok()?.parse().ok()).unwrap_or(0);
    let mut answer = Answer { status: Some(status), interim: Some(Vec::new()), cut: Some(false), ..Answer::default() };
    match &of.verdict {
        Verdict::Reject(word) => {
            answer.detail = Some(word.clone());
            if head_of_response_is_accepted(of, to) {
                answer.cut = None;
                case.after = After::Any;
            } else {
                answer.status = Some(502);
            }
        }
        // The server closes behind what it sent.
        Verdict::More => {
            answer.cut = Some(true);
            case.after = After::Reset;
        }
        Verdict::Accept(accepted) if status < 200 && !accepted.tunnel => {
            answer.interim = Some(vec![status]);
            if accepted.rest.is_empty() {
                answer.status = Some(200);
                bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            } else {
                answer.status = Some(502);
            }
        }
        Verdict::Accept(accepted) => {
            answer.trailers.clone_from(&accepted.trailers);
            if accepted.tunnel {
                case.steps.extend([Step::Raw(accepted.rest.len()), Step::End]);
                case.tunnelled.clone_from(&accepted.rest);
                case.after = After::Closed;
            } else {
                answer.body = Some(accepted.body.clone());
                if to == "CONNECT" {
                    case.after = After::Closed;
                }
            }
        }
    }
    case.answers.push(answer);
    case.replies.push(vec![json!(["send", hex(&bytes)]), json!(["close"])]);
    case.finished()
}

/// Whether the agent has to read on behind the head to see what is wrong: an origin may then have seen the head.
fn head_is_accepted(bytes: &[u8]) -> bool {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return false };
    !matches!(codec::run([&bytes[..end + 4]], None), Verdict::Reject(_))
}

fn head_of_response_is_accepted(of: &codec::Case, to: &str) -> bool {
    let Some(end) = find(&of.bytes, b"\r\n\r\n") else { return false };
    !matches!(codec::run([&of.bytes[..end + 4]], Some(codec::asked(to))), Verdict::Reject(_))
}

/// Method and target, which an origin gets as they were sent: absolute-form too, for the pod may be a forward proxy.
fn asked_for(bytes: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.trim_start().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    (method.to_owned(), target.to_owned())
}

/// The cases of `sequences.txt`.
pub fn sequences() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in include_str!("../sequences.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with(";;") {
            continue;
        }
        let read = match line.strip_prefix("## ") {
            Some(title) => begin(title).map(|case| cases.push(case)),
            None => cases.last_mut().and_then(|case| continue_case(case, line)),
        };
        read.unwrap_or_else(|| panic!("sequences.txt line {}: {line}", number + 1));
    }
    cases.into_iter().map(Case::finished).collect()
}

fn begin(title: &str) -> Option<Case> {
    let (name, rest) = title.split_once(" (")?;
    let (citation, to) = rest.rsplit_once(") to ")?;
    let origin = match to {
        "both" => Origin::Both,
        "raw" => Origin::Raw,
        "slow" => Origin::Slow,
        _ => return None,
    };
    Some(Case::new(name, citation, origin))
}

fn continue_case(case: &mut Case, line: &str) -> Option<()> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (word, rest) {
        ("->", "END") => case.steps.push(Step::End),
        ("->", "WAIT") => case.steps.push(Step::Wait),
        ("->", drip) if drip.starts_with("DRIP ") => case.steps.push(Step::Drip(codec::unescape(&drip[5..]))),
        ("->", bytes) => case.steps.push(Step::Send(codec::unescape(bytes))),
        ("=>", "NEXT") => case.replies.push(Vec::new()),
        ("=>", what) => {
            if case.replies.is_empty() {
                case.replies.push(Vec::new());
            }
            case.replies.last_mut()?.push(match what {
                "CLOSE" => json!(["close"]),
                "RESET" => json!(["reset"]),
                "EARLY" => json!(["early"]),
                "WAIT" => json!(["sleep", WAIT_SECONDS]),
                bytes => json!(["send", hex(&codec::unescape(bytes))]),
            });
        }
        ("greet", bytes) => case.greet = codec::unescape(bytes),
        ("<-", answer) => {
            let (method, answer) = parse_answer(answer)?;
            case.steps.push(Step::Read(method));
            case.answers.push(answer);
        }
        ("<~", bytes) => {
            let bytes = codec::unescape(bytes);
            case.steps.push(Step::Raw(bytes.len()));
            case.tunnelled.extend(bytes);
        }
        ("kept", "") => case.after = After::Kept,
        ("closed", "") => case.after = After::Closed,
        ("reset", "") => case.after = After::Reset,
        ("gone", "") => case.after = After::Gone,
        ("saw", seen) => {
            let mut words = seen.splitn(3, ' ');
            let (method, target, body) = (words.next()?, words.next()?, words.next()?);
            let body = body.strip_prefix('"')?.strip_suffix('"')?;
            case.saw.push(Seen::new(method, target, &codec::unescape(body)));
        }
        ("took", range) => {
            let (least, most) = range.split_once(' ')?;
            case.took = Some((least.parse().ok()?, most.parse().ok()?));
        }
        ("partly", "") => case.partly = true,
        ("direct", seen) => {
            let (method, target) = seen.split_once(' ')?;
            case.direct = Some((method.to_owned(), target.to_owned()));
        }
        _ => return None,
    }
    Some(())
}

fn parse_answer(text: &str) -> Option<(String, Answer)> {
    let (status, mut rest) = text.split_once(' ').unwrap_or((text, ""));
    let status = if status == "origin" { None } else { Some(status.parse().ok()?) };
    let mut method = "GET".to_owned();
    let mut answer = Answer { status, interim: Some(Vec::new()), cut: Some(false), ..Answer::default() };
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("body=\"") {
            let (value, more) = quoted.split_once('"')?;
            answer.body = Some(codec::unescape(value));
            rest = more.trim_start();
            continue;
        }
        if let Some(quoted) = rest.strip_prefix("trailers=\"") {
            let (value, more) = quoted.split_once('"')?;
            answer.trailers = value.to_owned();
            rest = more.trim_start();
            continue;
        }
        let (word, more) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = more;
        match word.split_once('=').unwrap_or((word, "")) {
            ("to", "") => {
                let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
                method = name.to_owned();
                rest = more;
            }
            ("cut", "") => answer.cut = Some(true),
            ("reason", value) => answer.reason = Some(value.to_owned()),
            ("detail", value) => answer.detail = Some(value.to_owned()),
            ("interim", "any") => answer.interim = None,
            ("interim", value) => {
                answer.interim = Some(value.split(',').map(|s| s.parse().ok()).collect::<Option<_>>()?);
            }
            _ => return None,
        }
    }
    Some((method, answer))
}

fn rule(word: &str) -> Reject {
    *Reject::ALL.iter().find(|rule| rule.as_str() == word).unwrap_or_else(|| panic!("no rule {word}"))
}

/// Where `wanted` begins.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
