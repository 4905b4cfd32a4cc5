//! Which requests a rule of an HTTPRoute or GRPCRoute is about (`matches`).

use std::sync::Arc;

use heddle_model::policy::Pattern;
use heddle_model::routing::{HeaderMatch, Match, PathMatch, QueryMatch, ValueMatch};

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

/// The matches of a rule that can be read; `None` if there are some, and none can.
pub(super) fn convert(
    reader: &mut Reader<'_>,
    rule: &Place<'_>,
    problems: &mut Problems,
    read: impl Fn(&mut Reader<'_>, &Place<'_>, &mut Problems) -> Match,
) -> Option<Box<[Match]>> {
    if rule.is_contested("matches") {
        return None;
    }
    let before = problems.errors.len();
    let mut matches = Vec::new();
    let places = rule.items("matches", MATCHES_MAX, problems);
    for place in &places {
        let before = problems.errors.len();
        let found = read(reader, place, problems);
        if problems.errors.len() == before && place.duplicates().is_empty() {
            matches.push(found);
        }
    }
    let is_any = places.is_empty() && problems.errors.len() == before;
    (is_any || !matches.is_empty()).then(|| matches.into())
}

/// One of an HTTPRoute.
pub(super) fn http(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Match {
    place.is_mapping_of(&["path", "headers", "queryParams", "method"], problems);
    let path = place.get("path").and_then(|place| path(reader, &place, problems));
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
    let path = place.get("method").and_then(|place| grpc_method(reader, &place, problems));
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

/// Path of the field, name and value of each of `headers` or `queryParams`.
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
        let (Some(how), Some(name), Some(text)) = (how, name, text) else { continue };
        let at = place.at("value");
        let value = match how {
            _ if text.is_empty() || text.len() > bytes_max => {
                problems.error(at, format!("{} bytes: 1 to {bytes_max}", text.len()));
                None
            }
            How::Exact => Some(ValueMatch::Exact(text.into())),
            How::Regex => reader.pattern(&at, &text, problems).map(ValueMatch::Regex),
        };
        found.extend(value.map(|value| (place.path().to_owned(), name, value)));
    }
    found
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

/// A gRPC call's path is `/service/method`.
fn grpc_method(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Option<PathMatch> {
    place.is_mapping_of(&["type", "service", "method"], problems);
    let word: Option<String> = place.field("type", problems);
    let how = meta::one_of(problems, &place.at("type"), word.as_deref().unwrap_or("Exact"), &HOWS)?;
    let service: Option<String> = place.field("service", problems);
    let method: Option<String> = place.field("method", problems);
    let before = problems.errors.len();
    match (how, service.as_deref(), method.as_deref()) {
        (_, None, None) => {
            problems.error(place.path(), "says nothing: `service`, `method` or both are needed");
            None
        }
        (How::Exact, service, method) => {
            let is_word = |text: &str| {
                !text.is_empty()
                    && !text.starts_with(|c: char| c.is_ascii_digit())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            };
            let is_service = |text: &str| text.strip_prefix('.').unwrap_or(text).split('.').all(is_word);
            for (key, text, is_right) in
                [("service", service, service.is_none_or(is_service)), ("method", method, method.is_none_or(is_word))]
            {
                let text = text.unwrap_or_default();
                if text.len() > PATH_BYTES_MAX {
                    problems.error(place.at(key), format!("longer than {PATH_BYTES_MAX} bytes"));
                } else if !is_right {
                    problems.error(place.at(key), format!("`{}` is no name of a gRPC {key}", shortened(text)));
                }
            }
            if problems.errors.len() > before {
                return None;
            }
            match (service, method) {
                (Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}").into())),
                (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}").into())),
                // A word has nothing that means something in an expression.
                (None, method) => {
                    let text = format!("/[^/]+/{}", method.unwrap_or_default());
                    reader.pattern(&place.at("method"), &text, problems).map(PathMatch::Regex)
                }
            }
        }
        (How::Regex, service, method) => {
            let service = grpc_pattern(&place.at("service"), service, problems)?;
            let method = grpc_pattern(&place.at("method"), method, problems)?;
            reader.pattern(place.path(), &format!("/{service}/{method}"), problems).map(PathMatch::Regex)
        }
    }
}

/// An expression for one segment of a path, right by itself, so that it stays one beside another.
fn grpc_pattern(at: &str, text: Option<&str>, problems: &mut Problems) -> Option<String> {
    let Some(text) = text else { return Some("[^/]+".to_owned()) };
    // A comment (`(?x)`) could otherwise swallow what stands around it, up to a line's end in the other expression.
    if text.contains('\n') {
        problems.error(at, "has more than one line: no path has");
        return None;
    }
    if let Err(error) = Pattern::new(text) {
        problems.error(at, format!("`{}`: {error}", shortened(text)));
        return None;
    }
    // Over the whole segment in any case; in the middle of a path they would never hold.
    let text = text.strip_prefix('^').unwrap_or(text);
    let backslashes = |text: &str| text.bytes().rev().take_while(|b| *b == b'\\').count();
    let text = text.strip_suffix('$').filter(|text| backslashes(text) % 2 == 0).unwrap_or(text);
    Some(format!("(?:{text})"))
}
