//! What each kind of pattern matches, what is refused as one, and templates against a plain reference.

use proptest::prelude::*;

use super::Quantifier::{All, Any};
use super::*;

#[test]
fn identities() {
    let exact = IdentityMatch::Exact("spiffe://td/ns/shop/sa/web".into());
    let prefix = IdentityMatch::Prefix("spiffe://td/ns/shop/".into());
    for (id, is_exact, is_prefix) in [
        ("spiffe://td/ns/shop/sa/web", true, true),
        ("spiffe://td/ns/shop/sa/web2", false, true),
        ("spiffe://td/ns/shop/sa/we", false, true),
        ("spiffe://td/ns/shop/sa/WEB", false, true),
        ("spiffe://td/ns/shop/", false, true),
        ("spiffe://td/ns/shop", false, false),
        ("spiffe://td/ns/shop2/sa/web", false, false),
        ("spiffe://td.evil/ns/shop/sa/web", false, false),
        ("x spiffe://td/ns/shop/sa/web", false, false),
        ("", false, false),
    ] {
        assert_eq!((exact.matches(id), prefix.matches(id)), (is_exact, is_prefix), "{id}");
    }
}

#[test]
fn hosts() {
    for (pattern, host, expected) in [
        ("shop.example.com", "shop.example.com", true),
        ("shop.example.com", "SHOP.Example.COM", true),
        ("Shop.Example.com", "shop.example.com", true),
        ("shop.example.com", "shop.example.com.", true),
        ("shop.example.com.", "shop.example.com", true),
        ("shop.example.com", "shop.example.com..", false),
        ("shop.example.com", "a.shop.example.com", false),
        ("shop.example.com", "shop.example.co", false),
        ("shop.example.com", "xshop.example.com", false),
        ("shop.example.com", "shop-example.com", false),
        ("shop.example.com", "", false),
        ("shop_1", "shop_1", true),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "A.EXAMPLE.COM.", true),
        ("*.example.com", "a.b.example.com", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", ".example.com", false),
        ("*.example.com", "aexample.com", false),
        ("*.example.com", "a.example.com.evil", false),
        ("*.example.com", "é.example.com", true),
        ("*.e.com", "éé", false),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.10", false),
        ("::1", "[::1]", true),
        ("[::1]", "[::1]", true),
        ("::1", "::1", true),
        ("::1", "[0:0:0:0:0:0:0:1]", true),
        ("2001:DB8:0::1", "[2001:db8::1]", true),
        ("::1", "[::2]", false),
        ("::1", "[::1", false),
    ] {
        assert_eq!(HostMatch::new(pattern).unwrap().matches(host), expected, "{pattern}: {host}");
    }
    let long = format!("{}.com", "a".repeat(64));
    let refused = [
        "", ".", "*", "*.", "a..b", "a..", ".a", "a b", "a/b", "a:80", "*a.com", "a.*.com", "*.*.com", "é", "[::1",
        "[a]", "%61", &long,
    ];
    for text in refused {
        assert_eq!(HostMatch::new(text), Err(PatternError::Host), "{text}");
    }
}

#[test]
fn exact_paths_and_prefixes() {
    for (pattern, path, is_exact, is_prefix) in [
        ("/a", "/a", true, true),
        ("/a", "/a/", false, true),
        ("/a", "/a/b", false, true),
        ("/a", "/ab", false, false),
        ("/a", "/A", false, false),
        ("/a", "/", false, false),
        ("/a", "/b/a", false, false),
        ("/a", "*", false, false),
        ("/a", "", false, false),
        ("/a/", "/a/", true, true),
        ("/a/", "/a", false, true),
        ("/a/", "/a/b", false, true),
        ("/a/b", "/a/b/c", false, true),
        ("/a/b", "/a/bc", false, false),
        ("/", "/", true, true),
        ("/", "/a", false, true),
        ("/", "*", false, false),
        ("/a%2Bb", "/a%2Bb", true, true),
        ("/a%2Bb", "/a+b", false, false),
    ] {
        assert_eq!(PathMatch::exact(pattern).unwrap().matches(path), is_exact, "exact {pattern}: {path}");
        assert_eq!(PathMatch::prefix(pattern).unwrap().matches(path), is_prefix, "prefix {pattern}: {path}");
    }
    for text in ["", "a", "*", "./a"] {
        assert_eq!(PathMatch::exact(text), Err(PatternError::NotAPath), "{text}");
        assert_eq!(PathMatch::prefix(text), Err(PatternError::NotAPath), "{text}");
        assert_eq!(PathTemplate::new(text), Err(PatternError::NotAPath), "{text}");
    }
    let long = format!("/{}", "a".repeat(PATTERN_BYTES_MAX));
    assert_eq!(PathMatch::exact(&long), Err(PatternError::TooLong));
    assert_eq!(PathMatch::prefix(&long), Err(PatternError::TooLong));
    assert_eq!(PathTemplate::new(&long), Err(PatternError::TooLong));
    assert!(PathMatch::exact(&long[..PATTERN_BYTES_MAX]).is_ok());
}

