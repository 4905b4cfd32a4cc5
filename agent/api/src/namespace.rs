//! `v1 Namespace`: whether its pods are in the mesh, and what they may ask for.

use std::sync::Arc;

use heddle_model::Timestamp;
use heddle_model::workload::{FailurePolicy, Labels};
use serde::Deserialize;

use crate::meta::{self, ObjectMeta, Salvaged};
use crate::node::Node;
use crate::problem::Problems;

/// A Namespace, the fields we read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceFields {
    /// `metadata`.
    pub metadata: ObjectMeta,
}

/// The label with the namespace's name. Whatever the object says: the API server sets it so.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A Namespace as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// `metadata.labels`, with the one that Kubernetes gives every namespace, [`NAME_LABEL`]; none where they cannot be read.
    pub labels: Option<Arc<Labels>>,
    /// Label `heddle.dev/mesh`.
    pub mesh: MeshLabel,
    /// Annotation `heddle.dev/failure-policy`; `Closed` where it cannot be read.
    pub failure_policy: FailurePolicy,
    /// Annotation `heddle.dev/allow-exclusions`; `false` where it cannot be read.
    pub allow_exclusions: bool,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Its fields could be read. Where they could not, what it said before is better.
    pub is_readable: bool,
}

/// The label `heddle.dev/mesh` of a namespace or pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MeshLabel {
    /// No such label.
    #[default]
    Unset,
    /// `enabled`.
    Enabled,
    /// `disabled`.
    Disabled,
    /// Anything else, or unreadable: reported, and of the pods it speaks for those are captured that something guards.
    Invalid,
}

impl MeshLabel {
    pub(crate) fn read(meta: &ObjectMeta, problems: &mut Problems) -> Self {
        let Some(text) = meta.labels.get(meta::MESH_LABEL) else { return Self::Unset };
        let words = [("enabled", Self::Enabled), ("disabled", Self::Disabled)];
        meta::one_of(problems, &meta::label_path(meta::MESH_LABEL), text, &words).unwrap_or(Self::Invalid)
    }

    /// The label of an object that was rejected before its fields were. One that is not there may have been lost, unless the tree `is_whole`.
    pub(crate) fn salvage(root: &Node<'_>, is_whole: bool) -> Self {
        let labels = match meta::salvaged(root, "labels") {
            Salvaged::Absent if is_whole => return Self::Unset,
            Salvaged::Absent | Salvaged::Illegible => return Self::Invalid,
            Salvaged::Node(labels) => labels,
        };
        match labels.legible(meta::MESH_LABEL) {
            Some("enabled") => Self::Enabled,
            Some("disabled") => Self::Disabled,
            None if is_whole && labels.get(meta::MESH_LABEL).is_none() => Self::Unset,
            _ => Self::Invalid,
        }
    }
}

impl Namespace {
    /// What is left of one that was rejected before its fields were: its label, if that can be read, and nothing that its pods may ask for.
    pub(crate) fn salvage(name: &str, root: &Node<'_>, is_whole: bool) -> Self {
        Self { mesh: MeshLabel::salvage(root, is_whole), is_readable: false, ..Self::absent(name) }
    }

    /// What holds for pods whose Namespace object does not exist.
    #[must_use]
    pub fn absent(name: &str) -> Self {
        Self {
            name: name.into(),
            labels: None,
            mesh: MeshLabel::Unset,
            failure_policy: FailurePolicy::Closed,
            allow_exclusions: false,
            created: None,
            is_readable: true,
        }
    }

    /// Each field stands for itself: a bad annotation falls back to the strict default and leaves the label in force.
    pub(crate) fn convert(fields: &NamespaceFields, problems: &mut Problems) -> Self {
        let meta = &fields.metadata;
        meta.check_labels(problems);
        let mut annotation = |key: &str, words: &[(&str, bool)]| {
            let text = meta.annotations.get(key)?;
            meta::one_of(problems, &meta::annotation_path(key), text, words)
        };
        let open = annotation(meta::FAILURE_POLICY, &[("Closed", false), ("Open", true)]);
        let mut labels = meta.labels.clone();
        labels.insert(NAME_LABEL.to_owned(), meta.name.clone());
        let allow = annotation(meta::ALLOW_EXCLUSIONS, &[("true", true), ("false", false)]);
        Self {
            name: meta.name.as_str().into(),
            labels: Some(Arc::new(labels)),
            mesh: MeshLabel::read(meta, problems),
            failure_policy: if open == Some(true) { FailurePolicy::Open } else { FailurePolicy::Closed },
            allow_exclusions: allow == Some(true),
            created: meta.created(problems),
            is_readable: true,
        }
    }
}
