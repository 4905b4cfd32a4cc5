//! The pure half of `setup`: what each task needs, and which actions bring it, given what a machine has.

use std::collections::BTreeSet;

use super::facts::Facts;

/// Who needs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Building and testing.
    Build,
    /// `cargo xtask demo`.
    Demo,
    /// `cargo xtask bench`.
    Bench,
    /// `cargo xtask fuzz`.
    Fuzz,
}

/// How a machine shows that it has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// A program of this name.
    Program(&'static str),
    /// A compiler with `core` for the BPF target.
    BpfCore,
    /// A bpf-linker that runs and is new enough.
    BpfLinker,
    /// `cargo nextest`.
    Nextest,
    /// A Python that can make virtual environments.
    PythonVenv,
    /// The Python packages and the Envoy that tests and benchmarks run.
    PythonPeers,
}

/// One thing a group needs.
struct Need {
    evidence: Evidence,
    why: &'static str,
    packages: &'static [&'static str],
}

const BUILD: &[Need] = &[
    Need { evidence: Evidence::Program("cc"), why: "links every Rust program", packages: &["gcc", "libc6-dev"] },
    Need {
        evidence: Evidence::BpfCore,
        why: "compiles the eBPF programs (a rustup nightly with rust-src does too)",
        packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
    },
    Need {
        evidence: Evidence::BpfLinker,
        why: "links the eBPF programs",
        packages: &["g++", "llvm-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"],
    },
    Need {
        evidence: Evidence::Nextest,
        why: "runs the tests in parallel, each in a process of its own",
        packages: &[],
    },
    Need { evidence: Evidence::Program("ip"), why: "builds the nodes and pods of the tests", packages: &["iproute2"] },
    Need {
        evidence: Evidence::Program("bpftool"),
        why: "shows what the kernel holds, to prove nothing leaks",
        packages: &["bpftool"],
    },
    Need {
        evidence: Evidence::Program("curl"),
        why: "a real HTTP client in the tests",
        packages: &["curl", "ca-certificates"],
    },
    Need {
        evidence: Evidence::PythonVenv,
        why: "applications and peers in another language in the tests",
        packages: &["python3", "python3-venv"],
    },
    Need {
        evidence: Evidence::PythonPeers,
        why: "peers in the tests: Envoy, grpcio, WebSocket and HTTP/2 libraries",
        packages: &[],
    },
    Need { evidence: Evidence::Program("nginx"), why: "a real HTTP server in the tests", packages: &["nginx"] },
    Need {
        evidence: Evidence::Program("openssl"),
        why: "judges the authority's certificates in the tests",
        packages: &["openssl"],
    },
    Need {
        evidence: Evidence::Program("h2load"),
        why: "thousands of requests over many streams in the tests",
        packages: &["nghttp2-client"],
    },
    Need { evidence: Evidence::Program("hey"), why: "Go's HTTP client in the tests", packages: &["hey"] },
    Need {
        evidence: Evidence::Program("prometheus"),
        why: "scrapes real agents in the tests",
        packages: &["prometheus"],
    },
    Need {
        evidence: Evidence::Program("promtool"),
        why: "reads the agents' metrics with Prometheus's own eyes",
        packages: &["prometheus"],
    },
];

const DEMO: &[Need] = &[
    Need { evidence: Evidence::Program("curl"), why: "the demo's client", packages: &["curl", "ca-certificates"] },
    Need {
        evidence: Evidence::PythonVenv,
        why: "the demo's gRPC service and its database-like one",
        packages: &["python3", "python3-venv"],
    },
    Need { evidence: Evidence::Program("nginx"), why: "the demo's HTTP server", packages: &["nginx"] },
];

const BENCH: &[Need] = &[
    Need { evidence: Evidence::Program("haproxy"), why: "a baseline of the benchmarks", packages: &["haproxy"] },
    Need { evidence: Evidence::Program("nginx"), why: "origin and baseline of the benchmarks", packages: &["nginx"] },
    Need {
        evidence: Evidence::Program("h2load"),
        why: "the benchmarks' load generator",
        packages: &["nghttp2-client"],
    },
    Need { evidence: Evidence::PythonVenv, why: "unpacks Envoy", packages: &["python3", "python3-venv"] },
    Need { evidence: Evidence::PythonPeers, why: "Envoy, the baseline of the benchmarks", packages: &[] },
];

const FUZZ: &[Need] = &[
    Need { evidence: Evidence::Program("cc"), why: "links every Rust program", packages: &["gcc", "libc6-dev"] },
    Need { evidence: Evidence::Program("c++"), why: "compiles libFuzzer", packages: &["g++"] },
];

