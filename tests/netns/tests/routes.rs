//! Where routes lead (issue 6), on whole nodes: by every transport, from every namespace, changed while requests go, and what they answer
//! themselves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{Authority, claims};
use heddle_testkit::prelude::*;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::peers::{curl, run_script, script, serve};
use heddle_tests_netns::requests::{Got, ask, backends, load, origin, route, traffic, wait_got};
use heddle_tests_netns::secure_peers::{mtls_client, wait_certified};
use heddle_tests_netns::{SOON, wait_logged, wait_reason};
use serde_json::{Value, json};

/// A change is in force on every worker by then.
const LIVE_MAX: Duration = Duration::from_secs(1);
/// The pods of `web-v1`: one is handed over to, one is another node's.
const V1: [&str; 2] = ["v1-near", "v1-far"];
/// The pods of `web-v2`: one is another node's, one is not in the mesh.
const V2: [&str; 2] = ["v2-far", "v2-plain"];

/// `client` and `v1-near` on node a as `tester`, who is of another namespace; the rest on node b. `own` is behind `web` itself, `vault`
/// behind `payments` of a third namespace.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .namespace("qa")
        .meshed()
        .namespace("bank")
        .meshed()
        .node("a")
        .pod("client")
        .pod("tester")
        .in_namespace("qa")
        .pod("v1-near")
        .node("b")
        .pod("own")
        .pod("v1-far")
        .pod("v2-far")
        .pod("v2-plain")
        .unmeshed()
        .pod("vault")
        .in_namespace("bank")
        .service("web")
        .port(80, 8080)
        .backed_by("own")
        .service("pods")
        .headless()
        .port(8080, 8080)
        .backed_by("own")
        .service("web-v1")
        .port(80, 8080)
        .backed_by("v1-near")
        .backed_by("v1-far")
        .service("web-v2")
        .port(80, 8080)
        .backed_by("v2-far")
        .backed_by("v2-plain")
        .service("payments")
        .in_namespace("bank")
        .port(80, 8080)
        .backed_by("vault")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// One rule for every path.
fn by_weight(v1: u32, v2: u32) -> Value {
    route("HTTPRoute", "canary", "web", json!([{"backendRefs": backends(80, &[("web-v1", v1), ("web-v2", v2)])}]))
}

fn prefix(path: &str) -> Value {
    json!([{"path": {"type": "PathPrefix", "value": path}}])
}

#[test]
fn weights_share_by_every_transport_and_a_change_fails_nothing() -> Result<()> {
    let mesh = mesh("routes-canary")?;
    let client = mesh.pod("client");
    let mut origins = Vec::new();
    for name in V1.iter().chain(&V2).chain(&["own"]) {
        origins.push(origin(mesh.pod(name), 8080)?);
    }
    let web = at(mesh.service("web").cluster_v4(), 80);
    let is_own = |got: &Got| got.origin() == "own";
    wait_got(&mesh, client, web, "/", &[], is_own).context("positive control: without a route")?;
    mesh.source().write("route.yaml", &[by_weight(90, 10)])?;
    wait_got(&mesh, client, web, "/", &[], |got| !is_own(got))?;
    let own_before = origins[4].requests()?;
    let load = load(client, web, 16, 0)?;
    load.mark(&[])?;
    let went = load.wait_answered(1200)?;
    // A tenth is wanted; six deviations of the share of so many.
    let (share, deviation) = (went.of(&V2) as f64 / went.attempted as f64, (0.09 / went.attempted as f64).sqrt());
    ensure!((share - 0.1).abs() < 6.0 * deviation, "{share} of {went:?}");
    for name in V1.iter().chain(&V2) {
        ensure!(went.of(&[name]) > 0, "{name} got none: {went:?}");
    }
    for (former, [one, two]) in [(V1, [0, 1]), (V2, [1, 0]), (V1, [0, 7])] {
        load.mark(&former)?;
        mesh.source().write("route.yaml", &[by_weight(one, two)])?;
        let went = load.wait_streak(300)?;
        for name in former {
            let last = went.last.get(name).copied().unwrap_or_default();
            ensure!(last < LIVE_MAX.as_secs_f64(), "{name} is still asked after {last} s: {went:?}");
        }
    }
    load.stop()?.assert_none_failed()?;
    ensure!(origins[4].requests()? == own_before, "the Service's own endpoint is not what its route names");
    // By IPv6 as well, and each by its transport.
    wait_got(&mesh, client, at(mesh.service("web").cluster_v6(), 80), "/v6", &[], |got| V2.contains(&got.origin()))?;
    for (pod, transport) in [("v1-near", "handover"), ("v1-far", "heddle"), ("v2-far", "heddle"), ("v2-plain", "plain")]
    {
        let service = format!("web-{}.shop.svc.cluster.local:80", &pod[..2]);
        wait_logged(mesh.node("a"), &format!("{pod} by {transport}"), |r| {
            r["destination_pod"] == pod
                && r["transport"] == transport
                && r["status"] == 200
                && r["destination_service"] == service.as_str()
        })?;
    }
    Ok(())
}

