//! Log output of agent and keeper: to stderr, one line an event, levels changeable while running.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

static LEVELS: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging at `[TARGET=]LEVEL[,…]`.
///
/// # Errors
/// Not a level.
pub fn start(levels: &str) -> Result<()> {
    let filter = parse(levels)?;
    let (layer, handle) = reload::Layer::new(filter);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true);
    tracing_subscriber::registry().with(layer).with(format).try_init().map_err(|e| anyhow!("logging: {e}"))?;
    let _ = LEVELS.set(handle);
    Ok(())
}

/// The levels in force: target (empty for the rest) and level.
#[must_use]
pub fn levels() -> Vec<(String, String)> {
    let Some(filter) = LEVELS.get().and_then(|handle| handle.clone_current()) else {
        return Vec::new();
    };
    let word = |level: LevelFilter| level.to_string().to_lowercase();
    let rest = filter.default_level().map(|level| (String::new(), word(level)));
    let mut levels: Vec<_> = rest.into_iter().collect();
    levels.extend(filter.iter().map(|(target, level)| (target.to_owned(), word(level))));
    levels.sort();
    levels
}

/// Changes the level of one target, or (empty) of everything without one of its own.
///
/// # Errors
/// Not a level.
pub fn set(target: &str, level: &str) -> Result<(), String> {
    let parsed = LevelFilter::from_str(level)
        .map_err(|_| format!("`{level}` is not a level: write error, warn, info, debug, trace or off"))?;
    let handle = LEVELS.get().ok_or("logging has not started")?;
    let change = |filter: &mut Targets| {
        let kept = std::mem::take(filter);
        *filter =
            if target.is_empty() { kept.with_default(parsed) } else { kept.with_target(target.to_owned(), parsed) };
    };
    handle.modify(change).map_err(|error| error.to_string())
}

/// `Targets` alone would take a misspelt level for the name of a target: every part is checked first.
fn parse(levels: &str) -> Result<Targets> {
    for part in levels.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if LevelFilter::from_str(level).is_err() {
            bail!(
                "log level `{levels}`: `{level}` is not a level; write [TARGET=]LEVEL[,…] with LEVEL error, warn, info, \
                 debug, trace or off"
            );
        }
    }
    Targets::from_str(levels).map_err(|error| anyhow!("log level `{levels}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_parse_or_say_how() {
        assert!(parse("info").is_ok());
        assert!(parse("warn,heddle_proxy=debug").is_ok());
        let error = parse("loud").expect_err("not a level").to_string();
        assert!(error.contains("loud") && error.contains("[TARGET=]LEVEL"), "{error}");
    }
}
