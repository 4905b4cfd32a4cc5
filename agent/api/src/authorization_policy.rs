//! `heddle.dev/v1alpha1 AuthorizationPolicy`: who may do what at ports of a namespace's, selected pods' or a Service's (FEATURES C1).
//!
//! Nothing in it may match more than it names: a field that nobody knows, a list without entries and a field without a value are refused, not
//! taken for absent. Of a rejected object so much is left that its targets are denied (DESIGN §7).

mod rules;

use heddle_model::policy::{Action, AuthorizationPolicy, Rules, Target};

pub use rules::{HeaderFields, OperationFields, PathFields, RuleFields, SourceFields};
pub use rules::{LISTED_MAX, OPERATIONS_MAX, REGEXES_MAX, RULES_MAX, SOURCES_MAX, VALUES_MAX};

use crate::meta::{self, ObjectMeta};
use crate::node::{self, Node, Value, shortened};
use crate::object::Dated;
use crate::problem::Problems;
use crate::schema;
use crate::selector::{self, SelectorFields, only};

/// An AuthorizationPolicy.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationPolicyFields {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `spec`.
    pub spec: Option<AuthorizationPolicySpec>,
}

/// `spec` of an AuthorizationPolicy.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.selector) && has(self.targetRefs))",
    "message": "selector beside targetRefs: one or the other, or a policy for each",
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationPolicySpec {
    /// `Allow` (default), `Deny` or `Audit`.
    #[schemars(extend("enum" = schema::words(&ACTIONS), "default" = Action::default().as_str()))]
    pub action: Option<String>,
    /// Decides nothing, and tells what it would have decided.
    #[schemars(extend("nullable" = true))]
    pub dry_run: bool,
    /// Which pods of the namespace; not beside `targetRefs`.
    pub selector: Option<SelectorFields>,
    /// Which Service of the namespace: exactly one.
    #[schemars(length(equal = 1))]
    pub target_refs: Option<Vec<TargetRefFields>>,
    /// When it matches: if one of these does.
    #[schemars(length(max = RULES_MAX))]
    pub rules: Option<Vec<RuleFields>>,
}

/// An item of `spec.targetRefs`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetRefFields {
    /// API group, empty for a Service.
    #[serde(default)]
    #[schemars(extend("enum" = [""], "nullable" = true))]
    pub group: String,
    /// `Service`.
    #[schemars(extend("enum" = [SERVICE]))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = meta::LABEL_BYTES_MAX))]
    pub name: String,
}

/// The only kind of a target.
const SERVICE: &str = "Service";

const ACTIONS: [(&str, Action); 3] = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Audit", Action::Audit)];

pub(crate) fn convert(
    namespace: &str,
    fields: &AuthorizationPolicyFields,
    root: &Node<'_>,
    problems: &mut Problems,
) -> Dated<AuthorizationPolicy> {
    let AuthorizationPolicyFields { metadata, spec, .. } = fields;
    let name = &metadata.name;
    let created = metadata.created(problems);
    let Some(spec) = spec else {
        problems.error("spec", "is missing: `spec: {}` would let nobody in to any pod of the namespace");
        return Dated::new(created, salvage(namespace, name, root));
    };
    if let Some(node) = root.get("spec") {
        node::refuse_nulls(node, &mut "spec".to_owned(), problems);
    }
    let action = spec.action.as_deref();
    let action = action.and_then(|text| meta::one_of(problems, "spec.action", text, &ACTIONS)).unwrap_or_default();
    check_target(spec, problems);
    let rules = rules::convert(namespace, spec.rules.as_deref().unwrap_or_default(), problems);
    if !problems.errors.is_empty() {
        return Dated::new(created, salvage(namespace, name, root));
    }
    if rules.is_empty() && action != Action::Allow {
        let message = format!(
            "has no `rules`: without any {} has no effect; `rules: [{{}}]` matches everything",
            action.as_str()
        );
        problems.warn("spec", message);
    }
    let (dry_run, target) = (spec.dry_run, target(root));
    let (namespace, name) = (namespace.into(), name.as_str().into());
    Dated::new(created, AuthorizationPolicy { namespace, name, target, action, dry_run, rules: Rules::Any(rules) })
}

