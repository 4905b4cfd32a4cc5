//! Laws of the codec: what is written parses back, splits change nothing, no bytes panic, and nothing passed on can be read in two ways.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use heddle_http::h1::{
    Asked, Body, BodyDecoder, BodyEncoder, ClientSide, Progress, RequestHead, RequestParser, ResponseHead,
    ResponseParser, Version, forward_request, forward_response,
};
use heddle_http::translate::{
    check_request, check_response, request_to_h1, request_to_h2, response_to_h1, response_to_h2,
};
use heddle_http::{Limits, detect, translate};
use proptest::prelude::*;
use support::run;

fn token() -> impl Strategy<Value = String> {
    "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}"
}

/// Names the codec has no rule for.
fn free_name() -> impl Strategy<Value = String> {
    token().prop_map(|name| format!("q-{name}"))
}

fn value() -> impl Strategy<Value = String> {
    "([!-~é]([ -~\té]{0,20}[!-~])?)?"
}

fn blanks() -> impl Strategy<Value = String> {
    "[ \t]{0,3}"
}

#[derive(Clone, Debug)]
enum Framed {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

fn framed() -> impl Strategy<Value = Framed> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        Just(Framed::None),
        bytes().prop_map(Framed::Length),
        prop::collection::vec(bytes(), 0..5).prop_map(Framed::Chunked),
    ]
}

impl Framed {
    fn field(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Length(bytes) => format!("content-length: {}\r\n", bytes.len()),
            Self::Chunked(_) => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }

    fn body(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Length(bytes) => bytes.clone(),
            Self::Chunked(chunks) => chunks.concat(),
        }
    }

    fn wire(&self) -> Vec<u8> {
        let Self::Chunked(chunks) = self else { return self.body() };
        let mut out = Vec::new();
        let mut encoder = BodyEncoder::new(Body::Chunked);
        for chunk in chunks {
            encoder.copy(chunk, &mut out).unwrap();
        }
        encoder.end(None, &mut out).unwrap();
        out
    }
}

prop_compose! {
    fn request_head()(
        method in "[A-Z]{1,10}",
        path in "/[a-z0-9/._~%-]{0,20}(\\?[a-z0-9=&/?]{0,10})?",
        fields in prop::collection::vec((free_name(), blanks(), value(), blanks()), 0..8),
        connection in prop::option::of("(close|keep-alive|q-hop|TE)(, (close|keep-alive|q-hop|TE)){0,2}"),
        framed in framed(),
    ) -> (String, Framed) {
        let method = if matches!(method.as_str(), "CONNECT" | "TRACE") { "GET".to_owned() } else { method };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: a.example:8080\r\n");
        for (name, before, value, after) in fields {
            head.push_str(&format!("{name}:{before}{value}{after}\r\n"));
        }
        if let Some(connection) = connection {
            head.push_str(&format!("Connection: {connection}\r\nq-hop: 1\r\nTE: trailers\r\n"));
        }
        head.push_str(&framed.field());
        head.push_str("\r\n");
        (head, framed)
    }
}

fn parse_request(bytes: &[u8]) -> RequestHead {
    let mut head = RequestHead::default();
    let progress = RequestParser::new(Limits::DEFAULT).parse(bytes, &mut head);
    assert_eq!(progress, Ok(Progress::Complete { consumed: bytes.len() }), "{}", String::from_utf8_lossy(bytes));
    head
}

fn parse_response(bytes: &[u8]) -> ResponseHead {
    let mut head = ResponseHead::default();
    let progress = ResponseParser::new(Limits::DEFAULT).parse(bytes, Asked::default(), &mut head);
    assert_eq!(progress, Ok(Progress::Complete { consumed: bytes.len() }), "{}", String::from_utf8_lossy(bytes));
    head
}

fn written(head: &RequestHead) -> Vec<u8> {
    let mut out = Vec::new();
    head.write(&mut out);
    out
}

