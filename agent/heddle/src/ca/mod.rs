//! `heddle ca`: makes, shows, rotates and serves the stand-alone certificate authority. The rules are the controller's.

mod serve;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use heddle_controller::ca::{Directory, ImportedRoot, LIFETIME_MAX, ServerName, Step};
use heddle_identity::TrustDomain;

use crate::cli::{Output, Source};

/// `heddle ca`
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make an authority: a root and an intermediate, ECDSA P-256.
    Init(InitOptions),
    /// Make a node's token (what the node had before counts no more), or revoke it.
    Token(TokenOptions),
    /// Show certificates, phase and nodes; never keys or tokens.
    Inspect(InspectOptions),
    /// Change the root without a failed handshake: prepare, activate, finish.
    Rotate(RotateOptions),
    /// Answer agents: gRPC over TLS 1.3, our protocol and Istio's.
    Serve(ServeOptions),
}

/// Where the authority is.
#[derive(Debug, Args)]
pub struct DirOption {
    /// Directory of the authority.
    #[arg(long)]
    pub dir: PathBuf,
}

/// A root made elsewhere.
#[derive(Debug, Args)]
pub struct RootOptions {
    /// Take this root (PEM) in place of a new one.
    #[arg(long, requires = "from_root_key")]
    pub from_root_cert: Option<PathBuf>,
    /// Its key (PEM); nobody but its owner may read it.
    #[arg(long, requires = "from_root_cert")]
    pub from_root_key: Option<PathBuf>,
}

impl RootOptions {
    fn read(&self) -> Result<Option<ImportedRoot>> {
        match (&self.from_root_cert, &self.from_root_key) {
            (Some(certificate), Some(key)) => Ok(Some(ImportedRoot::read(certificate, key)?)),
            _ => Ok(None),
        }
    }
}

/// `heddle ca init`
#[derive(Debug, Args)]
pub struct InitOptions {
    /// Where.
    #[command(flatten)]
    pub dir: DirOption,
    /// Whose identities it signs.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// Longest lifetime of a certificate of a workload or node; a rotation takes twice as long.
    #[arg(long, default_value_t = LIFETIME_MAX.as_secs(), value_parser = clap::value_parser!(u64).range(60..=LIFETIME_MAX.as_secs() * 30))]
    pub lifetime_max_seconds: u64,
    /// Root.
    #[command(flatten)]
    pub root: RootOptions,
}

/// `heddle ca token`
#[derive(Debug, Args)]
pub struct TokenOptions {
    /// Where.
    #[command(flatten)]
    pub dir: DirOption,
    /// The node, as in `spec.nodeName`.
    #[arg(long)]
    pub node: String,
    /// Write the token into this file, readable by its owner only, in place of standard output.
    #[arg(long, conflicts_with = "revoke")]
    pub out: Option<PathBuf>,
    /// Neither the token nor the node's certificates count any more.
    #[arg(long)]
    pub revoke: bool,
}

/// `heddle ca inspect`
#[derive(Debug, Args)]
pub struct InspectOptions {
    /// Where.
    #[command(flatten)]
    pub dir: DirOption,
    /// `table` for people, `json` for programs.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `heddle ca rotate`
#[derive(Debug, Args)]
pub struct RotateOptions {
    /// Where.
    #[command(flatten)]
    pub dir: DirOption,
    /// Which step.
    #[arg(value_enum)]
    pub step: RotateStep,
    /// Do not wait until every certificate of before has been renewed: whoever has not is cut off.
    #[arg(long)]
    pub force: bool,
    /// Root: for `prepare` another one; for `intermediate` the one in force, if its key is kept elsewhere.
    #[command(flatten)]
    pub root: RootOptions,
}

/// The steps of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RotateStep {
    /// Make another root and tell it to all; the old one goes on signing.
    Prepare,
    /// Sign with the new one; the old one is still trusted.
    Activate,
    /// Forget the old one.
    Finish,
    /// Forget the prepared one.
    Cancel,
    /// Make another intermediate under the same root.
    Intermediate,
}

/// `heddle ca serve`
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// Where.
    #[command(flatten)]
    pub dir: DirOption,
    /// Where the pods come from: `files:DIR`.
    #[arg(long)]
    pub source: Source,
    /// Address to listen on; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:15012")]
    pub listen: std::net::SocketAddr,
    /// Another name (IP address or host name) for the server certificate; the address listened on is in it.
    #[arg(long = "name")]
    pub names: Vec<ServerName>,
    /// Write the address listened on into this file once it is.
    #[arg(long)]
    pub address_file: Option<PathBuf>,
    /// Most connections.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_max: u32,
    /// `[TARGET=]LEVEL[,…]`
    #[arg(long, default_value = "info")]
    pub log_level: String,
}

/// Runs a command.
pub fn run(command: CaCommand) -> Result<ExitCode> {
    // Keys and tokens will be in this memory.
    heddle_datapath::keys::never_dump()?;
    match command {
        CaCommand::Init(options) => init(&options)?,
        CaCommand::Token(options) => token(&options)?,
        CaCommand::Inspect(options) => show::inspect(&options)?,
        CaCommand::Rotate(options) => rotate(&options)?,
        CaCommand::Serve(options) => serve::serve(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn init(options: &InitOptions) -> Result<()> {
    let directory = Directory::new(&options.dir.dir);
    let lifetime_max = Duration::from_secs(options.lifetime_max_seconds);
    directory.init(&options.trust_domain, lifetime_max, options.root.read()?, unix_now())?;
    println!("authority of {} made in {}", options.trust_domain, directory.path().display());
    println!("agents need {} and a token each: heddle ca token", directory.path().join("root.pem").display());
    Ok(())
}

fn token(options: &TokenOptions) -> Result<()> {
    let directory = Directory::new(&options.dir.dir);
    if options.revoke {
        directory.revoke_token(&options.node)?;
        println!("node {} is no more", options.node);
        return Ok(());
    }
    match &options.out {
        Some(path) => directory.issue_token_into(&options.node, unix_now(), path)?,
        None => println!("{}", *directory.issue_token(&options.node, unix_now())?),
    }
    Ok(())
}

fn rotate(options: &RotateOptions) -> Result<()> {
    let step = match options.step {
        RotateStep::Prepare => Step::Prepare,
        RotateStep::Activate => Step::Activate,
        RotateStep::Finish => Step::Finish,
        RotateStep::Cancel => Step::Cancel,
        RotateStep::Intermediate => Step::Intermediate,
    };
    let directory = Directory::new(&options.dir.dir);
    let now = unix_now();
    let state = directory.rotate(step, options.root.read()?, now, options.force)?;
    println!("phase {}", state.phase().as_str());
    if let Some(next) = show::next_step(&state, now) {
        println!("next: {next}");
    }
    Ok(())
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_can_be_dumped() {
        let dumpable = || nix::sys::prctl::get_dumpable().expect("dumpable");
        // In a process of its own: cargo nextest runs each test so.
        assert!(dumpable(), "positive control");
        let dir = DirOption { dir: "/nonexistent".into() };
        let command = CaCommand::Inspect(InspectOptions { dir, output: Output::Json });
        assert!(run(command).is_err(), "no authority is there");
        assert!(!dumpable());
    }
}
