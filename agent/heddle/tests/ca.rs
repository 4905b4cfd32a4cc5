//! `heddle ca` as a program: what it prints, what it refuses, and that it can be killed at any moment.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: web-1}
spec: {nodeName: node-a, serviceAccountName: web}
status: {podIPs: [{ip: 10.1.0.1}]}
";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn with_authority() -> Self {
        let place = Self::new();
        place.ca(&["init", "--trust-domain", "td"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
        command.arg("ca").args(arguments).arg("--dir").arg(self.path("ca")).current_dir(self.0.path());
        command
    }

    fn try_ca(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and must succeed; what it printed.
    fn ca(&self, arguments: &[&str]) -> String {
        let output = self.try_ca(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs and must fail; what it complained about, in one line.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.try_ca(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(output.stdout.is_empty(), "{arguments:?} printed something");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("heddle: ") && said.lines().count() == 1, "{said}");
        said
    }

    fn inspect(&self) -> serde_json::Value {
        serde_json::from_str(&self.ca(&["inspect", "-o", "json"])).unwrap()
    }

    fn serve(&self) -> Serving {
        fs::create_dir_all(self.path("objects")).unwrap();
        fs::write(self.path("objects/pods.yaml"), PODS).unwrap();
        let arguments = ["serve", "--source", "files:objects", "--listen", "127.0.0.1:0", "--address-file", "address"];
        let child = self.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Serving { child, address: "127.0.0.1:0".parse().unwrap() };
        until("it writes its address", || {
            assert!(serving.child.try_wait().unwrap().is_none(), "it has ended");
            self.path("address").exists()
        });
        serving.address = fs::read_to_string(self.path("address")).unwrap().trim().parse().unwrap();
        serving
    }
}

struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_authority_is_made_once_and_shown_without_secrets() {
    let place = Place::new();
    assert!(place.refused(&["inspect"]).contains("ca holds no authority: `heddle ca init` makes one"));
    place.ca(&["init", "--trust-domain", "td"]);
    assert!(place.refused(&["init"]).contains("holds an authority already"));
    let token = place.ca(&["token", "--node", "node-a"]);
    assert_eq!(token.trim().len(), 64, "{token}");
    place.ca(&["token", "--node", "node-b", "--out", "token-b"]);
    assert_eq!(fs::metadata(place.path("token-b")).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = [place.ca(&["inspect"]), place.ca(&["inspect", "-o", "json"])];
    let key = fs::read_to_string(place.path("ca/g1/root-key.pem")).unwrap();
    let secret_line = key.lines().nth(1).unwrap();
    for text in &shown {
        assert!(text.contains("node-a") && text.contains("node-b") && text.contains("steady"), "{text}");
        assert!(!text.contains(token.trim()) && !text.contains(secret_line), "{text}");
    }
    place.ca(&["token", "--node", "node-a", "--revoke"]);
    assert!(!place.ca(&["inspect"]).contains("node-a"));
    assert!(place.refused(&["token", "--node", "node-a", "--revoke"]).contains("node `node-a` has no token"));
    assert!(place.refused(&["token", "--node", "Node A"]).contains("node `Node A`: not a node's name"));
}

#[test]
fn a_rotation_goes_through_its_steps_and_not_too_early() {
    let place = Place::with_authority();
    let first = fs::read_to_string(place.path("ca/root.pem")).unwrap();
    assert!(place.refused(&["rotate", "activate"]).contains("the phase is `steady`; `activate` follows `prepared`"));
    assert!(place.ca(&["rotate", "prepare"]).contains("next: activate, in 864"));
    let both = fs::read_to_string(place.path("ca/root.pem")).unwrap();
    assert!(both.contains(&first) && both.len() > first.len());
    assert!(place.refused(&["rotate", "activate"]).contains("too early: `activate` must wait 864"));
    place.ca(&["rotate", "activate", "--force"]);
    place.ca(&["rotate", "finish", "--force"]);
    let second = fs::read_to_string(place.path("ca/root.pem")).unwrap();
    assert!(!second.contains(&first) && both.contains(&second));
    assert_eq!(place.inspect()["phase"], "steady");
}

#[test]
fn a_key_that_others_can_read_is_refused_by_every_command() {
    let place = Place::with_authority();
    place.serve();
    fs::set_permissions(place.path("ca/g1/root-key.pem"), Permissions::from_mode(0o644)).unwrap();
    let commands: [&[&str]; 3] =
        [&["inspect"], &["rotate", "prepare"], &["serve", "--source", "files:objects", "--listen", "127.0.0.1:0"]];
    for command in commands {
        let said = place.refused(command);
        assert!(said.contains("ca/g1/root-key.pem has mode 0644") && said.contains("chmod 600"), "{command:?}: {said}");
    }
    fs::set_permissions(place.path("ca/g1/root-key.pem"), Permissions::from_mode(0o600)).unwrap();
    place.ca(&["inspect"]);
}

#[test]
fn a_directory_that_others_rule_is_refused_by_every_command() {
    let place = Place::with_authority();
    fs::create_dir(place.path("objects")).unwrap();
    let commands: [&[&str]; 7] = [
        &["init"],
        &["inspect"],
        &["rotate", "prepare"],
        &["token", "--node", "node-a"],
        &["token", "--node", "node-a", "--out", "token"],
        &["token", "--node", "node-a", "--revoke"],
        &["serve", "--source", "files:objects", "--listen", "127.0.0.1:0"],
    ];
    fs::set_permissions(place.path("ca"), Permissions::from_mode(0o775)).unwrap();
    for command in commands {
        let said = place.refused(command);
        assert!(
            said.contains("ca has mode 0775: others than its owner may change what is in it"),
            "{command:?}: {said}"
        );
    }
    fs::set_permissions(place.path("ca"), Permissions::from_mode(0o755)).unwrap();
    fs::rename(place.path("ca"), place.path("real")).unwrap();
    std::os::unix::fs::symlink(place.path("real"), place.path("ca")).unwrap();
    for command in commands {
        assert!(place.refused(command).contains("ca: a symbolic link: name the directory itself"), "{command:?}");
    }
    fs::remove_file(place.path("ca")).unwrap();
    fs::rename(place.path("real"), place.path("ca")).unwrap();
    assert!(!place.path("token").exists());
    place.ca(&["token", "--node", "node-a", "--out", "token"]);
    place.ca(&["inspect"]);
}

#[test]
fn a_tokens_file_is_kept_if_no_new_one_can_be_made() {
    let place = Place::with_authority();
    let token = ["token", "--node", "node-a", "--out", "token"];
    place.ca(&token);
    let former = fs::read(place.path("token")).unwrap();
    let nodes = place.path("ca/nodes.json");
    fs::set_permissions(&nodes, Permissions::from_mode(0o644)).unwrap();
    assert!(place.refused(&token).contains("ca/nodes.json has mode 0644"));
    assert_eq!(fs::read(place.path("token")).unwrap(), former);
    fs::set_permissions(&nodes, Permissions::from_mode(0o600)).unwrap();
    // Whatever the file was before.
    fs::set_permissions(place.path("token"), Permissions::from_mode(0o644)).unwrap();
    place.ca(&token);
    assert_ne!(fs::read(place.path("token")).unwrap(), former);
    assert_eq!(fs::metadata(place.path("token")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The authority serves while the root's key lies in a safe, and takes it from there when it needs one.
#[test]
fn a_roots_key_can_be_kept_elsewhere() {
    let place = Place::with_authority();
    fs::rename(place.path("ca/g1/root-key.pem"), place.path("root-key.pem")).unwrap();
    let serving = place.serve();
    TcpStream::connect(serving.address).unwrap();
    drop(serving);
    assert!(place.refused(&["rotate", "intermediate"]).contains("g1/root-key.pem is not here: give the root"));
    let root = ["--from-root-cert", "ca/root.pem", "--from-root-key", "root-key.pem"];
    place.ca(&[&["rotate", "intermediate"], &root[..]].concat());
    assert!(!place.path("ca/g2/root-key.pem").exists(), "it stays where it is kept");
    assert_eq!(place.inspect()["generations"][0]["generation"], 2);
    assert!(place.refused(&[&["rotate", "cancel"], &root[..]].concat()).contains("`cancel` takes no root"));
}

#[test]
fn it_serves_until_it_is_told_to_end() {
    let place = Place::with_authority();
    let mut serving = place.serve();
    let mut stream = TcpStream::connect(serving.address).unwrap();
    stream.write_all(b"no TLS").unwrap();
    // When it answers it hears signals too: its address is there a little earlier.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let ended = stream.read_to_end(&mut Vec::new());
    assert!(ended.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::ConnectionReset), "{ended:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(serving.child.id().cast_signed()), nix::sys::signal::SIGTERM)
        .unwrap();
    let mut status = None;
    until("it ends", || {
        status = serving.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
    assert!(place.refused(&["serve", "--source", "files:nowhere", "--listen", "127.0.0.1:0"]).contains("nowhere"));
}

/// SIGKILL at moments spread over the run of each command: whatever was reached, the authority can be read, and the step be taken (again).
#[test]
fn commands_killed_at_any_moment_leave_an_authority() {
    let place = Place::with_authority();
    let mut reached = std::collections::BTreeSet::new();
    let mut killed = 0;
    for round in 0..90_u32 {
        let phase = place.inspect()["phase"].as_str().unwrap().to_owned();
        let step = match &*phase {
            "steady" => "prepare",
            "prepared" => "activate",
            _ => "finish",
        };
        let mut command = place.command(&["rotate", step, "--force"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From before it has begun until after it has ended.
        std::thread::sleep(Duration::from_micros(u64::from(round % 30) * 500));
        let _ = child.kill();
        killed += usize::from(!child.wait().unwrap().success());
        let after = place.inspect();
        reached.insert((phase, after["phase"].as_str().unwrap().to_owned()));
        assert!(after["generations"].as_array().is_some_and(|all| (1..=2).contains(&all.len())));
    }
    assert!(killed > 20, "killed {killed} of 90");
    // And what was left behind is cleared by the next.
    let step = match place.inspect()["phase"].as_str().unwrap() {
        "steady" => "prepare",
        "prepared" => "activate",
        _ => "finish",
    };
    place.ca(&["rotate", step, "--force"]);
    let generations = place.inspect()["generations"].as_array().unwrap().len();
    let left: Vec<_> = fs::read_dir(place.path("ca")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4 + generations, "{left:?}");
}
