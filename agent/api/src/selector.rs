//! Label selectors of policies. Whom a policy speaks for must never be more pods than it names, nor fewer because a value is wrong: what
//! cannot hold for any pod is refused.

use std::collections::BTreeMap;

use heddle_model::workload::Labels;

use crate::meta;
use crate::node::{self, Node, Value, shortened};
use crate::problem::Problems;

/// `selector` of our own kinds.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SelectorFields {
    /// Labels a pod must have, all of them.
    #[schemars(extend(
        "additionalProperties" = {"type": "string", "maxLength": meta::LABEL_BYTES_MAX, "nullable": true},
        "nullable" = true,
    ))]
    pub match_labels: BTreeMap<String, String>,
}

/// Checks the labels at `path`, and at `node` that none was left without a value.
pub(crate) fn check(labels: &Labels, node: Option<&Node<'_>>, path: &str, problems: &mut Problems) {
    let at = |key: &str| {
        let mut path = path.to_owned();
        node::join(&mut path, key);
        path
    };
    for (key, value) in labels {
        if !meta::is_label_key(key) {
            problems.error(at(key), format!("`{}` is no name of a label: no pod can have it", shortened(key)));
        }
        if !meta::is_label_value(value) {
            problems.error(at(key), format!("`{}` is no label value: no pod can have it", shortened(value)));
        }
    }
    // Elsewhere nothing is an absent field; here it would let the object speak for more pods than it names.
    if let Some(Node { value: Value::Mapping(entries), .. }) = node {
        for entry in entries.iter().filter(|entry| entry.node.value == Value::Null) {
            problems.error(at(&entry.key), "has no value: give one, or `\"\"`");
        }
    }
}

/// The labels that a `selector` of an invalid object names, if every part of it can be read and could hold for a pod.
pub(crate) fn salvaged(selector: &Node<'_>) -> Option<Labels> {
    if !only(selector, &["matchLabels"]) || selector.is_contested("matchLabels") {
        return None;
    }
    let Some(labels) = selector.get("matchLabels").filter(|node| node.value != Value::Null) else {
        return Some(Labels::new());
    };
    let Value::Mapping(labels) = &labels.value else { return None };
    let legible = |key: &str, value: &str| meta::is_label_key(key) && meta::is_label_value(value);
    let label = |entry: &node::Entry<'_>| {
        let value = entry.node.text().filter(|value| legible(&entry.key, value) && !entry.is_contested)?;
        Some((entry.key.to_string(), value.to_owned()))
    };
    labels.iter().map(label).collect()
}

/// Whether a node is a mapping with no other fields than these.
pub(crate) fn only(node: &Node<'_>, known: &[&str]) -> bool {
    matches!(&node.value, Value::Mapping(entries) if entries.iter().all(|entry| known.contains(&entry.key.as_ref())))
}
