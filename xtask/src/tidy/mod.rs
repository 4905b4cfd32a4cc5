//! `tidy`: the rules of the house that a compiler does not know, checked on the files and on `cargo metadata`.
//!
//! A rule is a pure function from the [`House`] to findings; each finding says what is wrong, where, and why the rule
//! exists, so that a reader can judge whether the rule or the code should change.

mod arrows;
mod house;
mod rust;
mod text;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use house::House;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    rule: &'static str,
    place: String,
    what: String,
    why: &'static str,
    is_warning: bool,
}

impl Finding {
    fn new(rule: &'static str, place: impl Into<String>, what: impl Into<String>, why: &'static str) -> Finding {
        Finding { rule, place: place.into(), what: what.into(), why, is_warning: false }
    }

    fn into_warning(self) -> Finding {
        Finding { is_warning: true, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.is_warning { "warning" } else { "error" };
        write!(f, "{level}[{}] {}: {}\n    why: {}", self.rule, self.place, self.what, self.why)
    }
}

type Rule = fn(&House) -> Vec<Finding>;

const RULES: &[(&str, Rule)] = &[
    ("arrows", arrows::arrows),
    ("forbid-unsafe", rust::forbid_unsafe),
    ("module-docs", rust::module_docs),
    ("orphans", rust::orphans),
    ("unfinished", rust::unfinished),
    ("length", rust::length),
    ("binaries", text::binaries),
    ("registries", text::registries),
    ("links", text::links),
];

/// Checks the repository and prints what it found.
pub fn run() -> Result<ExitCode> {
    let house = House::visit()?;
    let findings = check(&house);
    for finding in &findings {
        eprintln!("{finding}");
    }
    let errors = findings.iter().filter(|finding| !finding.is_warning).count();
    let warnings = findings.len() - errors;
    eprintln!("tidy: {} rules over {} files: {errors} errors, {warnings} warnings", RULES.len(), house.files.len());
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(house: &House) -> Vec<Finding> {
    RULES.iter().flat_map(|(_, rule)| rule(house)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let house = House::visit().unwrap();
        let errors: Vec<String> =
            check(&house).iter().filter(|finding| !finding.is_warning).map(Finding::to_string).collect();
        assert!(errors.is_empty(), "{}", errors.join("\n"));
    }

    #[test]
    fn a_rule_names_itself_in_its_findings() {
        let house = house::planted(&[("agent/model/src/lib.rs", "fn f() { todo!() }\n")]);
        let findings = check(&house);
        for finding in &findings {
            assert!(RULES.iter().any(|(name, _)| *name == finding.rule), "{finding}");
        }
        assert!(findings.len() >= 3, "{findings:?}");
    }
}
