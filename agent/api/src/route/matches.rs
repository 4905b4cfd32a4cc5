//! Which requests a rule of an HTTPRoute or GRPCRoute is about (`matches`).
//!
//! Of a match that cannot be read in part the rest is kept, and what cannot be read is taken as met: so that its rule, which is invalid, answers
//! all that the author may have meant, and nobody else does. Where the path cannot be read, or nothing is left that would tell its requests from
//! all others, no request matches it.

use std::sync::Arc;

use heddle_model::routing::{CallMatch, HeaderMatch, Match, PathMatch, QueryMatch, ValueMatch};

use super::{Reader, fields};
use crate::meta;
use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;

/// Most entries of `matches` in one rule.
pub(super) const MATCHES_MAX: usize = 64;
/// Most entries of `headers` and of `queryParams`.
const VALUES_MAX: usize = 16;
const PATH_BYTES_MAX: usize = 1024;
const HEADER_VALUE_BYTES_MAX: usize = 4096;
const QUERY_VALUE_BYTES_MAX: usize = 1024;

const METHODS: [(&str, &str); 9] = [
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

/// Whether a text is held against a value as it is, or as a regular expression.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Exact,
    Regex,
}

const HOWS: [(&str, How); 2] = [("Exact", How::Exact), ("RegularExpression", How::Regex)];

/// The matches of a rule, each in its place.
pub(super) fn convert(
    reader: &mut Reader<'_>,
    rule: &Place<'_>,
    problems: &mut Problems,
    read: impl Fn(&mut Reader<'_>, &Place<'_>, &mut Problems) -> Match,
) -> Box<[Match]> {
    let before = problems.errors.len();
    let is_contested = rule.is_contested("matches");
    let places = if is_contested { Vec::new() } else { rule.items("matches", MATCHES_MAX, problems) };
    if places.is_empty() && (is_contested || problems.errors.len() > before) {
        return unreadable();
    }
    let one = |place: &Place<'_>| {
        let before = problems.errors.len();
        let found = read(reader, place, problems);
        let is_right = problems.errors.len() == before && place.duplicates().is_empty();
        // Of a field that is there twice nobody can say which was meant.
        let is_of_use = place.duplicates().is_empty() && found != Match::default();
        if is_right || is_of_use { found } else { Match { path: PathMatch::Unreadable, ..found } }
    };
    places.iter().map(one).collect()
}

/// Those of a rule of which nothing is known.
pub(super) fn unreadable() -> Box<[Match]> {
    Box::new([Match { path: PathMatch::Unreadable, ..Match::default() }])
}

/// One of an HTTPRoute.
pub(super) fn http(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Match {
    place.is_mapping_of(&["path", "headers", "queryParams", "method"], problems);
    let path = place.get("path").map(|place| path(reader, &place, problems).unwrap_or(PathMatch::Unreadable));
    let method: Option<String> = place.field("method", problems);
    let method = method.and_then(|text| meta::one_of(problems, &place.at("method"), &text, &METHODS));
    let named = values(reader, place, "headers", HEADER_VALUE_BYTES_MAX, problems);
    let headers = unique(named.into_iter().filter_map(|(at, name, value)| {
        let name = fields::name(&at, &name, problems)?;
        Some((Arc::clone(&name), HeaderMatch { name, value }))
    }));
    let named = values(reader, place, "queryParams", QUERY_VALUE_BYTES_MAX, problems);
    let query = unique(named.into_iter().filter_map(|(at, name, value)| {
        let name: Arc<str> = name.into();
        if !fields::is_token(&name) {
            problems.error(format!("{at}.name"), format!("`{}` is no name of a parameter", shortened(&name)));
            return None;
        }
        Some((Arc::clone(&name), QueryMatch { name, value }))
    }));
    Match { path: path.unwrap_or_default(), method: method.map(Arc::from), headers, query }
}

/// One of a GRPCRoute.
pub(super) fn grpc(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Match {
    place.is_mapping_of(&["method", "headers"], problems);
    let path = place.get("method").map(|place| grpc_method(reader, &place, problems).unwrap_or(PathMatch::Unreadable));
    let named = values(reader, place, "headers", HEADER_VALUE_BYTES_MAX, problems);
    let headers = unique(named.into_iter().filter_map(|(at, name, value)| {
        let name = fields::name(&at, &name, problems)?;
        Some((Arc::clone(&name), HeaderMatch { name, value }))
    }));
    Match { path: path.unwrap_or_default(), method: None, headers, query: Box::default() }
}

fn path(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Option<PathMatch> {
    #[derive(Clone, Copy)]
    enum Type {
        Exact,
        Prefix,
        Regex,
    }
    let words = [("Exact", Type::Exact), ("PathPrefix", Type::Prefix), ("RegularExpression", Type::Regex)];
    place.is_mapping_of(&["type", "value"], problems);
    let word: Option<String> = place.field("type", problems);
    let word = word.as_deref().unwrap_or("PathPrefix");
    let of_type = meta::one_of(problems, &place.at("type"), word, &words)?;
    let value: Option<String> = place.field("value", problems);
    let (value, at) = (value.as_deref().unwrap_or("/"), place.at("value"));
    match of_type {
        Type::Regex => reader.pattern(&at, value, problems).map(PathMatch::Regex),
        Type::Exact => is_path(&at, value, problems).then(|| PathMatch::Exact(value.into())),
        Type::Prefix => {
            is_path(&at, value, problems).then(|| PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).into()))
        }
    }
}

/// The Gateway API's rules for a path.
pub(super) fn is_path(at: &str, text: &str, problems: &mut Problems) -> bool {
    let lower = text.to_ascii_lowercase();
    let is_byte = |b: u8| b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&b);
    let escapes = || text.split('%').skip(1);
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    let told = shortened(text);
    let message = if text.len() > PATH_BYTES_MAX {
        format!("longer than {PATH_BYTES_MAX} bytes")
    } else if !text.starts_with('/') {
        format!("`{told}` does not begin with `/`")
    } else if let Some(part) = ["//", "/./", "/../", "%2f", "#", "?"].iter().find(|part| lower.contains(**part)) {
        format!("`{told}` has `{part}` in it, which no path may have that is matched")
    } else if let Some(end) = ["/..", "/."].iter().find(|end| text.ends_with(**end)) {
        format!("`{told}` ends with `{end}`, which no path may that is matched")
    } else if !text.bytes().all(is_byte) || !escapes().all(is_escape) {
        format!("`{told}` has bytes that no path has (RFC 3986 §3.3): write them as `%` and two hexadecimal digits")
    } else {
        return true;
    };
    problems.error(at, message);
    false
}