/// What is left of one that was rejected: its targets are denied, unless it is certain that it would have decided nothing.
pub(crate) fn salvage(namespace: &str, name: &str, root: &Node<'_>) -> AuthorizationPolicy {
    let spec = root.get("spec").filter(|_| !root.is_contested("spec"));
    let said = |field: &str| spec.filter(|spec| !spec.is_contested(field))?.get(field);
    let text = said("action").and_then(Node::text);
    let action = ACTIONS.iter().find(|(word, _)| Some(*word) == text).map(|(_, action)| *action).unwrap_or_default();
    let dry_run = said("dryRun").is_some_and(|node| node.value == Value::Bool(true));
    let (namespace, name) = (namespace.into(), name.into());
    AuthorizationPolicy { namespace, name, target: target(root), action, dry_run, rules: Rules::Rejected }
}

fn check_target(spec: &AuthorizationPolicySpec, problems: &mut Problems) {
    if let Some(selector) = &spec.selector {
        selector::check(&selector.match_labels, None, "spec.selector.matchLabels", problems);
    }
    let Some(refs) = &spec.target_refs else { return };
    if spec.selector.is_some() {
        problems.error("spec.targetRefs", "beside `selector`: one or the other, or a policy for each");
    }
    if refs.len() != 1 {
        let message = format!(
            "{} entries: exactly one, and a policy for each Service; without the field all pods of the namespace are meant",
            refs.len()
        );
        problems.error("spec.targetRefs", message);
    }
    for (index, target) in refs.iter().enumerate().take(LISTED_MAX) {
        let TargetRefFields { group, kind, name } = target;
        let path = format!("spec.targetRefs[{index}]");
        let of = if group.is_empty() { "" } else { " of group " };
        if kind != SERVICE || !group.is_empty() {
            let message = format!(
                "`{}`{of}{} is not supported yet: a Service (group \"\"), or pods by `selector`",
                shortened(kind),
                shortened(group)
            );
            problems.error(format!("{path}.kind"), message);
        } else if !meta::is_dns_label(name) {
            problems.error(format!("{path}.name"), format!("`{}` is no name of a Service", shortened(name)));
        }
    }
}

/// Whose traffic it speaks of, if every part that says so can be read; that of a valid object can.
fn target(root: &Node<'_>) -> Target {
    let Some(spec) = root.get("spec").filter(|spec| spec.value != Value::Null) else {
        return if only(root, &["apiVersion", "kind", "metadata", "spec"]) {
            Target::Namespace
        } else {
            Target::Unreadable
        };
    };
    if root.is_contested("spec") || ["selector", "targetRefs"].into_iter().any(|field| spec.is_contested(field)) {
        return Target::Unreadable;
    }
    match (spec.get("selector"), spec.get("targetRefs")) {
        // A field that nobody knows may be one of the two misspelt.
        (None, None) if only(spec, &["action", "dryRun", "rules"]) => Target::Namespace,
        (Some(selector), None) => match selector::salvaged(selector) {
            None => Target::Unreadable,
            Some(labels) if labels.is_empty() => Target::Namespace,
            Some(labels) => Target::Labels(labels),
        },
        (None, Some(refs)) => match refs.items() {
            [target] => service(target).map_or(Target::Unreadable, |name| Target::Service(name.into())),
            _ => Target::Unreadable,
        },
        _ => Target::Unreadable,
    }
}

/// The Service that an item of `targetRefs` names.
fn service<'n>(target: &'n Node<'_>) -> Option<&'n str> {
    let text = |field: &str| target.get(field).and_then(Node::text);
    let is_service = only(target, &["group", "kind", "name"])
        && !["group", "kind", "name"].into_iter().any(|field| target.is_contested(field))
        && text("kind") == Some(SERVICE)
        && target.get("group").is_none_or(|group| group.text() == Some(""));
    text("name").filter(|name| is_service && meta::is_dns_label(name))
}

#[cfg(test)]
#[path = "authorization_policy_tests.rs"]
mod tests;
