//! Rules about Rust files: unsafe, docs, orphans, unfinished work, length.

use std::collections::BTreeSet;

use super::Finding;
use super::house::House;

const LINES_WARNED: usize = 700;
const LINES_MAX: usize = 1000;

/// Folders whose crates may contain unsafe code, each block with a `SAFETY` comment (clippy sees to that).
/// The fuzzer too: libFuzzer calls them through an exported symbol.
const UNSAFE_PERMITTED: &[&str] = &["agent/datapath", "ebpf-programs", "tests/fuzz/libfuzzer", "tests/testkit"];

/// Every library and program but the permitted ones forbids unsafe code in its root file.
pub fn forbid_unsafe(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &house.packages {
        let is_permitted = UNSAFE_PERMITTED.iter().any(|folder| is_within(&package.folder, folder));
        let is_checked = |kind: &str| kind.contains("lib") || kind == "bin" || kind == "proc-macro";
        for target in package.targets.iter().filter(|target| is_checked(&target.kind) && !is_permitted) {
            let forbids = house.text(&target.root).is_some_and(|text| code(text).contains("#![forbid(unsafe_code)]"));
            if !forbids {
                findings.push(Finding::new(
                    "forbid-unsafe",
                    &target.root,
                    "`#![forbid(unsafe_code)]` is missing",
                    "unsafe code lives in the datapath, the eBPF programs and the testkit, where every block is reviewed for what makes it sound",
                ));
            }
        }
    }
    findings
}

/// Every file says at its top what it is for.
pub fn module_docs(house: &House) -> Vec<Finding> {
    let lacks =
        |text: &str| !text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().starts_with("//!");
    let finding = |path: &str| {
        Finding::new(
            "module-docs",
            path,
            "the file does not begin with `//!`",
            "a reader who opens any file should know which room he is in and what may not be touched",
        )
    };
    house.texts(".rs").filter(|(_, text)| lacks(text)).map(|(path, _)| finding(path)).collect()
}

/// Every file of a package is compiled: reached from a crate root by `mod`, `#[path]` or `include!`.
pub fn orphans(house: &House) -> Vec<Finding> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<(String, bool)> =
        house.packages.iter().flat_map(|package| &package.targets).map(|target| (target.root.clone(), true)).collect();
    while let Some((path, is_root)) = open.pop() {
        let Some(text) = house.text(&path) else { continue };
        if reached.insert(path.clone()) {
            open.extend(
                modules(&path, is_root, text)
                    .into_iter()
                    .filter(|path| house.files.contains_key(path))
                    .map(|path| (path, false)),
            );
        }
    }
    let is_owned = |path: &str| house.packages.iter().any(|package| is_within(path, &package.folder));
    let finding = |path: &str| {
        Finding::new(
            "orphans",
            path,
            "no crate compiles this file",
            "code that is not compiled rots unseen and misleads who finds it",
        )
    };
    house
        .texts(".rs")
        .filter(|(path, _)| is_owned(path) && !reached.contains(*path))
        .map(|(path, _)| finding(path))
        .collect()
}

/// Nothing half-done is kept.
pub fn unfinished(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in house.texts(".rs") {
        for (number, line) in code(text).lines().enumerate() {
            for word in ["todo!", "unimplemented!", "dbg!"].into_iter().filter(|word| has_word(line, word)) {
                findings.push(Finding::new(
                    "unfinished",
                    format!("{path}:{}", number + 1),
                    format!("`{word}` is left in the code"),
                    "a promise the code does not keep must fail to build or be refused with a reason, not panic when it is reached",
                ));
            }
        }
    }
    findings
}

/// A file stays small enough to be read in one sitting.
pub fn length(house: &House) -> Vec<Finding> {
    const WHY: &str =
        "a file that outgrows one sitting usually holds a second room; split it where a rule of its own begins";
    let finding =
        |path: &str, lines: usize| Finding::new("length", path, format!("{lines} lines (at most {LINES_MAX})"), WHY);
    let long =
        house.texts(".rs").map(|(path, text)| (path, text.lines().count())).filter(|(_, lines)| *lines > LINES_WARNED);
    long.map(|(path, lines)| if lines > LINES_MAX { finding(path, lines) } else { finding(path, lines).into_warning() })
        .collect()
}

fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn has_word(line: &str, word: &str) -> bool {
    let is_boundary = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| is_boundary(at))
}

/// The files that `path` may pull in, of which those that exist count.
fn modules(path: &str, is_root: bool, text: &str) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let stem = path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
    let own = if is_root || stem == "mod" { folder.to_owned() } else { format!("{folder}/{stem}") };

    let mut found = Vec::new();
    let mut is_named = false;
    for (line, bare) in text.lines().zip(code(text).lines()) {
        let bare = bare.trim();
        if bare.starts_with("#[path") || bare.contains("include!(") {
            let named = line.split('"').nth(1).map(|file| format!("{folder}/{file}"));
            found.extend(named);
            is_named |= bare.starts_with("#[path");
        }
        let Some((before, after)) = bare.split_once("mod ") else { continue };
        if !(before.is_empty() || before.ends_with(' ') || before.ends_with(']')) {
            continue;
        }
        if let Some(name) = after.trim().strip_suffix(';')
            && !std::mem::take(&mut is_named)
        {
            found.push(format!("{own}/{name}.rs"));
            found.push(format!("{own}/{name}/mod.rs"));
        }
    }
    found
}

