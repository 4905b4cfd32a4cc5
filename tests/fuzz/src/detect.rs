//! Detection and the ClientHello: no bytes panic, and an answer is never taken back when more bytes come.

use heddle_http::detect::{DETECT_BYTES_MAX, Detection, HELLO_BYTES_MAX, Hello, client_hello, detect};

/// The first bytes of a connection.
pub fn detection(bytes: &[u8]) {
    let whole = detect(bytes);
    assert!(whole != Detection::NeedMore || bytes.len() < DETECT_BYTES_MAX);
    for len in 0..bytes.len().min(2 * DETECT_BYTES_MAX) {
        let part = detect(&bytes[..len]);
        assert!(part == Detection::NeedMore || part == whole, "{len}");
    }
}

/// The first records of TLS. Seeds are kept free of NUL, so that they can be reviewed as text: `~` stands for it.
pub fn hello(text: &[u8]) {
    let bytes: &[u8] = &text.iter().map(|&b| if b == b'~' { 0 } else { b }).collect::<Vec<u8>>();
    let whole = client_hello(bytes);
    // What the name is used for is matching and logging: it must be a host name, or nothing.
    if let Hello::Complete(hello) = &whole {
        if let Some(name) = &hello.server_name {
            let is_host = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
            assert!(!name.is_empty() && name.len() <= 255 && name.bytes().all(is_host), "{name:?}");
            assert!(!name.starts_with('.') && !name.ends_with('.') && !name.contains(".."), "{name:?}");
        }
        assert!(hello.alpn.iter().all(|protocol| !protocol.is_empty()));
    }
    assert!(whole != Hello::NeedMore || bytes.len() < HELLO_BYTES_MAX);
    // All lengths of a short one, some of a long one.
    for len in (0..bytes.len()).step_by(1 + bytes.len() / 512) {
        let part = client_hello(&bytes[..len]);
        assert!(part == Hello::NeedMore || part == whole, "{len}");
    }
}
