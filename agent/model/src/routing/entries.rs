//! Matches in the order in which they count, with an index over their conditions: a request is held against those that it may meet, however
//! many others there are.
//!
//! A match that asks for one exact text (a method, the value of a header or parameter, a gRPC service or method) stands in a hash map under
//! that text, under the condition that tells most matches apart, and within it under the next. What is found in several maps, and what asks
//! for no exact text, is merged in order. Cost: one look for each such condition, and the matches found there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::matching::{self, call_of};
use super::table::Observer;
use super::{Match, PathMatch, Request, ValueMatch};

/// So many matches are tried one after the other sooner than they are looked up.
const TRIED_MAX: usize = 3;
/// Conditions that are looked up, beside each other; matches that have none of these are tried in order.
const KEYS_MAX: usize = 8;
/// Lists merged at once; where a request is in more, all matches are tried in order.
const LISTS_MAX: usize = 16;

/// A match: which rule of the table, and which of the rule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The place among all of the table: the least counts.
    pub(super) order: usize,
    pub(super) rule: usize,
    pub(super) at: usize,
}

/// Matches that nothing but their conditions tells apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entries {
    /// All, best first.
    all: Vec<Entry>,
    index: Option<Index>,
}

#[derive(Clone, Debug, PartialEq)]
struct Index {
    keyed: Vec<(Key, Texts)>,
    /// Those that stand under no key.
    rest: Vec<Entry>,
}

/// Matches by the text that they want to be there.
type Texts = HashMap<Box<[u8]>, Entries>;

/// What a match may want to be exactly one text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Service,
    Call,
    Method,
    Header(Arc<str>),
    Query(Arc<str>),
}

impl Entries {
    /// Adds a match behind those that were added before.
    pub(super) fn push(&mut self, entry: Entry) {
        self.all.push(entry);
    }

    /// Makes the index; `of` is the match of an entry.
    pub(super) fn index<'m>(&mut self, of: &impl Fn(Entry) -> &'m Match) {
        self.index = Index::new(&self.all, of, &[]);
    }

    /// Calls `each` with the matches that a request may meet, best first, until it answers.
    pub(super) fn find<R: Request + ?Sized, O: Observer, T>(
        &self,
        request: &R,
        observer: &mut O,
        mut each: impl FnMut(Entry, &mut O) -> Option<T>,
    ) -> Option<T> {
        let mut lists = Lists::default();
        if O::HEARS_ALL || !self.gather(request, observer, &mut lists) {
            lists = Lists::default();
            lists.push(&self.all);
        }
        while let Some(entry) = lists.next() {
            if let Some(found) = each(entry, observer) {
                return Some(found);
            }
        }
        None
    }

    /// The lists that have all that the request may meet; `false` if there are too many.
    fn gather<'a, R: Request + ?Sized>(
        &'a self,
        request: &R,
        observer: &mut impl Observer,
        lists: &mut Lists<'a>,
    ) -> bool {
        let Some(index) = &self.index else { return lists.push(&self.all) };
        for (key, of) in &index.keyed {
            observer.compared();
            let found = key.read(request, |text| of.get(text)).flatten();
            if found.is_some_and(|entries| !entries.gather(request, observer, lists)) {
                return false;
            }
        }
        lists.push(&index.rest)
    }
}

impl Index {
    /// Over entries in order, by keys other than `used`, which they all have in common; `None` where that would be of no use.
    fn new<'m>(all: &[Entry], of: &impl Fn(Entry) -> &'m Match, used: &[Key]) -> Option<Self> {
        if all.len() <= TRIED_MAX {
            return None;
        }
        let mut rest = all.to_vec();
        let mut keyed = Vec::new();
        while keyed.len() < KEYS_MAX
            && let Some(key) = best_key(&rest, of, used)
        {
            let mut entries = Texts::new();
            rest.retain(|entry| match key.text(of(*entry)) {
                None => true,
                Some(text) => {
                    entries.entry(text.as_bytes().into()).or_default().push(*entry);
                    false
                }
            });
            let used: Vec<Key> = used.iter().chain([&key]).cloned().collect();
            for entries in entries.values_mut() {
                entries.index = Self::new(&entries.all, of, &used);
            }
            keyed.push((key, entries));
        }
        (!keyed.is_empty()).then_some(Self { keyed, rest })
    }
}