#[test]
fn who_asks_and_what_is_granted_decide() -> Result<()> {
    let mesh = mesh("routes-namespaces")?;
    let (client, tester, own) = (mesh.pod("client"), mesh.pod("tester"), mesh.pod("own"));
    let mut origins = Vec::new();
    for name in ["own", "v1-near", "v1-far", "v2-far", "v2-plain", "vault"] {
        origins.push(origin(mesh.pod(name), 8080)?);
    }
    let web = at(mesh.service("web").cluster_v4(), 80);
    let (v1, v2) = (|got: &Got| V1.contains(&got.origin()), |got: &Got| V2.contains(&got.origin()));
    let is = |status, reason| move |got: &Got| (got.status, got.reason()) == (status, reason);
    let to_v1 = backends(80, &[("web-v1", 1)]);
    let rules = json!([
        {"matches": prefix("/v1"), "backendRefs": to_v1},
        {"matches": prefix("/pay"), "backendRefs": [{"name": "payments", "namespace": "bank", "port": 80}]},
        {
            "matches": prefix("/bad"),
            "filters": [{"type": "ExtensionRef", "extensionRef": {"group": "x.example", "kind": "X", "name": "x"}}],
            "backendRefs": to_v1,
        },
        {"matches": prefix("/gone"), "backendRefs": backends(80, &[("nobody", 1)])},
    ]);
    // To headless Services and to pods' addresses no route applies.
    let of_pods = route("HTTPRoute", "pods", "pods", rules.clone());
    mesh.source().write("route.yaml", &[route("HTTPRoute", "web", "web", rules), of_pods])?;
    for from in [client, tester] {
        wait_got(&mesh, from, web, "/v1", &[], v1)?;
        wait_got(&mesh, from, web, "/v1/more?x=y", &[], v1)?;
        for (path, status, reason) in [
            ("/pay", 500, "backend_invalid"),
            ("/gone", 500, "backend_invalid"),
            ("/bad", 500, "route_invalid"),
            ("/v10", 404, "route_not_found"),
            ("/", 404, "route_not_found"),
        ] {
            let got = ask(from, web, path, &[])?;
            ensure!(is(status, reason)(&got), "{path}: {got:?}");
            wait_logged(mesh.node("a"), path, |r| {
                r["path"] == path && r["status"] == status && r["reason"] == reason && r["source_pod"] == from.name()
            })?;
        }
        for ip in [own.v4(), own.v6()] {
            for path in ["/v1", "/bad", "/"] {
                let got = ask(from, at(ip, 8080), path, &[])?;
                ensure!(got.origin() == "own", "a pod's address takes no route: {path}: {got:?}");
            }
        }
    }
    let check = mesh.node("a").heddle(&["check", "-o", "json"])?.stdout;
    ensure!(check.contains("shop/web") && check.contains("ExtensionRef"), "{check}");
    // What the called namespace grants is followed, and is not any more when it is taken back.
    let grant = |namespace: &str, of: &str, name: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "grant", "namespace": namespace},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": of}],
                "to": [{"group": "", "kind": "Service", "name": name}],
            },
        })
    };
    mesh.source().write("grant.yaml", &[grant("bank", "shop", "payments")])?;
    wait_got(&mesh, client, web, "/pay", &[], |got| got.origin() == "vault")?;
    mesh.source().remove("grant.yaml")?;
    wait_got(&mesh, client, web, "/pay", &[], is(500, "backend_invalid"))?;
    // A route of the client's own namespace is for its pods only, and replaces the Service's.
    let mut consumer = route("HTTPRoute", "mine", "web", json!([{"backendRefs": backends(80, &[("web-v2", 1)])}]));
    consumer["metadata"]["namespace"] = "qa".into();
    consumer["spec"]["parentRefs"][0]["namespace"] = "shop".into();
    consumer["spec"]["rules"][0]["backendRefs"][0]["namespace"] = "shop".into();
    mesh.source().write("consumer.yaml", &[consumer])?;
    wait_got(&mesh, tester, web, "/v1", &[], is(500, "backend_invalid"))?;
    wait_got(&mesh, client, web, "/v1", &[], v1)?;
    mesh.source().write("grant.yaml", &[grant("shop", "qa", "web-v2")])?;
    for path in ["/v1", "/bad", "/anything"] {
        wait_got(&mesh, tester, web, path, &[], v2)?;
    }
    ensure!(v1(&ask(client, web, "/v1", &[])?) && ask(client, web, "/anything", &[])?.status == 404);
    mesh.source().remove("consumer.yaml")?;
    wait_got(&mesh, tester, web, "/v1", &[], v1)?;
    mesh.source().remove("route.yaml")?;
    wait_got(&mesh, tester, web, "/v1", &[], |got| got.origin() == "own").map(drop)
}

