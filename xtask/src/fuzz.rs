//! `fuzz`: the targets of `tests/fuzz` under libFuzzer, for as long as wanted.
//!
//! The instrumentation is plain `rustc` flags of a stable compiler; libFuzzer itself is C++ and comes with a crate. What a target
//! learns stays in `target/fuzz/corpus`, what breaks it in `target/fuzz/crashes`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::progress::Step;
use crate::setup::{self, Group};
use crate::tools;

/// What to fuzz.
#[derive(Args)]
pub struct Arguments {
    /// One target (a folder of tests/fuzz/seeds); without it all, one after another
    target: Option<String>,
    /// For how long, each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run one input again instead, such as one that broke the target
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
}

const MANIFEST: &str = "tests/fuzz/libfuzzer/Cargo.toml";
const SEEDS: &str = "tests/fuzz/seeds";
/// What cargo-fuzz passes too, without the sanitizers, which need a nightly.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// One input may take this long.
const INPUT_SECONDS_MAX: u64 = 30;
const MEMORY_MIB_MAX: u64 = 2048;

/// Builds and fuzzes; fails if a target broke.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let all = targets()?;
    let chosen = match &arguments.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no target {target}; there are {}", all.join(", ")),
    };
    setup::run(&[Group::Fuzz])?;
    let fuzzer = Step::run("building the fuzzer", build)?;
    if let (Some(file), [target]) = (&arguments.replay, &chosen[..]) {
        let status = tools::status(command(&fuzzer, target).arg(file))?;
        return Ok(tools::exit_code(status));
    }
    let mut is_good = true;
    for target in &chosen {
        is_good &= fuzz(&fuzzer, target, arguments.seconds)?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The targets, by their folders of seeds.
fn targets() -> Result<Vec<String>> {
    let folder = tools::repository().join(SEEDS);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn build(step: &Step) -> Result<PathBuf> {
    let version = tools::output(tools::cargo().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo -vV names no host")?;
    // With a target named, build scripts and macros are not instrumented.
    let directory = folder().join("build");
    step.command(
        tools::cargo()
            .args(["build", "--release", "--manifest-path", MANIFEST, "--target", host, "--target-dir"])
            .arg(&directory)
            .env("RUSTFLAGS", INSTRUMENTATION)
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    Ok(directory.join(host).join("release/heddle-libfuzzer"))
}

fn folder() -> PathBuf {
    tools::target().join("fuzz")
}

fn command(fuzzer: &Path, target: &str) -> Command {
    let mut command = Command::new(fuzzer);
    command.env("HEDDLE_FUZZ_TARGET", target).arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command
}

/// Fuzzes one target; whether it held.
fn fuzz(fuzzer: &Path, target: &str, seconds: u64) -> Result<bool> {
    let (corpus, crashes) = (folder().join("corpus").join(target), folder().join("crashes").join(target));
    for folder in [&corpus, &crashes] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let before = files(&crashes)?;
    let log = folder().join(format!("{target}.log"));
    let output = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = command(fuzzer, target);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg("-print_final_stats=1")
        .args([&corpus, &tools::repository().join(SEEDS).join(target)])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let status = Step::run(&format!("{target}, {seconds} s"), |_| tools::status(&mut command))?;
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    if status.success() {
        println!("{target}: {}", told(&text));
        return Ok(true);
    }
    println!("{target}: BROKEN ({status}); all of it: {}", log.display());
    if let Some(panic) = panic_of(&text) {
        println!("{panic}");
    }
    let new: Vec<PathBuf> = files(&crashes)?.into_iter().filter(|file| !before.contains(file)).collect();
    if new.is_empty() {
        println!("  the fuzzer ended by itself and left no input");
    }
    for file in new {
        println!("  the input: {}", file.display());
        println!("  again:     cargo xtask fuzz {target} --replay {}", file.display());
    }
    Ok(false)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// What libFuzzer's closing lines come to.
fn told(log: &str) -> String {
    let stat = |name: &str| {
        let line =
            log.lines().rev().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("?", str::trim).to_owned()
    };
    let last = log.lines().rev().find(|line| line.contains(" cov: ")).unwrap_or_default();
    let word =
        |name: &str| last.split(&format!(" {name}: ")).nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
    format!(
        "{} inputs, {} branches seen, {} inputs kept ({} new)",
        stat("number_of_executed_units"),
        word("cov"),
        word("corp"),
        stat("new_units_added")
    )
}

/// The message of the panic that ended it, or what libFuzzer says in its place.
fn panic_of(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().rposition(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"))?;
    let at = lines.iter().position(|line| line.contains("panicked at")).unwrap_or(at);
    let message = lines[at..].iter().take_while(|line| !line.starts_with("note: ") && !line.starts_with("stack "));
    Some(message.take(12).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_of_seeds_is_a_target() {
        let all = targets().unwrap();
        assert!(all.iter().any(|target| target == "driver_h1"), "{all:?}");
        assert!(all.is_sorted());
    }

    #[test]
    fn the_closing_lines_are_told_in_one() {
        let log = "#2\tINITED cov: 8 ft: 8 corp: 1/1b exec/s: 0 rss: 27Mb\n\
                   #630\tDONE   cov: 912 ft: 9 corp: 41/7b exec/s: 2034870 rss: 27Mb\nDone 630 runs in 31 second(s)\n\
                   stat::number_of_executed_units: 630\nstat::new_units_added:          7\n";
        assert_eq!(told(log), "630 inputs, 912 branches seen, 41/7b inputs kept (7 new)");
    }

    #[test]
    fn a_panic_is_quoted_without_its_backtrace() {
        let log = "#2 INITED\n\nthread '<unnamed>' panicked at src/h1.rs:1:2:\nassertion failed\n  left: 1\nstack backtrace:\n   0: x\n";
        let wanted = "  thread '<unnamed>' panicked at src/h1.rs:1:2:\n  assertion failed\n    left: 1";
        assert_eq!(panic_of(log).as_deref(), Some(wanted));
        let hang = "ALARM: working on the last Unit for 31 seconds\n==1== ERROR: libFuzzer: timeout after 31 seconds\n";
        assert_eq!(panic_of(hang).as_deref(), Some("  ==1== ERROR: libFuzzer: timeout after 31 seconds"));
    }
}
