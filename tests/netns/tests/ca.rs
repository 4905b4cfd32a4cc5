//! Istio's certificate service of our authority, asked by gRPC's own stack and checked by OpenSSL; and Istio's protocol between an agent
//! of ours and it (FEATURES B2). The other side of every chain here is not ours.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::spiffe_id;
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::SOON;
use heddle_tests_netns::peers::{run, script};
use serde_json::Value;

/// `web` on node a, `api` on node b.
fn mesh(test: &str) -> Result<Mesh> {
    Mesh::declare(test).with_ca().node("a").pod("web").node("b").pod("api").start()
}

/// An agent of another make that takes a node over: a place to work in, and the node's token.
struct Stranger<'a> {
    mesh: &'a Mesh,
    directory: PathBuf,
    token: String,
}

impl<'a> Stranger<'a> {
    fn of(mesh: &'a Mesh, node: &str) -> Result<Self> {
        let directory = mesh.ca().credentials().join(format!("stranger-{node}"));
        fs::create_dir(&directory)?;
        // What the node's own agent had counts no more.
        let token = mesh.ca().run(&["token", "--node", node])?.stdout.trim().to_owned();
        Ok(Self { mesh, directory, token })
    }

    /// What came back.
    fn ask(&self, token: &str, id: &str, more: &[&str]) -> Result<Value> {
        let ca = self.mesh.ca();
        let root = ca.directory().join("root.pem");
        let mut command = script("istio_ca_client.py", &["grpcio"])?;
        command.current_dir(&self.directory).arg(ca.address().to_string()).arg(root).args([token, id]).args(more);
        let printed = run(ca.place(), "istio_ca_client.py", command)?;
        serde_json::from_str(printed.trim()).with_context(|| printed.clone())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = program("openssl", "openssl")?;
        command.current_dir(&self.directory).args(arguments);
        run(self.mesh.ca().place(), "openssl", command)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.directory.join(name), text).with_context(|| name.to_owned())
    }
}

fn texts(answer: &Value) -> Result<Vec<&str>> {
    let chain = answer["chain"].as_array().with_context(|| format!("no chain: {answer}"))?;
    Ok(chain.iter().filter_map(Value::as_str).collect())
}

#[test]
fn grpcs_own_stack_gets_a_chain_that_openssl_verifies() -> Result<()> {
    let mesh = mesh("ca_istio")?;
    let stranger = Stranger::of(&mesh, "a")?;
    let web = spiffe_id("shop", "web");
    // The authority looks at its directory now and then.
    let answer = wait_for("the new token counts", SOON, || {
        let answer = stranger.ask(&stranger.token, &web, &[])?;
        Ok((answer["code"] != "UNAUTHENTICATED").then_some(answer))
    })?;
    let [leaf, intermediate, root] = texts(&answer)?[..] else { anyhow::bail!("{answer}") };
    stranger.write("leaf.pem", leaf)?;
    stranger.write("intermediate.pem", intermediate)?;
    stranger.write("root.pem", root)?;
    ensure!(root.trim() == mesh.ca().authority().root_pem().trim(), "the root comes last: {root}");
    for purpose in ["sslserver", "sslclient"] {
        let verify = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem", "-untrusted"];
        let verified = stranger.openssl(&[&verify[..], &["intermediate.pem", "leaf.pem"]].concat())?;
        ensure!(verified.trim() == "leaf.pem: OK", "{verified}");
    }
    let text = stranger.openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"])?;
    for word in [&format!("URI:{web}"), "CA:FALSE", "Digital Signature", "TLS Web Client Authentication"] {
        ensure!(text.contains(word), "{word} is not in\n{text}");
    }
    let certified = stranger.openssl(&["x509", "-in", "leaf.pem", "-noout", "-pubkey"])?;
    ensure!(certified == stranger.openssl(&["pkey", "-in", "key.pem", "-pubout"])?, "it is for another key");
    // An hour was asked for: still good in 50 minutes, over in 70.
    stranger.openssl(&["x509", "-in", "leaf.pem", "-noout", "-checkend", "3000"])?;
    ensure!(stranger.openssl(&["x509", "-in", "leaf.pem", "-noout", "-checkend", "4200"]).is_err(), "too long");

    // The same, spoiled in one thing each.
    let api = spiffe_id("shop", "api");
    let refused = |answer: Value, code: &str, words: &str| {
        let details = answer["details"].as_str().unwrap_or_default();
        ensure!(answer["code"] == code && details.contains(words), "{code}, {words}: {answer}");
        Ok(answer)
    };
    let denied = refused(stranger.ask(&stranger.token, &api, &[])?, "PERMISSION_DENIED", "no pod of")?;
    ensure!(denied["trailers"]["grpc-retry-pushback-ms"] == "2000", "{denied}");
    refused(stranger.ask("stolen", &web, &[])?, "UNAUTHENTICATED", "the token is no node's")?;
    let impersonate = format!("impersonate={api}");
    refused(stranger.ask(&stranger.token, &web, &[&impersonate])?, "INVALID_ARGUMENT", "ImpersonatedIdentity")?;
    let foreign = web.replace("cluster.local", "other.local");
    refused(stranger.ask(&stranger.token, &foreign, &[])?, "PERMISSION_DENIED", "not of trust domain cluster.local")?;
    let agent = spiffe_id("heddle-system", "agent");
    refused(stranger.ask(&stranger.token, &agent, &[])?, "PERMISSION_DENIED", "control plane")?;
    texts(&stranger.ask(&stranger.token, &web, &[])?)?;
    Ok(())
}

#[test]
fn our_agent_speaks_istios_protocol() -> Result<()> {
    let mesh = Mesh::declare("ca_istio_agent")
        .with_ca()
        .node("a")
        .agent_arguments(&["--ca-protocol", "istio"])
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let a = mesh.node("a");
    let id = spiffe_id("shop", "client");
    wait_for("the agent has a certificate", SOON, || {
        let rows = a.json(&["certs"])?;
        let row = rows["certificates"].as_array().and_then(|rows| rows.iter().find(|row| row["id"] == *id).cloned());
        Ok(row.filter(|row| row["state"] == "valid"))
    })
    .with_context(|| mesh.ca().tail())?;
    let log = mesh.ca().tail();
    ensure!(log.contains("node certificate signed node=\"b\""), "the control: node b speaks ours\n{log}");
    ensure!(!log.contains("node certificate signed node=\"a\""), "Istio's protocol knows no node certificates\n{log}");
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let held = client.hold(&dial(web.v4(), 8080), 1)?;
    ensure!(held.ping()? == (1, 0), "{}", held.tail());
    let connections = a.connections()?;
    ensure!(connections.iter().any(|c| c["source_principal"] == *id && c["transport"] == "heddle"), "{connections:?}");
    Ok(())
}