/// Path of the field, name and value of each of `headers` or `queryParams` that has a name.
fn values(
    reader: &mut Reader<'_>,
    place: &Place<'_>,
    key: &str,
    bytes_max: usize,
    problems: &mut Problems,
) -> Vec<(String, String, ValueMatch)> {
    let mut found = Vec::new();
    for place in place.items(key, VALUES_MAX, problems) {
        place.is_mapping_of(&["type", "name", "value"], problems);
        let word: Option<String> = place.field("type", problems);
        let how = meta::one_of(problems, &place.at("type"), word.as_deref().unwrap_or("Exact"), &HOWS);
        let (name, text) = (place.required("name", problems), place.required::<String>("value", problems));
        let Some(name) = name else { continue };
        let at = place.at("value");
        let value = match (how, text) {
            (Some(_), Some(text)) if text.is_empty() || text.len() > bytes_max => {
                problems.error(at, format!("{} bytes: 1 to {bytes_max}", text.len()));
                ValueMatch::Present
            }
            (Some(how), Some(text)) => value(reader, how, &at, &text, problems),
            _ => ValueMatch::Present,
        };
        found.push((place.path().to_owned(), name, value));
    }
    found
}

fn value(reader: &mut Reader<'_>, how: How, at: &str, text: &str, problems: &mut Problems) -> ValueMatch {
    match how {
        How::Exact => ValueMatch::Exact(text.into()),
        How::Regex => reader.pattern(at, text, problems).map_or(ValueMatch::Present, ValueMatch::Regex),
    }
}

/// Of each name the first.
fn unique<T>(named: impl Iterator<Item = (Arc<str>, T)>) -> Box<[T]> {
    let mut seen: Vec<Arc<str>> = Vec::new();
    let first = |(name, value): (Arc<str>, T)| {
        let is_new = !seen.contains(&name);
        seen.push(name);
        is_new.then_some(value)
    };
    named.filter_map(first).collect()
}

/// `method` of a GRPCRoute; `None` if neither service nor method can be read.
fn grpc_method(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Option<PathMatch> {
    place.is_mapping_of(&["type", "service", "method"], problems);
    let word: Option<String> = place.field("type", problems);
    let how = meta::one_of(problems, &place.at("type"), word.as_deref().unwrap_or("Exact"), &HOWS);
    if place.get("service").is_none() && place.get("method").is_none() {
        problems.error(place.path(), "says nothing: `service`, `method` or both are needed");
        return None;
    }
    let mut name = |key: &str, is_right: fn(&str) -> bool| {
        let at = place.at(key);
        place.get(key)?;
        let (Some(text), Some(how)) = (place.field::<String>(key, problems), how) else {
            return Some(ValueMatch::Present);
        };
        if text.len() > PATH_BYTES_MAX {
            problems.error(at, format!("longer than {PATH_BYTES_MAX} bytes"));
        } else if how == How::Exact && !is_right(&text) {
            problems.error(at, format!("`{}` is no name of a gRPC {key}", shortened(&text)));
        } else {
            return Some(value(reader, how, &at, &text, problems));
        }
        Some(ValueMatch::Present)
    };
    let (service, method) = (name("service", is_grpc_service), name("method", is_grpc_word));
    let is_read = |value: &Option<ValueMatch>| value.as_ref().is_some_and(|value| *value != ValueMatch::Present);
    (is_read(&service) || is_read(&method)).then_some(PathMatch::Call(CallMatch { service, method }))
}

fn is_grpc_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_grpc_service(text: &str) -> bool {
    text.strip_prefix('.').unwrap_or(text).split('.').all(is_grpc_word)
}
