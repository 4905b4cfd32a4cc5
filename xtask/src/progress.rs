//! What a person sees while something takes long: a spinner on a terminal, plain lines with elapsed time elsewhere.
//!
//! A step's output goes to a log file and is shown only if the step fails, so that a good run stays readable.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::tools;

const HEARTBEAT: Duration = Duration::from_secs(20);
const LOG_LINES_SHOWN: usize = 40;

/// One named piece of work in progress.
pub struct Step {
    log: PathBuf,
}

impl Step {
    /// Does `work` under `title`, showing that it is alive and, at the end, how long it took.
    pub fn run<T>(title: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let step = Step { log: log_file(title)? };
        let started = Instant::now();
        let outcome = if std::io::stderr().is_terminal() {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.set_message(title.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            let outcome = work(&step);
            spinner.finish_and_clear();
            outcome
        } else {
            eprintln!("  … {title}");
            with_heartbeat(title, started, || work(&step))
        };
        let seconds = started.elapsed().as_secs_f64();
        match &outcome {
            Ok(_) => eprintln!("  ✓ {title} ({seconds:.1} s)"),
            Err(_) => eprintln!("  ✗ {title} ({seconds:.1} s)"),
        }
        outcome
    }

    /// Runs a command with its output in this step's log; a failure quotes the end of that log.
    pub fn command(&self, command: &mut Command) -> Result<()> {
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        writeln!(log, "$ {}", tools::display(command))?;
        let status = tools::status(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        bail!(
            "`{}` failed ({status}); its last lines were:\n{}\nall of it: {}",
            tools::display(command),
            last_lines(&text, LOG_LINES_SHOWN),
            self.log.display()
        )
    }
}

/// A fresh log named after the step, under `target/xtask/`.
fn log_file(title: &str) -> Result<PathBuf> {
    let folder = tools::target().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let path = folder.join(format!("{}.log", words.take(6).collect::<Vec<_>>().join("-")));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => Ok(path),
    }
}

/// A log nobody watches live still shows that a long step is alive.
fn with_heartbeat<T>(title: &str, started: Instant, work: impl FnOnce() -> T) -> T {
    let (done, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(HEARTBEAT) {
                eprintln!("  … {title} ({} s so far)", started.elapsed().as_secs());
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_quotes_the_end_of_its_output_and_names_itself() {
        let step = Step { log: log_file("test failing step").unwrap() };
        let error =
            step.command(Command::new("sh").args(["-c", "echo first; echo the reason >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("the reason") && text.contains("sh -c") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn only_the_last_lines_of_a_long_log_are_shown() {
        assert_eq!(last_lines("a\nb\nc\nd", 2), "c\nd");
        assert_eq!(last_lines("a", 2), "a");
    }
}
