//! A part of an object with its path, for kinds that are read field by field: where one part's trouble must not be another's, serde, which stops
//! at the first, is asked for single fields only.

use serde::Deserialize;

use crate::de;
use crate::node::{self, Node, Value, shortened};
use crate::problem::Problems;

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Place<'n> {
    node: &'n Node<'n>,
    path: String,
}

impl<'n> Place<'n> {
    /// A node and its path.
    pub(crate) fn new(node: &'n Node<'n>, path: impl Into<String>) -> Self {
        Self { node, path: path.into() }
    }

    /// Its own path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path of a field of it.
    pub(crate) fn at(&self, key: &str) -> String {
        let mut path = self.path.clone();
        node::join(&mut path, key);
        path
    }

    /// A field of it; one without a value is absent, as in Kubernetes.
    pub(crate) fn get(&self, key: &str) -> Option<Place<'n>> {
        let node = self.node.get(key).filter(|node| node.value != Value::Null)?;
        Some(Place { node, path: self.at(key) })
    }

    /// What is told of the fields in it that are there more than once.
    pub(crate) fn duplicates(&self) -> Vec<String> {
        self.node.duplicates()
    }

    /// Whether a field of it is there more than once: nobody can say which was meant.
    pub(crate) fn is_contested(&self, key: &str) -> bool {
        self.node.is_contested(key)
    }

    /// Whether it is a mapping; told if it is none, as are fields that are not among these.
    pub(crate) fn is_mapping_of(&self, known: &[&str], problems: &mut Problems) -> bool {
        let Value::Mapping(entries) = &self.node.value else {
            problems.error(self.path(), format!("must be a mapping, not {}", self.node.described()));
            return false;
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_ref())) {
            let known = known.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let message = format!("unknown field `{}`, expected one of {known}", shortened(&entry.key));
            problems.error(self.at(&entry.key), message);
        }
        true
    }

    /// The items of a list in a field, at most `max` of them; none where it is absent. What is no list, and more items, are told.
    pub(crate) fn items(&self, key: &str, max: usize, problems: &mut Problems) -> Vec<Place<'n>> {
        let Some(list) = self.get(key) else { return Vec::new() };
        let Value::Sequence(items) = &list.node.value else {
            problems.error(list.path(), format!("must be a list, not {}", list.node.described()));
            return Vec::new();
        };
        if items.len() > max {
            problems.error(list.path(), format!("{} entries: at most {max}", items.len()));
        }
        let numbered = items.iter().take(max).enumerate();
        numbered.map(|(index, node)| Place { node, path: format!("{}[{index}]", list.path) }).collect()
    }

    /// How many items the list in a field has.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.node.get(key).map_or(0, |node| node.items().len())
    }

    /// All of it as a type.
    pub(crate) fn value<T: Deserialize<'n>>(&self, problems: &mut Problems) -> Option<T> {
        let read = de::from_node(self.node).map_err(|problem| {
            let separator = if problem.field.is_empty() || problem.field.starts_with('[') { "" } else { "." };
            problems.error(format!("{}{separator}{}", self.path, problem.field), problem.message);
        });
        read.ok()
    }

    /// A field of it as a type, if it is there.
    pub(crate) fn field<T: Deserialize<'n>>(&self, key: &str, problems: &mut Problems) -> Option<T> {
        self.get(key)?.value(problems)
    }

    /// The same, told if it is not there. What is no mapping is told of elsewhere.
    pub(crate) fn required<T: Deserialize<'n>>(&self, key: &str, problems: &mut Problems) -> Option<T> {
        if self.get(key).is_none() && matches!(self.node.value, Value::Mapping(_)) {
            problems.error(self.at(key), "is missing");
        }
        self.field(key, problems)
    }

    /// A whole number in a field, told if it is out of range.
    pub(crate) fn number<T: TryFrom<i64>>(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        problems: &mut Problems,
    ) -> Option<T> {
        let number: i64 = self.field(key, problems)?;
        let converted = T::try_from(number).ok().filter(|_| range.contains(&number));
        if converted.is_none() {
            problems.error(self.at(key), format!("{number} is out of range: {} to {}", range.start(), range.end()));
        }
        converted
    }
}
