//! What the API server of Kubernetes is told of our own kinds: their CustomResourceDefinitions (`cargo xtask crds`).
//!
//! A schema is derived from the very types that read the objects: descriptions are their doc comments, bounds and words their constants. It
//! refuses nothing that the reader takes, but it cannot say all the reader does, so an object that has passed it is read like any other.
//!
//! * Unknown fields are left to the API server, which drops them and tells so, or refuses them (`fieldValidation: Strict`, kubectl's default):
//!   a structural schema may not have `additionalProperties: false` beside `properties`.
//! * Fields without a value the API server drops silently where a schema does not call them `nullable`, which would let a policy match more
//!   than it names. So they are `nullable` wherever the reader refuses them: they are kept, and refused.
//! * "Exactly one of" is a number of properties, as rules in CEL cost more than a CRD may as deep in lists as paths and headers are.

mod yaml;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::authorization_policy::AuthorizationPolicySpec;
use crate::kind::Kind;
use crate::mesh::{self, MeshSpec};
use crate::mesh_tls::MeshTlsSpec;
use crate::traffic_policy::TrafficPolicySpec;

pub use yaml::files;

/// A CustomResourceDefinition (`apiextensions.k8s.io/v1`).
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its name, `<plural>.heddle.dev`.
    pub name: String,
    /// The whole object.
    pub object: Value,
}

/// The definitions of all our kinds.
#[must_use]
pub fn definitions() -> Vec<Definition> {
    vec![
        Outline {
            kind: Kind::AuthorizationPolicy,
            plural: "authorizationpolicies",
            short_name: "hap",
            description: "Who may call which ports of pods of its namespace, and with which requests.",
            columns: vec![column("Action", "string", ".spec.action"), column("Dry run", "boolean", ".spec.dryRun")],
            spec: spec::<AuthorizationPolicySpec>(),
            // Without it the policy says nothing, which is not the same as `spec: {}`.
            is_spec_required: true,
            rules: Vec::new(),
        },
        Outline {
            kind: Kind::MeshTls,
            plural: "meshtls",
            short_name: "hmtls",
            description: "What ports of pods of its namespace take: mTLS, plain text, or both.",
            columns: vec![column("Mode", "string", ".spec.mode")],
            spec: spec::<MeshTlsSpec>(),
            is_spec_required: false,
            rules: Vec::new(),
        },
        Outline {
            kind: Kind::TrafficPolicy,
            plural: "trafficpolicies",
            short_name: "htp",
            description: "How requests to Services of its namespace, or of routes in it, are carried.",
            columns: vec![column("Target", "string", ".spec.targetRefs[0].name")],
            spec: spec::<TrafficPolicySpec>(),
            is_spec_required: true,
            rules: Vec::new(),
        },
        Outline {
            kind: Kind::Mesh,
            plural: "meshes",
            short_name: "hmesh",
            description: "Settings of the whole mesh.",
            columns: vec![
                column("mTLS", "string", ".spec.mtls.mode"),
                column("Outbound", "string", ".spec.outboundPolicy"),
            ],
            spec: spec::<MeshSpec>(),
            is_spec_required: false,
            rules: vec![json!({
                "rule": format!("self.metadata.name == '{}'", mesh::NAME),
                "message": format!("the Mesh is named {}: one of another name has no effect", mesh::NAME),
            })],
        },
    ]
    .into_iter()
    .map(Outline::definition)
    .collect()
}

/// The words a field may have.
pub(crate) fn words<T>(words: &[(&'static str, T)]) -> Vec<&'static str> {
    words.iter().map(|(word, _)| *word).collect()
}

/// An item of a list that is one of these words.
pub(crate) fn item(words: Vec<&'static str>) -> Value {
    json!({"type": "string", "enum": words})
}

/// The word for a value.
pub(crate) fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> Option<&'static str> {
    words.iter().find(|(_, of)| *of == value).map(|(word, _)| *word)
}

struct Outline {
    kind: Kind,
    plural: &'static str,
    /// None that another mesh's kinds have.
    short_name: &'static str,
    description: &'static str,
    columns: Vec<Value>,
    spec: Value,
    is_spec_required: bool,
    /// Of the whole object, in CEL.
    rules: Vec<Value>,
}

impl Outline {
    fn definition(self) -> Definition {
        let kind = self.kind.as_str();
        let (group, version) = self.kind.api_version().split_once('/').unwrap_or_default();
        let name = format!("{}.{group}", self.plural);
        let mut columns = self.columns;
        columns.push(column("Age", "date", ".metadata.creationTimestamp"));
        let mut schema = json!({
            "description": self.description,
            "type": "object",
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "spec": self.spec,
            },
        });
        if self.is_spec_required {
            schema["required"] = json!(["spec"]);
        }
        if !self.rules.is_empty() {
            schema["x-kubernetes-validations"] = self.rules.into();
        }
        let object = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": group,
                "scope": if self.kind.namespaced() { "Namespaced" } else { "Cluster" },
                "names": {
                    "kind": kind,
                    "listKind": format!("{kind}List"),
                    "plural": self.plural,
                    "singular": kind.to_lowercase(),
                    "shortNames": [self.short_name],
                    "categories": ["heddle"],
                },
                // Without the subresource `status`: nobody writes it yet.
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }],
            },
        });
        Definition { name, object }
    }
}

/// A column of `kubectl get`.
fn column(name: &str, of_type: &str, path: &str) -> Value {
    json!({"name": name, "type": of_type, "jsonPath": path})
}

/// The schema of a `spec`, all in one piece: the API server follows no references.
fn spec<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let generator = settings.with_transform(RecursiveTransform(make_structural)).into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
}

/// Takes away what serde knows and Kubernetes does not want.
fn make_structural(schema: &mut Schema) {
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    let says_nothing =
        |default: &Value| default.is_null() || default.as_object().is_some_and(serde_json::Map::is_empty);
    if schema.get("default").is_some_and(says_nothing) {
        schema.remove("default");
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
