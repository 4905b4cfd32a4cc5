//! The schemas, held against the reader by a validator of just the keywords they use.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::*;
use crate::authorization_policy::{LISTED_MAX, OPERATIONS_MAX, RULES_MAX, SOURCES_MAX};
use crate::duration;
use crate::mesh_tls::PORTS_MAX;
use crate::node::{self, Node};
use crate::object::read;
use crate::yaml;

/// Documents that users copy, and those that fuzzing begins with.
const VALID: [&str; 8] = [
    include_str!("../../../docs/authorization.md"),
    include_str!("../../../docs/mtls.md"),
    include_str!("../../../docs/traffic-policy.md"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/mesh.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/policies.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/routes.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/shop.yaml"),
    MORE,
];

/// What those leave out.
const MORE: &str = r#"
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: edges}
spec:
  rules:
  - to:
    - ports: [1, 65535]
      paths: [{regex: ""}, {exact: /}]
      headers: [{name: a, exact: ""}, {name: a, regex: ""}]
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: empty}
spec: {action: Audit, selector: {matchLabels: {tier: ""}}, rules: []}
---
apiVersion: heddle.dev/v1alpha1
kind: MeshTLS
metadata: {name: nothing}
spec: {selector: null, mode: null, ports: }
---
apiVersion: heddle.dev/v1alpha1
kind: MeshTLS
metadata: {name: without-spec}
---
apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: null, limits: {requestsMax: 1, connectionsMax: 1000000, bufferedBytesMax: 65536}, mtls: {}}
"#;

/// The schema of a kind.
fn schema(kind: &str) -> Option<&'static Value> {
    static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(definitions);
    let definition = DEFINITIONS.iter().find(|definition| definition.object["spec"]["names"]["kind"] == kind)?;
    Some(&definition.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
}

/// What the API server would say of a document with `fieldValidation: Strict`; `None` if it is of no kind of ours.
fn told(document: &Node<'_>) -> Option<Vec<String>> {
    let schema = schema(document.get("kind")?.text()?)?;
    let mut told = Vec::new();
    judge(schema, document, "", &mut told);
    Some(told)
}

