//! What the texts of a policy match. Every one is compiled when the object is read, and takes time linear in what it is held against.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::path;

/// Longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// What one compiled pattern may take.
const PROGRAM_BYTES_MAX: usize = 256 << 10;

/// Why a text cannot be used as a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than [`PATTERN_BYTES_MAX`].
    #[error("longer than {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    /// A regular expression that the `regex` crate does not take; it knows neither look-around nor back-references, which are not linear.
    #[error("not a regular expression: {0}")]
    Regex(String),
    /// A path that does not begin with `/`.
    #[error("does not begin with `/`")]
    NotAPath,
    /// A path that no request has once it is normalized, so that a rule would silently never match.
    #[error("{0}")]
    NotNormal(String),
    /// A part in braces that is none of `{name}`, `{*}`, `{**}`, or more of `{**}` than one.
    #[error("{0}")]
    Template(String),
    /// Not a host name, with `*.` in front of it or not.
    #[error("not a host name, nor `*.` and one")]
    Host,
}

/// Of a header field with several values, how many have to match. In doubt against the request: what allows wants all, what denies any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantifier {
    All,
    Any,
}

impl Quantifier {
    pub(super) const fn opposite(self) -> Self {
        match self {
            Self::All => Self::Any,
            Self::Any => Self::All,
        }
    }
}

/// A regular expression over a whole text, not a part of it.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    regex: Regex,
}

impl Pattern {
    /// Compiles one.
    ///
    /// # Errors
    /// [`PatternError::TooLong`], [`PatternError::Regex`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        // By itself first: `a)(b` must not become right by what is put around it.
        let build = |text: &str| {
            let mut builder = RegexBuilder::new(text);
            builder.unicode(false).size_limit(PROGRAM_BYTES_MAX).dfa_size_limit(PROGRAM_BYTES_MAX);
            builder.build().map_err(|error| PatternError::Regex(error.to_string()))
        };
        build(text)?;
        Ok(Self { text: text.into(), regex: build(&format!("^(?:{text})$"))? })
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// The length of the shortest text that matches.
    pub(crate) fn bytes_min(&self) -> usize {
        let parsed = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(&self.text);
        parsed.ok().and_then(|parsed| parsed.properties().minimum_len()).unwrap_or_default()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// SPIFFE ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityMatch {
    /// This one.
    Exact(Box<str>),
    /// Those that begin so: written with `*` at the end.
    Prefix(Box<str>),
}

impl IdentityMatch {
    /// Whether an id is meant.
    #[must_use]
    pub fn matches(&self, id: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *id,
            Self::Prefix(prefix) => id.starts_with(&**prefix),
        }
    }
}

/// Host names, in lower case, without port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This one.
    Exact(Box<str>),
    /// Any name that ends so behind at least one label; with the leading dot. Written `*.example.com`.
    Suffix(Box<str>),
}

impl HostMatch {
    /// Reads one.
    ///
    /// # Errors
    /// [`PatternError::Host`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_name = |name: &str| {
            let is_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            name.len() <= 253 && name.split('.').all(|l| (1..=63).contains(&l.len()) && l.bytes().all(is_byte))
        };
        match lower.strip_prefix("*.") {
            Some(name) if is_name(name) => Ok(Self::Suffix(format!(".{name}").into())),
            Some(_) => Err(PatternError::Host),
            None if is_name(&lower) => Ok(Self::Exact(lower.into())),
            None => match without_brackets(&lower).parse::<Ipv6Addr>() {
                Ok(address) => Ok(Self::Exact(address.to_string().into())),
                Err(_) => Err(PatternError::Host),
            },
        }
    }

    /// Whether a host is meant, in any case, with or without the root's dot or an address's brackets, whatever way an address is written.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(exact) if exact.contains(':') => {
                without_brackets(host).parse::<Ipv6Addr>().is_ok_and(|host| exact.parse() == Ok(host))
            }
            Self::Exact(exact) => host.eq_ignore_ascii_case(exact),
            Self::Suffix(suffix) => {
                host.len() > suffix.len()
                    && host.as_bytes()[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
            }
        }
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Paths, normalized and without query. Case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// This one.
    Exact(Box<str>),
    /// This one and what is below it, by whole segments: `/a` matches `/a` and `/a/b`, not `/ab` (Gateway API `PathPrefix`). Without `/`
    /// at the end.
    Prefix(Box<str>),
    /// Segments, some of which may be any.
    Template(PathTemplate),
    /// A regular expression over the whole path.
    Regex(Pattern),
}

