//! The HTTP/1 codec: no bytes panic, splits change nothing, and what is forwarded parses to what was promised.

use heddle_http::h1::{
    Asked, Body, BodyDecoder, BodyEncoder, ClientSide, Progress, RequestHead, RequestParser, ResponseHead,
    ResponseParser, Version, forward_request, forward_response,
};
use heddle_http::{Limits, Reject};

/// For heads that were written by us: adding fields may take a head that was at a limit beyond it.
const ROOMY: Limits = Limits { fields_max: 200, head_bytes_max: 1 << 20, ..Limits::DEFAULT };

/// `split`, then a request head.
pub fn request(input: &[u8]) {
    let [split, bytes @ ..] = input else { return };
    let mut head = RequestHead::default();
    let whole = RequestParser::new(Limits::DEFAULT).parse(bytes, &mut head);

    let mut parser = RequestParser::new(Limits::DEFAULT);
    let mut pieces = RequestHead::default();
    assert_eq!(whole, in_pieces(bytes, *split, |bytes| parser.parse(bytes, &mut pieces)));

    let Ok(Progress::Complete { .. }) = whole else { return };
    let body = head.body();
    if forward_request(&mut head, "a.example").is_err() {
        return;
    }
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = RequestHead::default();
    assert_eq!(RequestParser::new(ROOMY).parse(&out, &mut again), Ok(Progress::Complete { consumed: out.len() }));
    assert_eq!((again.method(), again.target(), again.body()), (head.method(), head.target(), body));
}

/// `flags` (what was asked, and by whom), `split`, then a response head.
pub fn response(input: &[u8]) {
    let [flags, split, bytes @ ..] = input else { return };
    let asked = Asked { head: flags & 1 != 0, connect: flags & 2 != 0, upgrade: flags & 4 != 0 };
    let mut head = ResponseHead::default();
    let whole = ResponseParser::new(Limits::DEFAULT).parse(bytes, asked, &mut head);

    let mut parser = ResponseParser::new(Limits::DEFAULT);
    let mut pieces = ResponseHead::default();
    assert_eq!(whole, in_pieces(bytes, *split, |bytes| parser.parse(bytes, asked, &mut pieces)));

    let Ok(Progress::Complete { .. }) = whole else { return };
    let version = if flags & 8 != 0 { Version::Http10 } else { Version::Http11 };
    let outgoing = forward_response(&mut head, ClientSide { version, keep_alive: flags & 16 != 0, head: asked.head });
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = ResponseHead::default();
    let progress = ResponseParser::new(ROOMY).parse(&out, asked, &mut again);
    assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }));
    assert_eq!(again.body(), outgoing.body);
    if !again.is_interim() && again.body() != Body::Tunnel {
        assert_eq!(again.keep_alive(), outgoing.keep_alive);
    }
}

/// A parser that is shown more and more of the bytes, until it has an answer.
fn in_pieces(
    bytes: &[u8],
    split: u8,
    mut parse: impl FnMut(&[u8]) -> Result<Progress, Reject>,
) -> Result<Progress, Reject> {
    let mut result = Ok(Progress::NeedMore);
    let mut len = 0;
    while result == Ok(Progress::NeedMore) && len < bytes.len() {
        len = (len + usize::from(split).max(1)).min(bytes.len());
        result = parse(&bytes[..len]);
    }
    result
}

/// `split`, then a body in the chunked coding: what was decoded encodes and decodes to itself.
pub fn chunked(input: &[u8]) {
    let [split, bytes @ ..] = input else { return };
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole, decode(bytes, usize::from(*split).max(1)));
    let Ok((data, _, true)) = whole else { return };
    let mut out = Vec::new();
    let mut encoder = BodyEncoder::new(Body::Chunked);
    for chunk in data.chunks(usize::from(*split).max(1)) {
        encoder.copy(chunk, &mut out).unwrap();
    }
    encoder.end(None, &mut out).unwrap();
    assert_eq!(decode(&out, 7), Ok((data, out.len(), true)));
}

/// Data, bytes consumed, and whether the body was complete.
fn decode(bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Reject> {
    let mut decoder = BodyDecoder::new(Body::Chunked, &Limits::DEFAULT);
    let (mut data, mut at, mut end) = (Vec::new(), 0, 0);
    while !decoder.is_done() && end < bytes.len() {
        end = (end + step).min(bytes.len());
        while at < end && !decoder.is_done() {
            let decoded = decoder.decode(&bytes[at..end])?;
            data.extend_from_slice(&bytes[at..end][decoded.data]);
            at += decoded.consumed;
            assert!(decoded.consumed > 0, "the decoder keeps bytes");
        }
    }
    Ok((data, at, decoder.is_done()))
}