fn judge(schema: &Value, node: &Node<'_>, path: &str, told: &mut Vec<String>) {
    let of_type = match &node.value {
        node::Value::Null if schema["nullable"] == true => return,
        node::Value::Null => "null",
        node::Value::Bool(_) => "boolean",
        node::Value::Integer(_) => "integer",
        node::Value::Float(_) => "number",
        node::Value::String(_) => "string",
        node::Value::Sequence(_) => "array",
        node::Value::Mapping(_) => "object",
    };
    if schema["type"] != of_type && (&schema["type"], of_type) != (&json!("number"), "integer") {
        told.push(format!("{path}: type"));
        return;
    }
    for (keyword, limit) in schema.as_object().unwrap() {
        let count = || usize::try_from(limit.as_u64().unwrap()).unwrap();
        let is_right = match (keyword.as_str(), &node.value) {
            ("type" | "description" | "format" | "nullable" | "default", _) => true,
            ("enum", node::Value::String(text)) => limit.as_array().unwrap().contains(&json!(text)),
            ("enum", node::Value::Bool(value)) => limit.as_array().unwrap().contains(&json!(value)),
            ("minimum", node::Value::Integer(number)) => *number as f64 >= limit.as_f64().unwrap(),
            ("maximum", node::Value::Integer(number)) => *number as f64 <= limit.as_f64().unwrap(),
            ("minimum", node::Value::Float(number)) => *number >= limit.as_f64().unwrap(),
            ("maximum", node::Value::Float(number)) => *number <= limit.as_f64().unwrap(),
            ("pattern", node::Value::String(text)) => {
                assert_eq!(limit, duration::PATTERN);
                duration::parse(text).is_ok()
            }
            ("minLength", node::Value::String(text)) => text.chars().count() >= count(),
            ("maxLength", node::Value::String(text)) => text.chars().count() <= count(),
            ("minItems", node::Value::Sequence(items)) => items.len() >= count(),
            ("maxItems", node::Value::Sequence(items)) => items.len() <= count(),
            ("minProperties", node::Value::Mapping(entries)) => entries.len() >= count(),
            ("maxProperties", node::Value::Mapping(entries)) => entries.len() <= count(),
            ("required", _) => {
                let is_there = |field: &Value| node.get(field.as_str().unwrap()).is_some();
                limit.as_array().unwrap().iter().all(is_there)
            }
            ("x-kubernetes-validations", _) => {
                limit.as_array().unwrap().iter().all(|rule| holds(rule["rule"].as_str().unwrap(), node))
            }
            ("x-kubernetes-list-type", node::Value::Sequence(items)) => {
                assert_eq!(limit, "map");
                let key = schema["x-kubernetes-list-map-keys"][0].as_str().unwrap();
                let keys: BTreeSet<String> = items.iter().map(|item| format!("{:?}", item.get(key))).collect();
                keys.len() == items.len()
            }
            ("x-kubernetes-list-map-keys", node::Value::Sequence(_)) => true,
            ("items", node::Value::Sequence(items)) => {
                for (index, item) in items.iter().enumerate() {
                    judge(limit, item, &format!("{path}[{index}]"), told);
                }
                true
            }
            ("properties" | "additionalProperties", node::Value::Mapping(entries)) => {
                for entry in entries {
                    let path = format!("{path}.{}", entry.key);
                    let of_field = if keyword == "properties" { limit.get(&*entry.key) } else { Some(limit) };
                    match of_field {
                        // The API server tells of it, the reader of a Mesh takes it for absent.
                        None if entry.node.value == node::Value::Null => {}
                        None => told.push(format!("{path}: unknown")),
                        // The API server drops it.
                        Some(schema) if entry.node.value == node::Value::Null && schema["nullable"] != true => {}
                        Some(schema) => judge(schema, &entry.node, &path, told),
                    }
                }
                true
            }
            (keyword, value) => panic!("{path}: {keyword} beside {value:?}"),
        };
        if !is_right {
            told.push(format!("{path}: {keyword}"));
        }
    }
}

/// The two forms of CEL that we use.
fn holds(rule: &str, node: &Node<'_>) -> bool {
    if rule == "self.metadata.name == 'default'" {
        return node.at(&["metadata", "name"]).and_then(Node::text) == Some("default");
    }
    let both = rule.strip_prefix("!(").and_then(|rule| rule.strip_suffix(')')).unwrap_or_else(|| panic!("{rule}"));
    let has = |term: &str| {
        let field = term.strip_prefix("has(self.").and_then(|term| term.strip_suffix(')'));
        node.get(field.unwrap_or_else(|| panic!("{rule}"))).is_some()
    };
    !both.split(" && ").all(has)
}

