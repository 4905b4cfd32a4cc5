//! Bypasses that were tried against other proxies, a plain reference, and what holds of every normal form.

use proptest::prelude::*;

use super::Ambiguous::{Control, Escape, Fragment, Overlong, Parameters, Relative};
use super::*;

/// What is sent, and what a policy sees: the path, or why there is none.
const TABLE: &[(&str, Result<&str, Ambiguous>)] = &[
    // What is normal.
    ("/", Ok("/")),
    ("/a", Ok("/a")),
    ("/a/", Ok("/a/")),
    ("/a/b.c/~d_e-f", Ok("/a/b.c/~d_e-f")),
    ("/.well-known/x", Ok("/.well-known/x")),
    ("/a:b@c!$&'()*+,=", Ok("/a:b@c!$&'()*+,=")),
    ("/map;v=1/b", Ok("/map;v=1/b")),
    ("/a%20b", Ok("/a%20b")),
    // No path, and what is none.
    ("", Ok("/")),
    ("*", Ok("*")),
    ("**", Err(Relative)),
    ("*/a", Err(Relative)),
    ("a", Err(Relative)),
    ("./a", Err(Relative)),
    ("../a", Err(Relative)),
    ("%61dmin", Err(Relative)),
    ("http://a/b", Err(Relative)),
    // Dot segments.
    ("/.", Ok("/")),
    ("/..", Ok("/")),
    ("/./", Ok("/")),
    ("/../", Ok("/")),
    ("/../..", Ok("/")),
    ("/../../etc/passwd", Ok("/etc/passwd")),
    ("/a/..", Ok("/")),
    ("/a/../", Ok("/")),
    ("/a/.", Ok("/a/")),
    ("/a/b/.", Ok("/a/b/")),
    ("/a/b/..", Ok("/a/")),
    ("/a/./b", Ok("/a/b")),
    ("/a/../../b", Ok("/b")),
    ("/public/../admin", Ok("/admin")),
    ("/public/./../admin", Ok("/admin")),
    ("/a/b/c/./../../g", Ok("/a/g")),
    ("/...", Ok("/...")),
    ("/a/.../b", Ok("/a/.../b")),
    ("/..a", Ok("/..a")),
    ("/a..", Ok("/a..")),
    ("/.a", Ok("/.a")),
    ("/..%20/a", Ok("/..%20/a")),
    // Encoded dots.
    ("/public/%2e%2e/admin", Ok("/admin")),
    ("/public/%2E%2E/admin", Ok("/admin")),
    ("/public/.%2e/admin", Ok("/admin")),
    ("/public/%2e./admin", Ok("/admin")),
    ("/%2e/admin", Ok("/admin")),
    ("/%2e%2e", Ok("/")),
    ("/a/%2e", Ok("/a/")),
    // Once is enough: a second decoding is the server's own fault, and not made likelier here.
    ("/%252e%252e/admin", Ok("/%252e%252e/admin")),
    ("/%252fadmin", Ok("/%252fadmin")),
    ("/%25%32%65", Ok("/%252e")),
    ("/%2%35", Err(Escape)),
    ("/%%32e", Err(Escape)),
    // Slashes.
    ("//admin", Ok("/admin")),
    ("///admin", Ok("/admin")),
    ("//", Ok("/")),
    ("/a//b", Ok("/a/b")),
    ("/a///", Ok("/a/")),
    ("//evil.example/admin", Ok("/evil.example/admin")),
    ("/a//../b", Ok("/b")),
    ("/a/.//b", Ok("/a/b")),
    ("/a/..//b", Ok("/b")),
    ("/./admin", Ok("/admin")),
    ("/.//admin", Ok("/admin")),
    // Encoded slashes.
    ("/%2fadmin", Ok("/admin")),
    ("%2fadmin", Ok("/admin")),
    ("/public%2F..%2Fadmin", Ok("/admin")),
    ("/public/..%2fadmin", Ok("/admin")),
    ("/public%2f%2e%2e%2fadmin", Ok("/admin")),
    ("/admin%2F", Ok("/admin/")),
    ("/a%2f%2fb", Ok("/a/b")),
    ("/a/%2F/b", Ok("/a/b")),
    // Backslashes.
    ("/public\\..\\admin", Ok("/admin")),
    ("/public/..\\admin", Ok("/admin")),
    ("/public%5c..%5Cadmin", Ok("/admin")),
    ("\\admin", Ok("/admin")),
    ("/\\admin", Ok("/admin")),
    ("/a\\", Ok("/a/")),
    ("/a%255cb", Ok("/a%255cb")),
    // Case and need of escapes.
    ("/%61dmin", Ok("/admin")),
    ("/%41DMIN", Ok("/ADMIN")),
    ("/%7Eroot", Ok("/~root")),
    ("/%2d%5f%7e", Ok("/-_~")),
    ("/caf%c3%a9", Ok("/caf%C3%A9")),
    ("/caf%C3%a9", Ok("/caf%C3%A9")),
    ("/a%3fb", Ok("/a%3Fb")),
    ("/a%23b", Ok("/a%23b")),
    ("/a%2bb", Ok("/a%2Bb")),
    ("/a%3ab", Ok("/a%3Ab")),
    ("/a%25b", Ok("/a%25b")),
    // Bytes that no path has.
    ("/café", Ok("/caf%C3%A9")),
    ("/a b", Ok("/a%20b")),
    ("/[id]{x}|^`\"<>", Ok("/%5Bid%5D%7Bx%7D%7C%5E%60%22%3C%3E")),
    ("/\u{ff0e}\u{ff0e}\u{ff0f}", Ok("/%EF%BC%8E%EF%BC%8E%EF%BC%8F")),
    // Malformed escapes.
    ("/%", Err(Escape)),
    ("/%2", Err(Escape)),
    ("/a%2", Err(Escape)),
    ("/%g1", Err(Escape)),
    ("/%1g", Err(Escape)),
    ("/%-1", Err(Escape)),
    ("/%+1", Err(Escape)),
    ("/% 41", Err(Escape)),
    ("/%é", Err(Escape)),
    ("/%u002e%u002e/admin", Err(Escape)),
    ("/%2?e", Err(Escape)),
    // Control bytes.
    ("/admin%00", Err(Control)),
    ("/admin%00.css", Err(Control)),
    ("/a%0d%0aX:1", Err(Control)),
    ("/a%09", Err(Control)),
    ("/a%1F", Err(Control)),
    ("/a%7f", Err(Control)),
    ("/a\0", Err(Control)),
    ("/a\tb", Err(Control)),
    ("/a\x7f", Err(Control)),
    // Overlong UTF-8 of `.`, `/` and `\`.
    ("/%c0%ae%c0%ae/admin", Err(Overlong)),
    ("/%C0%AFadmin", Err(Overlong)),
    ("/..%c1%9cadmin", Err(Overlong)),
    ("/%c0/admin", Err(Overlong)),
    ("/%e0%80%ae", Err(Overlong)),
    ("/%e0%80%af", Err(Overlong)),
    ("/%E0%9F%BF", Err(Overlong)),
    ("/%E0%A0%80", Ok("/%E0%A0%80")),
    ("/%e0%b8%81", Ok("/%E0%B8%81")),
    ("/%f0%80%80%af", Err(Overlong)),
    ("/%F0%8F%BF%BF", Err(Overlong)),
    ("/%F0%9F%92%A9", Ok("/%F0%9F%92%A9")),
    ("/%f8%80%80%80%af", Err(Overlong)),
    ("/%fc%80%80%80%80%af", Err(Overlong)),
    ("/%fcber", Ok("/%FCber")),
    ("/%e0", Ok("/%E0")),
    // Parameters of dot segments.
    ("/public/..;/admin", Err(Parameters)),
    ("/public/..;x=y/admin", Err(Parameters)),
    ("/.;/admin", Err(Parameters)),
    ("/;/admin", Err(Parameters)),
    ("/;x/admin", Err(Parameters)),
    ("/public/%2e%2e;/admin", Err(Parameters)),
    ("/public/..%3b/admin", Err(Parameters)),
    ("/public/..%3Bx;/admin", Err(Parameters)),
    ("/public/%2e%2e%3Bx", Err(Parameters)),
    ("/%3B/admin", Err(Parameters)),
    ("/..;", Err(Parameters)),
    ("/a;/../b", Ok("/b")),
    ("/a;x=../b", Ok("/a;x=../b")),
    ("/...;x", Ok("/...;x")),
    ("/a%3bx", Ok("/a%3Bx")),
    // Fragments.
    ("/admin#", Err(Fragment)),
    ("/#/../admin", Err(Fragment)),
    ("#", Err(Fragment)),
    // Queries are left alone.
    ("/?", Ok("/?")),
    ("?", Ok("/?")),
    ("?a=/../b", Ok("/?a=/../b")),
    ("/a?b//%2e%zz\\#\0?c", Ok("/a?b//%2e%zz\\#\0?c")),
    ("//a?b//c", Ok("/a?b//c")),
    ("/a/..?x", Ok("/?x")),
    ("/a/.?x", Ok("/a/?x")),
    ("/%3f/../a?x", Ok("/a?x")),
    ("*?x", Err(Relative)),
];

