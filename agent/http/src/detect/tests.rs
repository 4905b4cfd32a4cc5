//! First bytes of real protocols, and every prefix of them.

use super::*;
use Detection::{Decided, NeedMore};

#[test]
fn first_bytes() {
    for (bytes, expected) in [
        (&b""[..], NeedMore),
        (b"G", NeedMore),
        (b"GET", NeedMore),
        (b"GET ", NeedMore),
        (b"GET /", Decided(Protocol::Http1)),
        (b"\r\nGET /", Decided(Protocol::Http1)),
        (b"\r", NeedMore),
        (b"M-SEARCH * ", Decided(Protocol::Opaque)),
        (b"OPTIONS *", Decided(Protocol::Http1)),
        (b"GET http://a/", Decided(Protocol::Http1)),
        (b"GET HTTPS://a/", Decided(Protocol::Http1)),
        (b"GET htt", NeedMore),
        (b"GET https:", NeedMore),
        (b"GET hello", Decided(Protocol::Opaque)),
        (b"CONNECT a", Decided(Protocol::Http1)),
        (b"CONNECT [", Decided(Protocol::Http1)),
        // NATS.
        (b"CONNECT {", Decided(Protocol::Opaque)),
        (b"BREW /", Decided(Protocol::Http1)),
        (b"get /", Decided(Protocol::Opaque)),
        (b"GET\t/", Decided(Protocol::Opaque)),
        (b"PRI", NeedMore),
        (b"PRI /", Decided(Protocol::Http1)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Decided(Protocol::Http2)),
        (b"PRI * HTTP/1.1\r\n", Decided(Protocol::Opaque)),
        // RESP, memcached, SMTP, FTP, IRC, SSH, PostgreSQL, MongoDB, Kafka.
        (b"*1\r\n$4\r\nPING", Decided(Protocol::Opaque)),
        (b"PING\r\n", Decided(Protocol::Opaque)),
        (b"get key\r\n", Decided(Protocol::Opaque)),
        (b"EHLO a", Decided(Protocol::Opaque)),
        (b"USER a", Decided(Protocol::Opaque)),
        (b"NICK a", Decided(Protocol::Opaque)),
        (b"SSH-", NeedMore),
        (b"SSH-2.0-OpenSSH", Decided(Protocol::Opaque)),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Decided(Protocol::Opaque)),
        (b"\x3f\0\0\0", Decided(Protocol::Opaque)),
        (b"\xff", Decided(Protocol::Opaque)),
        (b"\x16", NeedMore),
        (b"\x16\x03\x01\x02\x00", NeedMore),
        (b"\x16\x03\x01\x02\x00\x01", Decided(Protocol::Tls)),
        (b"\x16\x03\x01\x02\x00\x02", Decided(Protocol::Opaque)),
        (b"\x16\x02", Decided(Protocol::Opaque)),
        (b"\x16\x03\x01\xff\xff", Decided(Protocol::Opaque)),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAA", Decided(Protocol::Opaque)),
    ] {
        assert_eq!(detect(bytes), expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn declarations() {
    for (app_protocol, name, expected) in [
        (None, "", Declared::Unknown),
        (None, "http", Declared::Http),
        (None, "http-api", Declared::Http),
        (None, "HTTP", Declared::Http),
        (None, "httpx", Declared::Unknown),
        (None, "http2", Declared::Http2),
        (None, "grpc-api", Declared::Http2),
        (None, "grpc-web", Declared::Http),
        (None, "grpc-web-api", Declared::Http),
        (None, "https", Declared::Tls),
        (None, "tcp-http", Declared::Opaque),
        (None, "web", Declared::Unknown),
        (Some("kubernetes.io/h2c"), "", Declared::Http2),
        (Some("kubernetes.io/ws"), "tcp", Declared::Http1),
        (None, "http1-old", Declared::Http1),
        (Some("HTTP/1.1"), "grpc", Declared::Http1),
        (Some("kubernetes.io/ws"), "grpc", Declared::Http1),
        (Some("kubernetes.io/wss"), "http", Declared::Tls),
        (Some("tcp"), "http", Declared::Opaque),
        (Some("example.com/own"), "http", Declared::Http),
        (Some("mysql"), "", Declared::Opaque),
    ] {
        assert_eq!(declared(app_protocol, name), expected, "{app_protocol:?} {name}");
    }
}

#[test]
fn the_version_an_upstream_is_called_with() {
    use HttpVersion::{Http1, Http2};
    for (word, for_http1, for_http2) in [
        ("kubernetes.io/h2c", Http2, Http2),
        ("http2", Http2, Http2),
        ("h2c", Http2, Http2),
        ("grpc", Http2, Http2),
        ("kubernetes.io/ws", Http1, Http1),
        ("http1", Http1, Http1),
        ("http", Http1, Http2),
        ("grpc-web", Http1, Http2),
        ("nonsense", Http1, Http2),
    ] {
        let declared = Declared::of(word);
        assert_eq!([Http1, Http2].map(|client| declared.upstream_version(client)), [for_http1, for_http2], "{word}");
    }
}

#[test]
fn several_declarations_for_one_address() {
    use Declared::{Http, Http1, Http2, Opaque, Unknown};
    for (all, expected) in [
        (&[][..], Unknown),
        (&[Unknown, Http2, Unknown], Http2),
        (&[Http2, Http2], Http2),
        (&[Http2, Http], Http),
        (&[Http1, Http2, Http1], Http),
        (&[Http2, Opaque], Unknown),
        (&[Opaque, Unknown, Opaque], Opaque),
    ] {
        assert_eq!(Declared::agreed(all.iter().copied()), expected, "{all:?}");
    }
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&[&[0][..], &vector16(name)].concat()))
}

fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|p| [&[p.len() as u8][..], p].concat()).collect();
    extension(16, &vector16(&list))
}

fn message(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(vector16(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector16(extensions));
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    message
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [&[0x16, 3, 1][..], &vector16(part)].concat()).collect()
}

#[test]
fn a_hello_is_read_from_any_fragments_and_any_prefix_asks_for_more() {
    let extensions = [extension(0x0a0a, b""), server_name(b"Shop.Example."), alpn(&[b"h2", b"http/1.1"])].concat();
    let message = message(&extensions);
    let expected =
        ClientHello { server_name: Some("shop.example".to_owned()), alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()] };
    for size in [1, 2, 5, 50, 1000] {
        let bytes = records(&message, size);
        assert_eq!(client_hello(&bytes), Hello::Complete(expected.clone()), "records of {size}");
        for len in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..len]), Hello::NeedMore, "records of {size}, {len} bytes");
        }
        // What follows the hello is not looked at.
        assert_eq!(client_hello(&[&bytes[..], b"junk"].concat()), Hello::Complete(expected.clone()));
    }
}

#[test]
fn hellos_that_name_nobody_or_two() {
    let name = server_name(b"a");
    for (extensions, expected) in [
        (Vec::new(), Some(None)),
        (alpn(&[b"h2"]), Some(None)),
        ([name.clone(), name.clone()].concat(), None),
        (server_name(b"10.0.0.1"), Some(None)),
        (server_name(b"a b"), None),
        (server_name(b"a\0.b"), None),
        (server_name(b""), None),
        (server_name(&[b'a'; 300]), None),
        (extension(0, b"\0\x09\0\0\x01a"), None),
        (alpn(&[b""]), None),
    ] {
        let hello = client_hello(&records(&message(&extensions), 1000));
        match expected {
            None => assert_eq!(hello, Hello::Invalid, "{}", extensions.escape_ascii()),
            Some(name) => {
                let Hello::Complete(hello) = hello else { panic!("{hello:?}") };
                assert_eq!(hello.server_name.as_deref(), name);
            }
        }
    }
}

#[test]
fn a_hello_is_bounded() {
    let large = message(&extension(21, &[0; 16_000]));
    assert!(matches!(client_hello(&records(&large, 4000)), Hello::Complete(_)));
    let mut larger = vec![1, 1, 0, 0];
    larger.extend([0; 8000]);
    assert_eq!(client_hello(&records(&larger, 4000)), Hello::Invalid);
    assert_eq!(client_hello(b"\x16\x03\x01\x00\x00"), Hello::Invalid);
    assert_eq!(client_hello(b"GET / HTTP/1.1\r\n"), Hello::Invalid);
}