/// The YAML of a document of prose, or all of a file.
fn examples(text: &str) -> Vec<&str> {
    if !text.contains("```") {
        return vec![text];
    }
    text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn what_is_valid_passes() {
    let mut passed = 0;
    for text in VALID.into_iter().flat_map(examples) {
        assert_eq!(read("f.yaml", text.as_bytes()).invalid, vec![], "{text}");
        for document in yaml::documents(text) {
            let Some(told) = told(&document.root.unwrap()) else { continue };
            assert_eq!(told, Vec::<String>::new(), "line {} of {text}", document.line);
            passed += 1;
        }
    }
    assert_eq!(passed, 4 + 3 + 4 + 2 + 2 + 2 + 5, "examples of our kinds");
}

/// The tree with one thing in it replaced by one of `values`, taken out, or there twice, in every way.
fn changes<'a>(node: &Node<'a>, values: &[Node<'a>]) -> Vec<Node<'a>> {
    let with = |value| Node { line: node.line, value };
    let mut changes = values.to_vec();
    match &node.value {
        node::Value::Mapping(entries) => {
            for (at, entry) in entries.iter().enumerate() {
                let mut changed = entries.clone();
                for change in self::changes(&entry.node, values) {
                    changed[at].node = change;
                    changes.push(with(node::Value::Mapping(changed.clone())));
                }
                changed.remove(at);
                changes.push(with(node::Value::Mapping(changed)));
            }
        }
        node::Value::Sequence(items) => {
            for (at, item) in items.iter().enumerate() {
                let mut changed = items.clone();
                for change in self::changes(item, values) {
                    changed[at] = change;
                    changes.push(with(node::Value::Sequence(changed.clone())));
                }
                changed.remove(at);
                changes.push(with(node::Value::Sequence(changed)));
                changes.push(with(node::Value::Sequence([items.as_slice(), std::slice::from_ref(item)].concat())));
            }
        }
        _ => {}
    }
    changes
}

/// A tree as text again.
fn flow(node: &Node<'_>) -> String {
    match &node.value {
        node::Value::Null => "null".to_owned(),
        node::Value::Bool(value) => value.to_string(),
        node::Value::Integer(value) => value.to_string(),
        node::Value::Float(value) => value.to_string(),
        node::Value::String(text) => json!(text).to_string(),
        node::Value::Sequence(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        node::Value::Mapping(entries) => {
            let field = |entry: &node::Entry<'_>| format!("{}: {}", json!(entry.key), flow(&entry.node));
            format!("{{{}}}", entries.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

#[test]
fn the_schema_refuses_nothing_that_the_reader_takes() {
    let values = "[null, true, false, 0, 1, 65536, -1.5, '', a, /, Deny, Strict, [], {}, [a], [{}], {a: b}, {a: null}]";
    let values = yaml::documents(values).next().and_then(|document| document.root).unwrap();
    let (mut taken, mut refused_early, mut refused) = (0, 0, 0);
    for document in VALID.into_iter().flat_map(examples).flat_map(yaml::documents) {
        let root = document.root.unwrap();
        if told(&root).is_none() {
            continue;
        }
        for change in changes(&root, values.items()) {
            let text = flow(&change);
            let is_taken = read("f.yaml", text.as_bytes()).invalid.is_empty();
            match told(&change) {
                // Its kind is another now.
                None => {}
                Some(told) if is_taken => {
                    assert_eq!(told, Vec::<String>::new(), "{text}");
                    taken += 1;
                }
                Some(told) => *(if told.is_empty() { &mut refused } else { &mut refused_early }) += 1,
            }
        }
    }
    assert!(taken > 400 && refused_early > 3 * refused, "{taken} {refused_early} {refused}");
}

/// Refused by schema and reader. `^` stands for `.spec.rules[0].from[0]` and `$` for `.spec.rules[0].to[0]`.
#[test]
fn what_a_schema_can_refuse_table() {
    let many = |item: &str, max: usize| vec![item; max + 1].join(", ");
    let longer = |max: usize| "a".repeat(max + 1);
    let policy = |spec: &str| ("AuthorizationPolicy", format!("metadata: {{name: a}}\nspec: {{{spec}}}"));
    let from = |item: &str| policy(&format!("rules: [{{from: [{{{item}}}]}}]"));
    let to = |item: &str| policy(&format!("rules: [{{to: [{{{item}}}]}}]"));
    let tls = |spec: &str| ("MeshTLS", format!("metadata: {{name: a}}\nspec: {{{spec}}}"));
    let traffic = |spec: &str| ("TrafficPolicy", format!("metadata: {{name: a}}\nspec: {{{spec}}}"));
    let of_web = |spec: &str| traffic(&format!("targetRefs: [{{kind: Service, name: web}}], {spec}"));
    let mesh = |spec: &str| ("Mesh", format!("metadata: {{name: default}}\nspec: {{{spec}}}"));
    let table = [
        (("AuthorizationPolicy", "metadata: {name: a}".to_owned()), ": required"),
        (policy("action: deny"), ".spec.action: enum"),
        (policy("action: [Deny]"), ".spec.action: type"),
        (policy("dryRun: 'true'"), ".spec.dryRun: type"),
        (policy("acton: Deny"), ".spec.acton: unknown"),
        (policy("selector: {app: web}"), ".spec.selector.app: unknown"),
        (policy("selector: {matchLabels: {app: 1}}"), ".spec.selector.matchLabels.app: type"),
        (
            policy(&format!("selector: {{matchLabels: {{app: {}}}}}", longer(63))),
            ".spec.selector.matchLabels.app: maxLength",
        ),
        (policy("selector: {}, targetRefs: [{kind: Service, name: a}]"), ".spec: x-kubernetes-validations"),
        (policy("targetRefs: []"), ".spec.targetRefs: minItems"),
        (policy("targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}]"), ".spec.targetRefs: maxItems"),
        (policy("targetRefs: {kind: Service, name: a}"), ".spec.targetRefs: type"),
        (policy("targetRefs: [{kind: Pod, name: a}]"), ".spec.targetRefs[0].kind: enum"),
        (policy("targetRefs: [{group: apps, kind: Service, name: a}]"), ".spec.targetRefs[0].group: enum"),
        (policy("targetRefs: [{kind: Service}]"), ".spec.targetRefs[0]: required"),
        (policy("targetRefs: [{kind: Service, name: ''}]"), ".spec.targetRefs[0].name: minLength"),
        (policy(&format!("rules: [{}]", many("{}", RULES_MAX))), ".spec.rules: maxItems"),
        (policy("rules: [null]"), ".spec.rules[0]: type"),
        (policy("rules: [{form: []}]"), ".spec.rules[0].form: unknown"),
        (policy("rules: [{from: []}]"), ".spec.rules[0].from: minItems"),
        (
            policy(&format!("rules: [{{from: [{}]}}]", many("{namespaces: [a]}", SOURCES_MAX))),
            ".spec.rules[0].from: maxItems",
        ),
        (
            policy(&format!("rules: [{{to: [{}]}}]", many("{ports: [1]}", OPERATIONS_MAX))),
            ".spec.rules[0].to: maxItems",
        ),
        (from(""), "^: minProperties"),
        (from("identities: []"), "^.identities: minItems"),
        (from("identities: ['']"), "^.identities[0]: minLength"),
        (from(&format!("identities: ['spiffe://a/{}']", longer(2048))), "^.identities[0]: maxLength"),
        (from(&format!("notNamespaces: [{}]", longer(63))), "^.notNamespaces[0]: maxLength"),
        (from(&format!("serviceAccounts: [a/{}]", longer(315))), "^.serviceAccounts[0]: maxLength"),
        (from("cidrs: 10.0.0.0/8"), "^.cidrs: type"),
        (to(""), "$: minProperties"),
        (to("ports: [0]"), "$.ports[0]: minimum"),
        (to("ports: [65536]"), "$.ports[0]: maximum"),
        (to("notPorts: ['80']"), "$.notPorts[0]: type"),
        (to("ports: 80"), "$.ports: type"),
        (to(&format!("ports: [{}]", many("1", LISTED_MAX))), "$.ports: maxItems"),
        (to(&format!("methods: [{}]", longer(64).to_uppercase())), "$.methods[0]: maxLength"),
        (to("hosts: ['']"), "$.hosts[0]: minLength"),
        (to("paths: [/a]"), "$.paths[0]: type"),
        (to("paths: [{}]"), "$.paths[0]: minProperties"),
        (to("notPaths: [{exact: /a, prefix: /b}]"), "$.notPaths[0]: maxProperties"),
        (to("paths: [{exact: ''}]"), "$.paths[0].exact: minLength"),
        (to(&format!("paths: [{{regex: {}}}]", longer(1024))), "$.paths[0].regex: maxLength"),
        (to("headers: [{exact: a, prefix: b}]"), "$.headers[0]: required"),
        (to("headers: [{name: a}]"), "$.headers[0]: minProperties"),
        (to("headers: [{name: a, exact: b, present: true}]"), "$.headers[0]: maxProperties"),
        (to("headers: [{name: a, present: false}]"), "$.headers[0].present: enum"),
        (to("notHeaders: [{name: a, prefix: ''}]"), "$.notHeaders[0].prefix: minLength"),
        (to("notHeaders: [{name: '', exact: a}]"), "$.notHeaders[0].name: minLength"),
        (tls("mode: strict"), ".spec.mode: enum"),
        (tls("mdoe: Strict"), ".spec.mdoe: unknown"),
        (tls("selector: web"), ".spec.selector: type"),
        (tls("ports: [{port: 0, mode: Strict}]"), ".spec.ports[0].port: minimum"),
        (tls("ports: [{port: 65536, mode: Strict}]"), ".spec.ports[0].port: maximum"),
        (tls("ports: [{port: http, mode: Strict}]"), ".spec.ports[0].port: type"),
        (tls("ports: [{port: 80, mode: STRICT}]"), ".spec.ports[0].mode: enum"),
        (tls("ports: [{port: 80}]"), ".spec.ports[0]: required"),
        (tls("ports: [{port: 80, mode: Permissive}, {port: 80, mode: Strict}]"), ".spec.ports: x-kubernetes-list-type"),
        (
            tls(&format!(
                "ports: [{}]",
                (1..=PORTS_MAX + 1).map(|p| format!("{{port: {p}, mode: Strict}}")).collect::<Vec<_>>().join(", ")
            )),
            ".spec.ports: maxItems",
        ),
        (("TrafficPolicy", "metadata: {name: a}".to_owned()), ": required"),
        (traffic("targetRefs: []"), ".spec.targetRefs: minItems"),
        (
            traffic(&format!(
                "targetRefs: [{}]",
                (0..17).map(|i| format!("{{kind: Service, name: a{i}}}")).collect::<Vec<_>>().join(", ")
            )),
            ".spec.targetRefs: maxItems",
        ),
        (traffic("targetRefs: [{kind: Pod, name: a}]"), ".spec.targetRefs[0].kind: enum"),
        (traffic("targetRefs: [{kind: Service}]"), ".spec.targetRefs[0]: required"),
        (of_web("retries: {attempts: 11}"), ".spec.retries.attempts: maximum"),
        (of_web("retries: {perTryTimeout: soon}"), ".spec.retries.perTryTimeout: pattern"),
        (of_web("retries: {retryOn: [Any]}"), ".spec.retries.retryOn[0]: enum"),
        (of_web("retries: {statuses: [399]}"), ".spec.retries.statuses[0]: minimum"),
        (of_web("retries: {grpcCodes: [OK]}"), ".spec.retries.grpcCodes[0]: enum"),
        (of_web("retryBudget: {percent: 101}"), ".spec.retryBudget.percent: maximum"),
        (of_web("timeouts: {request: 1.5s}"), ".spec.timeouts.request: pattern"),
        (of_web("circuitBreaker: {service: {connections: 0}}"), ".spec.circuitBreaker.service.connections: minimum"),
        (
            of_web("outlierDetection: {successRate: {stdevFactor: 0.05}}"),
            ".spec.outlierDetection.successRate.stdevFactor: minimum",
        ),
        (
            of_web("outlierDetection: {successRate: {stdevFactor: 11}}"),
            ".spec.outlierDetection.successRate.stdevFactor: maximum",
        ),
        (of_web("outlierDetection: {panicPercent: 101}"), ".spec.outlierDetection.panicPercent: maximum"),
        (of_web("loadBalancing: {algorithm: Any}"), ".spec.loadBalancing.algorithm: enum"),
        (of_web("loadBalancing: {slowStart: {}}"), ".spec.loadBalancing.slowStart: required"),
        (of_web("faults: {delay: {percent: 1}}"), ".spec.faults.delay: required"),
        (of_web("faults: {abort: {httpStatus: 600}}"), ".spec.faults.abort.httpStatus: maximum"),
        (of_web("faults: {headers: [{name: a}], abort: {httpStatus: 500}}"), ".spec.faults.headers[0]: minProperties"),
        (of_web("retires: {}"), ".spec.retires: unknown"),
        (("Mesh", "metadata: {name: other}".to_owned()), ": x-kubernetes-validations"),
        (mesh("outboundPolicy: deny"), ".spec.outboundPolicy: enum"),
        (mesh("trustDomain: ''"), ".spec.trustDomain: minLength"),
        (mesh(&format!("clusterName: {}", longer(253))), ".spec.clusterName: maxLength"),
        (mesh("limits: {connectionsMax: 0}"), ".spec.limits.connectionsMax: minimum"),
        (mesh("limits: {requestsMax: 1000001}"), ".spec.limits.requestsMax: maximum"),
        (mesh("limits: {bufferedBytesMax: 1}"), ".spec.limits.bufferedBytesMax: minimum"),
        (mesh("limits: {bufferedBytesMax: 16Mi}"), ".spec.limits.bufferedBytesMax: type"),
        (mesh("mtls: {mode: STRICT}"), ".spec.mtls.mode: enum"),
        (mesh("sameNode: wire"), ".spec.sameNode: enum"),
        (mesh("telemetry: {}"), ".spec.telemetry: unknown"),
    ];
    for ((kind, rest), expected) in table {
        let text = format!("apiVersion: heddle.dev/v1alpha1\nkind: {kind}\n{rest}\n");
        assert_eq!(read("f.yaml", text.as_bytes()).invalid.len(), 1, "the reader takes {text}");
        let expected = expected.replacen('^', ".spec.rules[0].from[0]", 1).replacen('$', ".spec.rules[0].to[0]", 1);
        let document = yaml::documents(&text).next().and_then(|document| document.root).unwrap();
        assert_eq!(told(&document), Some(vec![expected]), "{text}");
    }
}

/// Calls `visit` with a schema and all in it, each with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        walk(schema, &format!("{path}.{field}"), visit);
    }
    for (name, mark) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let Some(schema) = schema.get(name) {
            walk(schema, &format!("{path}{mark}"), visit);
        }
    }
}

/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>,
/// and what we ask besides: a description for users, a bound for every list.
#[test]
fn schemas_are_structural_and_bounded() {
    let known = "type description format nullable default enum minimum maximum minLength maxLength pattern minItems maxItems items \
                 minProperties maxProperties properties additionalProperties required \
                 x-kubernetes-validations x-kubernetes-list-type x-kubernetes-list-map-keys";
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    for definition in definitions() {
        let schema = &definition.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(schema, "", &mut |path, schema| {
            let path = format!("{}{path}", definition.name);
            let keywords = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}"));
            assert!(keywords.keys().all(|keyword| known.contains(keyword.as_str())), "{path}: {schema}");
            assert!(schema["type"].is_string(), "{path}: {schema}");
            assert!(schema["properties"].is_null() || schema["additionalProperties"].is_null(), "{path}");
            assert!(schema["type"] != "array" || schema["maxItems"].is_u64(), "{path}: without bound");
            let is_ours = path.contains(".spec") && !path.ends_with(['*', ']']);
            assert!(!is_ours || schema["description"].is_string(), "{path}: without description");
        });
    }
}

/// The API server would drop a null elsewhere, and the policy would match more than it names.
#[test]
fn a_null_in_a_policy_reaches_the_reader_that_refuses_it() {
    for kind in ["AuthorizationPolicy", "TrafficPolicy"] {
        let schema = schema(kind).unwrap();
        let mut optional = 0;
        walk(&schema["properties"]["spec"], "spec", &mut |path, schema| {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            for (field, of_field) in schema["properties"].as_object().into_iter().flatten() {
                if !required.contains(&json!(field)) {
                    assert_eq!(of_field["nullable"], true, "{path}.{field}");
                    optional += 1;
                }
            }
        });
        assert!(optional > 30, "{kind}: {optional}");
    }
    let labels = &schema("AuthorizationPolicy").unwrap()["properties"]["spec"]["properties"]["selector"]["properties"]
        ["matchLabels"];
    assert_eq!(labels["additionalProperties"]["nullable"], true);
}
