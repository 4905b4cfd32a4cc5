//! Log output of agent and keeper: to stderr, one line an event, levels changeable while running.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

static LEVELS: OnceLock<(reload::Handle<Targets, Registry>, std::sync::Mutex<String>)> = OnceLock::new();

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
    let _ = LEVELS.set((handle, std::sync::Mutex::new(levels.to_owned())));
    Ok(())
}

/// The levels in force.
#[must_use]
pub fn levels() -> String {
    LEVELS.get().map_or_else(String::new, |(_, text)| {
        text.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |text| text.clone())
    })
}

/// Changes the levels.
///
/// # Errors
/// Not a level.
pub fn set(levels: &str) -> Result<(), String> {
    let filter = parse(levels).map_err(|error| error.to_string())?;
    let (handle, text) = LEVELS.get().ok_or("logging has not started")?;
    handle.reload(filter).map_err(|error| error.to_string())?;
    if let Ok(mut text) = text.lock() {
        levels.clone_into(&mut text);
    }
    Ok(())
}

fn parse(levels: &str) -> Result<Targets> {
    Targets::from_str(levels)
        .map_err(|error| anyhow!("log level `{levels}`: {error}; write [TARGET=]LEVEL[,…] with LEVEL error, warn, info, debug, trace or off"))
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
