//! Who may depend on whom: the table in `ARCHITECTURE.md` is the rule, so the text cannot drift from the code.
//!
//! Lines of the block marked `arrows` read `crate → what it may use`, or `crate ↛ what it must never use` for external
//! crates. `(none)` and `everything` mean what they say.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::house::{House, Package};

const RULE: &str = "arrows";
const WHY: &str = "a room that can be understood and tested alone stays so only while it depends on nothing else; a new arrow is a decision, \
                   made in ARCHITECTURE.md and docs/decisions/";
const DOCUMENT: &str = "ARCHITECTURE.md";

/// The table of permitted edges.
#[derive(Debug, Default)]
struct Table {
    permitted: BTreeMap<String, Permitted>,
    never: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug)]
enum Permitted {
    Everything,
    These(BTreeSet<String>),
}

/// Compares the direct normal and build dependencies of every package with the table.
pub fn arrows(house: &House) -> Vec<Finding> {
    let Some(table) = house.text(DOCUMENT).and_then(Table::parse) else {
        let what = "the block of lines marked ```arrows is missing: without it nothing bounds who depends on whom";
        return vec![Finding::new(RULE, DOCUMENT, what, WHY)];
    };
    let rooms: BTreeMap<&str, &Package> = house.packages.iter().map(|package| (room(package), package)).collect();
    let room_of: BTreeMap<&str, &str> =
        house.packages.iter().map(|package| (package.name.as_str(), room(package))).collect();

    let mut findings = Vec::new();
    for name in table.permitted.keys().filter(|name| !rooms.contains_key(name.as_str())) {
        findings.push(Finding::new(
            RULE,
            DOCUMENT,
            format!("the table speaks of `{name}`, which is not in the workspace"),
            WHY,
        ));
    }
    for (name, package) in &rooms {
        let manifest = format!("{}/Cargo.toml", package.folder);
        if is_outside(package) {
            continue;
        }
        let Some(permitted) = table.permitted.get(*name) else {
            findings.push(Finding::new(
                RULE,
                manifest,
                format!("`{name}` has no line in the table of {DOCUMENT}"),
                WHY,
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.is_dev) {
            let Some(used) = room_of.get(dependency.name.as_str()) else {
                if table.never.get(*name).is_some_and(|never| never.contains(&dependency.name)) {
                    findings.push(Finding::new(
                        RULE,
                        &manifest,
                        format!("{name} → {} is an edge that must never be", dependency.name),
                        WHY,
                    ));
                }
                continue;
            };
            let is_permitted = match permitted {
                _ if rooms.get(used).is_some_and(|package| is_outside(package)) => false,
                Permitted::Everything => true,
                Permitted::These(names) => names.contains(*used),
            };
            if !is_permitted {
                findings.push(Finding::new(
                    RULE,
                    &manifest,
                    format!("{name} → {used} is not an arrow of {DOCUMENT}"),
                    WHY,
                ));
            }
        }
    }
    findings
}

/// The folder's last name, which is how the documents speak of a crate.
fn room(package: &Package) -> &str {
    package.folder.rsplit('/').next().unwrap_or(&package.folder)
}

/// Test beds and tasks: they may use everything, and nothing that ships may use them.
fn is_outside(package: &Package) -> bool {
    package.folder == "xtask" || package.folder.starts_with("tests/")
}

impl Table {
    fn parse(document: &str) -> Option<Table> {
        let block = document.split("```arrows\n").nth(1)?.split("```").next()?;
        let mut table = Table::default();
        for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let names = |list: &str| list.split_whitespace().map(String::from).collect::<BTreeSet<_>>();
            if let Some((name, list)) = line.split_once('↛') {
                table.never.insert(name.trim().to_owned(), names(list));
            } else if let Some((name, list)) = line.split_once('→') {
                let permitted = match list.trim() {
                    "everything" => Permitted::Everything,
                    "(none)" => Permitted::These(BTreeSet::new()),
                    list => Permitted::These(names(list)),
                };
                table.permitted.insert(name.trim().to_owned(), permitted);
            }
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::super::house::{Dependency, planted};
    use super::*;

    const TABLE: &str = "# x\n```arrows\nmodel → (none)\nmodel ↛ tokio\nproxy → model\nheddle → everything\n```\n";

    fn house(edges: &[(&str, &str, bool)]) -> House {
        let mut house = planted(&[
            ("ARCHITECTURE.md", TABLE),
            ("agent/model/src/lib.rs", ""),
            ("agent/proxy/src/lib.rs", ""),
            ("agent/heddle/src/main.rs", ""),
            ("tests/testkit/src/lib.rs", ""),
        ]);
        for (from, to, is_dev) in edges {
            let package = house.packages.iter_mut().find(|package| room(package) == *from).unwrap();
            package.dependencies.push(Dependency { name: (*to).to_owned(), is_dev: *is_dev });
        }
        house
    }

    fn offences(edges: &[(&str, &str, bool)]) -> Vec<String> {
        arrows(&house(edges)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn arrows_of_the_table_pass() {
        assert_eq!(
            offences(&[("proxy", "heddle-model", false), ("heddle", "heddle-proxy", false)]),
            Vec::<String>::new()
        );
        assert_eq!(offences(&[("testkit", "heddle-proxy", false)]), Vec::<String>::new());
    }

    #[test]
    fn a_planted_edge_is_named() {
        assert_eq!(offences(&[("model", "heddle-proxy", false)]), ["model → proxy is not an arrow of ARCHITECTURE.md"]);
    }

    #[test]
    fn nothing_that_ships_depends_on_a_test_bed_not_even_the_crate_that_may_use_everything() {
        assert_eq!(
            offences(&[("heddle", "heddle-testkit", false)]),
            ["heddle → testkit is not an arrow of ARCHITECTURE.md"]
        );
    }

    #[test]
    fn a_forbidden_external_crate_is_named_and_a_development_dependency_is_free() {
        assert_eq!(offences(&[("model", "tokio", false)]), ["model → tokio is an edge that must never be"]);
        assert_eq!(offences(&[("model", "tokio", true), ("model", "heddle-proxy", true)]), Vec::<String>::new());
    }

    #[test]
    fn a_crate_without_a_line_and_a_line_without_a_crate_are_both_found() {
        let mut house = house(&[]);
        house.packages.retain(|package| room(package) != "proxy");
        assert!(arrows(&house)[0].what.contains("`proxy`, which is not in the workspace"));
        let house = planted(&[("ARCHITECTURE.md", "```arrows\n```"), ("agent/model/src/lib.rs", "")]);
        assert!(arrows(&house)[0].what.contains("`model` has no line"));
        assert!(arrows(&planted(&[]))[0].what.contains("missing"));
    }
}
