//! Response heads: no bytes panic, splits change nothing, and what is forwarded has the framing that was promised.
#![no_main]

use heddle_http::Limits;
use heddle_http::h1::{Asked, Body, ClientSide, Progress, ResponseHead, ResponseParser, Version, forward_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [flags, split, bytes @ ..] = input else { return };
    let asked = Asked { head: flags & 1 != 0, connect: flags & 2 != 0, upgrade: flags & 4 != 0 };
    let mut head = ResponseHead::default();
    let whole = ResponseParser::new(Limits::DEFAULT).parse(bytes, asked, &mut head);

    let mut parser = ResponseParser::new(Limits::DEFAULT);
    let mut pieces = ResponseHead::default();
    let step = usize::from(*split).max(1);
    let mut result = Ok(Progress::NeedMore);
    let mut len = 0;
    while result == Ok(Progress::NeedMore) && len < bytes.len() {
        len = (len + step).min(bytes.len());
        result = parser.parse(&bytes[..len], asked, &mut pieces);
    }
    assert_eq!(whole, result);

    let Ok(Progress::Complete { .. }) = whole else { return };
    let version = if flags & 8 != 0 { Version::Http10 } else { Version::Http11 };
    let outgoing = forward_response(&mut head, ClientSide { version, keep_alive: flags & 16 != 0, head: asked.head });
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = ResponseHead::default();
    let limits = Limits { fields_max: 200, head_bytes_max: 1 << 20, ..Limits::DEFAULT };
    let progress = ResponseParser::new(limits).parse(&out, asked, &mut again);
    assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }));
    assert_eq!(again.body(), outgoing.body);
    if !again.is_interim() && again.body() != Body::Tunnel {
        assert_eq!(again.keep_alive(), outgoing.keep_alive);
    }
});
