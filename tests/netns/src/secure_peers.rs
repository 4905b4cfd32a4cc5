//! Peers that speak mutual TLS: an independent client and server of HBONE, and Envoy as both.
//!
//! The client also plays every attacker: what it does wrong is said in its words, so that an attack and its positive control differ in
//! one word.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{Credential, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use serde_json::Value;

use crate::exposition::{scrape, sum};
use crate::peers::{PATIENCE, script, serve, start_envoy};
use crate::{HBONE_PORT, SOON};

/// A client of mutual TLS and HTTP/2, `peers/mtls_client.py`.
#[derive(Clone, Debug)]
pub struct MtlsClient {
    words: Vec<String>,
}

/// A client of this address, with this credential, that wants the server to be of the same root. It speaks ALPN `h2` unless told otherwise.
#[must_use]
pub fn mtls_client(to: SocketAddr, credential: &Credential) -> MtlsClient {
    let path = |path: &Path| path.display().to_string();
    let words = [
        to.to_string(),
        "--chain".to_owned(),
        path(&credential.chain),
        "--key".to_owned(),
        path(&credential.key),
        "--roots".to_owned(),
        path(&credential.root),
    ];
    MtlsClient { words: words.into() }
}

/// What a client of mutual TLS saw; see `peers/mtls_client.py`.
#[derive(Clone, Debug)]
pub struct Told(pub Value);

