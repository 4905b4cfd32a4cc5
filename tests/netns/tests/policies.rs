//! Who may talk to whom (issue 5), on whole nodes: every transport, what is open when a policy changes, a restarted agent, NetworkPolicy, and
//! what `heddle explain` and `heddle policies` say of it all.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::peers::{nginx, run, run_script, script, serve_script};
use heddle_tests_netns::secure_peers::{id_of, mtls_client, wait_certified};
use heddle_tests_netns::{HBONE_PORT, SOON, both_families, wait_logged, wait_reason};
use serde_json::{Value, json};

/// A change is in force on every worker by then (demand 3).
const LIVE_MAX: Duration = Duration::from_secs(1);

/// On node a `client`, `other` and `near`; on node b `far`; outside `internet`. `near` and `far` serve HTTP on 8080 and bytes on 9000.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .namespace("shop")
        .meshed()
        .external("internet")
        .node("a")
        .pod("client")
        .in_namespace("shop")
        .labelled("role", "client")
        .pod("other")
        .in_namespace("shop")
        .pod("near")
        .in_namespace("shop")
        .labelled("app", "web")
        .serves(tcp(9000))
        .node("b")
        .pod("far")
        .in_namespace("shop")
        .labelled("app", "web")
        .serves(tcp(9000))
        .service("far")
        .in_namespace("shop")
        .port(80, 8080)
        .port(9000, 9000)
        .backed_by("far")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

/// `client` may call `/open`, and nobody anything else, on port 8080 of what serves.
fn only_open(client: &Pod) -> Value {
    let rule =
        json!({"from": [{"identities": [id_of(client)]}], "to": [{"ports": [8080], "paths": [{"prefix": "/open"}]}]});
    policy("open", json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [rule]}))
}

/// The status of a GET, 0 if there was no answer.
fn get(from: &Place, ip: IpAddr, port: u16, path: &str) -> Result<u16> {
    let url = format!("http://{}{path}", SocketAddr::new(ip, port));
    let mut command = program("curl", "curl")?;
    command.args([
        "--silent",
        "--path-as-is",
        "--max-time",
        "5",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    ]);
    command.arg(&url);
    let process = from.spawn("curl", command)?;
    process.close_stdin();
    process.wait(SOON * 2)?;
    process.stdout().trim().parse().with_context(|| format!("{url}: {}", process.tail()))
}

fn wait_status(from: &Place, ip: IpAddr, port: u16, path: &str, wanted: u16, mesh: &Mesh) -> Result<()> {
    let mut last = 0;
    wait_until(&format!("{} gets {wanted} for {path} of {ip}:{port}", from.name()), SOON, || {
        last = get(from, ip, port, path).unwrap_or(0);
        last == wanted
    })
    .with_context(|| format!("it is {last}\n{}\n{}", mesh.node("a").agent_tail(), mesh.node("b").agent_tail()))
}

