//! The programs in the pods: nginx, a gRPC service of prices, a ledger that speaks first, and their clients. None of them
//! knows of the mesh.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use heddle_testkit::place::Place;
use heddle_testkit::process::Process;
use heddle_testkit::programs;
use heddle_testkit::wait::wait_until;
use serde_json::Value;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const LEDGER: &str = include_str!("../apps/ledger.py");
const PRICES: &str = include_str!("../apps/prices.py");
/// What Python needs from PyPI.
const PACKAGES: &[&str] = &["grpcio"];

/// Where nginx listens in its pod, for HTTP/1.1.
pub const WEB_PORT: u16 = 8080;
/// The same for HTTP/2: this nginx takes either on a port.
pub const WEB_H2_PORT: u16 = 8082;
/// Where a server of prices listens in its pod.
pub const PRICES_PORT: u16 = 50051;
/// Where the ledger listens in its pod.
pub const LEDGER_PORT: u16 = 5432;

/// Starts nginx; its page says which address it saw.
pub fn nginx(place: &Place, directory: &Path) -> Result<Process> {
    let name = place.name();
    let prefix = directory.join(format!("nginx-{name}"));
    fs::create_dir_all(&prefix).with_context(|| format!("cannot create {}", prefix.display()))?;
    let configuration = prefix.join("nginx.conf");
    fs::write(&configuration, nginx_configuration(name, &prefix)).context("cannot write nginx.conf")?;
    let mut command = programs::program("nginx", "nginx")?;
    command.arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&configuration);
    let process = place.spawn("nginx", command)?;
    wait_listening(place, &process, WEB_PORT)?;
    Ok(process)
}

/// The file whose being there makes a pod's nginx answer 503.
pub fn broken_mark(directory: &Path, pod: &str) -> PathBuf {
    directory.join(format!("nginx-{pod}")).join("broken")
}

fn nginx_configuration(name: &str, prefix: &Path) -> String {
    let prefix = prefix.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {prefix}/pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {prefix}/body;\n  proxy_temp_path {prefix}/proxy;\n  \
         fastcgi_temp_path {prefix}/fastcgi;\n  uwsgi_temp_path {prefix}/uwsgi;\n  scgi_temp_path {prefix}/scgi;\n  \
         server {{\n    listen {WEB_PORT};\n    listen [::]:{WEB_PORT};\n    listen {WEB_H2_PORT} http2;\n    \
         listen [::]:{WEB_H2_PORT} http2;\n    default_type text/plain;\n    \
         location / {{\n      if (-f {prefix}/broken) {{ return 503 \"{name} is broken\\n\"; }}\n      \
         return 200 \"{name} $remote_addr\\n\";\n    }}\n    \
         location = /missing {{ return 404 \"{name} has no such page\\n\"; }}\n  }}\n}}\n"
    )
}

/// Starts the ledger.
pub fn ledger(place: &Place) -> Result<Process> {
    let process = place.spawn("ledger", python(LEDGER, &["serve", &LEDGER_PORT.to_string()])?)?;
    wait_listening(place, &process, LEDGER_PORT)?;
    Ok(process)
}

/// Starts a server of prices.
pub fn prices(place: &Place) -> Result<Process> {
    let process = place.spawn("prices", python(PRICES, &["serve", &PRICES_PORT.to_string(), place.name()])?)?;
    wait_listening(place, &process, PRICES_PORT)?;
    Ok(process)
}

/// Fetches what the programs need, if it is not there.
pub fn prepare() -> Result<()> {
    programs::python(PACKAGES).map(drop)
}

fn python(script: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = programs::python(PACKAGES)?;
    command.args(["-c", script]).args(arguments);
    Ok(command)
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

/// What a run of curl printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetches {
    /// The requests answered 200.
    pub fetched: Vec<Fetched>,
    /// The others.
    pub failed: usize,
    /// Connections curl opened.
    pub connections: usize,
}

/// How curl connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// Every request on a connection of its own, for `/item/1` and so on.
    OneEach,
    /// All requests one after another on one connection, for `/kept/1` and so on.
    OneForAll,
}

/// curl's options for the version of HTTP.
pub const HTTP_1: &str = "--http1.1";
/// HTTP/2 without asking first. (Debian's curl 7.88 cannot send two such requests on one connection.)
pub const HTTP_2: &str = "--http2-prior-knowledge";

/// What every call of curl begins with: no configuration file, and no proxy that the environment may name.
const CURL: &str = "curl -q -s --noproxy '*' --max-time 5";

/// `count` requests by curl.
pub fn curl(place: &Place, to: SocketAddr, version: &str, count: usize, connections: Connections) -> Result<Fetches> {
    let form = "%{http_code} %{remote_ip} %{remote_port} %{num_connects}\\n";
    // In a shell, as a script in a pod would do it.
    let output = shell(
        place,
        &match connections {
            Connections::OneEach => {
                format!("for i in $(seq {count}); do {CURL} {version} -w '{form}' http://{to}/item/$i; done")
            }
            Connections::OneForAll => format!("{CURL} {version} -w '{form}' 'http://{to}/kept/[1-{count}]'"),
        },
        CALL_TIMEOUT + Duration::from_secs(5) * u32::try_from(count).unwrap_or(u32::MAX),
    )?;
    Ok(fetches(&output, count))
}

/// What `curl -i` shows of one page.
pub fn curl_page(place: &Place, to: SocketAddr, path: &str) -> Result<String> {
    shell(place, &format!("{CURL} -i http://{to}{path}"), CALL_TIMEOUT)
}

/// The value of a header in what [`curl_page`] shows.
pub fn header<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let fields = page.lines().take_while(|line| !line.trim().is_empty()).filter_map(|line| line.split_once(':'));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// How a call was answered, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The HTTP status, 0 if there was none.
    pub status: u16,
    /// By the clock of [`now`], a moment after the answer.
    pub at: Duration,
}

/// Somebody who makes the same call again and again, each time on a connection of its own.
pub struct Asking(Process);

/// Starts him.
pub fn ask(place: &Place, to: SocketAddr, path: &str) -> Result<Asking> {
    let call = format!("{CURL} -o /dev/null -w '%{{http_code}} ' http://{to}{path}; date +%s%3N");
    let mut command = Command::new("sh");
    // The shell ends after a call, never within one.
    command.args(["-c", &format!("trap end=1 TERM; while [ -z \"$end\" ]; do {call}; done")]);
    Ok(Asking(place.spawn("asking", command)?))
}

impl Asking {
    /// The answers so far.
    pub fn answers(&self) -> Vec<Answered> {
        self.0.stdout().lines().filter_map(answered).collect()
    }

    /// All answers, after the last.
    pub fn finish(self) -> Result<Vec<Answered>> {
        let status = self.0.terminate(CALL_TIMEOUT)?;
        ensure!(status.success(), "the calls failed: {status}\n{}", self.0.tail());
        Ok(self.answers())
    }
}

/// Time since the epoch, as the programs in the pods tell it.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn answered(line: &str) -> Option<Answered> {
    let (status, at) = line.split_once(' ')?;
    Some(Answered { status: status.parse().ok()?, at: Duration::from_millis(at.parse().ok()?) })
}

fn shell(place: &Place, script: &str, timeout: Duration) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let process = place.spawn("curl", command)?;
    process.wait(timeout)?;
    Ok(process.stdout())
}

fn fetches(output: &str, count: usize) -> Fetches {
    let lines: Vec<&str> = output.lines().collect();
    let fetched: Vec<Fetched> = lines.windows(2).filter_map(|pair| fetch(pair[0], pair[1])).collect();
    let opened = |line: &&str| line.split(' ').nth(3)?.parse::<usize>().ok();
    Fetches { failed: count - fetched.len().min(count), connections: lines.iter().filter_map(opened).sum(), fetched }
}

fn fetch(page: &str, report: &str) -> Option<Fetched> {
    let (server, client) = page.split_once(' ')?;
    let mut report = report.strip_prefix("200 ")?.split(' ');
    Some(Fetched {
        server: server.to_owned(),
        client_seen: client.parse().ok()?,
        server_seen: SocketAddr::new(report.next()?.parse().ok()?, report.next()?.parse().ok()?),
    })
}

/// What one gRPC call showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub method: String,
    /// The status, by its name.
    pub code: String,
    /// Messages of the server.
    pub messages: u64,
    /// Which pod answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub client_seen: Option<IpAddr>,
    /// What the server said about an error.
    pub details: String,
}

