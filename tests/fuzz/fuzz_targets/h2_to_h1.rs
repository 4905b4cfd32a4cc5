//! Requests and responses from HTTP/2 to HTTP/1: what passes the checks is one HTTP/1 message, with the framing that was promised.
#![no_main]

use heddle_http::Limits;
use heddle_http::h1::{Asked, Progress, RequestHead, RequestParser, ResponseHead};
use heddle_http::translate::{check_request, check_response, request_to_h1, response_to_h1};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [flags, text @ ..] = input else { return };
    let mut lines = text.split(|&b| b == b'\n');
    let (method, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut builder = http::Request::builder().method(method).uri(uri);
    let mut response = http::Response::builder().status(u16::from(*flags) * 3);
    for line in lines {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        builder = builder.header(&line[..colon], &line[colon + 1..]);
        response = response.header(&line[..colon], &line[colon + 1..]);
    }
    if let Ok(request) = builder.body(()) {
        let (mut parts, ()) = request.into_parts();
        let protocol = (flags & 2 != 0).then_some("websocket");
        if let Ok(checked) = check_request(&mut parts, protocol, flags & 1 != 0) {
            let mut head = RequestHead::default();
            if request_to_h1(&parts, &checked, "dGhlIHNhbXBsZSBub25jZQ==", &mut head).is_ok() {
                let mut out = Vec::new();
                head.write(&mut out);
                let mut again = RequestHead::default();
                let limits = Limits {
                    fields_max: usize::MAX,
                    head_bytes_max: 1 << 24,
                    target_bytes_max: 1 << 20,
                    ..Limits::DEFAULT
                };
                let progress = RequestParser::new(limits).parse(&out, &mut again);
                assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }));
                assert_eq!(again.body(), head.body());
            }
        }
    }
    if let Ok(response) = response.body(()) {
        let (mut parts, ()) = response.into_parts();
        let asked = Asked { head: flags & 4 != 0, connect: flags & 8 != 0, upgrade: false };
        if let Ok(body) = check_response(&mut parts, flags & 1 != 0, asked) {
            let mut head = ResponseHead::default();
            response_to_h1(&parts, body, asked, b"", &mut head).unwrap();
        }
    }
});
