//! Definitions as files: YAML that people read in a diff.

use std::collections::BTreeMap;

use serde_json::Value;

use super::definitions;

const HEAD: &str = "# Written by `cargo xtask crds` from the types in agent/api: change those.\n";

/// Name to content of the files under `deploy/crds`.
#[must_use]
pub fn files() -> BTreeMap<String, String> {
    let file = |definition: super::Definition| {
        let lines = lines(&definition.object).join("\n");
        (format!("{}.yaml", definition.name), format!("{HEAD}{lines}\n"))
    };
    definitions().into_iter().map(file).collect()
}

/// A value as lines of YAML, keys in order.
fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            sorted.into_iter().flat_map(|(key, value)| field(&text(key), value)).collect()
        }
        Value::Array(items) if !items.is_empty() => items.iter().flat_map(item).collect(),
        Value::String(value) => vec![text(value)],
        // A number, a word, `{}` and `[]` are the same in JSON.
        other => vec![other.to_string()],
    }
}

fn field(key: &str, value: &Value) -> Vec<String> {
    let below = lines(value);
    match value {
        Value::Object(fields) if !fields.is_empty() => under(key, below, "  "),
        // A list's dashes stand under its key, as kubectl writes them.
        Value::Array(items) if !items.is_empty() => under(key, below, ""),
        _ => vec![format!("{key}: {}", below.join(" "))],
    }
}

fn under(key: &str, below: Vec<String>, indent: &str) -> Vec<String> {
    let below = below.into_iter().map(|line| format!("{indent}{line}"));
    std::iter::once(format!("{key}:")).chain(below).collect()
}

fn item(value: &Value) -> Vec<String> {
    let lines = lines(value).into_iter().enumerate();
    lines.map(|(at, line)| format!("{}{line}", if at == 0 { "- " } else { "  " })).collect()
}

/// Text that could be taken for anything else is quoted as in JSON, which YAML reads.
fn text(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_plain);
    let means_something = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if is_word && !means_something.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_table() {
        let table = [
            (json!({}), "{}"),
            (json!([1, true, null, -2.5]), "- 1\n- true\n- null\n- -2.5"),
            (json!("a: b"), "\"a: b\""),
            (json!({"b": {"c": [], "d": {}}, "a": "x"}), "a: x\nb:\n  c: []\n  d: {}"),
            (json!({"l": [{"a": 1, "b": [2, 3]}, [4, [5]]]}), "l:\n- a: 1\n  b:\n  - 2\n  - 3\n- - 4\n  - - 5"),
        ];
        for (value, expected) in table {
            assert_eq!(lines(&value).join("\n"), expected);
        }
    }

    #[test]
    fn text_is_quoted_where_it_could_be_anything_else_table() {
        let table = [
            ("apiextensions.k8s.io/v1", "apiextensions.k8s.io/v1"),
            ("x-kubernetes-validations", "x-kubernetes-validations"),
            ("", "\"\""),
            ("No", "\"No\""),
            ("true", "\"true\""),
            ("1", "\"1\""),
            ("1e3", "\"1e3\""),
            (".spec.mode", "\".spec.mode\""),
            ("- a", "\"- a\""),
            ("`a` \"b\"\n\\c", "\"`a` \\\"b\\\"\\n\\\\c\""),
        ];
        for (value, expected) in table {
            assert_eq!(text(value), expected);
        }
    }
}
