//! What authorization reads: paths have one form, and what is held against a pattern is read to its end, once.

use heddle_http::path::{normalize, without_query};
use heddle_model::policy::{HostMatch, PathMatch, PathTemplate, Pattern};

/// Nobody sends longer paths: what takes more than linear time for one shows in the time of this target.
const TEXT_BYTES_MAX: usize = 8192;

/// A path with its query: refused, or brought to a form that nobody reads in another way.
pub fn path_normalize(bytes: &[u8]) {
    let sent = String::from_utf8_lossy(bytes);
    let Ok(normal) = normalize(&sent) else { return };
    assert_eq!(normalize(&normal).as_deref(), Ok(&*normal));
    assert_eq!(matches!(normal, std::borrow::Cow::Borrowed(_)), normal == sent);
    let path = without_query(&normal);
    assert_eq!(normal[path.len()..], sent[without_query(&sent).len()..]);
    if path == "*" {
        return;
    }
    assert!(path.starts_with('/') && !path.contains("//") && path.bytes().all(|b| b.is_ascii_graphic()), "{path}");
    for segment in path.split('/') {
        let name = segment.replace("%3B", ";");
        let name = name.split(';').next().unwrap_or_default();
        assert!(!matches!(name, "." | "..") && (!name.is_empty() || segment.is_empty()), "{path}");
    }
    // Whatever a server decodes, it finds no slash, no dot, no line and no end there.
    for (at, _) in path.match_indices('%') {
        let code = u8::from_str_radix(&path[at + 1..at + 3], 16).unwrap();
        assert!(!code.is_ascii_control() && !b"/\\.".contains(&code), "{path}");
    }
}

/// The first line is every kind of pattern; each of the others is held against it.
pub fn policy_matchers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let pattern = lines.next().unwrap_or_default();
    let texts: Vec<&str> = lines.collect();
    if let Ok(template) = PathTemplate::new(pattern) {
        for text in texts.iter().copied().chain([pattern]) {
            assert_eq!(template.matches(text), is_of(pattern, text), "{pattern}: {text}");
        }
        let _ = template.matches(&long(pattern, &texts));
    }
    if let (Ok(exact), Ok(prefix)) = (PathMatch::exact(pattern), PathMatch::prefix(pattern)) {
        assert!(exact.matches(pattern) && prefix.matches(pattern));
        let folder = pattern.trim_end_matches('/');
        for text in &texts {
            let is_below = *text == folder || text.starts_with(&format!("{folder}/"));
            assert_eq!((exact.matches(text), prefix.matches(text)), (*text == pattern, is_below), "{pattern}: {text}");
        }
    }
    if let Ok(host) = HostMatch::new(pattern) {
        match pattern.strip_prefix("*.") {
            Some(name) => assert!(!host.matches(name) && host.matches(&format!("a.{name}"))),
            None => assert!(host.matches(pattern)),
        }
        for text in texts.iter().filter(|text| !text.ends_with('.')) {
            let is_meant = host.matches(text);
            assert_eq!(host.matches(&text.to_ascii_uppercase()), is_meant, "{pattern}: {text}");
            assert_eq!(host.matches(&format!("{text}.")), is_meant, "{pattern}: {text}");
        }
    }
    if let Ok(regex) = Pattern::new(pattern) {
        // What is put around a pattern changes nothing of it.
        let grouped = Pattern::new(&format!("(?:{pattern})"));
        for text in &texts {
            let is_meant = regex.matches(text.as_bytes());
            assert!(
                grouped.as_ref().map_or(true, |grouped| grouped.matches(text.as_bytes()) == is_meant),
                "{pattern}: {text}"
            );
        }
        let _ = regex.matches(long(pattern, &texts).as_bytes());
    }
}

/// The texts, over and over.
fn long(pattern: &str, texts: &[&str]) -> String {
    let part = texts.first().filter(|text| !text.is_empty()).copied().unwrap_or(pattern);
    part.repeat(TEXT_BYTES_MAX / part.len().max(1))
}

/// Whether a path is of a template, by every length of what `{**}` may stand for.
fn is_of(template: &str, path: &str) -> bool {
    let (Some(template), Some(path)) = (template.strip_prefix('/'), path.strip_prefix('/')) else { return false };
    let (template, path): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    let is_one =
        |(part, segment): (&&str, &&str)| if part.starts_with('{') { !segment.is_empty() } else { part == segment };
    let are =
        |parts: &[&str], segments: &[&str]| parts.len() == segments.len() && parts.iter().zip(segments).all(is_one);
    match template.iter().position(|part| *part == "{**}") {
        None => are(&template, &path),
        Some(at) => (0..=path.len()).any(|end| {
            (0..=end).any(|start| are(&template[..at], &path[..start]) && are(&template[at + 1..], &path[end..]))
        }),
    }
}
