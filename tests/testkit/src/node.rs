//! A node of a started mesh: its pods, its keeper and agent, and what they say about themselves.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::objects::Source;
use crate::place::Place;
use crate::pod::Pod;
use crate::probe::{self, AGENT_PORTS, BpfObjects};
use crate::process::Process;
use crate::wait::{wait_for, wait_until};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::os::fd::AsRawFd;

/// How long an agent may take to be ready, and a pod to be enrolled, at the start of a test.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command of the CLI may take.
const CLI_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stopped agent or keeper may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// `--metrics-address` and `--health-address`.
const METRICS_PORT: u16 = 15020;
const HEALTH_PORT: u16 = 15021;

/// A node. As a [`Place`] it is the node's own network namespace, outside every pod.
#[derive(Debug)]
pub struct Node {
    pub(crate) host: Place,
    pub(crate) pods: Vec<Pod>,
    /// Parent of the agent's, the host's and the pods' cgroups: what `--cgroup` names.
    pub(crate) cgroup: Cgroup,
    /// Where keeper and agent run.
    pub(crate) heddle_place: Place,
    pub(crate) paths: NodePaths,
    pub(crate) agent_arguments: Vec<String>,
    pub(crate) agent: Mutex<Option<Process>>,
    pub(crate) keeper: Mutex<Option<Process>>,
}

/// Files of a node.
#[derive(Clone, Debug)]
pub struct NodePaths {
    /// The `heddle` binary.
    pub heddle: PathBuf,
    /// `--run-dir`.
    pub run: PathBuf,
    /// `--pin-dir`.
    pub pins: PathBuf,
    /// `--source files:`.
    pub source: PathBuf,
}

/// What a command of the CLI answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What an HTTP GET answered.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Head and body as text.
    pub text: String,
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.host
    }
}

impl Node {
    /// Its pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its files.
    #[must_use]
    pub fn paths(&self) -> &NodePaths {
        &self.paths
    }

    /// The cgroup given to `--cgroup`.
    #[must_use]
    pub fn node_cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What its agent is started with besides what all have: the test's own arguments, and those of its identity.
    #[must_use]
    pub fn agent_arguments(&self) -> &[String] {
        &self.agent_arguments
    }

