//! The table of `ReplacePrefixMatch` of the Gateway API, row by row, and the ports of redirects.

use super::*;

#[test]
fn prefixes_are_replaced_as_the_api_says() {
    // Path, prefix that matched (without `/` at its end), replacement, result.
    for (path, prefix, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo", "/foo", "/xyz/", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/bar/", "/foo", "/xyz", "/xyz/bar/"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
        ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
        ("/", "", "/xyz", "/xyz/"),
        ("/", "", "/", "/"),
        ("/", "", "", "/"),
        ("/foo/bar?x=/foo", "/foo", "/xyz", "/xyz/bar?x=/foo"),
        ("/foo?x", "/foo", "", "/?x"),
        ("/foo?", "/foo", "/xyz", "/xyz?"),
        ("/foo/bar", "/foo/bar", "/a/b/c", "/a/b/c"),
        ("/f%C3%BC/bar", "/f%C3%BC", "/xyz", "/xyz/bar"),
    ] {
        let rewrite = PathRewrite::Prefix(replacement.into());
        assert_eq!(rewrite.apply(path, prefix.len()), expected, "{path} {prefix} -> {replacement}");
    }
}

#[test]
fn whole_paths_are_replaced_and_the_query_stays() {
    for (path, full, expected) in [
        ("/foo/bar", "/one", "/one"),
        ("/foo/bar?a=b", "/one", "/one?a=b"),
        ("/foo/bar", "/one/", "/one/"),
        ("/foo", "", "/"),
        ("/foo?q", "one", "/one?q"),
    ] {
        assert_eq!(PathRewrite::Full(full.into()).apply(path, 3), expected, "{path} -> {full}");
    }
    let of_host = Rewrite { hostname: Some("other".into()), path: None };
    assert_eq!(of_host.apply("/foo?x", 4), "/foo?x");
}

#[test]
fn a_length_that_is_none_of_the_path_breaks_nothing() {
    assert_eq!(PathRewrite::Prefix("/xyz".into()).apply("/ab", 10), "/xyz");
    assert_eq!(PathRewrite::Prefix("/xyz".into()).apply("/ü", 2), "/xyz");
}

#[test]
fn redirects_name_a_port_only_where_the_scheme_does_not_say_it() {
    // Scheme, hostname and port of the redirect; scheme, host and port of the request; scheme, host and port of the result.
    type Row = (Option<&'static str>, Option<&'static str>, Option<u16>, &'static str, &'static str, u16, &'static str);
    const ROWS: [Row; 23] = [
        (None, None, None, "http", "web", 80, "http://web"),
        (None, None, None, "http", "web:80", 80, "http://web"),
        (None, None, None, "http", "web:8080", 8080, "http://web:8080"),
        (None, None, None, "http", "web", 8080, "http://web:8080"),
        // What the host says of a port is the client's word.
        (None, None, None, "http", "web:9999", 80, "http://web"),
        (None, None, None, "http", "web:", 8080, "http://web:8080"),
        (None, None, None, "https", "web:443", 443, "https://web"),
        (None, None, None, "https", "web:80", 80, "https://web:80"),
        (Some("https"), None, None, "http", "web", 80, "https://web"),
        (Some("https"), None, None, "http", "web:8080", 8080, "https://web"),
        (Some("http"), None, None, "https", "web:8443", 8443, "http://web"),
        (Some("https"), None, Some(443), "http", "web:80", 80, "https://web"),
        (Some("http"), None, Some(80), "http", "web:8080", 8080, "http://web"),
        (Some("https"), None, Some(8443), "http", "web", 80, "https://web:8443"),
        (Some("http"), None, Some(443), "http", "web", 80, "http://web:443"),
        (None, None, Some(80), "http", "web:8080", 8080, "http://web"),
        (None, None, Some(8081), "http", "web:8080", 8080, "http://web:8081"),
        (None, Some("example.com"), None, "http", "web:8080", 8080, "http://example.com:8080"),
        (None, Some("example.com"), None, "http", "web", 80, "http://example.com"),
        (Some("https"), Some("example.com"), None, "http", "web:8080", 8080, "https://example.com"),
        (None, None, None, "http", "[fd00::1]:8080", 8080, "http://[fd00::1]:8080"),
        (None, None, None, "http", "[fd00::1]", 80, "http://[fd00::1]"),
        (Some("https"), None, None, "http", "[fd00::1]:80", 80, "https://[fd00::1]"),
    ];
    for (scheme, hostname, port, of, host, to, expected) in ROWS {
        let redirect = Redirect {
            scheme: scheme.map(Into::into),
            hostname: hostname.map(Into::into),
            path: None,
            port,
            status: 302,
        };
        let found = redirect.location(of, host, to, "/a?b", 0);
        assert_eq!(found, format!("{expected}/a?b"), "{scheme:?} {hostname:?} {port:?} {of} {host} {to}");
    }
}

#[test]
fn redirects_change_the_path_and_keep_the_query() {
    let to = |path| Redirect { scheme: None, hostname: None, path: Some(path), port: None, status: 301 };
    let prefix = to(PathRewrite::Prefix("/new".into()));
    assert_eq!(prefix.location("http", "web", 80, "/old/x?y=1", 4), "http://web/new/x?y=1");
    let full = to(PathRewrite::Full("/new".into()));
    assert_eq!(full.location("http", "web", 80, "/old/x?y=1", 4), "http://web/new?y=1");
    let host = Redirect { scheme: Some("https".into()), hostname: None, path: None, port: None, status: 301 };
    assert_eq!(host.location("http", "web", 80, "*", 0), "https://web/");
}

#[test]
fn a_host_is_told_from_its_port() {
    for (authority, host) in [
        ("web", "web"),
        ("web:80", "web"),
        ("web:", "web"),
        ("[fd00::1]:80", "[fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("10.0.0.1:8080", "10.0.0.1"),
        ("", ""),
    ] {
        assert_eq!(without_port(authority), host, "{authority}");
    }
}