#[test]
fn bypasses() {
    assert!(TABLE.len() >= 150, "{}", TABLE.len());
    for (sent, expected) in TABLE {
        let normal = normalize(sent);
        assert_eq!(normal.as_deref().map_err(|why| *why), *expected, "{sent:?}");
        if let Ok(normal) = normal {
            assert_eq!(matches!(normal, Cow::Borrowed(_)), normal == *sent, "{sent:?}");
        }
        assert_eq!(reference(sent).as_deref(), expected.ok(), "{sent:?}: the reference");
    }
}

#[test]
fn what_is_normal_is_seen_at_one_glance() {
    let plain = [
        "/",
        "/api/v1/users/42?expand=all",
        "/a%20b/%E4%BA%BA",
        "/.well-known/acme",
        "/a/b/",
        "/a?//..",
        "/x..y/z;v=1",
    ];
    for path in plain {
        assert!(is_plain(path.as_bytes()), "{path}");
    }
}

#[test]
fn queries_begin_at_the_first_question_mark() {
    for (text, path) in [("/a", "/a"), ("/a?b", "/a"), ("/a?b?c", "/a"), ("?", ""), ("", ""), ("*", "*")] {
        assert_eq!(without_query(text), path, "{text}");
    }
}

/// The same by lists, without regard to cost: decode all of it, split, judge every segment, put together what is left. `None`: refused.
fn reference(path_and_query: &str) -> Option<String> {
    if path_and_query == "*" {
        return Some("*".to_owned());
    }
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (path_and_query, String::new()),
    };
    // Every byte, and whether it was escaped.
    let mut bytes: Vec<(u8, bool)> = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest = tail;
                (u8::from_str_radix(&String::from_utf8_lossy(&[*high, *low]), 16).unwrap(), true)
            }
            (b'%', _) => return None,
            (byte, _) => (*byte, false),
        });
    }
    let is_overlong = |pair: &[(u8, bool)]| match pair {
        [(0xC0 | 0xC1, true), ..] => true,
        [(lead, true), (next, true)] => {
            // The least second byte of what has no shorter form.
            let least = [(0xE0, 0xA0), (0xF0, 0x90), (0xF8, 0x88), (0xFC, 0x84)];
            least.iter().any(|(of, least)| lead == of && (0x80..*least).contains(next))
        }
        _ => false,
    };
    if (0..bytes.len()).any(|at| is_overlong(&bytes[at..bytes.len().min(at + 2)])) {
        return None;
    }
    if bytes.iter().any(|&(byte, is_escaped)| byte < 0x20 || byte == 0x7F || byte == b'#' && !is_escaped) {
        return None;
    }
    let text: String = bytes
        .iter()
        .map(|&(byte, is_escaped)| match char::from(byte) {
            '/' | '\\' => "/".to_owned(),
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) => c.to_string(),
            c if !is_escaped && "!$&'()*+,;=:@".contains(c) => c.to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    if text.is_empty() {
        return Some(format!("/{query}"));
    }
    let segments: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
    if segments.iter().any(|s| {
        ["", ".", ".."].iter().any(|dots| s.starts_with(&format!("{dots};")) || s.starts_with(&format!("{dots}%3B")))
    }) {
        return None;
    }
    let mut stack: Vec<&str> = Vec::new();
    for segment in &segments {
        match *segment {
            "" | "." => {}
            ".." => drop(stack.pop()),
            segment => stack.push(segment),
        }
    }
    let is_folder = matches!(segments.last(), Some(&("" | "." | ".."))) && !stack.is_empty();
    Some(format!("/{}{}{query}", stack.join("/"), if is_folder { "/" } else { "" }))
}

