//! `v1 Namespace`: whether its pods are in the mesh, and what they may ask for.

use std::sync::Arc;

use heddle_model::Timestamp;
use heddle_model::workload::{FailurePolicy, Labels};
use serde::Deserialize;

use crate::meta::{self, ObjectMeta};
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
    /// Anything else, or unreadable: reported, and the pods it speaks for are not captured.
    Invalid,
}

impl MeshLabel {
    pub(crate) fn read(meta: &ObjectMeta, problems: &mut Problems) -> Self {
        let Some(text) = meta.labels.get(meta::MESH_LABEL) else { return Self::Unset };
        let words = [("enabled", Self::Enabled), ("disabled", Self::Disabled)];
        meta::one_of(problems, &meta::label_path(meta::MESH_LABEL), text, &words).unwrap_or(Self::Invalid)
    }
}

impl Namespace {
    /// A namespace of which nothing but the name is known.
    #[must_use]
    pub fn unreadable(name: &str) -> Self {
        Self { mesh: MeshLabel::Invalid, ..Self::absent(name) }
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
        }
    }
}