/// The key that spares most matches: of those that have it the fewest are under one text.
fn best_key<'m>(entries: &[Entry], of: &impl Fn(Entry) -> &'m Match, used: &[Key]) -> Option<Key> {
    let mut counts: BTreeMap<Key, HashMap<&str, usize>> = BTreeMap::new();
    for entry in entries {
        for (key, text) in keys(of(*entry)).into_iter().filter(|(key, _)| !used.contains(key)) {
            *counts.entry(key).or_default().entry(text).or_default() += 1;
        }
    }
    let spared = |texts: &HashMap<&str, usize>| {
        texts.values().sum::<usize>() - texts.values().max().copied().unwrap_or_default()
    };
    let best = counts.iter().max_by(|(a, of_a), (b, of_b)| spared(of_a).cmp(&spared(of_b)).then_with(|| b.cmp(a)))?;
    (spared(best.1) > 0).then(|| best.0.clone())
}

/// The exact texts that a match wants, each with what has to be it.
fn keys(of: &Match) -> Vec<(Key, &str)> {
    let mut keys = vec![Key::Service, Key::Call, Key::Method];
    keys.extend(of.effective_headers().map(|(_, header)| Key::Header(Arc::clone(&header.name))));
    keys.extend(of.effective_query().map(|(_, param)| Key::Query(Arc::clone(&param.name))));
    keys.into_iter().filter_map(|key| Some((key.clone(), key.text(of)?))).collect()
}

impl Key {
    /// The text that a match wants, if it wants just one.
    fn text<'m>(&self, of: &'m Match) -> Option<&'m str> {
        let exact = |value: &'m ValueMatch| match value {
            ValueMatch::Exact(text) => Some(&**text),
            ValueMatch::Regex(_) | ValueMatch::Present => None,
        };
        match (self, &of.path) {
            (Self::Service, PathMatch::Call(call)) => call.service.as_ref().and_then(exact),
            (Self::Call, PathMatch::Call(call)) => call.method.as_ref().and_then(exact),
            (Self::Service | Self::Call, _) => None,
            (Self::Method, _) => of.method.as_deref(),
            (Self::Header(name), _) => {
                of.effective_headers().find(|(_, header)| header.name == *name).and_then(|(_, h)| exact(&h.value))
            }
            (Self::Query(name), _) => {
                of.effective_query().find(|(_, param)| param.name == *name).and_then(|(_, q)| exact(&q.value))
            }
        }
    }

    /// Reads the text that a request has, if it has one.
    fn read<R: Request + ?Sized, T>(&self, request: &R, mut read: impl FnMut(&[u8]) -> T) -> Option<T> {
        match self {
            Self::Service => call_of(request.path()).map(|(service, _)| read(service.as_bytes())),
            Self::Call => call_of(request.path()).and_then(|(_, method)| Some(read(method?.as_bytes()))),
            Self::Method => Some(read(request.method().as_bytes())),
            Self::Header(name) => matching::header(request, name, read),
            Self::Query(name) => matching::param(request.query(), name, read),
        }
    }
}

/// Lists in order, merged.
#[derive(Default)]
struct Lists<'a> {
    lists: [&'a [Entry]; LISTS_MAX],
    count: usize,
}

impl<'a> Lists<'a> {
    /// `false` if there is no room.
    fn push(&mut self, list: &'a [Entry]) -> bool {
        if list.is_empty() {
            return true;
        }
        let Some(place) = self.lists.get_mut(self.count) else { return false };
        *place = list;
        self.count += 1;
        true
    }

    fn next(&mut self) -> Option<Entry> {
        let lists = self.lists.iter_mut().take(self.count).filter(|list| !list.is_empty());
        let best = lists.min_by_key(|list| list.first().map(|entry| entry.order))?;
        let (first, rest) = best.split_first()?;
        *best = rest;
        Some(*first)
    }
}
