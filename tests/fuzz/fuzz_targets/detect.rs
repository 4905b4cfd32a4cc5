//! Detection: no bytes panic, and an answer is never taken back when more bytes come.
#![no_main]

use heddle_http::detect::{DETECT_BYTES_MAX, Detection, Hello, client_hello, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    // Seeds are kept free of NUL, so that they can be reviewed as text: `~` stands for it.
    let bytes: &[u8] = &text.iter().map(|&b| if b == b'~' { 0 } else { b }).collect::<Vec<u8>>();
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
