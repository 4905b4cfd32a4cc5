//! STRICT (issue 4, demand 6): nothing that has not proved who it is reaches the application, by whatever path; who has is not held up.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_testkit::objects;
use heddle_testkit::pki::{Authority, Credential, claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::topology::MESH_LABEL;
use heddle_tests_netns::peers::serve_script;
use heddle_tests_netns::secure_peers::{mtls_client, wait_certified};
use heddle_tests_netns::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, SOON, both_families, wait_reason};
use serde_json::{Value, json};

/// `client` and `web` in the mesh on two nodes, `near` beside web; `stranger` and the internet outside of it.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .external("internet")
        .node("a")
        .pod("client")
        .pod("stranger")
        .unmeshed()
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .serves(tcp(8081))
        .pod("near")
        .with_ca()
        .allow_opting_out()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

fn mesh_mode(mesh: &Mesh, mode: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": mode}},
    });
    mesh.source().write("mesh.yaml", &[object])
}

fn mesh_tls(mesh: &Mesh, name: &str, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "MeshTLS",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    });
    mesh.source().write(&format!("mesh-tls-{name}.yaml"), &[object])
}

/// Waits until a stranger's plain text is, or is not, let through to this port.
fn wait_plaintext(mesh: &Mesh, port: u16, passes: bool) -> Result<()> {
    let (stranger, web) = (mesh.pod("stranger"), mesh.pod("web"));
    wait_until(&format!("plain text to {port} {}", if passes { "passes" } else { "is refused" }), SOON, || {
        stranger.connect(&dial(web.v4(), port)).is_ok_and(|o| o.assert_succeeded().is_ok() == passes)
    })
    .with_context(|| mesh.node("b").agent_tail())
}

fn strangers(mesh: &Mesh) -> [&Place; 4] {
    [mesh.pod("stranger"), mesh.external("internet"), mesh.node("a"), mesh.node("b")]
}

#[test]
fn nothing_unauthenticated_reaches_a_strict_application_by_any_path() -> Result<()> {
    let mesh = mesh("strict")?;
    let (client, near, web) = (mesh.pod("client"), mesh.pod("near"), mesh.pod("web"));
    // Positive control: before the switch everybody gets through.
    for stranger in strangers(&mesh) {
        for ip in both_families(web) {
            stranger.connect(&dial(ip, 8080))?.assert_succeeded().with_context(|| stranger.name().to_owned())?;
        }
    }
    let from_before = mesh.pod("stranger").hold(&dial(web.v4(), 8080), 3)?;
    let ours_from_before = client.hold(&dial(web.v4(), 8080), 3)?;
    ensure!(from_before.ping()? == (3, 0) && ours_from_before.ping()? == (3, 0));

    mesh_mode(&mesh, "Strict")?;
    wait_plaintext(&mesh, 8080, false)?;
    from_before.wait_ended(3, SOON).context("a connection opened before the switch")?;
    assert_eq!(ours_from_before.ping()?, (3, 0), "those of the mesh go on");
    let served = web.server(0).accepted()?.len();

    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "good")))?;
    let foreign = Authority::new("root of somebody else")?;
    let foreign = foreign.issue(mesh.ca().credentials(), "foreign", &claims(&spiffe_id("shop", "client")))?;
    for stranger in strangers(&mesh) {
        for ip in both_families(web) {
            let what = format!("{} to {ip}", stranger.name());
            let refused = |what: &str, to: &Dial| -> Result<()> {
                let outcome = stranger.connect(to)?;
                // TLS says why in an alert; nothing else comes.
                let heard = outcome.one()?;
                let is_alert = heard.received <= 7 && heard.text.starts_with('\u{15}');
                ensure!(outcome.summary.succeeded == 0 && (heard.received == 0 || is_alert), "{what}: {outcome:?}");
                Ok(())
            };
            stranger.connect(&dial(ip, 8080))?.assert_refused().with_context(|| what.clone())?;
            // Silent, then with more than one word at once.
            refused(&what, &dial(ip, 8080).bytes(100_000))?;
            for port in [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT] {
                refused(&format!("{what}, port {port}"), &dial(ip, port).within(SOON / 10))?;
            }
            // HBONE, and what pretends to be ours on the application's port.
            let authority = SocketAddr::new(ip, 8080).to_string();
            for (port, alpn) in [(HBONE_PORT, "h2"), (8080, "heddle/h2"), (8080, "h2"), (8080, "")] {
                let to = SocketAddr::new(ip, port);
                let tunnel = |credential: &Credential, words: &[&str]| {
                    let client =
                        mtls_client(to, credential).trusts(&good.root).with(&["--alpn", alpn, "--timeout", "4"]);
                    client.with(&["--authority", &authority, "--send", "x"]).with(words).run(stranger)
                };
                let what = || format!("{what}, port {port}, ALPN {alpn:?}");
                tunnel(&good, &["--no-certificate"])?.assert_refused().with_context(what)?;
                tunnel(&foreign, &[])?.assert_refused().with_context(what)?;
            }
            let plain = mtls_client(SocketAddr::new(ip, HBONE_PORT), &good).with(&["--plain", "--timeout", "4"]);
            plain.with(&["--authority", &authority, "--send", "x"]).run(stranger)?.assert_refused()?;
        }
    }
    assert_eq!(web.server(0).accepted()?.len(), served, "the application has seen none of them");
    wait_reason(mesh.node("b"), "plaintext_refused")?;

    // Those who prove who they are: from the other node, from the same, from the pod itself, and by HBONE with a certificate.
    for from in [client, near, web] {
        for ip in both_families(web) {
            from.connect(&dial(ip, 8080))?.assert_succeeded().with_context(|| from.name().to_owned())?;
        }
    }
    web.connect(&dial("127.0.0.1".parse()?, 8080))?.assert_succeeded()?;
    let to = SocketAddr::new(web.v4(), HBONE_PORT);
    mtls_client(to, &good)
        .tunnel(SocketAddr::new(web.v4(), 8080), "x")
        .run(mesh.pod("stranger"))?
        .assert_echoed("x")?;

    mesh_mode(&mesh, "Permissive")?;
    wait_plaintext(&mesh, 8080, true)
}