#[test]
fn rules_answer_change_and_copy() -> Result<()> {
    let mesh = mesh("routes-filters")?;
    let client = mesh.pod("client");
    let near = origin(mesh.pod("v1-near"), 8080)?;
    let [_v1, far, plain] =
        [origin(mesh.pod("v1-far"), 8080)?, origin(mesh.pod("v2-far"), 8080)?, origin(mesh.pod("v2-plain"), 8080)?];
    let vault = origin(mesh.pod("vault"), 8080)?;
    let web = at(mesh.service("web").cluster_v4(), 80);
    let to_v1 = backends(80, &[("web-v1", 1)]);
    let mirror =
        |name: &str| json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": name, "port": 80}}});
    let rules = json!([
        {
            "matches": prefix("/old"),
            "filters": [{"type": "RequestRedirect", "requestRedirect": {
                "scheme": "https", "hostname": "shop.example", "statusCode": 301,
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"},
            }}],
        },
        {
            "matches": prefix("/api"),
            "filters": [
                {"type": "CORS", "cors": {
                    "allowOrigins": ["https://ui.example"], "allowMethods": ["PUT"], "allowHeaders": ["x-token"], "maxAge": 60,
                }},
                {"type": "URLRewrite", "urlRewrite": {
                    "hostname": "v1.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
                }},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [{"name": "x-set", "value": "new"}], "add": [{"name": "x-add", "value": "more"}], "remove": ["x-gone"],
                }},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-seen", "value": "1"}]}},
            ],
            "backendRefs": to_v1,
        },
        {"matches": prefix("/copied"), "filters": [mirror("web-v2"), mirror("nobody")], "backendRefs": to_v1},
        {
            "matches": prefix("/copied-near"),
            "filters": [mirror("web-v1")],
            "backendRefs": backends(80, &[("web-v2", 1)]),
        },
    ]);
    mesh.source().write("route.yaml", &[route("HTTPRoute", "web", "web", rules)])?;
    let moved = wait_got(&mesh, client, web, "/old/a?b=c", &[], |got| got.status == 301)?;
    ensure!(moved.field("location") == Some("https://shop.example/new/a?b=c"), "{moved:?}");
    wait_reason(mesh.node("a"), "redirected")?;
    let of_origin = |origin: &str| format!("Origin: https://{origin}.example");
    let asks_put = "Access-Control-Request-Method: PUT";
    let preflight =
        |origin: &str| ask(client, web, "/api/x", &["-X", "OPTIONS", "-H", &of_origin(origin), "-H", asks_put]);
    let got = preflight("ui")?;
    ensure!((got.status, got.reason()) == (204, "cors_preflight"), "{got:?}");
    for (name, value) in [("allow-origin", "https://ui.example"), ("allow-methods", "PUT"), ("max-age", "60")] {
        ensure!(got.field(&format!("access-control-{name}")) == Some(value), "{name}: {got:?}");
    }
    ensure!(preflight("evil")?.field("access-control-allow-origin").is_none(), "another origin");
    let fields = ["-H", &of_origin("ui"), "-H", "x-set: old", "-H", "x-gone: 1", "-H", "x-add: some"];
    let got = ask(client, web, "/api/echo", &fields)?;
    let told: Value = serde_json::from_str(&got.body).with_context(|| format!("{got:?}"))?;
    ensure!(told["x-set"] == "new" && told["x-gone"].is_null() && told["host"] == "v1.example", "{told}");
    ensure!(got.field("x-seen") == Some("1"), "{got:?}");
    ensure!(got.field("access-control-allow-origin") == Some("https://ui.example"), "{got:?}");
    // A copy arrives marked, with its body, by every transport; the request itself is not marked and waits for none.
    for (path, by) in [("/copied", V1), ("/copied-near", V2)] {
        let each = ["-X", "PUT", "--data", "four", "-o", "/dev/null", "-w", "%{http_code} %header{x-from}\n"];
        let printed = curl(client, &[&each[..], &[&format!("http://{web}{path}/[1-40]")]].concat())?;
        let is_good = |line: &str| line.strip_prefix("200 ").is_some_and(|origin| by.contains(&origin));
        ensure!(printed.lines().count() == 40 && printed.lines().all(is_good), "{path}: {printed}");
    }
    for (origin, path, other) in [
        (&far, "/copied/", "/copied-near/"),
        (&plain, "/copied/", "/copied-near/"),
        (&near, "/copied-near/", "/copied/"),
    ] {
        let marked = |request: &Value| request["fields"]["x-heddle-shadow"] == "1";
        wait_until("copies arrive", SOON, || {
            origin.seen().is_ok_and(|seen| seen.iter().filter(|request| marked(request)).count() > 3)
        })
        .with_context(|| format!("{:?}\n{}", origin.seen(), mesh.node("a").agent_tail()))?;
        for request in origin.seen()? {
            let request_path = request["path"].as_str().unwrap_or_default();
            ensure!(marked(&request) == request_path.starts_with(path), "{request}");
            ensure!(request_path.starts_with(path) || request_path.starts_with(other) || request_path == "/echo");
            ensure!(!marked(&request) || request["fields"]["content-length"] == "4", "{request}");
        }
    }
    for service in ["web-v1", "web-v2"] {
        let labels = [("namespace", "shop"), ("service", service), ("outcome", "2xx")];
        wait_until(&format!("the copies for {service} are counted"), SOON, || {
            scrape(mesh.node("a")).is_ok_and(|all| sum(&all, "heddle_mirrored_requests_total", &labels) == 40.0)
        })
        .with_context(|| mesh.node("a").metrics().unwrap_or_default())?;
    }
    ensure!(vault.requests()? == 0);
    Ok(())
}