/// A step that changes the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Install Debian packages.
    Packages(BTreeSet<&'static str>),
    /// Compile and install bpf-linker.
    BpfLinker,
    /// Compile and install cargo-nextest.
    Nextest,
    /// Put Python's packages and Envoy into a virtual environment under `target/`.
    PythonPeers,
}

/// What to do, in order; empty when nothing is missing.
pub fn plan(groups: &[Group], facts: &Facts) -> Vec<Action> {
    let lacking: Vec<&Need> = needs(groups).filter(|need| !is_met(need.evidence, facts)).collect();
    let wanted = lacking.iter().flat_map(|need| need.packages.iter().copied());
    let packages: BTreeSet<&'static str> = wanted.filter(|package| !facts.packages.contains(*package)).collect();

    let mut actions = Vec::new();
    if !packages.is_empty() {
        actions.push(Action::Packages(packages));
    }
    for need in lacking {
        match need.evidence {
            Evidence::BpfLinker => actions.push(Action::BpfLinker),
            Evidence::Nextest => actions.push(Action::Nextest),
            Evidence::PythonPeers if actions.contains(&Action::PythonPeers) => {}
            Evidence::PythonPeers => actions.push(Action::PythonPeers),
            Evidence::Program(_) | Evidence::BpfCore | Evidence::PythonVenv => {}
        }
    }
    actions
}

/// What is missing, one line each, for a person. Without nextest the tests still run, so it is never in the way.
pub fn missing(groups: &[Group], facts: &Facts) -> Vec<String> {
    let lacking = needs(groups).filter(|need| need.evidence != Evidence::Nextest && !is_met(need.evidence, facts));
    let mut lines: Vec<String> = lacking
        .map(|need| {
            let packages = match need.packages {
                [] => String::new(),
                packages => format!(" [Debian: {}]", packages.join(" ")),
            };
            format!("  {}: {}{packages}", name(need.evidence), need.why)
        })
        .collect();
    lines.dedup();
    lines
}

/// Why the actions cannot be taken here, and what to do about it.
pub fn obstacle(actions: &[Action], facts: &Facts) -> Option<&'static str> {
    let wants_packages = actions.iter().any(|action| matches!(action, Action::Packages(_)));
    if !wants_packages {
        return None;
    }
    if !facts.has_apt {
        return Some("apt-get is not on this machine: install these by its own means, then run the command again");
    }
    if !facts.is_root {
        return Some("installing packages needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask setup` once");
    }
    None
}

fn needs(groups: &[Group]) -> impl Iterator<Item = &'static Need> {
    groups.iter().flat_map(|group| match group {
        Group::Build => BUILD,
        Group::Demo => DEMO,
        Group::Bench => BENCH,
        Group::Fuzz => FUZZ,
    })
}

/// The programs whose presence `groups` depend on: what [`Facts::gather`] has to look for.
pub fn programs(groups: &[Group]) -> impl Iterator<Item = &'static str> {
    needs(groups).filter_map(|need| match need.evidence {
        Evidence::Program(name) => Some(name),
        _ => None,
    })
}

/// The packages `groups` may want, whether or not they are there.
pub fn packages(groups: &[Group]) -> impl Iterator<Item = &'static str> {
    needs(groups).flat_map(|need| need.packages.iter().copied())
}

fn is_met(evidence: Evidence, facts: &Facts) -> bool {
    match evidence {
        Evidence::Program(name) => facts.programs.contains(name),
        Evidence::BpfCore => facts.has_bpf_core,
        Evidence::BpfLinker => facts.bpf_linker.is_some_and(|version| version >= super::install::BPF_LINKER),
        Evidence::Nextest => facts.has_nextest,
        Evidence::PythonVenv => facts.has_python_venv,
        Evidence::PythonPeers => facts.has_python_peers,
    }
}