#[test]
fn the_same_rules_hold_by_every_transport() -> Result<()> {
    let mesh = mesh("policies-transports")?;
    let (client, other, internet) = (mesh.pod("client"), mesh.pod("other"), mesh.external("internet"));
    let (near, far) = (mesh.pod("near"), mesh.pod("far"));
    let _near = serve_script(near, "http1_server.py", &["h11"], 8080)?;
    let _far = serve_script(far, "http1_server.py", &["h11"], 8080)?;
    let service = mesh.service("far");
    // Positive control: without a policy everybody gets everything.
    for from in [client.place(), other.place(), internet] {
        ensure!(get(from, far.v4(), 8080, "/secret")? == 200, "{}", from.name());
    }
    mesh.source().write("policy.yaml", &[only_open(client)])?;
    wait_status(client, far.v4(), 8080, "/secret", 403, &mesh)?;
    wait_status(client, near.v4(), 8080, "/secret", 403, &mesh)?;
    let mut ways: Vec<(IpAddr, u16, &str)> = Vec::new();
    ways.extend(both_families(far).map(|ip| (ip, 8080, "heddle")));
    ways.extend([service.cluster_v4(), service.cluster_v6()].map(|ip| (ip, 80, "heddle")));
    ways.extend(both_families(near).map(|ip| (ip, 8080, "handover")));
    for (ip, port, transport) in ways {
        for (path, status) in [("/open/a", 200), ("/secret", 403), ("/open/../secret", 403), ("//secret", 403)] {
            ensure!(get(client, ip, port, path)? == status, "{transport} {ip}:{port}{path}");
        }
        ensure!(get(client, ip, port, "/x/%2e%2e/open")? == 200, "{transport}: what it means is let in");
        for path in ["/open", "/secret"] {
            ensure!(get(other, ip, port, path)? == 403, "{transport}: another account");
        }
        ensure!(get(client, ip, port, "/open/%00")? == 400, "{transport}: an ambiguous path");
    }
    // Plain text proves nothing, wherever it comes from.
    for ip in both_families(far).into_iter().chain(both_families(near)) {
        for path in ["/open", "/secret"] {
            ensure!(get(internet, ip, 8080, path)? == 403, "plain text to {ip}{path}");
        }
    }
    // HBONE carries bytes, which are read as HTTP where a rule asks for that.
    let of_client = mesh.ca().issue("client", &claims(&id_of(client)))?;
    let of_other = mesh.ca().issue("other", &claims(&spiffe_id("shop", "stranger")))?;
    // Who is refused whatever it asks is told so in answer to its CONNECT; who may ask is answered in the tunnel.
    for (credential, path, connect, status) in [
        (&of_client, "/open", "200", Some("200")),
        (&of_client, "/secret", "200", Some("403")),
        (&of_other, "/open", "401", None),
        (&of_other, "/secret", "401", None),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: far\r\nconnection: close\r\n\r\n");
        let to = mtls_client(SocketAddr::new(far.v4(), HBONE_PORT), credential).expects(&id_of(far));
        // A client that ends its direction takes its request back.
        let told = to.tunnel(SocketAddr::new(far.v4(), 8080), &request).with(&["--open-end"]).run(internet)?;
        let body = told.stream()?["body"].as_str().unwrap_or_default().to_owned();
        ensure!(told.status()? == connect, "{path}: CONNECT is answered {connect}: {}", told.0);
        let answer = status.map(|status| format!("HTTP/1.1 {status} "));
        let is_answered = answer.map_or(body.is_empty(), |answer| body.starts_with(&answer));
        ensure!(is_answered, "{path}: {status:?} is the answer in the tunnel: {}", told.0);
    }
    // Bytes that are no HTTP match no such rule; other ports are nobody's business.
    for (ip, port, ok) in
        [(far.v4(), 8080, false), (near.v4(), 8080, false), (far.v4(), 9000, true), (near.v6(), 9000, true)]
    {
        let outcome = client.connect(&dial(ip, port).send("\u{1}\u{2} no HTTP"))?;
        ensure!((outcome.summary.succeeded == 1) == ok, "{ip}:{port}: {outcome:?}");
    }
    for node in [mesh.node("a"), mesh.node("b")] {
        let denied = wait_reason(node, "policy_denied")?;
        ensure!(denied["policy"] == "no Allow rule matches (shop/open)" || denied["reporter"] == "source", "{denied}");
    }
    wait_logged(mesh.node("b"), "let in by its rule", |r| r["policy"] == "shop/open[0]" && r["path"] == "/open/a")?;
    Ok(())
}

