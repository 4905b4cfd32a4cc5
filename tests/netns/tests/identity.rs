//! Certificates of a node's accounts (FEATURES B1): who has one, that a restarted agent has them without asking anybody, that keys stay
//! in memory, and what `heddle certs` and `heddle check` say.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keys;
use heddle_proto::keeper::v1::Role;
use heddle_testkit::pki::spiffe_id;
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{files_below, status_field};
use heddle_tests_netns::SOON;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Rows of `heddle certs` by id.
fn certs(node: &Node) -> Result<BTreeMap<String, Value>> {
    let answer = node.json(&["certs"])?;
    ensure!(answer["enabled"] == true && answer["trust_domain"] == "cluster.local", "{answer}");
    let rows = answer["certificates"].as_array().context("no certificates in the answer")?;
    Ok(rows.iter().map(|row| (row["id"].as_str().unwrap_or_default().to_owned(), row.clone())).collect())
}

/// Waits until exactly these accounts have a valid certificate; their serial numbers.
fn wait_certified(node: &Node, accounts: &[&str]) -> Result<BTreeMap<String, String>> {
    let wanted: Vec<String> = accounts.iter().map(|account| spiffe_id("shop", account)).collect();
    let mut last = None;
    wait_for(&format!("{accounts:?} have certificates"), SOON, || {
        let rows = certs(node)?;
        let all =
            rows.len() == wanted.len() && wanted.iter().all(|id| rows.get(id).is_some_and(|r| r["state"] == "valid"));
        let serials = rows.iter().map(|(id, row)| (id.clone(), row["serial"].as_str().unwrap_or_default().to_owned()));
        let serials = all.then(|| serials.collect());
        last = Some(rows);
        Ok(serials)
    })
    .with_context(|| format!("heddle certs says {last:?}"))
}

/// Names and findings of failed checks.
fn failed_checks(node: &Node) -> Result<Vec<(String, String)>> {
    let answer = node.heddle(&["check", "-o", "json"])?;
    let report: Value = serde_json::from_str(&answer.stdout).with_context(|| format!("{answer:?}"))?;
    let items = report["items"].as_array().context("no items")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items.iter().filter(|i| i["ok"] != true).map(|i| (text(&i["name"]), text(&i["detail"]))).collect())
}

/// A request's worth of traffic, and by what the two agents carried it.
fn transport(client: &Pod, server: &Pod, node: &Node) -> Result<(String, String, String)> {
    let held = client.hold(&dial(server.v4(), 8080), 1)?;
    ensure!(held.ping()? == (1, 0), "it does not carry\n{}", held.tail());
    let connections = node.connections()?;
    let outbound = |c: &&Value| c["direction"] == "outbound" && c["source"] == format!("shop/{}", client.name());
    let newest = connections.iter().filter(outbound).max_by_key(|c| c["started"].as_str());
    let found = newest.with_context(|| format!("{connections:?}"))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("transport"), text("source_principal"), text("destination_principal")))
}

fn mesh(test: &str) -> Result<Mesh> {
    Mesh::declare(test)
        .with_ca()
        .node("a")
        .pod("client")
        .pod("plain")
        .unmeshed()
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start()
}

fn secured(mesh: &Mesh) -> Result<()> {
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let (way, source, destination) = transport(client, web, mesh.node("a"))?;
    let expected = (spiffe_id("shop", "client"), spiffe_id("shop", "web"));
    ensure!(way == "heddle" && (&source, &destination) == (&expected.0, &expected.1), "{way} {source} {destination}");
    Ok(())
}