fn name(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Program(name) => name,
        Evidence::BpfCore => "rustc for bpfel-unknown-none",
        Evidence::BpfLinker => "bpf-linker 0.13",
        Evidence::Nextest => "cargo-nextest",
        Evidence::PythonVenv => "python3 -m venv",
        Evidence::PythonPeers => "the environment of tests/testkit/python",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Group] = &[Group::Build, Group::Demo, Group::Bench, Group::Fuzz];

    fn bare() -> Facts {
        Facts { has_apt: true, is_root: true, ..Facts::default() }
    }

    fn complete() -> Facts {
        Facts {
            programs: programs(ALL).collect(),
            packages: BTreeSet::new(),
            has_bpf_core: true,
            bpf_linker: Some(super::super::install::BPF_LINKER),
            has_nextest: true,
            has_python_venv: true,
            has_python_peers: true,
            has_apt: true,
            is_root: true,
        }
    }

    fn packages_of(actions: &[Action]) -> Vec<&'static str> {
        let of = |action: &Action| match action {
            Action::Packages(packages) => packages.iter().copied().collect(),
            _ => Vec::new(),
        };
        actions.iter().flat_map(of).collect()
    }

    #[test]
    fn a_complete_machine_needs_nothing_however_it_got_there() {
        // No Debian package at all is recorded: programs built by hand count as much.
        assert_eq!(plan(ALL, &complete()), []);
        assert_eq!(missing(ALL, &complete()), Vec::<String>::new());
    }

    #[test]
    fn a_bare_machine_gets_its_packages_first_and_then_what_is_compiled() {
        let actions = plan(&[Group::Build], &bare());
        let packages = packages_of(&actions);
        for wanted in
            ["gcc", "rustc-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "iproute2", "bpftool", "curl", "python3"]
        {
            assert!(packages.contains(&wanted), "{wanted} is missing from {packages:?}");
        }
        let [Action::Packages(_), rest @ ..] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(rest, [Action::BpfLinker, Action::Nextest, Action::PythonPeers]);
    }

    #[test]
    fn every_program_that_tests_run_as_a_peer_brings_its_package() {
        for (program, package) in [
            ("curl", "curl"),
            ("nginx", "nginx"),
            ("h2load", "nghttp2-client"),
            ("hey", "hey"),
            ("prometheus", "prometheus"),
            ("promtool", "prometheus"),
        ] {
            let mut facts = complete();
            assert!(facts.programs.remove(program), "nobody looks for {program}");
            let packages = packages_of(&plan(&[Group::Build], &facts));
            assert!(packages.contains(&package), "without {program}: {packages:?}");
            assert!(missing(&[Group::Build], &facts).iter().any(|line| line.contains(program)));
        }
    }

    #[test]
    fn what_two_groups_need_is_made_once() {
        let facts = Facts { has_python_peers: false, ..complete() };
        assert_eq!(plan(&[Group::Build, Group::Bench], &facts), [Action::PythonPeers]);
        // It comes from PyPI, below `target/`: neither root nor apt is needed.
        let user = Facts { is_root: false, has_apt: false, ..facts };
        assert_eq!(obstacle(&plan(&[Group::Build], &user), &user), None);
    }

    #[test]
    fn a_nightly_with_rust_src_spares_the_packaged_compiler() {
        let facts = Facts { has_bpf_core: true, ..bare() };
        let packages = packages_of(&plan(&[Group::Build], &facts));
        assert!(!packages.contains(&"rustc-web"), "{packages:?}");
        assert!(packages.contains(&"llvm-22-dev"), "the linker is still needed");
    }

    #[test]
    fn an_old_linker_is_replaced_with_its_libraries_and_a_new_one_is_kept() {
        let old = Facts { bpf_linker: Some((0, 12, 9)), ..complete() };
        assert_eq!(plan(&[Group::Build], &old).last(), Some(&Action::BpfLinker));
        assert!(packages_of(&plan(&[Group::Build], &old)).contains(&"llvm-22-dev"));
        let newer = Facts { bpf_linker: Some((0, 14, 0)), ..complete() };
        assert_eq!(plan(&[Group::Build], &newer), []);
    }

    #[test]
    fn installed_packages_are_not_installed_again() {
        let facts = Facts {
            packages: BTreeSet::from(["llvm-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"].map(String::from)),
            bpf_linker: None,
            ..complete()
        };
        assert_eq!(plan(&[Group::Build], &facts), [Action::Packages(BTreeSet::from(["g++"])), Action::BpfLinker]);
    }

    #[test]
    fn the_extras_of_bench_and_demo_do_not_burden_the_tests() {
        let actions = plan(&[Group::Build], &bare());
        let packages = packages_of(&actions);
        assert!(!packages.contains(&"haproxy"), "{packages:?}");
        assert!(packages_of(&plan(&[Group::Bench], &bare())).contains(&"haproxy"));
    }

    #[test]
    fn without_root_or_apt_the_obstacle_is_named_and_so_is_everything_missing() {
        let user = Facts { is_root: false, ..bare() };
        assert!(obstacle(&plan(&[Group::Build], &user), &user).unwrap().contains("sudo"));
        let fedora = Facts { has_apt: false, ..bare() };
        assert!(obstacle(&plan(&[Group::Build], &fedora), &fedora).unwrap().contains("apt-get is not on this machine"));
        assert!(missing(&[Group::Build], &fedora).iter().any(|line| line.contains("bpftool") && line.contains("leak")));
        // What cargo can install needs neither.
        let cargo_only = Facts { has_nextest: false, is_root: false, has_apt: false, ..complete() };
        assert_eq!(obstacle(&plan(&[Group::Build], &cargo_only), &cargo_only), None);
    }
}