#[test]
fn a_change_ends_what_is_open_within_a_second_and_nothing_else() -> Result<()> {
    let mesh = mesh("policies-change")?;
    let (client, other, internet) = (mesh.pod("client"), mesh.pod("other"), mesh.external("internet"));
    let (near, far) = (mesh.pod("near"), mesh.pod("far"));
    let hold = |from: &Place, to: &Place| from.hold(&dial(to.v4(), 9000), 8);
    let denied = [hold(client, near)?, hold(client, far)?];
    let others = [hold(other, near)?, hold(other, far)?, hold(internet, near)?, hold(internet, far)?];
    for held in denied.iter().chain(&others) {
        ensure!(held.ping()? == (8, 0), "positive control\n{}", held.tail());
    }
    let deny = policy("no-client", json!({"action": "Deny", "rules": [{"from": [{"identities": [id_of(client)]}]}]}));
    mesh.source().write("policy.yaml", &[deny])?;
    let changed = Instant::now();
    for held in &denied {
        let ends = held.wait_ended(8, SOON)?;
        ensure!(ends.iter().all(|end| *end == End::Reset), "{ends:?}");
    }
    let took = changed.elapsed();
    ensure!(took < LIVE_MAX, "it took {took:?}");
    for held in &others {
        ensure!(held.ping()? == (8, 0), "those of others go on\n{}", held.tail());
    }
    for node in ["a", "b"] {
        wait_reason(mesh.node(node), "policy_closed")?;
    }
    client.connect(&dial(far.v4(), 9000))?.assert_refused()?;
    mesh.source().remove("policy.yaml")?;
    wait_until("all is open again", SOON, || {
        [near, far].iter().all(|to| client.connect(&dial(to.v4(), 9000)).is_ok_and(|o| o.assert_succeeded().is_ok()))
    })
}

#[test]
fn no_request_slips_through_while_an_agent_is_killed_and_comes_back() -> Result<()> {
    let mesh = mesh("policies-kill")?;
    let (client, near, far) = (mesh.pod("client"), mesh.pod("near"), mesh.pod("far"));
    let _far = nginx(far, &mesh.node("b").paths().run.join("nginx"))?;
    mesh.source().write("policy.yaml", &[policy("none", json!({"selector": {"matchLabels": {"app": "web"}}}))])?;
    wait_status(client, far.v4(), 8080, "/who", 403, &mesh)?;
    let url = format!("http://{}/who", SocketAddr::new(far.v4(), 8080));
    for round in 0..3 {
        let mut command = program("sh", "dash")?;
        let asks = format!("for i in $(seq 60); do curl -s -o /dev/null -m 3 -w '%{{http_code}}\\n' {url}; done");
        command.args(["-c", &asks]);
        let asking = client.spawn("asking", command)?;
        asking.close_stdin();
        wait_until("it asks", SOON, || asking.stdout().lines().count() > 5)?;
        let node = mesh.node(if round == 1 { "a" } else { "b" });
        node.kill_agent()?;
        node.start_agent()?;
        asking.wait(Duration::from_secs(30))?;
        let told = asking.stdout();
        ensure!(!told.lines().any(|status| status == "200"), "round {round}: a request slipped through:\n{told}");
        ensure!(told.lines().filter(|status| *status == "403").count() > 20, "round {round}:\n{told}");
    }
    let _ = near;
    Ok(())
}

#[test]
fn an_invalid_policy_denies_its_own_targets_and_nobody_elses() -> Result<()> {
    let mesh = Mesh::declare("policies-invalid")
        .namespace("shop")
        .meshed()
        .namespace("bank")
        .meshed()
        .node("a")
        .pod("client")
        .in_namespace("shop")
        .pod("web")
        .in_namespace("shop")
        .labelled("app", "web")
        .serves(tcp(9000))
        .pod("api")
        .in_namespace("shop")
        .labelled("app", "api")
        .serves(tcp(9000))
        .pod("safe")
        .in_namespace("bank")
        .serves(tcp(9000))
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, web, api, safe, node) =
        (mesh.pod("client"), mesh.pod("web"), mesh.pod("api"), mesh.pod("safe"), mesh.node("a"));
    let open = |pod: &Pod| client.connect(&dial(pod.v4(), 9000)).is_ok_and(|o| o.assert_succeeded().is_ok());
    ensure!(open(web) && open(api) && open(safe), "positive control");
    // A field misspelt: what it would have narrowed is not known.
    let typo = policy(
        "typo",
        json!({
            "selector": {"matchLabels": {"app": "web"}},
            "rules": [{"from": [{"identitys": [id_of(client)]}]}],
        }),
    );
    mesh.source().write("typo.yaml", &[typo])?;
    wait_until("its target is denied", SOON, || !open(web))?;
    ensure!(open(api) && open(safe), "its neighbours are not");
    wait_reason(node, "policy_invalid")?;
    let check = node.heddle(&["check", "-o", "json"])?;
    let told: Value = serde_json::from_str(&check.stdout)?;
    let named = told["invalid"].as_array().into_iter().flatten().any(|object| {
        object["object"] == "shop/typo" && object["field"].as_str().is_some_and(|f| f.contains("identitys"))
    });
    ensure!(named, "{told}");
    let policies = node.json(&["policies"])?;
    let row = policies["policies"].as_array().into_iter().flatten().find(|p| p["name"] == "typo").cloned();
    let row = row.context("the policy is listed")?;
    ensure!(row["rejected"] == true && row["workloads"] == json!(["shop/web"]), "{row}");
    let explained = node.heddle(&["explain", "shop/client", &format!("{}:9000", web.v4())])?.stdout;
    ensure!(explained.contains("policy_invalid") && explained.contains("AuthorizationPolicy shop/typo"), "{explained}");
    mesh.source().remove("typo.yaml")?;
    wait_until("it is open again", SOON, || open(web))
}