/// Texts made of what paths are attacked with.
fn some_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => Just("/".to_owned()),
        3 => Just(".".to_owned()),
        2 => Just("..".to_owned()),
        1 => proptest::sample::select(vec!["//", "\\", "%2F", "%5c", "%2e", "%2E%2e", "%25", "%252e", ";", "%3b", "?", "#", "*", "%"])
            .prop_map(str::to_owned),
        1 => proptest::sample::select(vec!["%c0%ae", "%e0%80", "%e0%a0", "%f0%8f", "%f0%9f", "%f8%81", "%fc%83", "%C3%A9", "é", "%00"])
            .prop_map(str::to_owned),
        2 => any::<u8>().prop_map(|byte| format!("%{byte:02x}")),
        2 => any::<u8>().prop_map(|byte| format!("%{byte:02X}")),
        3 => "[a-zA-Z0-9~_-]{1,3}",
        1 => any::<char>().prop_map(|c| c.to_string()),
    ];
    (any::<bool>(), proptest::collection::vec(piece, 0..14))
        .prop_map(|(is_rooted, pieces)| format!("{}{}", if is_rooted { "/" } else { "" }, pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn one_form_of_every_path(sent in prop_oneof![4 => some_path(), 1 => any::<String>()]) {
        let outcome = normalize(&sent);
        let expected = reference(&sent);
        prop_assert_eq!(outcome.as_deref().ok(), expected.as_deref());
        let Ok(normal) = outcome else { return Ok(()) };
        let again = normalize(&normal);
        prop_assert_eq!(again.as_deref(), Ok(&*normal), "again");
        prop_assert_eq!(matches!(normal, Cow::Borrowed(_)), normal == sent);
        let path = without_query(&normal);
        prop_assert_eq!(&normal[path.len()..], &sent[without_query(&sent).len()..], "the query");
        if path == "*" {
            return Ok(());
        }
        prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains(['\\', '#']), "{}", path);
        prop_assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")), "{}", path);
        prop_assert!(path.bytes().all(|b| b == b'/' || b == b'%' || CLASS[usize::from(b)] != 0), "{}", path);
        for (at, _) in path.match_indices('%') {
            let digits = &path[at + 1..at + 3];
            let byte = u8::from_str_radix(digits, 16).unwrap();
            prop_assert!(!digits.contains(|c: char| c.is_ascii_lowercase()), "{}", path);
            prop_assert!(!byte.is_ascii_control() && !b"/\\".contains(&byte), "{}", path);
            prop_assert!(CLASS[usize::from(byte)] != UNRESERVED, "{}", path);
        }
    }

    #[test]
    fn the_glance_is_never_wrong(sent in some_path()) {
        if is_plain(sent.as_bytes()) {
            let path = without_query(&sent);
            prop_assert_eq!(rewrite(path), Ok(path.to_owned()));
        }
    }
}
