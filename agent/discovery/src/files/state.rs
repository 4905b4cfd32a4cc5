//! What the files said when they were last read, and the snapshot that follows from it.
//!
//! An object that is in two files is taken from one by a rule (oldest `creationTimestamp`, then file name, then place
//! in the file) and reported in the other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use heddle_api::{Key, Object, Reading};
use heddle_model::{Delta, InvalidObject, Snapshot, Timestamp};

use crate::reducer::Reducer;

/// What tells one content of a name from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What became of a name.
#[derive(Debug)]
pub(super) enum Change {
    /// It was read.
    Content(Stamp, Box<Reading>),
    /// It is there and cannot be read: what it said before stays.
    Unreadable(io::Error),
    /// It is no more.
    Gone,
}

/// All files, what they say, and the snapshot.
#[derive(Debug)]
pub(super) struct State {
    files: BTreeMap<Arc<str>, File>,
    /// Where each object stands, the place it is taken from first.
    places: HashMap<Key, Vec<Place>>,
    /// Keys with more than one place.
    contested: BTreeSet<Key>,
    /// Files with something to report.
    reporting: BTreeSet<Arc<str>>,
    reducer: Reducer,
    snapshot: Arc<Snapshot>,
}

#[derive(Debug, Default)]
struct File {
    /// `None` while it cannot be read.
    stamp: Option<Stamp>,
    objects: Vec<Placed>,
    invalid: Vec<InvalidObject>,
    warnings: Vec<InvalidObject>,
    ignored: usize,
    unreadable: Option<String>,
}

#[derive(Clone, Debug)]
struct Placed {
    key: Key,
    line: u64,
    object: Arc<Object>,
}

impl File {
    /// What was read, and for what cannot be told from it what the file said before: a Pod or Namespace that is not legible, and all that may be
    /// behind an object that nobody can name.
    fn read(name: &Arc<str>, stamp: Stamp, reading: Reading, former: &[Placed]) -> Self {
        let Reading { items, mut invalid, warnings, ignored, has_unknown } = reading;
        let legible = former.iter().filter(|former| former.object.is_readable());
        let legible: HashMap<&Key, &Arc<Object>> = legible.map(|former| (&former.key, &former.object)).collect();
        let (mut objects, mut stay) = (Vec::new(), Vec::new());
        for heddle_api::Item { line, object } in items {
            let key = object.key();
            let better = if object.is_readable() { None } else { legible.get(&key) };
            let object = match better {
                Some(former) => {
                    stay.push((line, key.clone()));
                    Arc::clone(former)
                }
                None => Arc::new(object),
            };
            objects.push(Placed { key, line, object });
        }
        if has_unknown {
            let read: HashSet<Key> = objects.iter().map(|placed| placed.key.clone()).collect();
            let missing: Vec<Placed> = former.iter().filter(|former| !read.contains(&former.key)).cloned().collect();
            stay.extend(missing.iter().map(|placed| (0, placed.key.clone())));
            objects.extend(missing);
        }
        if let Some((line, first)) = stay.first() {
            let more = if stay.len() == 1 { String::new() } else { format!(" (and of {} more)", stay.len() - 1) };
            let message = format!(
                "cannot be read, or be told from what cannot: what the file said of it{more} before stays in force"
            );
            invalid.push(InvalidObject {
                origin: Arc::clone(name),
                line: *line,
                kind: first.kind.as_str().into(),
                object: first.object().into(),
                field: Arc::default(),
                message: message.into(),
            });
        }
        Self { stamp: Some(stamp), objects, invalid, warnings, ignored, unreadable: None }
    }
}

