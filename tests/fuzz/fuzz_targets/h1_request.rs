//! Request heads and bodies: no bytes panic, splits change nothing, and what is forwarded parses to the same message.
#![no_main]

use heddle_http::Limits;
use heddle_http::h1::{Progress, RequestHead, RequestParser, forward_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [split, bytes @ ..] = input else { return };
    let mut head = RequestHead::default();
    let whole = RequestParser::new(Limits::DEFAULT).parse(bytes, &mut head);

    let mut parser = RequestParser::new(Limits::DEFAULT);
    let mut pieces = RequestHead::default();
    let step = usize::from(*split).max(1);
    let mut result = Ok(Progress::NeedMore);
    let mut len = 0;
    while result == Ok(Progress::NeedMore) && len < bytes.len() {
        len = (len + step).min(bytes.len());
        result = parser.parse(&bytes[..len], &mut pieces);
    }
    assert_eq!(whole, result);

    let Ok(Progress::Complete { .. }) = whole else { return };
    let body = head.body();
    if forward_request(&mut head, "a.example").is_err() {
        return;
    }
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = RequestHead::default();
    // Adding Host may take a head that was at a limit beyond it.
    let limits = Limits { fields_max: 200, head_bytes_max: 1 << 20, ..Limits::DEFAULT };
    assert_eq!(RequestParser::new(limits).parse(&out, &mut again), Ok(Progress::Complete { consumed: out.len() }));
    assert_eq!((again.method(), again.target(), again.body()), (head.method(), head.target(), body));
});