    fn heddle_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.paths.heddle);
        command.args(arguments).env("HEDDLE_RUN_DIR", &self.paths.run).env("HEDDLE_PIN_DIR", &self.paths.pins);
        command
    }

    fn common_arguments(&self, command: &mut Command, cgroup: &Path) {
        command.arg("--run-dir").arg(&self.paths.run).arg("--pin-dir").arg(&self.paths.pins);
        command.arg("--cgroup").arg(cgroup);
    }

    /// Starts an agent beside whatever runs, and returns at once; it is the caller's.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_agent(&self) -> anyhow::Result<Process> {
        self.spawn_agent_reading(&self.paths.source)
    }

    fn spawn_agent_reading(&self, source: &Path) -> anyhow::Result<Process> {
        let mut command = self.heddle_command(&["agent", "--node", &self.host.name]);
        command.arg("--source").arg(format!("files:{}", source.display()));
        self.common_arguments(&mut command, self.cgroup.path());
        command.arg("--metrics-address").arg(format!("0.0.0.0:{METRICS_PORT}"));
        command.arg("--health-address").arg(format!("0.0.0.0:{HEALTH_PORT}"));
        command.args(["--access-log", "stdout"]);
        for (name, value) in [("--drain-deadline-seconds", "5"), ("--workers", "2")] {
            if !self.agent_arguments.iter().any(|argument| argument == name) {
                command.args([name, value]);
            }
        }
        command.args(&self.agent_arguments);
        self.heddle_place.spawn("agent", command)
    }

    /// Starts the agent (and, if none answers, it starts a keeper) and returns when it is ready.
    ///
    /// # Errors
    /// It does not become ready; the error shows its output.
    pub fn start_agent(&self) -> anyhow::Result<()> {
        let agent = self.spawn_agent()?;
        let ready = self.wait_ready(&agent);
        self.agent_slot().replace(agent);
        ready
    }

    fn wait_ready(&self, agent: &Process) -> anyhow::Result<()> {
        wait_for(&format!("agent of node {} is ready", self.host.name), START_TIMEOUT, || {
            if let Some(status) = agent.status() {
                bail!("the agent has ended: {status}");
            }
            Ok(self.is_ready().then_some(()))
        })
        .with_context(|| agent.tail())
    }

    /// Whether `/readyz` answers 200.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.http_get(HEALTH_PORT, "/readyz").is_ok_and(|a| a.status == 200)
    }

    /// Starts a second agent on the same directories; it takes over from the running one, which is returned.
    ///
    /// # Errors
    /// There is no agent, or the new one cannot be started.
    pub fn replace_agent(&self) -> anyhow::Result<Process> {
        let new = self.spawn_agent()?;
        self.agent_slot().replace(new).context("there was no agent to take over from")
    }

    /// As [`replace_agent`](Self::replace_agent); the new one reads the objects of another directory.
    ///
    /// # Errors
    /// As there.
    pub fn replace_agent_reading(&self, source: &Source) -> anyhow::Result<Process> {
        let new = self.spawn_agent_reading(source.directory())?;
        self.agent_slot().replace(new).context("there was no agent to take over from")
    }

    /// `SIGKILL` to the agent.
    ///
    /// # Errors
    /// There is no agent.
    pub fn kill_agent(&self) -> anyhow::Result<()> {
        let agent = self.agent_slot().take().context("there is no agent")?;
        agent.kill();
        Ok(())
    }

    /// `SIGTERM` to the agent; returns its exit status.
    ///
    /// # Errors
    /// There is no agent, or it does not end.
    pub fn stop_agent(&self) -> anyhow::Result<ExitStatus> {
        let agent = self.agent_slot().take().context("there is no agent")?;
        agent.terminate(STOP_TIMEOUT)
    }

    /// The agent's pid.
    ///
    /// # Errors
    /// There is no agent.
    pub fn agent_pid(&self) -> anyhow::Result<u32> {
        self.agent_slot().as_ref().map(Process::pid).context("there is no agent")
    }

    /// Starts a keeper of its own, before or after an agent; returns when its socket is there.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_keeper(&self) -> anyhow::Result<()> {
        self.start_keeper_on(self.cgroup.path())
    }

    /// Starts a keeper and returns at once; it is the caller's.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_keeper(&self, cgroup: &Path) -> anyhow::Result<Process> {
        let mut command = self.heddle_command(&["keeper"]);
        self.common_arguments(&mut command, cgroup);
        self.heddle_place.spawn("keeper", command)
    }

    /// As [`start_keeper`](Self::start_keeper), with another attach point.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_keeper_on(&self, cgroup: &Path) -> anyhow::Result<()> {
        let keeper = self.spawn_keeper(cgroup)?;
        let socket = self.paths.run.join("keeper.sock");
        let up = wait_for("the keeper answers", START_TIMEOUT, || {
            if let Some(status) = keeper.status() {
                bail!("the keeper has ended: {status}");
            }
            Ok(accepts(&socket).then_some(()))
        })
        .with_context(|| keeper.tail());
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).replace(keeper);
        up
    }

    /// The keeper's pid, whoever started it: the process of this node whose first argument is `keeper`.
    ///
    /// # Errors
    /// None runs.
    pub fn keeper_pid(&self) -> anyhow::Result<u32> {
        let is_keeper = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).nth(1) == Some(b"keeper")
        };
        self.cgroup.processes().into_iter().find(is_keeper).context("no keeper runs on this node")
    }

    /// Sends a signal to the keeper and waits until that process is gone.
    ///
    /// # Errors
    /// None runs, or it does not end.
    pub fn end_keeper(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.keeper_pid()?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("{signal} to the keeper"))?;
        wait_until("the keeper ends", STOP_TIMEOUT, || self.keeper_pid().map_or(true, |now| now != pid))?;
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    /// Waits until a pod is enrolled.
    ///
    /// # Errors
    /// It is not in time; the error shows what the agent says about it.
    pub fn wait_enrolled(&self, pod: &Pod, timeout: Duration) -> anyhow::Result<()> {
        self.wait_state(pod, "enrolled", timeout)
    }

    /// Waits until `heddle workloads` reports a state for a pod.
    ///
    /// # Errors
    /// It does not in time; the error shows what the agent says about the pod.
    pub fn wait_state(&self, pod: &Pod, state: &str, timeout: Duration) -> anyhow::Result<()> {
        let mut last = None;
        wait_until(&format!("pod {} is {state}", pod.name()), timeout, || {
            last = self.workload(pod).ok().flatten();
            last.as_ref().is_some_and(|w| w["capture"] == state)
        })
        .with_context(|| format!("heddle workloads says {last:?}\n{}", self.agent_tail()))
    }

    /// Waits until a pod's account has a valid certificate.
    ///
    /// # Errors
    /// It has none in time; the error shows what the agent says about it.
    pub fn wait_certified(&self, pod: &Pod, timeout: Duration) -> anyhow::Result<()> {
        let id = crate::pki::spiffe_id(&pod.namespace(), pod.name());
        let mut last = None;
        wait_until(&format!("{id} has a certificate"), timeout, || {
            last = self.json(&["certs"]).ok();
            let rows = last.as_ref().and_then(|answer| answer["certificates"].as_array());
            rows.is_some_and(|rows| rows.iter().any(|row| row["id"] == id && row["state"] == "valid"))
        })
        .with_context(|| format!("heddle certs says {last:?}\n{}", self.agent_tail()))
    }

    /// What `heddle workloads` says about a pod.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn workload(&self, pod: &Pod) -> anyhow::Result<Option<Value>> {
        let answer = self.json(&["workloads"])?;
        let all = answer["workloads"].as_array().context("no workloads in the answer")?;
        Ok(all.iter().find(|w| w["name"] == pod.name() && w["namespace"] == pod.namespace()).cloned())
    }

    /// What `heddle connections` lists.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn connections(&self) -> anyhow::Result<Vec<Value>> {
        let answer = self.json(&["connections"])?;
        Ok(answer["connections"].as_array().context("no connections in the answer")?.clone())
    }

    /// Entries of every map as `heddle bpf` counts them: name → entries.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn map_entries(&self) -> anyhow::Result<std::collections::BTreeMap<String, u64>> {
        let answer = self.json(&["bpf"])?;
        let maps = answer["maps"].as_array().context("no maps in the answer")?;
        let entry = |m: &Value| Some((m["name"].as_str()?.to_owned(), m["entries"].as_u64()?));
        Ok(maps.iter().filter_map(entry).collect())
    }

    /// A counter of the eBPF programs, by its words: `record_missing`, `outbound captured ipv4`.
    ///
    /// # Errors
    /// The agent does not answer, or there is no such counter.
    pub fn counter(&self, words: &str) -> anyhow::Result<u64> {
        let answer = self.json(&["bpf"])?;
        let all = answer["counters"].as_array().context("no counters in the answer")?;
        let name = |c: &Value| Some(format!("{} {}", c["verdict"].as_str()?, c["reason"].as_str()?).trim().to_owned());
        let found = all.iter().find(|c| name(c).as_deref() == Some(words));
        found.and_then(|c| c["count"].as_u64()).with_context(|| format!("no counter {words:?} in {answer}"))
    }

    /// Takes an agent for the node's own, in place of the former, which is returned.
    pub fn adopt_agent(&self, agent: Process) -> Option<Process> {
        self.agent_slot().replace(agent)
    }

    /// Runs a debug command with `-o json`.
    ///
    /// # Errors
    /// It fails.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let answer = self.heddle(&[arguments, &["-o", "json"]].concat())?;
        ensure!(answer.status.success(), "heddle {arguments:?}: {}\n{}", answer.status, answer.stderr);
        serde_json::from_str(&answer.stdout).with_context(|| format!("heddle {arguments:?} printed {}", answer.stdout))
    }

    /// Runs `heddle` with these arguments on this node.
    ///
    /// # Errors
    /// It cannot be started or does not end in time.
    pub fn heddle(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let process = self.heddle_place.spawn("cli", self.heddle_command(arguments))?;
        process.close_stdin();
        let status = process.wait(CLI_TIMEOUT).with_context(|| format!("heddle {arguments:?}"))?;
        Ok(Answer { status, stdout: process.stdout(), stderr: process.stderr() })
    }

    /// The agent's access log so far.
    #[must_use]
    pub fn access_log(&self) -> Vec<Value> {
        let text = self.agent_slot().as_ref().map(Process::stdout).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// What the agent has said so far, in words.
    #[must_use]
    pub fn agent_log(&self) -> String {
        self.agent_slot().as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// The agent's metrics page.
    ///
    /// # Errors
    /// It does not answer 200.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let answer = self.http_get(METRICS_PORT, "/metrics")?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.text);
        Ok(answer.text)
    }

    fn http_get(&self, port: u16, path: &str) -> anyhow::Result<HttpAnswer> {
        self.host.netns.inside(|| http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path))?
    }

    /// The end of the agent's output, for messages.
    #[must_use]
    pub fn agent_tail(&self) -> String {
        self.agent_slot().as_ref().map_or_else(|| "(no agent)".to_owned(), Process::tail)
    }

    /// The namespaces of its pods.
    #[must_use]
    pub fn pod_namespaces(&self) -> Vec<&Netns> {
        self.pods.iter().filter(|p| !p.is_on_host_network()).map(|p| p.netns()).collect()
    }

    /// The eBPF objects of this node's instance.
    ///
    /// # Errors
    /// bpftool is missing or failed.
    pub fn bpf_objects(&self) -> anyhow::Result<BpfObjects> {
        BpfObjects::of(self.cgroup.path(), &self.pod_namespaces(), &self.paths.pins)
    }

    /// Everything of the instance that is still there, in words; empty when nothing is. `before` is what
    /// [`bpf_objects`](Self::bpf_objects) found while it ran: objects held by a descriptor only are found by their id.
    ///
    /// # Errors
    /// The machine cannot be looked at.
    pub fn leftovers(&self, before: &BpfObjects) -> anyhow::Result<Vec<String>> {
        let mut found = before.alive()?;
        let now = self.bpf_objects()?;
        if !now.is_empty() {
            found.push(format!("attached or pinned eBPF objects: {now:?}"));
        }
        found.extend(probe::files_below(&self.paths.pins)?.iter().map(|p| format!("pin {}", p.display())));
        found.extend(probe::files_below(&self.paths.run)?.iter().map(|p| format!("file {}", p.display())));
        for pod in &self.pods {
            let agent_listeners = pod.listeners()?.into_iter().filter(|a| AGENT_PORTS.contains(&a.port()));
            found.extend(agent_listeners.map(|a| format!("listener {a} in pod {}", pod.name())));
        }
        found.extend(probe::netns_holders(&self.pod_namespaces()));
        let processes = self.heddle_place.cgroup.processes();
        found.extend(processes.iter().map(|pid| format!("process {pid} in the agent's cgroup")));
        Ok(found)
    }

    /// Where keeper, agent and CLI run, to plant things there.
    #[must_use]
    pub fn heddle_place(&self) -> &Place {
        &self.heddle_place
    }

    fn agent_slot(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One HTTP/1.1 GET with a connection of its own.
fn http_get(to: SocketAddr, path: &str) -> anyhow::Result<HttpAnswer> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status =
        text.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("no status in {text:?}"))?;
    Ok(HttpAnswer { status, text })
}

/// A binary of this workspace: from the environment, else beside the test's own.
pub(crate) fn binary(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let path = match given {
        Some(path) => path,
        None => {
            let test = std::env::current_exe().context("where the test's binary is")?;
            let directory = test.parent().and_then(Path::parent).context("the test's binary has no grandparent")?;
            directory.join(name)
        }
    };
    ensure!(path.is_file(), "{} is missing: build it (cargo build --bin {name}) or set {variable}", path.display());
    Ok(path)
}

/// Whether something listens at a keeper's socket.
fn accepts(path: &Path) -> bool {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    let (Ok(socket), Ok(address)) = (socket, UnixAddr::new(path)) else {
        return false;
    };
    connect(socket.as_raw_fd(), &address).is_ok()
}