#[test]
fn an_applications_own_tls_is_plain_text_to_a_strict_port() -> Result<()> {
    let mesh = mesh("strict_own_tls")?;
    let web = mesh.pod("web");
    let authority = Authority::new("root of the application")?;
    let own = authority.issue(mesh.ca().credentials(), "application", &claims("spiffe://application.example/own"))?;
    let mut command = heddle_tests_netns::peers::script("tls_echo.py", &[])?;
    command.arg("8443").args([&own.chain, &own.key]);
    let server = heddle_tests_netns::peers::serve(web, "tls-echo", command, &[8443])?;
    let echo = |from: &Place| {
        let to = SocketAddr::new(web.v4(), 8443);
        mtls_client(to, &own).with(&["--alpn", "", "--raw", "hello", "--raw-back", "5", "--timeout", "4"]).run(from)
    };
    let (client, stranger) = (mesh.pod("client"), mesh.pod("stranger"));
    ensure!(echo(stranger)?.0["raw"] == "hello", "positive control\n{}", server.tail());
    mesh_mode(&mesh, "Strict")?;
    wait_plaintext(&mesh, 8080, false)?;
    let told = echo(stranger)?;
    ensure!(told.0["handshake"] != "ok", "{}", told.0);
    ensure!(echo(client)?.0["raw"] == "hello", "in the mesh it goes on, in TLS of ours");
    Ok(())
}

#[test]
fn modes_hold_for_what_they_name() -> Result<()> {
    let mesh = mesh("modes")?;
    mesh_tls(&mesh, "web", &json!({"mode": "Strict", "ports": [{"port": 8081, "mode": "Permissive"}]}))?;
    wait_plaintext(&mesh, 8080, false)?;
    wait_plaintext(&mesh, 8081, true)?;
    // The port that is open is open for plain text, and the other is not by way of it.
    let (stranger, web) = (mesh.pod("stranger"), mesh.pod("web"));
    stranger.connect(&dial(web.v6(), 8080))?.assert_refused()?;
    mesh_tls(&mesh, "web", &json!({"mode": "Permissive", "ports": [{"port": 8081, "mode": "Strict"}]}))?;
    wait_plaintext(&mesh, 8080, true)?;
    wait_plaintext(&mesh, 8081, false)?;
    // HTTP is refused as bytes are, and says nothing about what is behind.
    let _server = serve_script(web, "http1_server.py", &["h11"], 8090)?;
    let get = dial(web.v4(), 8090).send("GET /echo HTTP/1.1\r\nhost: web\r\n\r\n").without_echo().wait_end();
    ensure!(stranger.connect(&get.clone().within(SOON / 2))?.one()?.text.contains(" 200 "), "positive control");
    mesh_tls(&mesh, "web", &json!({"mode": "Strict"}))?;
    wait_plaintext(&mesh, 8080, false)?;
    let refused = stranger.connect(&get)?;
    assert_eq!(refused.one()?.received, 0, "{refused:?}");
    mesh.source().remove("mesh-tls-web.yaml")?;
    wait_plaintext(&mesh, 8080, true)?;
    // Rejected, an object is strict for whom it might have meant.
    mesh_tls(&mesh, "broken", &json!({"mode": "Strikt"}))?;
    wait_plaintext(&mesh, 8080, false)
}

