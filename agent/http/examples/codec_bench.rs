//! What the codec costs per message, as JSON lines: `cargo run --release -p heddle-http --example codec_bench`.
//!
//! Each line: name, bytes of input, ns per message (best of several rounds: the noise of a shared machine only adds).

use std::hint::black_box;
use std::time::Instant;

use heddle_http::Limits;
use heddle_http::h1::{
    Asked, Body, BodyDecoder, BodyEncoder, ClientSide, RequestHead, RequestParser, ResponseHead, ResponseParser,
    Version, forward_request, forward_response,
};

const REQUEST_SMALL: &[u8] =
    b"GET /api/v1/items?id=42 HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: wrk/4\r\n\r\n";
const REQUEST_BROWSER: &[u8] = b"GET /products/1234/reviews?page=2&sort=new HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nReferer: https://shop.example.com/products/1234\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 1024\r\nConnection: keep-alive\r\nETag: \"abc\"\r\nCache-Control: no-store\r\n\r\n";
const ROUNDS: usize = 7;

fn measure(name: &str, bytes: usize, times: u32, mut run: impl FnMut()) {
    let best = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..times {
                run();
            }
            begin.elapsed().as_nanos() / u128::from(times)
        })
        .min()
        .unwrap_or_default();
    println!("{{\"name\":\"{name}\",\"bytes\":{bytes},\"ns\":{best}}}");
}

fn main() {
    for (name, bytes) in [("small", REQUEST_SMALL), ("browser", REQUEST_BROWSER)] {
        let mut parser = RequestParser::new(Limits::DEFAULT);
        let mut head = RequestHead::default();
        let mut out: Vec<u8> = Vec::with_capacity(4096);
        measure(&format!("request_{name}_parse"), bytes.len(), 200_000, || {
            let _ = black_box(parser.parse(black_box(bytes), &mut head));
        });
        measure(&format!("request_{name}_parse_forward_write"), bytes.len(), 200_000, || {
            let _ = black_box(parser.parse(black_box(bytes), &mut head));
            let _ = black_box(forward_request(&mut head, ""));
            out.clear();
            head.write(&mut out);
            black_box(&out);
        });
    }

    let mut parser = ResponseParser::new(Limits::DEFAULT);
    let mut head = ResponseHead::default();
    let mut out: Vec<u8> = Vec::with_capacity(4096);
    let client = ClientSide { version: Version::Http11, keep_alive: true, head: false };
    measure("response_parse_forward_write", RESPONSE.len(), 200_000, || {
        let _ = black_box(parser.parse(black_box(RESPONSE), Asked::default(), &mut head));
        black_box(forward_response(&mut head, client));
        out.clear();
        head.write(&mut out);
        black_box(&out);
    });

    let mut chunked = Vec::new();
    let mut encoder = BodyEncoder::new(Body::Chunked);
    for _ in 0..16 {
        let _ = encoder.copy(&[b'x'; 4096], &mut chunked);
    }
    let _ = encoder.end(None, &mut chunked);
    measure("chunked_decode_16_of_4096", chunked.len(), 20_000, || {
        let mut decoder = BodyDecoder::new(Body::Chunked, &Limits::DEFAULT);
        let mut rest = black_box(&chunked[..]);
        while let Ok(decoded) = decoder.decode(rest) {
            black_box(&rest[decoded.data]);
            rest = &rest[decoded.consumed..];
            if decoded.done || decoded.consumed == 0 {
                break;
            }
        }
    });
}