#[test]
fn accounts_with_a_pod_here_have_certificates_and_nobody_else() -> Result<()> {
    let mesh = mesh("certs")?;
    let (a, b, client) = (mesh.node("a"), mesh.node("b"), mesh.pod("client"));
    wait_certified(a, &["client"])?;
    wait_certified(b, &["web"])?;
    assert_eq!(failed_checks(a)?, [], "all is well");
    let row = certs(a)?.remove(&spiffe_id("shop", "client")).context("the row")?;
    for field in ["serial", "not_before", "not_after", "issuer", "due"] {
        ensure!(row[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {row}");
    }
    let table = a.heddle(&["certs"])?.stdout;
    for word in ["spiffe://cluster.local/ns/shop/sa/client", "valid", &mesh.ca().address().to_string()] {
        ensure!(table.contains(word), "{word} is not in\n{table}");
    }
    let metrics = a.metrics()?;
    for sample in [
        "heddle_certificates{state=\"valid\"} 1",
        "heddle_certificate_not_after_timestamp_seconds{identity=\"spiffe://cluster.local/ns/shop/sa/client\"}",
        "heddle_tls_handshakes_total{side=\"client\"}",
    ] {
        ensure!(metrics.contains(sample), "{sample} is not in\n{metrics}");
    }
    let identity = a.json(&["status"])?["identity"].to_string();
    ensure!(identity.contains("1 of 1 accounts"), "{identity}");
    secured(&mesh)?;

    mesh.pod("plain").join_mesh()?;
    wait_certified(a, &["client", "plain"])?;
    client.leave_mesh()?;
    wait_certified(a, &["plain"])?;
    client.join_mesh()?;
    wait_certified(a, &["client", "plain"])?;
    a.wait_enrolled(client, SOON)?;
    secured(&mesh)
}

#[test]
fn a_restarted_agent_serves_without_an_authority() -> Result<()> {
    let mesh = mesh("restored")?;
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    let before = (wait_certified(a, &["client"])?, wait_certified(b, &["web"])?);
    wait_kept(a)?;
    wait_kept(b)?;
    mesh.ca().kill()?;
    for node in [a, b] {
        node.kill_agent()?;
        node.start_agent()?;
    }
    // Not a moment later: ready means that it serves.
    secured(&mesh)?;
    assert_eq!((wait_certified(a, &["client"])?, wait_certified(b, &["web"])?), before, "the same certificates");

    // A keeper that is killed has nothing any more: the agent gives it the keys again.
    a.end_keeper(Signal::SIGKILL)?;
    a.start_keeper()?;
    wait_kept(a)?;
    a.kill_agent()?;
    a.start_agent()?;
    secured(&mesh)?;

    // Control: it was the keeper's memory. Without it there is no certificate, and everybody is told why.
    a.kill_agent()?;
    a.end_keeper(Signal::SIGKILL)?;
    a.start_agent()?;
    let id = spiffe_id("shop", "client");
    wait_until("the certificate is missing", SOON, || certs(a).is_ok_and(|rows| rows[&id]["failures"] != 0))?;
    let failed = failed_checks(a)?;
    for name in [&format!("certificate {id}"), "certificate authority"] {
        ensure!(failed.iter().any(|(found, _)| found == name), "{name} is not in {failed:?}");
    }
    ensure!(secured(&mesh).is_err(), "carried without a certificate");
    mesh.ca().start()?;
    wait_certified(a, &["client"])?;
    secured(&mesh)
}

/// A rollback: the keeper holds what a newer agent gave it. An agent that cannot read it, and gets nothing from the authority, leaves it to
/// the next.
#[test]
fn keys_that_an_agent_cannot_read_are_left_to_the_next() -> Result<()> {
    let mesh = mesh("unread")?;
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    wait_certified(a, &["client"])?;
    wait_certified(b, &["web"])?;
    wait_kept(a)?;
    let good = kept(a)?;
    mesh.ca().kill()?;
    a.kill_agent()?;
    let give = |bytes: &[u8]| -> Result<()> {
        let memory = keys::seal(bytes)?;
        Ok(KeeperClient::connect(&a.paths().run, Role::Agent, "test")?.put_keys(memory.as_fd())?)
    };
    let mut newer = good.clone();
    // After the magic stands the version.
    newer[9] += 1;
    give(&newer)?;
    a.start_agent()?;
    let id = spiffe_id("shop", "client");
    wait_until("it has no certificate, and asks", SOON, || certs(a).is_ok_and(|rows| rows[&id]["failures"] != 0))?;
    ensure!(a.agent_log().contains("key memory of version"), "it says why: {}", a.agent_tail());
    // An account that comes or goes is a reason to give the keeper the keys, were there any.
    mesh.pod("plain").join_mesh()?;
    a.wait_enrolled(mesh.pod("plain"), SOON)?;
    mesh.pod("plain").leave_mesh()?;
    a.wait_state(mesh.pod("plain"), "not_in_mesh", SOON)?;
    // It would give what it has 100 ms after a change, and looks whether roots have changed every two seconds.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(kept(a)? == newer, "what it could not read is gone");

    // Positive control: with what it can read it serves without an authority.
    a.kill_agent()?;
    give(&good)?;
    a.start_agent()?;
    secured(&mesh)?;
    // And what the authority has signed since takes the place of what could not be read.
    a.kill_agent()?;
    give(&newer)?;
    a.start_agent()?;
    mesh.ca().start()?;
    wait_certified(a, &["client"])?;
    wait_kept(a)?;
    wait_until("the keeper holds the new keys", SOON, || {
        kept(a).is_ok_and(|bytes| bytes != newer && bytes[9] == good[9])
    })
}

/// What the keeper holds of this node.
fn kept(node: &Node) -> Result<Vec<u8>> {
    let held = KeeperClient::connect(&node.paths().run, Role::Agent, "test")?.get_keys()?;
    Ok(keys::read(held.context("no keys are kept")?)?.to_vec())
}

/// Waits until the keeper holds a certificate for each account of the node.
fn wait_kept(node: &Node) -> Result<()> {
    let all = |bytes: &[u8]| -> Result<bool> {
        let rows = certs(node)?;
        Ok(rows.keys().all(|id| bytes.windows(id.len()).any(|window| window == id.as_bytes())))
    };
    wait_for("the keeper holds the keys", SOON, || {
        let bytes = kept(node).unwrap_or_default();
        Ok((!bytes.is_empty() && all(&bytes)?).then_some(()))
    })
}

/// The secret numbers of P-256 keys in PKCS#8 (RFC 5915): 32 bytes after `INTEGER 1, OCTET STRING of 32`.
fn secrets(bytes: &[u8]) -> Vec<Vec<u8>> {
    const BEFORE: &[u8] = &[0x02, 0x01, 0x01, 0x04, 0x20];
    let found = bytes.windows(BEFORE.len() + 32).filter(|window| window.starts_with(BEFORE));
    found.map(|window| window[BEFORE.len()..].to_vec()).collect()
}

#[test]
fn keys_are_in_memory_only() -> Result<()> {
    let mesh = mesh("memory")?;
    let node = mesh.node("a");
    wait_certified(node, &["client"])?;
    wait_kept(node)?;
    secured(&mesh)?;
    let secrets = secrets(&kept(node)?);
    ensure!(secrets.len() == 1, "positive control: the key is recognised where it is ({} found)", secrets.len());
    let secret = &secrets[0];
    let hex = secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let paths: Vec<PathBuf> = [node.paths().run.parent().context("the mesh's directory")?, &node.paths().source]
        .iter()
        .map(|directory| files_below(directory))
        .collect::<Result<Vec<_>>>()?
        .concat();
    ensure!(paths.iter().any(|path| path.extension().is_some_and(|e| e == "err")), "logs are among them: {paths:?}");
    for path in &paths {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        ensure!(!bytes.windows(16).any(|window| window == &secret[8..24]), "key in {}", path.display());
        ensure!(!text.contains(&hex[16..48]), "key in {}", path.display());
    }
    for command in [&["certs", "-o", "json"][..], &["status"], &["connections", "-o", "json"], &["check"]] {
        let answer = node.heddle(command)?.stdout.to_ascii_lowercase();
        ensure!(!answer.contains(&hex[16..48]) && !answer.contains("private"), "{command:?} shows a key: {answer}");
    }
    // What may not be dumped belongs to root in /proc, whoever it runs as.
    let process = format!("/proc/{}/environ", node.agent_pid()?);
    ensure!(fs::metadata(&process)?.uid() == 0, "the agent can be dumped");
    let runs_as = status_field(node.agent_pid()?, "Uid")?;
    ensure!(runs_as.starts_with("65532"), "positive control: {runs_as}");
    let locked = status_field(node.keeper_pid()?, "VmLck")?;
    ensure!(locked.trim() != "0 kB", "the keeper's key memory is not locked: {locked}");
    Ok(())
}

#[test]
fn a_new_agent_takes_over_identities_under_load() -> Result<()> {
    let mesh = Mesh::declare("identity_takeover")
        .with_ca()
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080).quiet())
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    wait_kept(node)?;
    wait_kept(mesh.node("b"))?;
    secured(&mesh)?;
    mesh.ca().kill()?;
    let load = client.start_client(&dial(web.v4(), 8080).rate(100, Duration::from_secs(4)))?;
    wait_until("the load runs", SOON, || web.server(0).stats().is_ok_and(|s| s.accepted > 50))?;
    let mut said = Vec::new();
    for node in mesh.nodes() {
        let old = node.replace_agent()?;
        let status = old.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "the old agent ended with {status}\n{}", old.tail());
        said.push(old.stdout() + &old.stderr());
    }
    ensure!(load.is_running(), "positive control: replaced while the load ran");
    load.finish()?.assert_succeeded().with_context(|| {
        let now = mesh.nodes().iter().flat_map(Node::access_log).map(|record| record.to_string());
        let unusual = |line: &String| !line.contains("\"reason\":\"completed\"");
        let lines = said.iter().flat_map(|text| text.lines().map(ToOwned::to_owned)).chain(now);
        lines.filter(unusual).collect::<Vec<_>>().join("\n")
    })?;
    secured(&mesh)
}

