//! The programs in the pods: nginx, a ledger that speaks first, and curl. None of them knows of the mesh.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::place::Place;
use heddle_testkit::process::Process;
use heddle_testkit::wait::wait_until;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const LEDGER: &str = include_str!("../apps/ledger.py");

/// Where nginx listens in its pod.
pub const WEB_PORT: u16 = 8080;
/// Where the ledger listens in its pod.
pub const LEDGER_PORT: u16 = 5432;

/// Starts nginx; its page says which address it saw.
pub fn nginx(place: &Place, directory: &Path) -> Result<Process> {
    let name = place.name();
    let prefix = directory.join(format!("nginx-{name}"));
    fs::create_dir_all(&prefix).with_context(|| format!("cannot create {}", prefix.display()))?;
    let configuration = prefix.join("nginx.conf");
    fs::write(&configuration, nginx_configuration(name, &prefix)).context("cannot write nginx.conf")?;
    let program = find(&["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"])
        .context("nginx is not installed: run `cargo xtask setup --all`")?;
    let mut command = Command::new(program);
    command.arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&configuration);
    let process = place.spawn("nginx", command)?;
    wait_listening(place, &process, WEB_PORT)?;
    Ok(process)
}

fn nginx_configuration(name: &str, prefix: &Path) -> String {
    let prefix = prefix.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {prefix}/pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {prefix}/body;\n  proxy_temp_path {prefix}/proxy;\n  \
         fastcgi_temp_path {prefix}/fastcgi;\n  uwsgi_temp_path {prefix}/uwsgi;\n  scgi_temp_path {prefix}/scgi;\n  \
         server {{\n    listen {WEB_PORT};\n    listen [::]:{WEB_PORT};\n    default_type text/plain;\n    \
         location / {{ return 200 \"{name} $remote_addr\\n\"; }}\n  }}\n}}\n"
    )
}

/// Starts the ledger.
pub fn ledger(place: &Place) -> Result<Process> {
    let process = place.spawn("ledger", python(&["serve", &LEDGER_PORT.to_string()])?)?;
    wait_listening(place, &process, LEDGER_PORT)?;
    Ok(process)
}

fn python(arguments: &[&str]) -> Result<Command> {
    let program = find(&["/usr/bin/python3", "/usr/local/bin/python3"]).unwrap_or_else(|| PathBuf::from("python3"));
    let mut command = Command::new(program);
    command.args(["-c", LEDGER]).args(arguments);
    Ok(command)
}

fn find(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.is_file())
}

fn wait_listening(place: &Place, process: &Process, port: u16) -> Result<()> {
    let is_listening = || place.listeners().is_ok_and(|list| list.iter().any(|address| address.port() == port));
    let what = format!("{} listens on port {port}", process.name());
    wait_until(&what, START_TIMEOUT, || !process.is_running() || is_listening())?;
    ensure!(process.is_running(), "{} has ended\n{}", process.name(), process.tail());
    Ok(())
}

/// What one HTTP request showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Which pod answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub client_seen: IpAddr,
    /// The server's address as the client saw it.
    pub server_seen: SocketAddr,
}

/// What a run of curl printed, and how often it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetches {
    pub fetched: Vec<Fetched>,
    pub failed: usize,
}

/// `count` requests by curl, each on a connection of its own.
pub fn curl(place: &Place, to: SocketAddr, count: usize) -> Result<Fetches> {
    let form = "%{http_code} %{remote_ip} %{remote_port}\\n";
    // One after another in one shell, as a script in a pod would do it.
    let script =
        format!("for i in $(seq {count}); do curl -s --max-time 2 -w '{form}' http://{to}/ || echo failed; done");
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let process = place.spawn("curl", command)?;
    process.wait(CALL_TIMEOUT + Duration::from_secs(3) * u32::try_from(count).unwrap_or(u32::MAX))?;
    Ok(fetches(&process.stdout()))
}

fn fetches(output: &str) -> Fetches {
    let lines: Vec<&str> = output.lines().collect();
    let failed = lines.iter().filter(|line| line.ends_with("failed")).count();
    let fetched = lines.windows(2).filter_map(|pair| fetch(pair[0], pair[1])).collect();
    Fetches { fetched, failed }
}