#[test]
fn what_is_explained_is_what_happens_and_hits_are_counted() -> Result<()> {
    let mesh = mesh("policies-explain")?;
    let (client, other, near, far, node) =
        (mesh.pod("client"), mesh.pod("other"), mesh.pod("near"), mesh.pod("far"), mesh.node("a"));
    let _near = serve_script(near, "http1_server.py", &["h11"], 8080)?;
    let _far = serve_script(far, "http1_server.py", &["h11"], 8080)?;
    let deny = policy("no-delete", json!({"action": "Deny", "rules": [{"to": [{"methods": ["DELETE"]}]}]}));
    let tried = policy("tried", json!({"dryRun": true, "rules": [{"from": [{"identities": [id_of(other)]}]}]}));
    let audit = policy("seen", json!({"action": "Audit", "rules": [{"to": [{"paths": [{"prefix": "/open"}]}]}]}));
    mesh.source().write("policy.yaml", &[only_open(client), deny, tried, audit])?;
    wait_status(client, near.v4(), 8080, "/secret", 403, &mesh)?;
    wait_status(client, far.v4(), 8080, "/secret", 403, &mesh)?;
    let near_at = SocketAddr::new(near.v4(), 8080).to_string();
    for (from, to, path, status, words) in [
        (client, "far.shop:80", "/open", 200, &["AuthorizationPolicy shop/open", "heddle"][..]),
        (client, "far:80", "/secret", 403, &["policy_denied", "to.paths", "edit AuthorizationPolicy shop/open"]),
        (other, "far:80", "/open", 403, &["policy_denied", "from.identities"]),
        (client, &near_at, "/open/../x", 403, &["policy_denied", "handover"]),
        (client, &near_at, "/%00", 400, &["path_ambiguous"]),
    ] {
        let name = format!("shop/{}", from.name());
        let explained = node.heddle(&["explain", &name, to, "--path", path])?.stdout;
        let verdict = if status == 200 { "→ reaches the application".to_owned() } else { format!("(HTTP {status})") };
        for word in words.iter().copied().chain([verdict.as_str()]) {
            ensure!(explained.contains(word), "{name} {to} {path}: no {word:?} in\n{explained}");
        }
        let (ip, port) = match to {
            "far.shop:80" | "far:80" => (mesh.service("far").cluster_v4(), 80),
            _ => (near.v4(), 8080),
        };
        ensure!(get(from, ip, port, path)? == status, "{name} {to} {path} is not {status}");
    }
    let explained = node.heddle(&["explain", "client", "far:80", "--method", "DELETE", "--path", "/open"])?.stdout;
    ensure!(
        explained.contains("AuthorizationPolicy shop/no-delete") && explained.contains("(HTTP 403)"),
        "{explained}"
    );
    for (words, error) in [
        (&["explain", "shop/nobody", "far:80"][..], "nobody knows a pod"),
        (&["explain", "client", "nowhere:80"], "no Service shop/nowhere"),
        (&["explain", "client", "far"], "HOST:PORT"),
        (&["explain", "client", "far:80", "--path", "x"], "does not begin"),
        (&["explain", "client", "far:80", "--header", "x"], "NAME:VALUE"),
    ] {
        let answer = node.heddle(words)?;
        ensure!(!answer.status.success() && answer.stderr.contains(error), "{words:?}: {answer:?}");
    }
    // Of node b: one request was let in, two met no rule.
    let far_policies = mesh.node("b").json(&["policies"])?;
    let of =
        |name: &str| far_policies["policies"].as_array().into_iter().flatten().find(|p| p["name"] == name).cloned();
    let open = of("open").context("open")?;
    ensure!(open["allowed"].as_u64() == Some(1) && open["workloads"] == json!(["shop/far"]), "{open}");
    let seen = of("seen").context("seen")?;
    ensure!(seen["audited"].as_u64() >= Some(1) && seen["action"] == "Audit", "{seen}");
    ensure!(far_policies["denied_by_none"].as_u64() >= Some(2), "{far_policies}");
    let table = mesh.node("b").heddle(&["policies"])?.stdout;
    ensure!(table.contains("NAMESPACE") && table.contains("no-delete") && table.contains("shop/far"), "{table}");
    let metrics = run(mesh.node("b").heddle_place(), "scrape", {
        let mut command = program("curl", "curl")?;
        command.args(["--silent", "--fail", "http://127.0.0.1:15020/metrics"]);
        command
    })?;
    let line = "heddle_policy_decisions_total{kind=\"AuthorizationPolicy\",policy=\"shop/open\",verdict=\"allowed\"} 1";
    ensure!(metrics.contains(line), "no {line}");
    Ok(())
}