/// What guards a pod holds it in the mesh: a label that anybody can set who may edit the pod, and an object that nobody can read.
#[test]
fn neither_a_label_nor_a_mistake_opens_a_strict_port() -> Result<()> {
    let mesh = Mesh::declare("strict_held")
        .external("internet")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (internet, client, web, node) =
        (mesh.external("internet"), mesh.pod("client"), mesh.pod("web"), mesh.node("b"));
    let label_namespace =
        |value: &str| mesh.edit_namespace("shop", |n| _ = n.labels.insert(MESH_LABEL.to_owned(), value.to_owned()));
    let label = |value: &str| web.edit(|plan| _ = plan.labels.insert(MESH_LABEL.to_owned(), value.to_owned()));
    let unlabel = || web.edit(|plan| _ = plan.labels.remove(MESH_LABEL));

    let pod_file = objects::pod_file("shop", "web");
    let pod_text = std::fs::read_to_string(mesh.source().directory().join(&pod_file))?;
    // Positive control: nothing guards it yet, and its label takes it out.
    web.leave_mesh()?;
    node.wait_state(web, "not_in_mesh", SOON)?;
    internet.connect(&dial(web.v4(), 8080))?.assert_succeeded()?;
    mesh_tls(&mesh, "shop", &json!({"mode": "Strict"}))?;
    node.wait_enrolled(web, SOON)?;

    let write_pod = |text: &str| mesh.source().write_text(&pod_file, text);
    let namespace = |text: &str| mesh.source().write_text("namespace-shop.yaml", text);
    type Mistake<'a> = (&'a str, &'a dyn Fn() -> Result<()>, (&'a str, &'a str));
    let mistakes: [Mistake<'_>; 7] = [
        ("an opt-out", &|| web.leave_mesh(), ("warnings", "metadata.labels[heddle.dev/mesh]")),
        ("a misspelt label", &|| label("enabeld"), ("invalid", "metadata.labels[heddle.dev/mesh]")),
        (
            "a misspelt label of the namespace",
            &|| label_namespace("enabeld"),
            ("invalid", "metadata.labels[heddle.dev/mesh]"),
        ),
        (
            "a field of the wrong type",
            &|| write_pod(&pod_text.replace("hostNetwork: false", "hostNetwork: 7")),
            ("invalid", "spec.hostNetwork"),
        ),
        ("half a document", &|| write_pod(&pod_text.replace("hostNetwork: false", "hostNetwork: {")), ("invalid", "")),
        ("no YAML", &|| write_pod("kind: ["), ("invalid", "")),
        ("a namespace that is no YAML", &|| namespace("kind: ["), ("invalid", "")),
    ];
    // It fails where something was rejected, and says what all the same.
    let checked = || {
        let answer = node.heddle(&["check", "-o", "json"]).map(|answer| answer.stdout).unwrap_or_default();
        serde_json::from_str::<Value>(&answer).unwrap_or_default()
    };
    for (what, make, (list, field)) in mistakes {
        make()?;
        let is_told = || {
            let told = checked();
            told[list].as_array().is_some_and(|list| list.iter().any(|report| report["field"] == field))
        };
        wait_until(&format!("{what} is told of"), SOON, is_told).with_context(|| node.agent_tail())?;
        ensure!(node.workload(web)?.context("the pod")?["capture"] == "enrolled", "{what}\n{}", node.agent_tail());
        for ip in both_families(web) {
            internet.connect(&dial(ip, 8080))?.assert_refused().with_context(|| what.to_owned())?;
            client.connect(&dial(ip, 8080))?.assert_succeeded().with_context(|| what.to_owned())?;
        }
        label_namespace("enabled")?;
        unlabel()?;
        wait_until("all is well again", SOON, || {
            let told = checked();
            ["invalid", "warnings"].iter().all(|list| told[*list].as_array().is_none_or(Vec::is_empty))
        })?;
    }
    // What an administrator does counts: to allow it, and to take the namespace out.
    mesh.edit_namespace("shop", |n| {
        _ = n.annotations.insert("heddle.dev/allow-exclusions".to_owned(), "true".to_owned())
    })?;
    web.leave_mesh()?;
    node.wait_state(web, "not_in_mesh", SOON)?;
    internet.connect(&dial(web.v4(), 8080))?.assert_succeeded()?;
    unlabel()?;
    node.wait_enrolled(web, SOON)?;
    label_namespace("disabled")?;
    node.wait_state(web, "not_in_mesh", SOON)?;
    internet.connect(&dial(web.v4(), 8080))?.assert_succeeded()
}
