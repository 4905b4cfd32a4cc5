//! The command line: what can be asked, parsed into values that cannot be wrong.

mod policy;
mod query;
mod route;
pub mod table;
pub mod yaml;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use crate::ca::CaCommand;
pub use crate::node::NodePaths;
pub use query::query;

use crate::issuer::CaProtocol;
use crate::privileges::User;

/// A service mesh without sidecars: one agent per node.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, about, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node's agent: an ordinary user without capabilities that carries the pods' connections.
    Agent(Box<AgentOptions>),
    /// Run the node's keeper: eBPF, network namespaces, sockets. The agent starts one if none runs.
    Keeper(KeeperOptions),
    /// Break-glass: free all pods of this node at once, agent running or not.
    Release(ReleaseOptions),
    /// Remove Heddle from this node: programs, links, maps, pins, listeners; the keeper ends.
    Uninstall(UninstallOptions),
    /// The stand-alone certificate authority.
    #[command(subcommand)]
    Ca(Box<CaCommand>),
    /// Questions to the running agent.
    #[command(flatten)]
    Debug(Query),
}

/// `heddle agent`
#[derive(Debug, Args)]
pub struct AgentOptions {
    /// Name of this node, as in `spec.nodeName`.
    #[arg(long)]
    pub node: String,
    /// Where the objects come from: `files:DIR`.
    #[arg(long)]
    pub source: Source,
    /// Paths.
    #[command(flatten)]
    pub paths: NodePaths,
    /// Attach point, if this agent starts the keeper.
    #[command(flatten)]
    pub datapath: DatapathOptions,
    /// Data-plane threads [default: one per CPU].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub workers: Option<u16>,
    /// User to become, UID[:GID]; never root.
    #[arg(long, default_value = "65532")]
    pub user: User,
    /// Where `/metrics` is served.
    #[arg(long, default_value = "0.0.0.0:15020")]
    pub metrics_address: SocketAddr,
    /// Where `/healthz` and `/readyz` are served.
    #[arg(long, default_value = "0.0.0.0:15021")]
    pub health_address: SocketAddr,
    /// Where access records go: `stdout`, `none` or `file:PATH`.
    #[arg(long, default_value = "stdout")]
    pub access_log: AccessLogTarget,
    /// How long open connections may go on once the agent drains.
    #[arg(long, default_value_t = 30)]
    pub drain_deadline_seconds: u64,
    /// How long a client may take for a request's head, from its first byte; beyond: 408.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_head_timeout_seconds: u64,
    /// How long a request's body may stand still while nothing else happens; beyond: 408.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_body_idle_timeout_seconds: u64,
    /// Age of a connection to another agent from half of which on it is given up for a new one, with a new handshake; its streams go on.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub mesh_connection_age_max_seconds: u64,
    /// Where identities come from.
    #[command(flatten)]
    pub identity: IdentityOptions,
    /// `spawn` a keeper if none answers, or only `connect` to one.
    #[arg(long, value_enum, default_value = "spawn")]
    pub keeper: KeeperMode,
    /// `[TARGET=]LEVEL[,…]`
    #[arg(long, default_value = "info")]
    pub log_level: String,
}

/// Where an agent's identities come from.
#[derive(Clone, Debug, Args)]
pub struct IdentityOptions {
    /// Certificate authority, `https://HOST:PORT`. Without one pods have no identities, and everything is plain text.
    #[arg(long, value_name = "URL", requires_all = ["ca_root", "ca_token_file"])]
    pub ca: Option<String>,
    /// PEM file: the roots by which the authority is known at first contact.
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub ca_root: Option<PathBuf>,
    /// The token of this node, from `heddle ca token`; nobody but its owner may read the file.
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub ca_token_file: Option<PathBuf>,
    /// What the authority speaks.
    #[arg(long, value_enum, default_value = "heddle", requires = "ca")]
    pub ca_protocol: CaProtocol,
    /// Lifetime of certificates to ask for; they are renewed at about half of it. The authority may give less.
    #[arg(long, default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub certificate_lifetime_seconds: u64,
}

/// `heddle keeper`
#[derive(Debug, Args)]
pub struct KeeperOptions {
    /// Paths.
    #[command(flatten)]
    pub node: NodePaths,
    /// Attach point.
    #[command(flatten)]
    pub datapath: DatapathOptions,
    /// Listeners per pod, direction and family: at least the agent's workers [default: one per CPU].
    #[arg(long)]
    pub listener_shards: Option<usize>,
    /// The agent's user, UID[:GID]: it and root may connect.
    #[arg(long, default_value = "65532")]
    pub user: User,
    /// `[TARGET=]LEVEL[,…]`
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Start a session of its own (the agent starts it so).
    #[arg(long, hide = true)]
    pub detach: bool,
}

/// Where the hooks attach.
#[derive(Clone, Debug, Args)]
pub struct DatapathOptions {
    /// Cgroup2 directory whose processes are captured [default: the cgroup2 root].
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
}

/// `heddle release --node`
#[derive(Debug, Args)]
pub struct ReleaseOptions {
    /// Says that the whole node is meant.
    #[arg(long, required = true)]
    pub node: bool,
    /// Let pods in again.
    #[arg(long)]
    pub resume: bool,
    /// Paths.
    #[command(flatten)]
    pub paths: NodePaths,
}