#[test]
fn grpc_is_led_by_method_and_tried_again() -> Result<()> {
    let mesh = Mesh::declare("routes-grpc")
        .node("a")
        .pod("client")
        .node("b")
        .pod("one")
        .pod("two")
        .service("peer")
        .port(50051, 50051)
        .service("one")
        .port(50051, 50051)
        .backed_by("one")
        .service("two")
        .port(50051, 50051)
        .backed_by("two")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let mut servers = Vec::new();
    for name in ["one", "two"] {
        let mut command = script("grpc_server.py", &["grpcio"])?;
        command.args(["50051", name]);
        servers.push(serve(mesh.pod(name), "grpc-server", command, &[50051])?);
    }
    let method = |method: &str| json!([{"method": {"service": "test.Peer", "method": method}}]);
    let rules = json!([
        {"matches": method("Unary"), "backendRefs": backends(50051, &[("one", 1)])},
        {"matches": method("Compressed"), "backendRefs": backends(50051, &[("two", 1)])},
    ]);
    let retries = json!({"retries": {"attempts": 2, "grpcCodes": ["UNAVAILABLE"]}, "retryBudget": {"percent": 100, "minPerSecond": 100}});
    mesh.source().write("route.yaml", &[route("GRPCRoute", "peer", "peer", rules), traffic("one", retries)])?;
    let (client, to) = (mesh.pod("client"), at(mesh.service("peer").cluster_v4(), 50051));
    let call = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data", ""];
    let unmatched = |got: &Got| got.reason() == "route_not_found" && got.field("grpc-status") == Some("12");
    wait_got(&mesh, client, to, "/test.Peer/Nothing", &call, unmatched)?;
    run_script(client, "grpc_client.py", &["grpcio"], &[&to.to_string(), "routed"])
        .with_context(|| mesh.node("a").agent_tail())?;
    wait_logged(mesh.node("a"), "a call that matches no rule", |r| {
        r["path"] == "/test.Peer/ServerStream" && r["reason"] == "route_not_found" && r["grpc_status"] == 12
    })?;
    wait_logged(mesh.node("a"), "the deadline", |r| {
        r["reason"] == "grpc_deadline" || r["reason"] == "request_cancelled"
    })?;
    Ok(())
}