#[test]
fn another_trust_domain_is_refused_while_the_agent_runs() -> Result<()> {
    let mesh = mesh("domain")?;
    let node = mesh.node("a");
    wait_certified(node, &["client"])?;
    wait_certified(mesh.node("b"), &["web"])?;
    let object = |domain: &str| {
        serde_json::json!({
            "apiVersion": "heddle.dev/v1alpha1",
            "kind": "Mesh",
            "metadata": {"name": "default"},
            "spec": {"trustDomain": domain},
        })
    };
    mesh.source().write("mesh.yaml", &[object("example.org")])?;
    wait_until("check says so", SOON, || {
        failed_checks(node)
            .is_ok_and(|f| f.iter().any(|(name, found)| name == "trust domain" && found.contains("example.org")))
    })?;
    wait_certified(node, &["client"])?;
    secured(&mesh)?;
    mesh.source().write("mesh.yaml", &[object("cluster.local")])?;
    wait_until("all is well again", SOON, || failed_checks(node).is_ok_and(|f| f.is_empty()))
}

/// Writes another service account into a pod's object, as it stands.
fn set_account(mesh: &Mesh, pod: &str, account: &str) -> Result<()> {
    let file = files_below(mesh.source().directory())?.into_iter().find_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        let is_it = text.contains("serviceAccountName") && text.contains(&format!("pod-{pod}"));
        is_it.then_some((path, text))
    });
    let (path, text) = file.with_context(|| format!("no file of pod {pod}"))?;
    let line = text.lines().find(|line| line.contains("serviceAccountName")).context("the field")?;
    let indent = &line[..line.len() - line.trim_start().len()];
    let text = text.replace(line, &format!("{indent}serviceAccountName: {account}"));
    let name = path.file_name().and_then(|name| name.to_str()).context("its name")?;
    mesh.source().write_text(name, &text)
}

