//! Detection: no bytes panic, and an answer is never taken back when more bytes come.
#![no_main]

use heddle_http::detect::{DETECT_BYTES_MAX, Detection, Hello, client_hello, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = detect(bytes);
    assert!(whole != Detection::NeedMore || bytes.len() < DETECT_BYTES_MAX);
    let hello = client_hello(bytes);
    for len in 0..bytes.len() {
        let part = detect(&bytes[..len]);
        assert!(part == Detection::NeedMore || part == whole);
        let part = client_hello(&bytes[..len]);
        assert!(part == Hello::NeedMore || part == hello, "{len}");
    }
});