impl MtlsClient {
    /// More of the script's words.
    #[must_use]
    pub fn with(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    /// The server must be this one.
    #[must_use]
    pub fn expects(self, id: &str) -> Self {
        self.with(&["--expect", id])
    }

    /// Other roots than those of its own certificate.
    #[must_use]
    pub fn trusts(self, roots: &Path) -> Self {
        let roots = roots.display().to_string();
        self.with(&["--roots", &roots])
    }

    /// A tunnel to this authority, through which it sends a text and wants it back.
    #[must_use]
    pub fn tunnel(self, authority: SocketAddr, text: &str) -> Self {
        let authority = authority.to_string();
        self.with(&["--authority", &authority, "--send", text])
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, from: &Place) -> Result<RunningClient> {
        let mut command = script("mtls_client.py", &["h2"])?;
        command.args(&self.words);
        Ok(RunningClient { process: from.spawn("mtls-client", command)? })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It does not end in time, or tells nothing.
    pub fn run(&self, from: &Place) -> Result<Told> {
        self.start(from)?.finish()
    }
}

/// A client under way.
#[derive(Debug)]
pub struct RunningClient {
    process: Process,
}

impl RunningClient {
    /// Waits until it has shaken hands, which it does when told `--wait-line`.
    ///
    /// # Errors
    /// It did not in time.
    pub fn wait_connected(&self) -> Result<()> {
        wait_until("the client has shaken hands", SOON, || self.process.stdout().contains("\"connected\""))
            .with_context(|| self.process.tail())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn go_on(&self) -> Result<()> {
        self.process.send_line("go on")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end in time, or tells nothing.
    pub fn finish(self) -> Result<Told> {
        let status = self.process.wait(PATIENCE)?;
        ensure!(status.success(), "{status}\n{}", self.process.tail());
        let printed = self.process.stdout();
        let last = printed.lines().last().with_context(|| self.process.tail())?;
        Ok(Told(serde_json::from_str(last).with_context(|| last.to_owned())?))
    }
}

impl Told {
    /// Its only stream.
    ///
    /// # Errors
    /// There is none or more than one.
    pub fn stream(&self) -> Result<&Value> {
        let streams = self.0["streams"].as_array().filter(|s| s.len() == 1);
        streams.and_then(|s| s.first()).with_context(|| format!("not one stream: {}", self.0))
    }

    /// Every stream was a tunnel that brought everything back and ended in order.
    ///
    /// # Errors
    /// One was not.
    pub fn assert_echoed(&self, text: &str) -> Result<()> {
        let streams = self.0["streams"].as_array().filter(|s| !s.is_empty()).with_context(|| self.0.to_string())?;
        for (index, stream) in streams.iter().enumerate() {
            let wanted = text.replace("{n}", &index.to_string());
            let is_good = stream["status"] == "200" && stream["body"] == wanted.as_str() && stream["end"] == "eof";
            ensure!(is_good, "stream {index} did not echo {wanted:?}: {}", self.0);
        }
        Ok(())
    }

    /// No stream was answered: the server did not accept the connection, or not for long.
    ///
    /// # Errors
    /// One was.
    pub fn assert_refused(&self) -> Result<()> {
        let streams = self.0["streams"].as_array().into_iter().flatten();
        let answered = streams.filter(|s| !s["status"].is_null()).count();
        let is_over = self.0["handshake"] != "ok" || self.0["end"] != "ours";
        ensure!(answered == 0 && is_over, "it is not refused: {}", self.0);
        Ok(())
    }

    /// The status of its only stream.
    ///
    /// # Errors
    /// There is no such stream.
    pub fn status(&self) -> Result<&str> {
        let stream = self.stream()?;
        stream["status"].as_str().with_context(|| format!("no status: {}", self.0))
    }
}

/// A server of HBONE, `peers/hbone_server.py`.
#[derive(Debug)]
pub struct HboneServer {
    process: Process,
}

/// Starts a server of HBONE on 15008 of this place, with more of the script's words.
///
/// # Errors
/// It does not come up.
pub fn hbone_server(place: &Place, credential: &Credential, words: &[&str]) -> Result<HboneServer> {
    let mut command = script("hbone_server.py", &["h2"])?;
    command.arg(HBONE_PORT.to_string()).arg("--chain").arg(&credential.chain).arg("--key").arg(&credential.key);
    command.arg("--roots").arg(&credential.root).args(words);
    Ok(HboneServer { process: serve(place, "hbone-server", command, &[HBONE_PORT])? })
}

impl HboneServer {
    /// What it has told so far.
    ///
    /// # Errors
    /// A line is no event.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = self.process.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// How many events of this kind there were.
    ///
    /// # Errors
    /// A line is no event.
    pub fn count(&self, event: &str) -> Result<usize> {
        Ok(self.events()?.iter().filter(|e| e["event"] == event).count())
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// None in time.
    pub fn wait(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(&format!("the server of HBONE tells {event}"), SOON, || {
            Ok(self.events()?.into_iter().find(|e| e["event"] == event && wanted(e)))
        })
        .with_context(|| self.process.tail())
    }
}

impl Deref for HboneServer {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Envoy as the server of HBONE in a pod: tunnels to two of the pod's own ports, for one client identity.
///
/// # Errors
/// It does not come up.
pub fn envoy_hbone_server(
    place: &Place,
    directory: &Path,
    credential: &Credential,
    client_id: &str,
    authorities: [SocketAddr; 2],
) -> Result<Process> {
    let words = [
        ("AUTHORITY_A", authorities[0].to_string()),
        ("AUTHORITY_B", authorities[1].to_string()),
        ("PORT_A", authorities[0].port().to_string()),
        ("PORT_B", authorities[1].port().to_string()),
        ("CLIENT_ID", client_id.to_owned()),
    ];
    envoy(place, directory, "envoy_hbone_server.yaml", credential, &words, &[HBONE_PORT])
}

/// Envoy as the client of HBONE in a pod: 10001 and 10002 of its loopback lead to two authorities of `server`.
///
/// # Errors
/// It does not come up.
pub fn envoy_hbone_client(
    place: &Place,
    directory: &Path,
    credential: &Credential,
    server: IpAddr,
    server_id: &str,
    authorities: [SocketAddr; 2],
) -> Result<Process> {
    let words = [
        ("AUTHORITY_A", authorities[0].to_string()),
        ("AUTHORITY_B", authorities[1].to_string()),
        ("SERVER_ID", server_id.to_owned()),
        ("SERVER", server.to_string()),
    ];
    envoy(place, directory, "envoy_hbone_client.yaml", credential, &words, &[10001, 10002])
}

fn envoy(
    place: &Place,
    directory: &Path,
    template: &str,
    credential: &Credential,
    words: &[(&str, String)],
    ports: &[u16],
) -> Result<Process> {
    let file = |path: &PathBuf| path.display().to_string();
    let files = [("CHAIN", file(&credential.chain)), ("KEY", file(&credential.key)), ("ROOTS", file(&credential.root))];
    let all: Vec<(&str, &str)> = words.iter().chain(&files).map(|(word, value)| (*word, value.as_str())).collect();
    start_envoy(place, directory, template, &all, ports)
}

/// Waits until the agents have certificates for all pods they have enrolled.
///
/// # Errors
/// One is missing in time; the error shows what the agent says.
pub fn wait_certified(mesh: &Mesh) -> Result<()> {
    for node in mesh.nodes() {
        for pod in node.pods() {
            if node.workload(pod)?.is_some_and(|w| w["capture"] == "enrolled") {
                wait_certificate(node, &id_of(pod))?;
            }
        }
    }
    Ok(())
}

/// Waits until the node's agent has a certificate for this identity.
///
/// # Errors
/// It has none in time; the error shows what it says.
pub fn wait_certificate(node: &Node, id: &str) -> Result<()> {
    let has = || {
        let samples = scrape(node).unwrap_or_default();
        sum(&samples, "heddle_certificate_not_after_timestamp_seconds", &[("identity", id)]) > 0.0
    };
    wait_until(&format!("node {} has a certificate for {id}", node.name()), PATIENCE, has)
        .with_context(|| node.agent_tail())
}

/// The identity of a pod: of the account named as the pod is.
#[must_use]
pub fn id_of(pod: &Pod) -> String {
    spiffe_id(&pod.namespace(), pod.name())
}

/// Handshakes a node's agent has completed so far, as `client` or as `server`.
///
/// # Errors
/// The agent does not answer.
pub fn handshakes(node: &Node, side: &str) -> Result<u64> {
    Ok(sum(&scrape(node)?, "heddle_tls_handshakes_total", &[("side", side)]) as u64)
}

/// Handshakes that failed for this reason: `expired` for `tls_expired`.
///
/// # Errors
/// The agent does not answer.
pub fn failed_handshakes(node: &Node, side: &str, reason: &str) -> Result<u64> {
    let labels = [("side", side), ("reason", &*format!("tls_{reason}"))];
    Ok(sum(&scrape(node)?, "heddle_tls_handshake_failures_total", &labels) as u64)
}

/// Waits for a record of both agents that names both identities and the transport, and satisfies `wanted`.
///
/// # Errors
/// One is missing in time; the error shows the log.
pub fn wait_identified(
    mesh: &Mesh,
    [client, server]: [&Pod; 2],
    transport: &str,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<()> {
    for node in [mesh.node_of(client), mesh.node_of(server)] {
        crate::wait_logged(node, &format!("{what} by {transport} with both identities"), |record| {
            record["transport"] == transport
                && record["source_principal"] == id_of(client)
                && record["destination_principal"] == id_of(server)
                && wanted(record)
        })?;
    }
    Ok(())
}
