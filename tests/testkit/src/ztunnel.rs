//! ztunnel, the node proxy of Istio's ambient mode, where `ZTUNNEL_BIN` names one: one for each pod that wants it (its "dedicated" mode), with
//! certificates from the mesh's own CA by Istio's protocol, and workloads from a file.
//!
//! An application reaches it by SOCKS5 on 127.0.0.1:15080; from outside it takes HBONE on 15008. It is in no package registry: without the
//! variable its tests say that they prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::process::Process;
use crate::wait::wait_for;

/// Names the binary.
pub const VARIABLE: &str = "ZTUNNEL_BIN";
/// Where applications of its pod reach it, on loopback.
pub const SOCKS5_PORT: u16 = 15080;
const HBONE_PORT: u16 = 15008;
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The binary, where one is given.
#[must_use]
pub fn binary() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Starts one in a pod, for it alone; returns when it takes HBONE and SOCKS5. `reaches` are the pods it knows, all by HBONE. The pod's
/// node has to be one without an agent: the token of the node is ztunnel's then.
///
/// # Errors
/// It does not come up; the error shows its output.
pub fn start(binary: &Path, mesh: &Mesh, pod: &Pod, reaches: &[&Pod]) -> anyhow::Result<Process> {
    let (ca, node) = (mesh.ca(), mesh.node_of(pod));
    let token = node.agent_arguments().iter().skip_while(|word| *word != "--ca-token-file").nth(1);
    let token = token.with_context(|| format!("node {} has no token", node.name()))?;
    let roots = ca.credentials().join(format!("{}-ztunnel-roots.pem", pod.name()));
    fs::write(&roots, ca.authority().root_pem()).with_context(|| format!("write {}", roots.display()))?;
    let workloads = ca.credentials().join(format!("{}-ztunnel.yaml", pod.name()));
    // JSON, which is YAML.
    fs::write(&workloads, local_configuration(pod, reaches).to_string())
        .with_context(|| format!("write {}", workloads.display()))?;
    let mut command = Command::new(binary);
    command.env("PROXY_MODE", "dedicated").env("LOCAL_XDS_PATH", &workloads).env("XDS_ADDRESS", "");
    command.env("PROXY_WORKLOAD_INFO", format!("{}/{}/{}", pod.namespace(), pod.name(), pod.name()));
    command.env("CA_ADDRESS", format!("https://{}", ca.address())).env("CA_ROOT_CA", &roots).env("AUTH_TOKEN", token);
    command.env("UNSTABLE_ENABLE_SOCKS5", "true").env("ENABLE_ORIG_SRC", "false").env("NODE_NAME", node.name());
    command.env("ZTUNNEL_WORKER_THREADS", "1").env("RUST_LOG", "info");
    let ztunnel = pod.spawn("ztunnel", command)?;
    wait_for("ztunnel listens", START_TIMEOUT, || {
        if let Some(status) = ztunnel.status() {
            bail!("ztunnel has ended: {status}");
        }
        let listeners = pod.listeners()?;
        let listens = |port: u16| listeners.iter().any(|address| address.port() == port);
        Ok((listens(HBONE_PORT) && listens(SOCKS5_PORT)).then_some(()))
    })
    .with_context(|| ztunnel.tail())?;
    Ok(ztunnel)
}

fn local_configuration(own: &Pod, reaches: &[&Pod]) -> Value {
    let workload = |pod: &Pod| {
        json!({
            "uid": format!("Kubernetes//Pod/{}/{}", pod.namespace(), pod.name()),
            "name": pod.name(),
            "namespace": pod.namespace(),
            "serviceAccount": pod.name(),
            "workloadIps": pod.addresses(),
            "protocol": "HBONE",
            "node": pod.node_name(),
            "network": "",
            "services": {},
        })
    };
    let all: Vec<Value> = std::iter::once(own).chain(reaches.iter().copied()).map(workload).collect();
    json!({"workloads": all, "policies": [], "services": []})
}