fn written_response(head: &ResponseHead) -> Vec<u8> {
    let mut out = Vec::new();
    head.write(&mut out);
    out
}

fn pairs(fields: &heddle_http::h1::Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// Pieces of random sizes.
fn split<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, tail) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

proptest! {
    #[test]
    fn a_head_parses_back_and_is_stable((head, _) in request_head()) {
        let parsed = parse_request(head.as_bytes());
        let first = written(&parsed);
        let again = parse_request(&first);
        prop_assert_eq!(pairs(parsed.fields()), pairs(again.fields()));
        prop_assert_eq!((parsed.method(), parsed.target(), parsed.body()), (again.method(), again.target(), again.body()));
        prop_assert_eq!(&first, &written(&again));
        // One space behind each colon is all that changes.
        let plain = |text: &[u8]| text.iter().filter(|b| !matches!(b, b' ' | b'\t')).copied().collect::<Vec<u8>>();
        prop_assert_eq!(plain(head.as_bytes()), plain(&first));
    }

    #[test]
    fn a_forwarded_request_means_the_same_and_has_nothing_of_the_connection((head, _) in request_head()) {
        let mut parsed = parse_request(head.as_bytes());
        let (method, target, body) = (parsed.method().to_owned(), parsed.target().to_owned(), parsed.body());
        let nominated = head.contains("q-hop,") || head.contains("q-hop\r\n");
        let te = parsed.te_trailers();
        prop_assert_eq!(forward_request(&mut parsed, "unused"), Ok(body));
        let again = parse_request(&written(&parsed));
        prop_assert_eq!((again.method(), again.target(), again.body()), (method.as_str(), target.as_str(), body));
        prop_assert!(again.keep_alive());
        prop_assert_eq!(again.te_trailers(), te);
        prop_assert_eq!(again.fields().get("connection"), te.then_some(&b"TE"[..]));
        prop_assert_eq!(again.fields().get("q-hop").is_none(), nominated || !head.contains("q-hop: 1"));
    }

    #[test]
    fn a_message_comes_out_of_any_split(
        (head, framed) in request_head(),
        sizes in prop::collection::vec(0usize..30, 0..40),
        behind in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        let bytes = [head.as_bytes(), &framed.wire(), &behind].concat();
        let whole = run([&bytes[..]], None);
        prop_assert_eq!(&whole, &run(split(&bytes, &sizes), None));
        let support::Verdict::Accept(accepted) = whole else { panic!("{whole:?}") };
        prop_assert_eq!(accepted.body, framed.body());
        prop_assert_eq!(accepted.rest, behind);
    }

    #[test]
    fn bytes_near_http_get_one_verdict_whatever_the_split(
        (head, framed) in request_head(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        insert in any::<bool>(),
        sizes in prop::collection::vec(0usize..30, 0..40),
    ) {
        let mut bytes = [head.as_bytes(), &framed.wire()].concat();
        let at = at.index(bytes.len());
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        prop_assert_eq!(run([&bytes[..]], None), run(split(&bytes, &sizes), None));
        let as_response = [b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat();
        prop_assert_eq!(
            run([&as_response[..]], Some(Asked::default())),
            run(split(&as_response, &sizes), Some(Asked::default()))
        );
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = run([&bytes[..]], None);
        let _ = run([&bytes[..]], Some(Asked::default()));
        let _ = detect::detect(&bytes);
        let _ = detect::client_hello(&bytes);
        let mut decoder = BodyDecoder::new(Body::Chunked, &Limits::DEFAULT);
        let _ = decoder.decode(&bytes);
    }

    #[test]
    fn detection_never_takes_back_an_answer(bytes in "(GET|POST|PRI|CONNECT|OPTIONS|\\x16\\x03)?[ -~\\r\\n]{0,60}") {
        let bytes = bytes.as_bytes();
        let mut decided = None;
        for len in 0..=bytes.len() {
            match (detect::detect(&bytes[..len]), decided) {
                (detect::Detection::NeedMore, None) => prop_assert!(len < detect::DETECT_BYTES_MAX),
                (detect::Detection::NeedMore, Some(_)) => prop_assert!(false, "took back at {}", len),
                (answer, None) => decided = Some(answer),
                (answer, Some(before)) => prop_assert_eq!(answer, before),
            }
        }
    }

    #[test]
    fn a_request_survives_http2_and_back((head, framed) in request_head()) {
        let parsed = parse_request(head.as_bytes());
        let (request, kind) = request_to_h2(&parsed, http::uri::Scheme::HTTP, "unused").unwrap();
        prop_assert_eq!(kind, translate::Kind::Plain);
        let (mut parts, ()) = request.into_parts();
        let checked = check_request(&mut parts, None, matches!(framed, Framed::None)).unwrap();
        let mut back = RequestHead::default();
        request_to_h1(&parts, &checked, "", &mut back).unwrap();
        let back = parse_request(&written(&back));
        prop_assert_eq!((back.method(), back.target(), back.authority()), (parsed.method(), parsed.target(), parsed.authority()));
        prop_assert_eq!(back.body(), parsed.body());
        prop_assert_eq!(back.te_trailers(), parsed.te_trailers());
        let free = |head: &RequestHead| {
            let mut fields: Vec<_> = pairs(head.fields())
                .into_iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value))
                .filter(|(name, _)| name.starts_with(b"q-") && name != b"q-hop")
                .collect();
            // Names are grouped by the map between; the order of one name's values is kept.
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            fields
        };
        prop_assert_eq!(free(&back), free(&parsed));
    }

    #[test]
    fn a_response_survives_http2_and_back(status in 200u16..600, (head, framed) in request_head()) {
        prop_assume!(!matches!(status, 204 | 304));
        let (_, fields) = head.split_once("\r\nHost: a.example:8080\r\n").unwrap();
        let parsed = parse_response(format!("HTTP/1.1 {status} Some Reason\r\n{fields}").as_bytes());
        let (mut parts, ()) = response_to_h2(&parsed, b"").unwrap().into_parts();
        let body = check_response(&mut parts, false, Asked::default()).unwrap();
        let mut back = ResponseHead::default();
        response_to_h1(&parts, body, Asked::default(), b"", &mut back).unwrap();
        let client = ClientSide { version: Version::Http11, keep_alive: true, head: false };
        let outgoing = forward_response(&mut back, client);
        let back = parse_response(&written_response(&back));
        prop_assert_eq!(back.status(), status);
        prop_assert_eq!(back.body(), outgoing.body);
        match framed {
            Framed::Length(bytes) => prop_assert_eq!(back.body(), Body::Length(bytes.len() as u64)),
            Framed::None | Framed::Chunked(_) => prop_assert_eq!(back.body(), Body::Chunked),
        }
    }

    #[test]
    fn a_forwarded_response_is_framed_for_its_client(
        (head, _) in request_head(),
        keep_alive in any::<bool>(),
        old in any::<bool>(),
    ) {
        let (_, fields) = head.split_once("\r\nHost: a.example:8080\r\n").unwrap();
        let mut parsed = parse_response(format!("HTTP/1.1 200 OK\r\n{fields}").as_bytes());
        let version = if old { Version::Http10 } else { Version::Http11 };
        let outgoing = forward_response(&mut parsed, ClientSide { version, keep_alive, head: false });
        let text = written_response(&parsed);
        let again = parse_response(&text);
        prop_assert_eq!(again.body(), outgoing.body, "{}", String::from_utf8_lossy(&text));
        prop_assert_eq!(again.keep_alive(), outgoing.keep_alive);
        prop_assert!(!old || again.body() != Body::Chunked);
        prop_assert!(old || again.body() != Body::UntilClose);
    }
}