impl PathMatch {
    /// This very path.
    ///
    /// # Errors
    /// [`PatternError::NotAPath`], [`PatternError::NotNormal`], [`PatternError::TooLong`].
    pub fn exact(path: &str) -> Result<Self, PatternError> {
        Ok(Self::Exact(a_normal_path(path)?.into()))
    }

    /// A path and all below it.
    ///
    /// # Errors
    /// [`PatternError::NotAPath`], [`PatternError::NotNormal`], [`PatternError::TooLong`].
    pub fn prefix(path: &str) -> Result<Self, PatternError> {
        Ok(Self::Prefix(a_normal_path(path)?.trim_end_matches('/').into()))
    }

    /// Whether a path is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Template(template) => template.matches(path),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

fn a_path(text: &str) -> Result<&str, PatternError> {
    match text {
        text if text.len() > PATTERN_BYTES_MAX => Err(PatternError::TooLong),
        text if !text.starts_with('/') => Err(PatternError::NotAPath),
        text => Ok(text),
    }
}

/// A path that a request may have.
fn a_normal_path(text: &str) -> Result<&str, PatternError> {
    let text = a_path(text)?;
    match path::normalize(text) {
        _ if text.contains('?') => Err(PatternError::NotNormal("has a query, which is no part of a path".to_owned())),
        Ok(normal) if normal == text => Ok(text),
        Ok(normal) => Err(PatternError::NotNormal(format!("requests have this path as `{normal}`: write that"))),
        Err(why) => Err(PatternError::NotNormal(format!("no request has such a path: {why}"))),
    }
}

/// `/users/{id}/files/{**}`: `{name}` and `{*}` are one segment, not empty; `{**}` any number of them, none included, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    head: Vec<Segment>,
    /// What follows `{**}`, if there is one.
    tail: Option<Vec<Segment>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(Box<str>),
    One,
}

impl PathTemplate {
    /// Reads one.
    ///
    /// # Errors
    /// [`PatternError::NotAPath`], [`PatternError::NotNormal`], [`PatternError::TooLong`], [`PatternError::Template`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let mut template = Self { head: Vec::new(), tail: None };
        let mut parts = a_path(text)?[1..].split('/').peekable();
        while let Some(part) = parts.next() {
            let segment = match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some("**") if template.tail.is_some() => {
                    return Err(PatternError::Template("has `{**}` twice: once is the most".to_owned()));
                }
                Some("**") => {
                    template.tail = Some(Vec::new());
                    continue;
                }
                Some(name) if name == "*" || is_name(name) => Segment::One,
                _ if part.contains(['{', '}', '*']) => {
                    let message = format!("`{part}` is none of `{{name}}`, `{{*}}`, `{{**}}`, and no plain segment");
                    return Err(PatternError::Template(message));
                }
                _ if part.is_empty() && parts.peek().is_some() => {
                    return Err(PatternError::NotNormal(
                        "has two slashes in a row: requests have one there".to_owned(),
                    ));
                }
                _ => Segment::Exact(a_normal_path(&format!("/{part}"))?[1..].into()),
            };
            template.tail.as_mut().unwrap_or(&mut template.head).push(segment);
        }
        Ok(template)
    }

    /// Whether a path is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut parts = path.split('/');
        let tail = self.tail.as_deref().unwrap_or_default();
        // From the end first: what is left is the head's, and what `{**}` stands for.
        for segment in tail.iter().rev() {
            if !parts.next_back().is_some_and(|part| segment.matches(part)) {
                return false;
            }
        }
        for segment in &self.head {
            if !parts.next().is_some_and(|part| segment.matches(part)) {
                return false;
            }
        }
        self.tail.is_some() || parts.next().is_none()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

impl Segment {
    fn matches(&self, part: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *part,
            Self::One => !part.is_empty(),
        }
    }
}

/// Header fields of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name, in lower case.
    pub name: Box<str>,
    /// What its value has to be.
    pub value: TextMatch,
}

/// The value of a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// Any: the field is there.
    Present,
    /// This one. Case matters.
    Exact(Box<str>),
    /// One that begins so.
    Prefix(Box<str>),
    /// A regular expression over the whole value.
    Regex(Pattern),
}

impl HeaderMatch {
    /// Whether the field is there and its values match.
    pub(super) fn matches(&self, values: impl Fn(&str, &mut dyn FnMut(&[u8])), quantifier: Quantifier) -> bool {
        let (mut matching, mut others) = (0u32, 0u32);
        values(&self.name, &mut |value| if self.value.matches(value) { matching += 1 } else { others += 1 });
        matching > 0 && (quantifier == Quantifier::Any || others == 0)
    }
}

impl TextMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

#[cfg(test)]
#[path = "matcher_tests.rs"]
mod tests;