/// The text with comments and the insides of strings blanked, line for line: what is said about code is not code.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let blanked = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let inside = rest.find('"').map_or(rest.len(), |quote| quote + 1);
            rest[inside..].find(&close).map_or(rest.len(), |end| inside + end + close.len())
        } else if rest.starts_with('"') {
            string(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find("'").map_or(1, |end| end + 2)
        } else {
            0
        };
        if blanked == 0 {
            let Some(next) = rest.chars().next() else { break };
            out.push(next);
            at += next.len_utf8();
        } else {
            out.extend(rest[..blanked].chars().filter(|c| *c == '\n'));
            out.push(' ');
            at += blanked;
        }
    }
    out
}

fn string(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The number of hashes if a raw string begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::super::house::planted;
    use super::*;

    const FORBID: &str = "//! Docs.\n#![forbid(unsafe_code)]\n";

    fn places(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn a_missing_forbid_is_found_and_a_commented_one_does_not_count() {
        let house = planted(&[
            ("agent/model/src/lib.rs", FORBID),
            ("agent/proxy/src/lib.rs", "//! #![forbid(unsafe_code)]\n"),
            ("agent/datapath/src/lib.rs", "//! Permitted.\n"),
            ("ebpf-programs/abi/src/lib.rs", "//! Permitted.\n"),
        ]);
        assert_eq!(places(forbid_unsafe(&house)), ["agent/proxy/src/lib.rs"]);
    }

    #[test]
    fn a_folder_named_like_a_permitted_one_is_not_permitted() {
        assert_eq!(
            places(forbid_unsafe(&planted(&[("agent/datapath2/src/lib.rs", "")]))),
            ["agent/datapath2/src/lib.rs"]
        );
    }

    #[test]
    fn a_file_without_module_docs_is_found() {
        let house = planted(&[
            ("a/src/lib.rs", "\n//! Docs.\n"),
            ("a/src/b.rs", "use std::fs;\n"),
            ("a/src/c.rs", "// not docs\n"),
        ]);
        assert_eq!(places(module_docs(&house)), ["a/src/b.rs", "a/src/c.rs"]);
    }

    #[test]
    fn an_orphan_is_found_and_every_way_of_reaching_a_file_counts() {
        let house = planted(&[
            (
                "a/src/lib.rs",
                "mod b;\npub(crate) mod c;\n#[path = \"odd/name.rs\"]\nmod d;\n#[cfg(test)] mod e;\n// mod ghost;\n",
            ),
            ("a/src/b.rs", "mod inner;"),
            ("a/src/b/inner.rs", ""),
            ("a/src/c/mod.rs", "mod deep;\nconst X: &str = include!(\"gen.rs\");\n"),
            ("a/src/c/deep.rs", ""),
            ("a/src/c/gen.rs", ""),
            ("a/src/odd/name.rs", ""),
            ("a/src/e.rs", ""),
            ("a/src/ghost.rs", ""),
            ("scripts/not-in-a-package.rs", ""),
        ]);
        assert_eq!(places(orphans(&house)), ["a/src/ghost.rs"]);
    }

    #[test]
    fn unfinished_work_is_found_with_its_line_but_not_when_only_spoken_of() {
        let house = planted(&[
            ("a/src/lib.rs", "fn f() {\n    todo!()\n}\n"),
            (
                "a/src/b.rs",
                "// todo!()\nconst S: &str = \"dbg!(x)\";\nmacro_rules! my_todo { () => {} }\n my_todo!();\n/* unimplemented!() */\n",
            ),
        ]);
        assert_eq!(places(unfinished(&house)), ["a/src/lib.rs:2"]);
    }

    #[test]
    fn a_long_file_warns_and_a_very_long_one_fails() {
        let lines = |count: usize| "//\n".repeat(count);
        let house = planted(&[("a/ok.rs", &lines(700)), ("a/warn.rs", &lines(701)), ("a/bad.rs", &lines(1001))]);
        let findings = length(&house);
        let levels: Vec<_> = findings.iter().map(|finding| (finding.place.as_str(), finding.is_warning)).collect();
        assert_eq!(levels, [("a/bad.rs", false), ("a/warn.rs", true)]);
    }

    #[test]
    fn blanking_keeps_the_lines_and_the_code() {
        let text =
            "let a = \"x\\\"y\"; // c\nlet b = r#\"\ntodo!()\"#; let q = '\"'; mod z;\n/* /* */ dbg! */ fn f() {}\n";
        let bare = code(text);
        assert_eq!(bare.lines().count(), text.lines().count());
        assert!(bare.contains("mod z;") && bare.contains("fn f() {}"), "{bare}");
        assert!(!bare.contains("todo!") && !bare.contains("dbg!") && !bare.contains("// c"), "{bare}");
    }
}
