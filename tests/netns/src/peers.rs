//! Programs of other people in a pod: started, waited for, run to their end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::{envoy, program, python};
use nix::sys::signal::Signal;

/// How long a peer may take to start, and a client to do all it does.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs curl in a place to its end and returns what it printed.
///
/// # Errors
/// It is not installed, or fails; the error shows its output.
pub fn curl(from: &Place, arguments: &[&str]) -> Result<String> {
    let mut command = program("curl", "curl")?;
    command.args(["--silent", "--show-error", "--max-time", "20"]).args(arguments);
    run(from, "curl", command).with_context(|| format!("curl {arguments:?}"))
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, does not end in time, or fails; the error shows its output.
pub fn run(from: &Place, what: &str, command: Command) -> Result<String> {
    let process = from.spawn(what, command)?;
    process.close_stdin();
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{what}: {status}\n{}", process.tail());
    Ok(process.stdout())
}

/// A script of `tests/netns/peers`, with the packages it needs.
///
/// # Errors
/// The packages cannot be had.
pub fn script(name: &str, packages: &[&str]) -> Result<Command> {
    let mut command = python(packages)?;
    // Byte code of peers would be written into the tree.
    command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name));
    Ok(command)
}

/// Runs a client script to its end and returns what it printed. Its last line is that all is well.
///
/// # Errors
/// Something is not well; the error shows its output.
pub fn run_script(from: &Place, name: &str, packages: &[&str], arguments: &[&str]) -> Result<String> {
    let mut command = script(name, packages)?;
    command.args(arguments);
    let printed = run(from, name, command)?;
    ensure!(printed.ends_with("all is well\n"), "{name} printed {printed}");
    Ok(printed)
}

/// Starts a server and returns when it listens on `ports`.
///
/// # Errors
/// It ends, or does not listen in time; the error shows its output.
pub fn serve(place: &Place, what: &str, command: Command, ports: &[u16]) -> Result<Process> {
    let process = place.spawn(what, command)?;
    wait_for(&format!("{what} listens on {ports:?}"), PATIENCE, || {
        ensure!(process.is_running(), "{what} has ended");
        let listeners = place.listeners()?;
        Ok(ports.iter().all(|port| listeners.iter().any(|l| l.port() == *port)).then_some(()))
    })
    .with_context(|| process.tail())?;
    Ok(process)
}

/// Starts a server script that takes its port as argument.
///
/// # Errors
/// As [`serve`].
pub fn serve_script(place: &Place, name: &str, packages: &[&str], port: u16) -> Result<Process> {
    let mut command = script(name, packages)?;
    command.arg(port.to_string());
    serve(place, name, command, &[port])
}

/// Hypercorn with the application of `peers/asgi_app.py`: HTTP/1.1, HTTP/2 by prior knowledge, WebSocket over both.
///
/// # Errors
/// As [`serve`].
pub fn hypercorn(place: &Place, port: u16) -> Result<Process> {
    let mut command = python(&["hypercorn", "wsproto", "h2"])?;
    command.args(["-B", "-m", "hypercorn", "--bind", &format!("[::]:{port}"), "asgi_app:app"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers"));
    serve(place, "hypercorn", command, &[port])
}

/// nginx in a pod, with HTTP/1 on 8080 and HTTP/2 (prior knowledge) on 8082. `/who` tells client, version and host,
/// `/big` is 3 MiB, `/post` tells the length of what it was sent.
///
/// # Errors
/// As [`serve`].
pub fn nginx(pod: &Place, directory: &Path) -> Result<Process> {
    fs::create_dir_all(directory.join("logs"))?;
    fs::write(directory.join("big"), vec![b'x'; 3 << 20])?;
    fs::write(
        directory.join("nginx.conf"),
        "daemon off; worker_processes 1; error_log stderr; pid nginx.pid; user root;\n\
         events { worker_connections 256; }\n\
         http { access_log off; client_max_body_size 10m; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
         keepalive_requests 100000;\n\
         server { listen 8080; listen [::]:8080; listen 8082 http2; listen [::]:8082 http2; root .;\n\
         location /who { return 200 \"$remote_addr $server_protocol $http_host\\n\"; }\n\
         location /post { proxy_pass http://127.0.0.1:8081; } }\n\
         server { listen 127.0.0.1:8081; location / { return 201 \"$content_length\\n\"; } } }\n",
    )?;
    let mut command = program("nginx", "nginx")?;
    command.arg("-p").arg(directory).arg("-c").arg(directory.join("nginx.conf"));
    serve(pod, "nginx", command, &[8080, 8082])
}

/// hey under way: requests until it is told to stop.
#[derive(Debug)]
pub struct Hey {
    process: Process,
}

/// Starts hey in a place, with more of its words.
///
/// # Errors
/// It is not installed.
pub fn hey(from: &Place, words: &[&str], url: &str) -> Result<Hey> {
    let mut command = program("hey", "hey")?;
    command.args(["-z", "600s"]).args(words).arg(url);
    Ok(Hey { process: from.spawn("hey", command)? })
}

impl Hey {
    /// Stops it; how many requests it made. All of them were answered 200.
    ///
    /// # Errors
    /// One was not; the error shows its report.
    pub fn finish(self) -> Result<u64> {
        ensure!(self.process.is_running(), "it has ended early\n{}", self.process.tail());
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(PATIENCE)?;
        let printed = self.process.stdout();
        let number = |line: &str| line.trim().strip_prefix("[200]\t")?.split(' ').next()?.parse::<u64>().ok();
        let answered = printed.lines().find_map(number).with_context(|| printed.clone())?;
        let is_all = !printed.contains("Error distribution") && printed.matches(" responses").count() == 1;
        ensure!(is_all, "not every request was answered 200:\n{printed}");
        Ok(answered)
    }
}

/// Envoy with a configuration of `tests/netns/peers`, in which each key of `words` is replaced by its value. Returns when it listens on
/// `ports`.
///
/// # Errors
/// As [`serve`].
pub fn start_envoy(
    place: &Place,
    directory: &Path,
    configuration: &str,
    words: &[(&str, &str)],
    ports: &[u16],
) -> Result<Process> {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(configuration);
    let mut text = fs::read_to_string(&template).with_context(|| format!("read {}", template.display()))?;
    for (word, value) in words {
        text = text.replace(word, value);
    }
    let path = directory.join(configuration);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let mut command = envoy()?;
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    // Its access log is read while it runs.
    command.args(["--file-flush-interval-msec", "20", "--config-path"]).arg(path);
    serve(place, "envoy", command, ports)
}
