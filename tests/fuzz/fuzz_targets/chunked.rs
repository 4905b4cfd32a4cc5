//! The chunked coding: no bytes panic, splits change nothing, and what was decoded encodes and decodes to itself.
#![no_main]

use heddle_http::h1::{Body, BodyDecoder, BodyEncoder};
use heddle_http::{Limits, Reject};
use libfuzzer_sys::fuzz_target;

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

fuzz_target!(|input: &[u8]| {
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
});