#[test]
fn connections_are_led_by_weight_and_by_name() -> Result<()> {
    let mesh = Mesh::declare("routes-bytes")
        .node("a")
        .pod("client")
        .pod("one")
        .serves(tcp(9000))
        .node("b")
        .pod("two")
        .serves(tcp(9000))
        .pod("own")
        .serves(tcp(9000))
        .service("main")
        .port(9000, 9000)
        .port(443, 8443)
        .backed_by("own")
        .service("one")
        .port(9000, 9000)
        .port(443, 8443)
        .backed_by("one")
        .service("two")
        .port(9000, 9000)
        .port(443, 8443)
        .backed_by("two")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let client = mesh.pod("client");
    let accepted = |name: &str| -> Result<usize> { Ok(mesh.pod(name).server(0).accepted()?.len()) };
    let main = mesh.service("main");
    let by_weight = |one, two| {
        let mut route =
            route("TCPRoute", "bytes", "main", json!([{"backendRefs": backends(9000, &[("one", one), ("two", two)])}]));
        route["spec"]["parentRefs"][0]["port"] = 9000.into();
        route
    };
    let to = dial(main.cluster_v4(), 9000);
    client.connect(&to)?.assert_succeeded()?;
    ensure!(accepted("own")? == 1, "positive control: without a route");
    let settles = |one: u32, two: u32| -> Result<()> {
        mesh.source().write("route.yaml", &[by_weight(one, two)])?;
        let wanted = if one > two { "one" } else { "two" };
        wait_until(&format!("{wanted} is called"), SOON, || {
            let before = accepted(wanted).unwrap_or_default();
            client.connect(&to).is_ok_and(|o| o.assert_succeeded().is_ok())
                && accepted(wanted).is_ok_and(|n| n > before)
        })
    };
    settles(1, 3)?;
    let before = [accepted("one")?, accepted("two")?, accepted("own")?];
    client.connect(&to.clone().many(4, 100))?.assert_succeeded()?;
    let now = [accepted("one")?, accepted("two")?, accepted("own")?];
    let [one, two, own] = std::array::from_fn(|n| now[n] - before[n]);
    // A quarter of 400, with a deviation of 8.7.
    ensure!((50..=150).contains(&one) && one + two == 400 && own == 0, "{one} {two} {own}");
    settles(1, 0)?;
    // By the weights from before, one of four would have gone there too.
    let mut before = 0;
    wait_until("nobody is led to two any more", SOON, || {
        before = accepted("two").unwrap_or_default();
        client.connect(&to.clone().many(4, 10)).is_ok() && accepted("two").is_ok_and(|n| n == before)
    })?;
    client.connect(&to.clone().many(4, 25))?.assert_succeeded()?;
    ensure!(accepted("two")? == before, "a weight of 0 is none");

    // The application's own TLS, by the name that its client says.
    let authority = Authority::new("root of the applications")?;
    let mut servers = Vec::new();
    for name in ["one", "two", "own"] {
        let id = format!("spiffe://application.example/{name}");
        let own = authority.issue(mesh.ca().credentials(), &format!("application-{name}"), &claims(&id))?;
        let mut command = script("tls_echo.py", &[])?;
        command.arg("8443").args([&own.chain, &own.key]);
        servers.push((serve(mesh.pod(name), "tls-echo", command, &[8443])?, own));
    }
    let by_name = |route_name: &str, hostname: &str, service: &str| {
        let mut route = route("TLSRoute", route_name, "main", json!([{"backendRefs": backends(443, &[(service, 1)])}]));
        route["spec"]["parentRefs"][0]["port"] = 443.into();
        route["spec"]["hostnames"] = json!([hostname]);
        route
    };
    let peer = |name: &str| -> Result<Value> {
        let to = mtls_client(at(main.cluster_v4(), 443), &servers[0].1);
        let told =
            to.with(&["--no-certificate", "--alpn", "", "--server-name", name, "--raw", "word", "--raw-back", "4"]);
        Ok(told.run(client)?.0)
    };
    ensure!(peer("db.example")?["peer"] == "spiffe://application.example/own", "positive control: without a route");
    mesh.source().write("tls.yaml", &[by_name("db", "db.example", "one"), by_name("any", "*.any.example", "two")])?;
    for (name, service) in
        [("db.example", "one"), ("x.any.example", "two"), ("DB.example", "one"), ("a.b.any.example", "two")]
    {
        let wanted = format!("spiffe://application.example/{service}");
        wait_until(&format!("{name} leads to {service}"), SOON, || {
            peer(name).is_ok_and(|told| told["peer"] == wanted.as_str() && told["raw"] == "word")
        })
        .with_context(|| format!("{:?}\n{}", peer(name), mesh.node("a").agent_tail()))?;
    }
    for name in ["other.example", "any.example"] {
        let told = peer(name)?;
        ensure!(told["peer"].is_null() && told["raw"] != "word", "{name}: {told}");
    }
    wait_reason(mesh.node("a"), "route_not_found").map(drop)
}
