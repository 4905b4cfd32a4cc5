//! Splitting, scalar types, limits, and what survives an error.

use super::*;

/// `line:name` of every document that has a text field `n`.
fn names(text: &str) -> Vec<String> {
    let name = |d: &Document<'_>| d.root.as_ref()?.get("n")?.text().map(str::to_owned);
    documents(text).filter_map(|d| Some(format!("{}:{}", d.line, name(&d)?))).collect()
}

fn problems(text: &str) -> Vec<String> {
    documents(text).flat_map(|d| d.problems).map(|p| format!("{}: {}", p.line, p.message)).collect()
}

#[test]
fn splitting_table() {
    let table: [(&str, &[&str]); 12] = [
        ("", &[]),
        ("# nothing\n---\n---\n\n", &[]),
        ("n: a\n---\nn: b", &["1:a", "2:b"]),
        ("---\nn: a\n---\nn: b\n", &["1:a", "3:b"]),
        ("--- # first\nn: a\n--- \nn: b\n", &["1:a", "3:b"]),
        ("n: a\r\n---\r\nn: b\r\n", &["1:a", "2:b"]),
        ("n: a\n...\n# between\n---\nn: b\n", &["1:a", "4:b"]),
        ("%YAML 1.2\n---\nn: a\n", &["2:a"]),
        ("\u{feff}n: a\n", &["1:a"]),
        ("--- {n: a}\n--- {n: b}\n", &["1:a", "2:b"]),
        // Neither is a marker: not at the start, not alone.
        ("n: a\nm: |\n  ---\n ...\n", &["1:a"]),
        ("n: a\nm: ---x\n", &["1:a"]),
    ];
    for (text, expected) in table {
        assert_eq!(names(text), expected, "{text:?}");
    }
}

#[test]
fn an_error_costs_only_its_document() {
    let table = [
        ("n: [b", 3, "unclosed bracket"),
        ("n: \"b", 4, "quoted scalar"),
        ("x:\n\tn: b", 4, "tabs"),
        ("n: b\n m: x", 4, "mapping values are not allowed"),
        ("x: *nowhere", 3, "unknown anchor"),
        ("x: \"\u{0}\"", 3, "unexpected character"),
    ];
    for (bad, line, word) in table {
        let text = format!("n: a\n---\n{bad}\n---\nn: c\n");
        let names = names(&text);
        let last = text.lines().count() - 1;
        assert!(names.contains(&"1:a".to_owned()) && names.contains(&format!("{last}:c")), "{text:?}: {names:?}");
        let problems = problems(&text);
        assert_eq!(problems.len(), 1, "{text:?}: {problems:?}");
        let right = problems[0].starts_with(&format!("{line}: not YAML: ")) && problems[0].contains(word);
        assert!(right, "{text:?}: {problems:?}");
    }
}

#[test]
fn what_came_before_an_error_is_kept() {
    let text = "kind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.0.0.1\n  ports: [\n  oops\n: :\n";
    let document = documents(text).next().unwrap();
    assert_eq!(document.problems.len(), 1);
    let root = document.root.unwrap();
    assert_eq!(root.at(&["metadata", "name"]).and_then(Node::text), Some("web"));
    assert_eq!(root.at(&["spec", "clusterIP"]).and_then(Node::text), Some("10.0.0.1"));
}

#[test]
fn scalar_table() {
    use Value::{Bool, Float, Integer, Null};
    let string = |text: &str| Value::String(Cow::Owned(text.to_owned()));
    let table = [
        ("", Null),
        ("~", Null),
        ("null", Null),
        ("true", Bool(true)),
        ("False", Bool(false)),
        ("yes", string("yes")),
        ("8080", Integer(8080)),
        ("-1", Integer(-1)),
        ("0", Integer(0)),
        ("0777", string("0777")),
        ("0x1f", string("0x1f")),
        ("1.5", Float(1.5)),
        ("1e3", Float(1000.0)),
        ("10.0.0.1", string("10.0.0.1")),
        ("1m", string("1m")),
        ("inf", string("inf")),
        (".nan", string(".nan")),
        ("2026-01-01T00:00:00Z", string("2026-01-01T00:00:00Z")),
        ("\"8080\"", string("8080")),
        ("'true'", string("true")),
        ("!!str 8080", string("8080")),
        ("99999999999999999999", Float(1e20)),
    ];
    for (text, expected) in table {
        let line = format!("n: {text}\n");
        let document = documents(&line).next().unwrap();
        assert_eq!(document.problems, [], "{text}");
        assert_eq!(document.root.unwrap().get("n").unwrap().value, expected, "{text}");
    }
}

#[test]
fn aliases_stand_for_their_anchors() {
    let document = documents("a: &x {n: 1}\nb: *x\nc: &y text\nd: *y\n").next().unwrap();
    let root = document.root.unwrap();
    assert_eq!(document.problems, []);
    assert_eq!(root.get("a").unwrap().value, root.get("b").unwrap().value);
    assert_eq!(root.get("d").and_then(Node::text), Some("text"));
}

#[test]
fn refused_constructs_table() {
    let table = [
        ("a: 1\nb: 2\na: 3\n", "3: `a` is there twice, first on line 1: keep one"),
        ("a: &x {n: 1}\nb:\n  <<: *x\n", "3: merge keys (`<<`) are not supported: write the fields out"),
        ("? [a]\n: b\n", "1: a key must be text"),
        ("a: !secret b\n", "1: the tag `!secret` is not supported here: remove it"),
        ("a: !!int b\n", "1: the tag `!!int` is not supported here: remove it"),
    ];
    for (text, expected) in table {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn a_duplicate_is_found_in_a_long_mapping_too() {
    let mut text: String = (0..40).map(|i| format!("k{i}: {i}\n")).collect();
    text.push_str("k39: 0\nk3: 0\n");
    assert_eq!(problems(&text).len(), 2);
}

#[test]
fn an_alias_bomb_is_defused() {
    // Nine levels of nine: 387 million values if expanded.
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let before = format!("*a{}", level - 1);
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 9].join(", ")));
    }
    text.push_str("---\nn: sibling\n");
    let problems = problems(&text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("anchors and aliases stand for more than 100000 values"), "{problems:?}");
    assert_eq!(names(&text), ["10:sibling"]);
}

#[test]
fn depth_is_bounded() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("n: {}{}\n---\nn: sibling\n", open.repeat(100_000), close.repeat(100_000));
        assert_eq!(problems(&text).len(), 1, "{open}");
        assert_eq!(names(&text), ["2:sibling"]);
    }
    let block: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert_eq!(problems(&block).len(), 1);
}

#[test]
fn problems_of_one_document_are_bounded() {
    let text = "a: 1\n".repeat(10_000);
    assert_eq!(problems(&text).len(), PROBLEMS_MAX);
}
