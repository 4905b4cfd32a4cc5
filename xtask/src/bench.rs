//! (under construction)
use clap::Args;
/// Arguments.
#[derive(Args)]
pub struct Arguments {}
/// Runs.
pub fn run(_: &Arguments) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not built yet")
}