fn network_policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

#[test]
fn pythons_grpc_is_told_permission_denied_and_an_open_stream_ends() -> Result<()> {
    let mesh = mesh("policies-grpc")?;
    let (client, near, far) = (mesh.pod("client"), mesh.pod("near"), mesh.pod("far"));
    let _near = serve_script(near, "grpc_server.py", &["grpcio"], 50051)?;
    let _far = serve_script(far, "grpc_server.py", &["grpcio"], 50051)?;
    let methods = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| json!({"exact": format!("/test.Peer/{path}")})).collect();
        policy("calls", json!({"rules": [{"from": [{"identities": [id_of(client)]}], "to": [{"paths": paths}]}]}))
    };
    for to in [near, far] {
        let at = SocketAddr::new(to.v4(), 50051).to_string();
        mesh.source().write("policy.yaml", &[methods(&["Unary"])])?;
        wait_until("the policy is in force", SOON, || {
            run_script(client, "grpc_client.py", &["grpcio"], &[&at, "denied"]).is_ok()
        })?;
        mesh.source().write("policy.yaml", &[methods(&["Unary", "ServerStream"])])?;
        let open = wait_for("a stream is open", SOON, || {
            let mut command = script("grpc_client.py", &["grpcio"])?;
            command.args([&at, "closed"]);
            let process = client.spawn("grpc", command)?;
            let opened = wait_until("it is open", SOON / 2, || process.stdout().contains("open\n"));
            Ok(opened.is_ok().then_some(process))
        })?;
        mesh.source().write("policy.yaml", &[methods(&["Unary"])])?;
        ensure!(open.wait(SOON * 2)?.success(), "{}", open.tail());
        ensure!(open.stdout().contains("ended with"), "{}", open.stdout());
    }
    Ok(())
}

