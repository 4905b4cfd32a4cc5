//! Origins, and the fields of answers with and without credentials.

use std::time::Duration;

use super::*;

fn cors(origins: &[&str], credentials: bool) -> Cors {
    let list = |items: &[&str]| items.iter().map(|item| (*item).into()).collect();
    Cors {
        allow_origins: list(origins),
        allow_methods: list(&["GET", "PUT"]),
        allow_headers: list(&["x-a", "x-b"]),
        expose_headers: list(&["x-c"]),
        allow_credentials: credentials,
        max_age: Duration::from_secs(5),
    }
}

#[test]
fn origins_are_compared_by_scheme_host_and_port() {
    for (allowed, origin, expected) in [
        ("https://example.com", "https://example.com", true),
        ("https://example.com", "https://EXAMPLE.com", true),
        ("https://example.com", "https://example.com:443", true),
        ("https://example.com:443", "https://example.com", true),
        ("http://example.com:80", "http://example.com", true),
        ("https://example.com", "http://example.com", false),
        ("https://example.com", "https://example.com:8443", false),
        ("https://example.com:8443", "https://example.com:8443", true),
        ("https://example.com", "https://a.example.com", false),
        ("https://example.com", "https://example.com.evil.test", false),
        ("https://*.example.com", "https://a.example.com", true),
        ("https://*.example.com", "https://b.a.example.com", true),
        ("https://*.example.com", "https://example.com", false),
        ("https://*.example.com", "https://.example.com", false),
        ("https://*.example.com", "https://evilexample.com", false),
        ("https://*.example.com", "https://a.example.com:8443", false),
        ("https://*.example.com:8443", "https://a.example.com:8443", true),
        ("https://*", "https://anything.test", true),
        ("https://*", "http://anything.test", false),
        ("http://[fd00::1]:8080", "http://[fd00::1]:8080", true),
        ("http://[fd00::1]", "http://[fd00::1]:80", true),
        ("https://example.com", "null", false),
        ("https://example.com", "", false),
        ("https://*", "https://a:b", false),
    ] {
        for credentials in [false, true] {
            let found = cors(&[allowed], credentials).allows(origin);
            assert_eq!(found, expected.then_some(AllowOrigin::Echo), "{allowed} {origin}");
        }
    }
    assert_eq!(cors(&["https://a.test", "https://b.test"], false).allows("https://b.test"), Some(AllowOrigin::Echo));
    assert_eq!(cors(&[], false).allows("https://b.test"), None);
}

#[test]
fn a_wildcard_is_never_said_beside_credentials() {
    assert_eq!(cors(&["*"], false).allows("https://a.test"), Some(AllowOrigin::Any));
    assert_eq!(cors(&["*"], true).allows("https://a.test"), Some(AllowOrigin::Echo));
    assert_eq!(cors(&["*"], false).allows("null"), Some(AllowOrigin::Any));
    let any = |credentials| Cors {
        allow_methods: ["*".into()].into(),
        allow_headers: ["*".into()].into(),
        expose_headers: ["*".into()].into(),
        ..cors(&["*"], credentials)
    };
    let fields = any(true).preflight("https://a.test", Some("PATCH"), Some("x-q,x-r"));
    assert!(!fields.iter().any(|(_, value)| value == "*"), "{fields:?}");
    assert!(fields.contains(&("access-control-allow-methods", "PATCH".to_owned())));
    assert!(fields.contains(&("access-control-allow-headers", "x-q,x-r".to_owned())));
    assert!(fields.contains(&("access-control-allow-credentials", "true".to_owned())));
    let fields = any(true).preflight("https://a.test", None, None);
    assert!(!fields.iter().any(|(name, _)| name.ends_with("-methods") || name.ends_with("-headers")), "{fields:?}");
    let fields = any(true).response(Some("https://a.test"));
    assert!(!fields.iter().any(|(name, _)| *name == "access-control-expose-headers"), "{fields:?}");
    let and_one = Cors { expose_headers: ["*".into(), "x-a".into()].into(), ..any(true) };
    let fields = and_one.response(Some("https://a.test"));
    assert!(fields.contains(&("access-control-expose-headers", "x-a".to_owned())), "{fields:?}");
    let fields = any(false).preflight("https://a.test", Some("PATCH"), Some("x-q"));
    assert!(fields.contains(&("access-control-allow-methods", "*".to_owned())));
    assert!(fields.contains(&("access-control-allow-origin", "*".to_owned())));
    assert!(!fields.iter().any(|(name, _)| *name == "vary"), "{fields:?}");
}

#[test]
fn preflights_and_responses_say_what_is_configured() {
    let cors = cors(&["https://a.test"], false);
    assert_eq!(
        cors.preflight("https://a.test", Some("PUT"), Some("x-z")),
        [
            ("access-control-allow-origin", "https://a.test".to_owned()),
            ("vary", "origin".to_owned()),
            ("access-control-allow-methods", "GET,PUT".to_owned()),
            ("access-control-allow-headers", "x-a,x-b".to_owned()),
            ("access-control-max-age", "5".to_owned()),
        ]
    );
    assert_eq!(
        cors.response(Some("https://a.test")),
        [
            ("access-control-allow-origin", "https://a.test".to_owned()),
            ("vary", "origin".to_owned()),
            ("access-control-expose-headers", "x-c".to_owned()),
        ]
    );
    let only_vary = [("vary", "origin".to_owned())];
    assert_eq!(cors.preflight("https://b.test", Some("PUT"), None), only_vary);
    assert_eq!(cors.response(Some("https://b.test")), only_vary);
    assert_eq!(cors.response(None), only_vary);
    let all =
        cors.preflight("https://a.test", Some("PUT"), None).into_iter().chain(cors.response(Some("https://a.test")));
    for (name, _) in all.filter(|(name, _)| *name != "vary") {
        assert!(Cors::FIELDS.contains(&name), "{name}: what a Service sends would stand beside it");
    }
    assert!(Cors::is_preflight("OPTIONS", Some("https://a.test"), Some("PUT")));
    assert!(!Cors::is_preflight("OPTIONS", None, Some("PUT")));
    assert!(!Cors::is_preflight("OPTIONS", Some("https://a.test"), None));
    assert!(!Cors::is_preflight("GET", Some("https://a.test"), Some("PUT")));
}
