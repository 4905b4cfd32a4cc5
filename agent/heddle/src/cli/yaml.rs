//! JSON as YAML in blocks. Texts stay in JSON's quotes, which YAML 1.2 reads as they are: none can be taken for a number, a date or `no`.

use serde_json::Value;

/// A document.
#[must_use]
pub fn text(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes a value whose first line begins where the text ends.
fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = |first: bool, text: &mut String| {
        if !first {
            text.push_str(&"  ".repeat(depth));
        }
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (at, (name, value)) in fields.iter().enumerate() {
                indent(at == 0, text);
                text.push_str(name);
                text.push(':');
                if is_block(value) {
                    text.push('\n');
                    text.push_str(&"  ".repeat(depth + 1));
                    block(value, depth + 1, text);
                } else {
                    text.push(' ');
                    block(value, depth, text);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                indent(at == 0, text);
                text.push_str("- ");
                block(item, depth + 1, text);
            }
        }
        plain => {
            text.push_str(&plain.to_string());
            text.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_in_blocks() {
        let value = json!({
            "routes": [{"name": "no", "rules": [{"index": 0, "matches": ["path /a: \"b\"", "x"]}], "empty": []}, {}],
            "total": 1.5,
            "ok": true,
        });
        let expected = "\
ok: true
routes:
  - empty: []
    name: \"no\"
    rules:
      - index: 0
        matches:
          - \"path /a: \\\"b\\\"\"
          - \"x\"
  - {}
total: 1.5
";
        assert_eq!(text(&value), expected);
        assert_eq!(text(&json!([])), "[]\n");
    }
}
