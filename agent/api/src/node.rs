//! A parsed document as a tree that remembers its lines.
//!
//! Scalars are typed as Kubernetes types them, except that YAML 1.1's extras (`yes`, `on`, `0777`) stay strings: a field
//! that wants another type then refuses them instead of guessing.

use std::borrow::Cow;

use crate::problem::Problems;

/// One value and the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node<'a> {
    /// 1-based line in the file.
    pub(crate) line: u64,
    /// The value.
    pub(crate) value: Value<'a>,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// `null`, `~` or nothing. A field with it counts as absent, as in Kubernetes.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    String(Cow<'a, str>),
    /// A list.
    Sequence(Vec<Node<'a>>),
    /// Fields in the order they were written; keys are unique.
    Mapping(Vec<Entry<'a>>),
}

/// One field of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<'a> {
    /// Its name.
    pub(crate) key: Cow<'a, str>,
    /// Line of the name.
    pub(crate) line: u64,
    /// Its value.
    pub(crate) node: Node<'a>,
    /// It is there again with another value, which is told of: nobody can say which was meant.
    pub(crate) is_contested: bool,
}

impl<'a> Node<'a> {
    /// A field of a mapping; absent if this is none.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The node at a chain of fields.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Whether a field of a mapping is there more than once.
    pub(crate) fn is_contested(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| entry.is_contested)
    }

    /// The text of a string.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The text of a field that is there once.
    pub(crate) fn legible(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|_| !self.is_contested(key)).and_then(Self::text)
    }

    /// The items of a list; none if it is no list.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The line of a field by its path; of the deepest part that exists, so that a missing field shows its parent.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        let mut node = self;
        let mut line = self.line;
        for segment in segments(path) {
            if let Some(entry) = node.entry(segment) {
                (node, line) = (&entry.node, entry.line);
            } else if let Some(item) = segment.parse().ok().and_then(|i: usize| node.items().get(i)) {
                (node, line) = (item, item.line);
            } else {
                break;
            }
        }
        line
    }

    /// The kind of value, for messages.
    pub(crate) fn described(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::String(text) => format!("the text `{}`", shortened(text)),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }

    /// What is told of the fields in it that are there more than once, as [`twice`] has it.
    pub(crate) fn duplicates(&self) -> Vec<String> {
        match &self.value {
            Value::Mapping(entries) => {
                let own = entries.iter().filter(|entry| entry.is_contested).map(|entry| twice(&entry.key, entry.line));
                own.chain(entries.iter().flat_map(|entry| entry.node.duplicates())).collect()
            }
            Value::Sequence(items) => items.iter().flat_map(Self::duplicates).collect(),
            _ => Vec::new(),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
}

/// What is told of a field that is there again.
pub(crate) fn twice(key: &str, first_line: u64) -> String {
    format!("`{key}` is there twice, first on line {first_line}: keep one")
}

/// Adds a key to a path; keys that contain separators stand in brackets: `metadata.annotations[heddle.dev/mesh]`.
pub(crate) fn join(path: &mut String, key: &str) {
    if key.contains(['.', '[', ']', '/']) || key.is_empty() {
        path.push('[');
        path.push_str(key);
        path.push(']');
    } else {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    }
}

/// Elsewhere a field without a value is an absent one; for kinds where that would let an object
/// match more, or say less, than its author meant.
pub(crate) fn refuse_nulls(node: &Node<'_>, path: &mut String, problems: &mut Problems) {
    let length = path.len();
    match &node.value {
        Value::Null => problems.error(path.as_str(), "has no value: give it one, or leave it out"),
        Value::Mapping(entries) => {
            for entry in entries {
                join(path, &entry.key);
                refuse_nulls(&entry.node, path, problems);
                path.truncate(length);
            }
        }
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                refuse_nulls(item, path, problems);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// At most 64 characters of user-written text, for messages.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let (segment, after) = inner.split_once(']').unwrap_or((inner, ""));
            rest = after;
            return Some(segment);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (segment, after) = rest.split_at(end);
        rest = after;
        Some(segment)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_table() {
        let table: [(&str, &[&str]); 5] = [
            ("", &[]),
            ("spec", &["spec"]),
            ("spec.ports[0].port", &["spec", "ports", "0", "port"]),
            ("metadata.annotations[heddle.dev/mesh]", &["metadata", "annotations", "heddle.dev/mesh"]),
            ("a[b", &["a", "b"]),
        ];
        for (path, expected) in table {
            assert_eq!(segments(path).collect::<Vec<_>>(), expected, "{path}");
        }
    }

    #[test]
    fn long_text_is_shortened_between_characters() {
        assert_eq!(shortened("kurz"), "kurz");
        assert_eq!(shortened(&"ü".repeat(65)), format!("{}…", "ü".repeat(64)));
    }
}