/// In the order of preference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    undated: bool,
    created: Option<Timestamp>,
    file: Arc<str>,
    index: usize,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl State {
    pub(super) fn new(node: &str) -> Self {
        Self {
            files: BTreeMap::new(),
            places: HashMap::new(),
            contested: BTreeSet::new(),
            reporting: BTreeSet::new(),
            reducer: Reducer::new(),
            snapshot: Arc::new(Snapshot::new(node)),
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    pub(super) fn stamp(&self, file: &str) -> Option<Stamp> {
        self.files.get(file)?.stamp
    }

    pub(super) fn objects(&self) -> usize {
        self.reducer.len()
    }

    pub(super) fn ignored(&self) -> usize {
        self.files.values().map(|file| file.ignored).sum()
    }

    /// Takes in a batch of changed files and makes one snapshot of it.
    pub(super) fn apply(&mut self, batch: Vec<(Arc<str>, Change)>) {
        let mut touched = BTreeSet::new();
        for (name, change) in batch {
            self.replace(&name, change, &mut touched);
        }
        for key in touched {
            let object = self.places.get(&key).and_then(|places| self.placed(places.first()?)).map(|p| &p.object);
            self.reducer.set(&key, object.cloned());
        }
        let delta = self.reducer.delta();
        let unchanged = delta.is_empty() && self.snapshot.generation > 0;
        let (invalid, warnings) = self.reports();
        let next = self.snapshot.apply(Delta { invalid: Some(invalid), warnings: Some(warnings), ..delta });
        if unchanged && next.invalid == self.snapshot.invalid && next.warnings == self.snapshot.warnings {
            return;
        }
        let told: HashSet<&InvalidObject> = self.snapshot.invalid.iter().collect();
        for report in next.invalid.iter().filter(|report| !told.contains(report)) {
            tracing::warn!(target: "discovery", "rejected: {report}");
        }
        let told: HashSet<&InvalidObject> = self.snapshot.warnings.iter().collect();
        for report in next.warnings.iter().filter(|report| !told.contains(report)) {
            tracing::warn!(target: "discovery", "not in force: {report}");
        }
        self.snapshot = Arc::new(next);
    }

    fn replace(&mut self, name: &Arc<str>, change: Change, touched: &mut BTreeSet<Key>) {
        let new = match change {
            Change::Unreadable(error) => {
                let file = self.files.entry(Arc::clone(name)).or_default();
                file.stamp = None;
                file.unreadable = Some(format!("cannot be read: {error}; what it said before stays in force"));
                self.reporting.insert(Arc::clone(name));
                return;
            }
            Change::Gone => None,
            Change::Content(stamp, reading) => {
                let former = self.files.get(name).map_or(&[][..], |file| &file.objects);
                Some(File::read(name, stamp, *reading, former))
            }
        };
        let old = self.files.remove(name);
        for placed in old.iter().flat_map(|file| &file.objects) {
            touched.insert(placed.key.clone());
            if let Some(places) = self.places.get_mut(&placed.key) {
                places.retain(|place| place.file != *name);
            }
        }
        let fresh = new.iter().flat_map(|file| file.objects.iter().enumerate());
        for (index, placed) in fresh {
            touched.insert(placed.key.clone());
            let created = placed.object.created();
            let place = Place { undated: created.is_none(), created, file: Arc::clone(name), index };
            let places = self.places.entry(placed.key.clone()).or_default();
            let at = places.partition_point(|other| *other < place);
            places.insert(at, place);
        }
        let changed = old.iter().chain(&new).flat_map(|file| &file.objects).map(|placed| &placed.key);
        for key in changed {
            match self.places.get(key).map_or(0, Vec::len) {
                0 => {
                    self.places.remove(key);
                    self.contested.remove(key);
                }
                1 => drop(self.contested.remove(key)),
                _ => drop(self.contested.insert(key.clone())),
            }
        }
        self.reporting.remove(name);
        if let Some(file) = new {
            if !file.invalid.is_empty() || !file.warnings.is_empty() {
                self.reporting.insert(Arc::clone(name));
            }
            self.files.insert(Arc::clone(name), file);
        }
    }

    fn placed(&self, place: &Place) -> Option<&Placed> {
        self.files.get(&place.file)?.objects.get(place.index)
    }

    fn reports(&self) -> (Vec<InvalidObject>, Vec<InvalidObject>) {
        let (mut invalid, mut warnings) = (Vec::new(), Vec::new());
        for name in &self.reporting {
            let Some(file) = self.files.get(name) else { continue };
            invalid.extend_from_slice(&file.invalid);
            warnings.extend_from_slice(&file.warnings);
            invalid.extend(file.unreadable.as_deref().map(|message| InvalidObject {
                origin: Arc::clone(name),
                line: 0,
                kind: Arc::default(),
                object: Arc::default(),
                field: Arc::default(),
                message: message.into(),
            }));
        }
        for key in &self.contested {
            let mut places = self.places.get(key).into_iter().flatten();
            let Some(winner) = places.next() else { continue };
            let at = self.placed(winner).map_or(0, |placed| placed.line);
            let message = format!("is already in {}:{at}, which counts: keep one", winner.file);
            invalid.extend(places.map(|loser| self.report(key, loser, "", 0, &message)));
        }
        for (key, report) in self.reducer.reports() {
            let Some(place) = self.places.get(key).and_then(|places| places.first()) else { continue };
            let problem = &report.problem;
            let told = self.report(key, place, &problem.field, problem.line, &problem.message);
            if report.warning { warnings.push(told) } else { invalid.push(told) }
        }
        (invalid, warnings)
    }

    fn report(&self, key: &Key, place: &Place, field: &str, line: u64, message: &str) -> InvalidObject {
        InvalidObject {
            origin: Arc::clone(&place.file),
            line: if line == 0 { self.placed(place).map_or(0, |placed| placed.line) } else { line },
            kind: key.kind.as_str().into(),
            object: key.object().into(),
            field: field.into(),
            message: message.into(),
        }
    }
}