#[test]
fn network_policies_hold_for_what_is_handed_over() -> Result<()> {
    let mesh = mesh("policies-network")?;
    let (client, other, near, far, node) =
        (mesh.pod("client"), mesh.pod("other"), mesh.pod("near"), mesh.pod("far"), mesh.node("a"));
    let _near = serve_script(near, "http1_server.py", &["h11"], 8080)?;
    let open = |from: &Pod, to: &Pod| from.connect(&dial(to.v4(), 9000)).is_ok_and(|o| o.assert_succeeded().is_ok());
    let held = other.hold(&dial(near.v4(), 9000), 4)?;
    ensure!(open(client, near) && held.ping()? == (4, 0), "positive control");
    let web = json!({"matchLabels": {"app": "web"}});
    let from_clients = json!({
        "podSelector": web,
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 9000, "endPort": 9001}]}],
    });
    mesh.source().write("network.yaml", &[network_policy("clients", from_clients.clone())])?;
    let ends = held.wait_ended(4, SOON)?;
    ensure!(ends.iter().all(|end| *end == End::Reset), "{ends:?}");
    ensure!(open(client, near) && !open(other, near), "by label of the caller");
    ensure!(get(client, near.v4(), 8080, "/")? == 403, "by port");
    let denied = wait_reason(node, "network_policy_denied")?;
    ensure!(denied["policy"].as_str().is_none_or(|p| p.contains("shop/clients")), "{denied}");
    ensure!(open(near, near), "a pod may talk to itself");
    // What the network carries is the network's: nobody here enforces it between nodes.
    ensure!(open(other, far), "between nodes it is the CNI's");
    let explained = node.heddle(&["explain", "shop/other", &format!("{}:9000", near.v4())])?.stdout;
    ensure!(
        explained.contains("network_policy_denied") && explained.contains("NetworkPolicy shop/clients"),
        "{explained}"
    );
    // Both ends have to allow it.
    let egress = json!({"podSelector": {"matchLabels": {"role": "client"}}, "policyTypes": ["Egress"]});
    mesh.source()
        .write("network.yaml", &[network_policy("clients", from_clients), network_policy("no-egress", egress)])?;
    wait_until("egress is isolated", SOON, || !open(client, near))?;
    ensure!(open(other, far), "others' is not");
    // With Wire the bytes cross the veth, where the CNI sees them.
    let wire = json!({
        "apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "default"}, "spec": {"sameNode": "Wire"},
    });
    mesh.source().write("mesh.yaml", &[wire])?;
    wait_until("the wire is the CNI's", SOON, || open(client, near) && open(other, near))?;
    let listed = node.json(&["policies"])?;
    let row = listed["policies"].as_array().into_iter().flatten().find(|p| p["name"] == "clients").cloned();
    ensure!(row.is_some_and(|r| r["kind"] == "NetworkPolicy" && r["denied"].as_u64() >= Some(1)), "{listed}");
    Ok(())
}

#[test]
fn an_excluded_port_is_captured_all_the_same_where_a_policy_speaks_of_it() -> Result<()> {
    let mesh = Mesh::declare("policies-exclusion")
        .namespace("shop")
        .meshed()
        .annotated("heddle.dev/allow-exclusions", "true")
        .external("internet")
        .node("a")
        .pod("web")
        .in_namespace("shop")
        .labelled("app", "web")
        .annotated("heddle.dev/exclude-inbound-ports", "9000")
        .serves(tcp(9000))
        .serves(tcp(9001))
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (internet, web, node) = (mesh.external("internet"), mesh.pod("web"), mesh.node("a"));
    let open = || internet.connect(&dial(web.v4(), 9000)).is_ok_and(|o| o.assert_succeeded().is_ok());
    ensure!(open(), "positive control: excluded, and nothing is said of it");
    mesh.source().write(
        "policy.yaml",
        &[policy("none", json!({"rules": [{"to": [{"ports": [9000]}], "from": [{"namespaces": ["shop"]}]}]}))],
    )?;
    wait_until("nobody gets in by the exclusion", SOON, || !open())?;
    internet.connect(&dial(web.v4(), 9001))?.assert_succeeded()?;
    let check = node.json(&["check"])?;
    let warned = check["warnings"].as_array().into_iter().flatten().any(|w| {
        w["field"] == "metadata.annotations[heddle.dev/exclude-inbound-ports]"
            && w["message"].as_str().is_some_and(|m| m.contains("none"))
    });
    ensure!(warned, "{check}");
    Ok(())
}