/// What would silently never match, and what is said of it.
#[test]
fn paths_that_no_request_has() {
    for (text, said) in [
        ("//", "requests have this path as `/`: write that"),
        ("/a//b", "requests have this path as `/a/b`: write that"),
        ("/a/../b", "requests have this path as `/b`: write that"),
        ("/caf%c3%a9", "requests have this path as `/caf%C3%A9`: write that"),
        ("/café", "requests have this path as `/caf%C3%A9`: write that"),
        ("/a[1]", "requests have this path as `/a%5B1%5D`: write that"),
        ("/%61", "requests have this path as `/a`: write that"),
        ("/a%2Fb", "requests have this path as `/a/b`: write that"),
        ("/a?b", "has a query, which is no part of a path"),
        ("/a%", "no request has such a path: path_escape"),
        ("/..;/a", "no request has such a path: path_parameters"),
    ] {
        let expected = PatternError::NotNormal(said.to_owned());
        assert_eq!(PathMatch::exact(text), Err(expected.clone()), "{text}");
        assert_eq!(PathMatch::prefix(text), Err(expected), "{text}");
    }
    for text in ["/a//b", "//", "/{a}//", "/../{a}", "/{a}/.", "/{a}/%61", "/{a}/b%2fc", "/{a}/b?c", "/{a}/%"] {
        assert!(matches!(PathTemplate::new(text), Err(PatternError::NotNormal(_))), "{text}");
    }
}

/// A template, what it matches, what it does not.
const TEMPLATES: &[(&str, &[&str], &[&str])] = &[
    ("/", &["/"], &["/a", "", "*"]),
    ("/a/b", &["/a/b"], &["/a", "/a/b/", "/a/c", "/A/b"]),
    (
        "/users/{id}",
        &["/users/42", "/users/{id}", "/users/%2B"],
        &["/users", "/users/", "/users/42/", "/users/42/x", "/user/42"],
    ),
    ("/users/{*}", &["/users/42"], &["/users/", "/users/4/2"]),
    ("/users/{id}/", &["/users/42/"], &["/users/42", "/users//"]),
    ("/{a}/{b}", &["/x/y"], &["/x", "/x/", "/x/y/z", "//"]),
    ("/{**}", &["/", "/a", "/a/b/", "/a//b"], &["", "*"]),
    ("/a/{**}", &["/a", "/a/", "/a/b", "/a/b/c/"], &["/", "/ab", "/b/a"]),
    ("/{**}/a", &["/a", "/b/a", "/b/c/a"], &["/", "/a/", "/ba", "/a/b"]),
    ("/a/{**}/b", &["/a/b", "/a/x/b", "/a/x/y/b", "/a/b/b"], &["/a", "/b", "/a/b/", "/a/b/c"]),
    ("/a/{**}/a", &["/a/a", "/a/x/a"], &["/a"]),
    ("/a/{**}/{id}", &["/a/x", "/a/x/y"], &["/a", "/a/", "/a/x/"]),
    ("/{a}/{**}/{b}", &["/x/y", "/x/y/z"], &["/", "/x", "/x/"]),
    ("/files/{**}/raw/{name}", &["/files/raw/x", "/files/a/b/raw/x"], &["/files/raw", "/files/raw/", "/files/x/raw"]),
];

#[test]
fn templates() {
    for (text, matching, others) in TEMPLATES {
        let template = PathTemplate::new(text).unwrap();
        for (path, expected) in matching.iter().map(|p| (p, true)).chain(others.iter().map(|p| (p, false))) {
            assert_eq!(template.matches(path), expected, "{text}: {path}");
            assert_eq!(reference(text, path), expected, "{text}: {path}: the reference");
        }
    }
    for text in [
        "/{**}/{**}",
        "/{",
        "/}",
        "/{}",
        "/{a",
        "/a}",
        "/x{a}",
        "/{a}x",
        "/{a}{b}",
        "/*",
        "/a*",
        "/**",
        "/{***}",
        "/{a b}",
        "/{a.b}",
        "/{é}",
        "/{{a}}",
    ] {
        assert!(matches!(PathTemplate::new(text), Err(PatternError::Template(_))), "{text}");
    }
}

#[test]
fn regular_expressions_are_of_the_whole_text() {
    for (pattern, text, expected) in [
        ("/a", "/a", true),
        ("/a", "/ab", false),
        ("/a", "x/a", false),
        ("", "", true),
        ("", "a", false),
        ("/a|/b", "/b", true),
        ("/a|/b", "/ac", false),
        ("/a|/b", "c/b", false),
        ("(?i)/admin", "/ADMIN", true),
        ("(?m)/a", "/a\n/b", false),
        ("(?m)^/a$", "x\n/a", false),
        ("/a.*", "/a/b", true),
        ("/a.*", "/a\n", false),
        ("(?s)/a.*", "/a\n", true),
        ("/a$", "/a", true),
        ("/a$", "/a\n", false),
        ("^/a", "/a", true),
        ("/[0-9]+", "/42", true),
        (r"/\d+", "/42", true),
        (r"/\d+", "/٤٢", false),
        ("/.", "/é", false),
        ("/..", "/é", true),
    ] {
        let pattern = Pattern::new(pattern).unwrap();
        assert_eq!(pattern.matches(text.as_bytes()), expected, "{pattern:?}: {text:?}");
    }
    // The last one would make a comment of what is put around it: it is refused, never left without its end.
    for text in
        ["a)(b", "a)|(?:b", "(", "[", "*", "a{2", r"\", r"(a)\1", "(?=a)", "(?<!a)b", r"\pL", "a{1000}{1000}", "(?x)a#"]
    {
        assert!(matches!(Pattern::new(text), Err(PatternError::Regex(_))), "{text}");
    }
    assert_eq!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)), Err(PatternError::TooLong));
    assert_eq!(Pattern::new("a").unwrap(), Pattern::new("a").unwrap());
    assert_ne!(Pattern::new("a").unwrap(), Pattern::new("[a]").unwrap());
    assert!(PathMatch::Regex(Pattern::new("/a/[^/]+").unwrap()).matches("/a/b"));
}