fn fetch(page: &str, report: &str) -> Option<Fetched> {
    let (server, client) = page.split_once(' ')?;
    let report = report.strip_prefix("200 ")?;
    let (ip, port) = report.split_once(' ')?;
    Some(Fetched {
        server: server.to_owned(),
        client_seen: client.parse().ok()?,
        server_seen: SocketAddr::new(ip.parse().ok()?, port.parse().ok()?),
    })
}

/// A conversation with the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The client's address as the ledger saw it.
    pub client_seen: IpAddr,
    /// The ledger's address as the client saw it.
    pub server_seen: IpAddr,
}

/// A client of the ledger that stays connected for a while.
pub struct Caller(Process);

/// Starts a client of the ledger.
pub fn call_ledger(place: &Place, to: SocketAddr, stay: Duration) -> Result<Caller> {
    let arguments = ["call".to_owned(), to.ip().to_string(), to.port().to_string(), stay.as_secs_f64().to_string()];
    Ok(Caller(place.spawn("ledger-client", python(&arguments.each_ref().map(String::as_str))?)?))
}

impl Caller {
    /// What it was told; known as soon as the ledger has spoken.
    pub fn told(&self) -> Result<Told> {
        wait_until("the ledger speaks first", START_TIMEOUT, || {
            !self.0.is_running() || told(&self.0.stdout()).is_some()
        })?;
        told(&self.0.stdout()).with_context(|| format!("the ledger did not speak\n{}", self.0.tail()))
    }

    /// Waits for the end of the conversation.
    pub fn finish(self) -> Result<Told> {
        let status = self.0.wait(CALL_TIMEOUT)?;
        ensure!(status.success(), "the conversation with the ledger failed: {status}\n{}", self.0.tail());
        self.told()
    }
}

fn told(output: &str) -> Option<Told> {
    let after = |mark: &str| output.lines().find_map(|line| line.strip_prefix(mark));
    let client = after("greeting: ")?.rsplit(' ').next()?;
    Some(Told { client_seen: client.parse().ok()?, server_seen: after("peer: ")?.parse().ok()? })
}

/// The kernel's own view of a pod's connections to a port, `local → peer`: from socket diagnosis, which no hook changes.
pub fn kernel_view(place: &Place, port: u16) -> Result<Vec<String>> {
    let mut command = Command::new("ss");
    command.args(["-Htn", "state", "established"]);
    let process = place.spawn("ss", command)?;
    process.wait(CALL_TIMEOUT)?;
    Ok(established(&process.stdout(), port))
}

fn established(output: &str, port: u16) -> Vec<String> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let (local, peer) = (fields.next()?, fields.next()?);
        peer.ends_with(&format!(":{port}")).then(|| format!("{local} → {peer}"))
    };
    output.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_reports_of_curl_are_read_in_pairs() {
        let output = "web-1 10.77.1.10\n200 10.96.0.10 80\n000  0\nfailed\nweb-2 10.77.1.10\n200 10.96.0.10 80\n";
        let fetches = fetches(output);
        assert_eq!(fetches.failed, 1);
        let servers: Vec<&str> = fetches.fetched.iter().map(|fetched| fetched.server.as_str()).collect();
        assert_eq!(servers, ["web-1", "web-2"]);
        assert_eq!(fetches.fetched[0].server_seen, "10.96.0.10:80".parse().unwrap());
    }

    #[test]
    fn the_greeting_names_the_client() {
        let output = "greeting: 220 ledger at your service, 10.77.1.10\npeer: 10.96.0.11\n";
        let wanted = Told { client_seen: "10.77.1.10".parse().unwrap(), server_seen: "10.96.0.11".parse().unwrap() };
        assert_eq!(told(output), Some(wanted));
        assert_eq!(told("greeting: 220"), None);
    }

    #[test]
    fn sockets_are_picked_by_their_peers_port() {
        let output = "0      0      10.77.1.10:40000 127.0.0.1:15001\n0 0 10.77.1.10:40001 10.77.1.11:8080\n";
        assert_eq!(established(output, 15001), ["10.77.1.10:40000 → 127.0.0.1:15001"]);
    }
}
