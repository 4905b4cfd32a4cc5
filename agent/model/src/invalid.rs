//! An object that does not parse or validate: explicit state, shown to the operator, harming only its own targets.

use std::fmt;
use std::sync::Arc;

/// One rejected object (DESIGN §7).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InvalidObject {
    /// Where it came from: a path relative to the source's root, or an API resource.
    pub origin: Arc<str>,
    /// 1-based line in `origin` where the trouble (or, failing that, the document) starts; 0 if unknown.
    pub line: u64,
    /// `Kind`, empty if unreadable.
    pub kind: Arc<str>,
    /// `namespace/name` or `name`, empty if unreadable.
    pub object: Arc<str>,
    /// Path of the offending field (`spec.ports[0].port`), empty if it is the document itself.
    pub field: Arc<str>,
    /// What is wrong and what would be right.
    pub message: Arc<str>,
}

impl fmt::Display for InvalidObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} {}", self.origin, self.line, self.kind, self.object)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}