/// Calls prices in three ways, over one channel.
pub fn call_prices(place: &Place, to: SocketAddr) -> Result<Vec<Call>> {
    let process = place.spawn("prices-client", python(PRICES, &["call", &to.to_string()])?)?;
    process.close_stdin();
    let status = process.wait(CALL_TIMEOUT)?;
    ensure!(status.success(), "the client of prices failed: {status}\n{}", process.tail());
    Ok(process.stdout().lines().filter_map(call).collect())
}

fn call(line: &str) -> Option<Call> {
    let told: Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    Some(Call {
        method: text("method"),
        code: text("code"),
        messages: told["messages"].as_u64()?,
        server: text("server"),
        client_seen: text("client_seen").parse().ok(),
        details: text("details"),
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
    Ok(Caller(place.spawn("ledger-client", python(LEDGER, &arguments.each_ref().map(String::as_str))?)?))
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
        let output = "web-1 10.77.1.10\n200 10.96.0.10 80 1\n000  0 0\nweb-2 10.77.1.10\n200 10.96.0.10 80 0\n\
                      The Service has\n503 10.96.0.10 80 1\n";
        let fetches = fetches(output, 4);
        // One failed before it was connected, one was answered 503.
        assert_eq!((fetches.failed, fetches.connections), (2, 2));
        let servers: Vec<&str> = fetches.fetched.iter().map(|fetched| fetched.server.as_str()).collect();
        assert_eq!(servers, ["web-1", "web-2"]);
        assert_eq!(fetches.fetched[0].server_seen, "10.96.0.10:80".parse().unwrap());
    }

    #[test]
    fn a_header_is_found_in_the_head_whatever_its_case() {
        let page = "HTTP/1.1 503 Service Unavailable\r\nX-Heddle-Reason: why\r\n\r\nafter: the head\n";
        assert_eq!(header(page, "x-heddle-reason"), Some("why"));
        assert_eq!(header(page, "after"), None);
    }

    #[test]
    fn answers_are_read_once_their_lines_are_whole() {
        let at = Duration::from_millis(1_700_000_000_123);
        assert_eq!(answered("403 1700000000123"), Some(Answered { status: 403, at }));
        assert_eq!(answered("000 1700000000123"), Some(Answered { status: 0, at }));
        assert_eq!(answered("403 "), None);
        assert_eq!(answered("40"), None);
    }

    #[test]
    fn calls_are_read_from_lines_of_json() {
        let line = r#"{"method": "Set", "code": "PERMISSION_DENIED", "messages": 0, "server": "prices-1", "client_seen": "10.0.0.1", "details": "no"}"#;
        let told = call(line).unwrap();
        assert_eq!((told.method.as_str(), told.code.as_str(), told.messages), ("Set", "PERMISSION_DENIED", 0));
        assert_eq!((told.server.as_str(), told.client_seen), ("prices-1", "10.0.0.1".parse().ok()));
        assert_eq!(call("Traceback"), None);
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
