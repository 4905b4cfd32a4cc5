//! Rules about files of any kind: no binaries, no registry hosts, no dead links.

use super::Finding;
use super::house::House;

const BYTES_MAX: usize = 256 * 1024;

/// Git holds text that people review, nothing that a build makes.
pub fn binaries(house: &House) -> Vec<Finding> {
    const WHY: &str =
        "what cannot be reviewed cannot be trusted: anything built or large is made by `cargo xtask` on the spot";
    let mut findings = Vec::new();
    for (path, content) in &house.files {
        if content.contains(&0) {
            findings.push(Finding::new("binaries", path, "a binary file (it holds a NUL byte)", WHY));
        } else if content.len() > BYTES_MAX {
            findings.push(Finding::new(
                "binaries",
                path,
                format!("{} KiB (at most {} KiB)", content.len() / 1024, BYTES_MAX / 1024),
                WHY,
            ));
        }
    }
    findings
}

/// Host names of package registries; written in pieces so that this file does not break its own rule.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("npmjs", ".com"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("static.rust-lang", ".org"),
];

/// Which registry or mirror serves a package is the business of the machine that builds. Every `Cargo.lock` names the
/// default registry as part of its format.
pub fn registries(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in house.texts("").filter(|(path, _)| *path != "Cargo.lock" && !path.ends_with("/Cargo.lock")) {
        for (number, line) in text.lines().enumerate() {
            for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(**host)) {
                findings.push(Finding::new(
                    "registries",
                    format!("{path}:{}", number + 1),
                    format!("names the registry host {host}"),
                    "a host written down here would bypass the mirror or proxy a builder has configured",
                ));
            }
        }
    }
    findings
}

/// Every relative link of a document, and every path under `docs/` it mentions, leads to a file.
pub fn links(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in house.texts(".md") {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for target in linked(text) {
            let file = target.split('#').next().unwrap_or_default();
            let is_external = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !is_external && !exists(house, &join(folder, file)) {
                findings.push(Finding::new("links", path, format!("the link to {target} leads nowhere"), WHY_LINKS));
            }
        }
        for mentioned in mentioned(text).filter(|file| !exists(house, file)) {
            findings.push(Finding::new("links", path, format!("{mentioned} does not exist"), WHY_LINKS));
        }
    }
    findings
}

const WHY_LINKS: &str = "a newcomer who follows a dead link stops trusting the rest of the text";

fn linked(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::trim)
}

/// Paths in backticks that begin with `docs/`, unless they are patterns.
fn mentioned(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.starts_with("docs/") && !word.contains(['*', '<', ' ', '\n']))
}

fn join(folder: &str, file: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn exists(house: &House, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    house.files.contains_key(path)
        || house.files.keys().any(|file| file.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::super::house::planted;
    use super::*;

    fn places(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn binaries_and_big_files_are_found() {
        let big = "x".repeat(BYTES_MAX + 1);
        let house = planted(&[("a.o", "\u{7f}ELF\0"), ("big.json", &big), ("fine.txt", "text")]);
        assert_eq!(places(binaries(&house)), ["a.o", "big.json"]);
    }

    #[test]
    fn registry_hosts_are_found_everywhere_but_in_lock_files() {
        let line = format!("registry+https://github.com/rust-lang/{}-index\n", REGISTRY_HOSTS[0]);
        let house =
            planted(&[("Cargo.lock", &line), ("ebpf-programs/programs/Cargo.lock", &line), ("README.md", &line)]);
        assert_eq!(places(registries(&house)), ["README.md:1"]);
    }

    #[test]
    fn dead_links_are_found_and_living_ones_are_not() {
        let house = planted(&[
            (
                "README.md",
                "[a](docs/a.md#part) [b](docs/b.md) [c](https://example.com/x) [d](#here) `docs/c.md` `docs/decisions/` `docs/*.md`",
            ),
            ("docs/a.md", "[up](../README.md) [beside](./gone.md)"),
            ("docs/decisions/README.md", "fine"),
        ]);
        let whats: Vec<String> = links(&house).into_iter().map(|finding| finding.what).collect();
        assert_eq!(
            whats,
            ["the link to docs/b.md leads nowhere", "docs/c.md does not exist", "the link to ./gone.md leads nowhere"]
        );
    }
}