/// `heddle uninstall --node`
#[derive(Debug, Args)]
pub struct UninstallOptions {
    /// Says that the whole node is meant.
    #[arg(long, required = true)]
    pub node: bool,
    /// Paths.
    #[command(flatten)]
    pub paths: NodePaths,
}

/// Questions to the running agent.
#[derive(Clone, Debug, Subcommand)]
pub enum Query {
    /// Agent, keeper and source at a glance.
    Status(QueryOptions),
    /// Pods of this node: in the mesh or not, enrolled or not, and why.
    Workloads(QueryOptions),
    /// Services with their endpoints.
    Services(QueryOptions),
    /// Open connections.
    Connections(QueryOptions),
    /// Certificates of this node's service accounts: whose, until when, from whom, and what is wrong. Never keys.
    Certs(QueryOptions),
    /// Policies: in force for whom, how often they decided, and which were rejected.
    Policies(QueryOptions),
    /// Routes and TrafficPolicies: accepted or not and why, where they lead, and which rules cannot be carried out.
    Routes(NamespaceOptions),
    /// How Service ports are used: the places of their circuit breakers, their retries, and who of their endpoints is ejected.
    Endpoints(NamespaceOptions),
    /// What would become of a call, step by step: which rule of a route it matches, whom it falls to, which object decides.
    Explain(ExplainOptions),
    /// Programs, maps and their use, told versus in the kernel.
    Bpf(QueryOptions),
    /// What this node needs, what it has, and the fix for what is missing.
    Check(QueryOptions),
    /// Show the agent's log levels, or set them: `[TARGET=]LEVEL[,…]`.
    LogLevel {
        /// New levels.
        levels: Option<String>,
        /// Options.
        #[command(flatten)]
        options: QueryOptions,
    },
}

/// Options of every question.
#[derive(Clone, Debug, Args)]
pub struct QueryOptions {
    /// `table` for people, `json` or `yaml` for programs.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Directory of the sockets.
    #[arg(long, env = "HEDDLE_RUN_DIR", default_value = "/run/heddle")]
    pub run_dir: PathBuf,
}

/// Options of questions about objects of namespaces.
#[derive(Clone, Debug, Args)]
pub struct NamespaceOptions {
    /// Only of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Options.
    #[command(flatten)]
    pub options: QueryOptions,
}

/// Which call to explain.
#[derive(Clone, Debug, Args)]
pub struct ExplainOptions {
    /// The calling pod: NAMESPACE/NAME, or its name alone if there is only one.
    pub pod: String,
    /// What it calls: HOST:PORT, with a Service's name (`web`, `web.shop`) or an address as HOST.
    pub to: String,
    /// The request's method; GET where only a path or a header is given. With none of the three it is about bytes that are no HTTP.
    #[arg(long)]
    pub method: Option<String>,
    /// The request's path, with its query or without.
    #[arg(long)]
    pub path: Option<String>,
    /// A parameter of the request's query, `NAME=VALUE`; may be given again.
    #[arg(long = "query", value_name = "NAME=VALUE")]
    pub query: Vec<String>,
    /// A header field of the request, `NAME: VALUE`; may be given again.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The server name of a TLS handshake, where a TLSRoute decides by it.
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// Options.
    #[command(flatten)]
    pub options: QueryOptions,
}

/// How answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns.
    Table,
    /// The message as JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML files.
    Files(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("files", dir)) if !dir.is_empty() => Ok(Self::Files(dir.into())),
            Some(("files", _)) => Err("`files:` needs a directory: files:DIR".into()),
            _ => Err(format!("`{text}` is not supported: write files:DIR")),
        }
    }
}

/// Where access records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// Nowhere.
    None,
    /// Appended to a file.
    File(PathBuf),
}

impl std::str::FromStr for AccessLogTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err(format!("`{text}`: write stdout, none or file:PATH")),
            },
        }
    }
}

/// Whose job the keeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeeperMode {
    /// Start one if none answers (stand-alone).
    Spawn,
    /// One is run by somebody else (Kubernetes).
    Connect,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bad_arguments_say_what_is_right() {
        let base = ["heddle", "agent", "--node", "a", "--source", "files:/x"];
        for (extra, word) in [
            (["--source", "etcd:x"], "files:DIR"),
            (["--user", "0"], "must not be root"),
            (["--workers", "0"], "1..=32"),
            (["--access-log", "syslog"], "file:PATH"),
            (["--metrics-address", "here"], "--metrics-address"),
            (["--ca", "https://192.0.2.1:15012"], "--ca-root"),
            (["--ca-root", "/x"], "--ca <URL>"),
        ] {
            let mut arguments: Vec<&str> = base.to_vec();
            if extra[0] == "--source" {
                arguments.truncate(4);
            }
            arguments.extend(extra);
            let error = Arguments::try_parse_from(&arguments).expect_err("refused").to_string();
            assert!(error.contains(word), "{extra:?}: {error}");
        }
    }

    #[test]
    fn whole_node_commands_want_the_word() {
        assert!(Arguments::try_parse_from(["heddle", "release"]).is_err());
        assert!(Arguments::try_parse_from(["heddle", "uninstall"]).is_err());
        assert!(Arguments::try_parse_from(["heddle", "release", "--node"]).is_ok());
    }
}