#[test]
fn a_certificate_is_kept_until_the_last_pod_of_its_account_leaves() -> Result<()> {
    let mesh = Mesh::declare("accounts")
        .with_ca()
        .node("a")
        .pod("client")
        .pod("second")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (node, client, second) = (mesh.node("a"), mesh.pod("client"), mesh.pod("second"));
    wait_certified(node, &["client", "second"])?;
    secured(&mesh)?;
    // The same pod under another account: accepted for anew, with connections from before going on.
    let held = client.hold(&dial(mesh.pod("web").v4(), 8080), 1)?;
    set_account(&mesh, "client", "second")?;
    wait_until("its connections are the other account's", SOON, || {
        transport(client, mesh.pod("web"), node)
            .is_ok_and(|(way, source, _)| way == "heddle" && source == spiffe_id("shop", "second"))
    })?;
    ensure!(held.ping()? == (1, 0), "a connection from before has ended\n{}", held.tail());
    wait_certified(node, &["client", "second"]).context("what a connection from before needs")?;
    held.close()?;
    let shared = wait_certified(node, &["second"])?;
    second.leave_mesh()?;
    node.wait_state(second, "not_in_mesh", SOON)?;
    assert_eq!(wait_certified(node, &["second"])?, shared, "one pod has it still");
    client.leave_mesh()?;
    wait_certified(node, &[]).map(drop)
}

/// How many roots of the mesh's trust domain an agent trusts.
fn roots(node: &Node) -> Result<u64> {
    let answer = node.json(&["certs"])?;
    answer["bundles"][0]["roots"].as_u64().with_context(|| answer.to_string())
}

#[test]
fn roots_told_in_a_rotation_outlive_the_agent() -> Result<()> {
    let mesh = mesh("roots")?;
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    wait_certified(a, &["client"])?;
    wait_certified(b, &["web"])?;
    secured(&mesh)?;
    assert_eq!((roots(a)?, roots(b)?), (1, 1), "positive control");
    mesh.ca().rotate(&["prepare"])?;
    // The authority is asked every 20 s or so; no certificate is due.
    for node in [a, b] {
        wait_until("the new root is trusted", SOON * 8, || roots(node).is_ok_and(|count| count == 2))?;
    }
    // Long enough for the keeper to be given them.
    let told = |bytes: &[u8]| bytes.windows(8).any(|window| window == b"HEDDLEID");
    wait_for("the keeper holds them", SOON, || {
        let bytes = kept(a)?;
        // Two roots before the export, of which each is some hundred bytes: the count is after the domain's name.
        let at = bytes.windows(13).position(|window| window == b"cluster.local").map(|at| at + 13);
        Ok((told(&bytes) && at.is_some_and(|at| bytes[at..at + 2] == [0, 2])).then_some(()))
    })?;
    mesh.ca().kill()?;
    a.kill_agent()?;
    a.start_agent()?;
    assert_eq!(roots(a)?, 2, "forgotten with the agent");
    secured(&mesh)
}
