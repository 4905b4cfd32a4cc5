//! The matches of a table by path: a request is held against those of its own path only, however many others there are.
//!
//! Order: the exact path; prefixes, the longest first; patterns; the prefix `/`. The Gateway API leaves the place of patterns open: behind
//! prefixes, as in Istio, but before the one that is everything, where they could never match. Cost: an exact path is one look into a hash
//! map, prefixes one for each segment that any of them has in common with the path, a pattern one run over the path for each
//! pattern before the one that is picked. Within one path the matches are tried in order.

use std::collections::HashMap;
use std::sync::Arc;

use super::PathMatch;
use super::table::Observer;

/// A match: which rule of the table, and which of the rule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) rule: usize,
    pub(super) at: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Paths {
    exact: HashMap<Arc<str>, Vec<Entry>>,
    /// A tree by segments; the first is `/`.
    nodes: Vec<Node>,
    patterns: Vec<Entry>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    /// The first node is its own.
    parent: usize,
    /// Length of the prefix.
    bytes: usize,
    children: HashMap<Box<str>, usize>,
    entries: Vec<Entry>,
}

impl Default for Paths {
    fn default() -> Self {
        Self { exact: HashMap::new(), nodes: vec![Node::default()], patterns: Vec::new() }
    }
}

impl Paths {
    /// Adds a match, behind those of the same path that were added before.
    pub(super) fn add(&mut self, path: &PathMatch, entry: Entry) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(Arc::clone(path)).or_default().push(entry),
            PathMatch::Regex(_) => self.patterns.push(entry),
            PathMatch::Prefix(prefix) => {
                let mut at = 0;
                for segment in segments(prefix).into_iter().flatten() {
                    at = match self.nodes[at].children.get(segment) {
                        Some(&child) => child,
                        None => {
                            let child = self.nodes.len();
                            let bytes = self.nodes[at].bytes + 1 + segment.len();
                            self.nodes[at].children.insert(segment.into(), child);
                            self.nodes.push(Node { parent: at, bytes, ..Node::default() });
                            child
                        }
                    };
                }
                self.nodes[at].entries.push(entry);
            }
        }
    }

    /// Calls `each` with the matches whose path is `path`, best first, and the length of what matched, until it answers.
    /// `is_of` runs the pattern of a match.
    pub(super) fn find<T, O: Observer>(
        &self,
        path: &str,
        observer: &mut O,
        is_of: impl Fn(Entry) -> bool,
        mut each: impl FnMut(Entry, usize, &mut O) -> Option<T>,
    ) -> Option<T> {
        observer.compared();
        let exact = self.exact.get(path).map_or(&[][..], |entries| entries);
        for entry in exact {
            if let Some(found) = each(*entry, path.len(), observer) {
                return Some(found);
            }
        }
        let mut at = self.deepest(path, observer);
        while at != 0 {
            let node = &self.nodes[at];
            for entry in &node.entries {
                if let Some(found) = each(*entry, node.bytes, observer) {
                    return Some(found);
                }
            }
            at = node.parent;
        }
        for entry in &self.patterns {
            observer.compared();
            if is_of(*entry)
                && let Some(found) = each(*entry, 0, observer)
            {
                return Some(found);
            }
        }
        self.nodes[0].entries.iter().find_map(|entry| each(*entry, self.nodes[0].bytes, observer))
    }

    /// The longest prefix of `path`, whether or not any match has just it.
    fn deepest(&self, path: &str, observer: &mut impl Observer) -> usize {
        let mut at = 0;
        for segment in segments(path).into_iter().flatten() {
            observer.compared();
            match self.nodes[at].children.get(segment) {
                Some(&child) => at = child,
                None => break,
            }
        }
        at
    }
}

/// What stands between the slashes; none of a path that does not begin with one, `*` say.
fn segments(path: &str) -> Option<impl Iterator<Item = &str>> {
    path.strip_prefix('/').map(|rest| rest.split('/'))
}
