//! What is wrong with an object: one field, one line, one message.

use std::fmt::Display;

use crate::node::Node;

/// One thing wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field (`spec.ports[0].port`), empty for the object itself.
    pub field: String,
    /// 1-based line in the file, 0 until it is known.
    pub line: u64,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Collects what a conversion finds: errors make the object invalid, warnings do not.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

impl Problem {
    /// A problem whose line is not known yet.
    pub(crate) fn new(field: impl Into<String>, message: impl Display) -> Self {
        Self { field: field.into(), line: 0, message: message.to_string() }
    }

    /// `field: message`, or the message alone of what is no field.
    pub(crate) fn told(&self) -> String {
        if self.field.is_empty() { self.message.clone() } else { format!("{}: {}", self.field, self.message) }
    }
}

impl Problems {
    /// The object is invalid.
    pub(crate) fn error(&mut self, field: impl Into<String>, message: impl Display) {
        self.errors.push(Problem::new(field, message));
    }

    /// A part of the object has no effect.
    pub(crate) fn warn(&mut self, field: impl Into<String>, message: impl Display) {
        self.warnings.push(Problem::new(field, message));
    }

    /// Looks up the lines of the fields.
    pub(crate) fn locate(&mut self, root: &Node<'_>) {
        for problem in self.errors.iter_mut().chain(&mut self.warnings).filter(|p| p.line == 0) {
            problem.line = root.line_of(&problem.field);
        }
    }
}