/// What one value has to be.
#[test]
fn texts() {
    let exact = TextMatch::Exact("ab".into());
    let prefix = TextMatch::Prefix("ab".into());
    let regex = TextMatch::Regex(Pattern::new("a.?b?").unwrap());
    for (value, is) in [
        (&b"ab"[..], [true, true, true, true]),
        (b"abc", [true, false, true, false]),
        (b"AB", [true, false, false, false]),
        (b"a", [true, false, false, true]),
        (b"", [true, false, false, false]),
        (b"ab ", [true, false, true, false]),
        (b"a\xFF", [true, false, false, true]),
        (b"xab", [true, false, false, false]),
    ] {
        let found = [&TextMatch::Present, &exact, &prefix, &regex].map(|text| text.matches(value));
        assert_eq!(found, is, "{value:?}");
    }
}

/// Fields `x` with these values, and what is said of `x: a` by one who allows and by one who denies.
#[test]
fn fields_of_one_name() {
    let wanted = HeaderMatch { name: "x".into(), value: TextMatch::Exact("a".into()) };
    let present = HeaderMatch { name: "x".into(), value: TextMatch::Present };
    for (values, all, any) in [
        (&[][..], false, false),
        (&["a"], true, true),
        (&["b"], false, false),
        (&["a", "a"], true, true),
        (&["a", "b"], false, true),
        (&["b", "a"], false, true),
        (&["a, b"], false, false),
        (&[""], false, false),
    ] {
        let read = |name: &str, each: &mut dyn FnMut(&[u8])| {
            assert_eq!(name, "x");
            values.iter().for_each(|value| each(value.as_bytes()));
        };
        assert_eq!((wanted.matches(read, All), wanted.matches(read, Any)), (all, any), "{values:?}");
        let is_there = !values.is_empty();
        assert_eq!((present.matches(read, All), present.matches(read, Any)), (is_there, is_there), "{values:?}");
    }
}

/// Whether a path is of a template, by trying every length of what `{**}` may stand for.
fn reference(template: &str, path: &str) -> bool {
    fn is_of(template: &[&str], path: &[&str]) -> bool {
        match template {
            [] => path.is_empty(),
            ["{**}", rest @ ..] => (0..=path.len()).any(|skipped| is_of(rest, &path[skipped..])),
            [part, rest @ ..] => {
                let is_one = |segment: &str| if part.starts_with('{') { !segment.is_empty() } else { *part == segment };
                path.first().is_some_and(|segment| is_one(segment) && is_of(rest, &path[1..]))
            }
        }
    }
    let split =
        |text: &'_ str| text.strip_prefix('/').map(|rest| rest.split('/').map(str::to_owned).collect::<Vec<_>>());
    let (Some(template), Some(path)) = (split(template), split(path)) else { return false };
    is_of(&template.iter().map(|s| &**s).collect::<Vec<_>>(), &path.iter().map(|s| &**s).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn templates_match_what_the_reference_does(
        template in proptest::collection::vec(proptest::sample::select(vec!["a", "b", "{x}", "{*}", "{**}", ""]), 1..7),
        path in proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c", ""]), 0..8),
    ) {
        let (template, path) = (format!("/{}", template.join("/")), format!("/{}", path.join("/")));
        match PathTemplate::new(&template) {
            Ok(read) => prop_assert_eq!(read.matches(&path), reference(&template, &path), "{} {}", template, path),
            Err(PatternError::NotNormal(_)) => prop_assert_eq!(template.contains("//"), true),
            Err(_) => prop_assert_eq!(template.split("{**}").count().min(3), 3),
        }
    }

    #[test]
    fn a_pattern_that_is_text_matches_this_text_only(text in "[a-z/.+*(){}-]{0,12}", other in "[a-z/.+*(){}-]{0,12}") {
        let pattern = Pattern::new(&regex::escape(&text)).unwrap();
        prop_assert!(pattern.matches(text.as_bytes()));
        prop_assert_eq!(pattern.matches(other.as_bytes()), text == other);
        for longer in [format!("{text}x"), format!("x{text}")] {
            prop_assert!(!pattern.matches(longer.as_bytes()));
        }
    }
}
