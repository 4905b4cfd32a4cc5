//! The matches of a table by path: a request is held against those of its own path only, however many others there are.
//!
//! Order: the exact path; prefixes, the longest first; patterns; the prefix `/`. The Gateway API leaves the place of patterns open: behind
//! prefixes, as in Istio, but before the one that is everything, where they could never match. Cost: an exact path is one look into a hash
//! map, prefixes one for each segment that any of them has in common with the path, patterns one run over the path for each that comes
//! before the one that is picked and whose other conditions the request meets. Within one path, and among patterns, [`Entries`] says which
//! are tried.

use std::collections::HashMap;
use std::sync::Arc;

use super::entries::{Entries, Entry};
use super::table::Observer;
use super::{Match, PathMatch, Request};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Paths {
    exact: HashMap<Arc<str>, Entries>,
    /// A tree by segments; the first is `/`.
    nodes: Vec<Node>,
    patterns: Entries,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    /// The first node is its own.
    parent: usize,
    /// Length of the prefix.
    bytes: usize,
    children: HashMap<Box<str>, usize>,
    entries: Entries,
}

impl Default for Paths {
    fn default() -> Self {
        Self { exact: HashMap::new(), nodes: vec![Node::default()], patterns: Entries::default() }
    }
}

impl Paths {
    /// Adds a match, behind those of the same path that were added before.
    pub(super) fn add(&mut self, path: &PathMatch, entry: Entry) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(Arc::clone(path)).or_default().push(entry),
            PathMatch::Regex(_) | PathMatch::Call(_) => self.patterns.push(entry),
            PathMatch::Unreadable => {}
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

    /// Makes the indexes; `of` is the match of an entry.
    pub(super) fn index<'m>(&mut self, of: &impl Fn(Entry) -> &'m Match) {
        let of_nodes = self.nodes.iter_mut().map(|node| &mut node.entries);
        for entries in self.exact.values_mut().chain(of_nodes).chain([&mut self.patterns]) {
            entries.index(of);
        }
    }

    /// Calls `each` with the matches whose path is the request's, or may be by a pattern, best first, and the length of what matched, until it
    /// answers.
    pub(super) fn find<R: Request + ?Sized, T, O: Observer>(
        &self,
        request: &R,
        observer: &mut O,
        mut each: impl FnMut(Entry, usize, &mut O) -> Option<T>,
    ) -> Option<T> {
        let path = request.path();
        observer.compared();
        if let Some(entries) = self.exact.get(path)
            && let Some(found) = entries.find(request, observer, |entry, o| each(entry, path.len(), o))
        {
            return Some(found);
        }
        let mut at = self.deepest(path, observer);
        while at != 0 {
            let node = &self.nodes[at];
            if let Some(found) = node.entries.find(request, observer, |entry, o| each(entry, node.bytes, o)) {
                return Some(found);
            }
            at = node.parent;
        }
        let found = self.patterns.find(request, observer, |entry, o| each(entry, 0, o));
        found.or_else(|| self.nodes[0].entries.find(request, observer, |entry, o| each(entry, self.nodes[0].bytes, o)))
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
