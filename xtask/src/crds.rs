//! `crds`: the CustomResourceDefinitions of our kinds under `deploy/crds`, written by an example of the room that owns the types: these
//! tasks stay quick to build.

use std::process::ExitCode;

use anyhow::Result;

use crate::tools;

/// Writes the files, and deletes those of kinds that are gone.
pub fn run() -> Result<ExitCode> {
    let folder = tools::repository().join("deploy/crds");
    let mut command = tools::cargo();
    command.args(["run", "--quiet", "-p", "heddle-api", "--example", "crds", "--"]).arg(&folder);
    Ok(tools::exit_code(tools::status(&mut command)?))
}
