//! Requests that rules of routes lead elsewhere, change, answer or copy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_model::Delta;
use heddle_model::routing::{
    BackendProblem, BackendRef, Cors, Filters, HeaderEdit, HeaderMatch, Match, Mirror, PathMatch, PathRewrite,
    Redirect, Rewrite, RouteKind, RoutingDelta, Rule, ValueMatch,
};
use heddle_model::traffic::{Abort, Faults, RequestTraffic, Share};
use heddle_telemetry::Event;

use super::http1::until_text;
use super::http2::{client, data, get};
use super::routing::*;
use super::support::*;

fn edit(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    HeaderEdit { set: pairs(set), add: pairs(add), remove: remove.iter().map(|name| (*name).into()).collect() }
}

fn filtered(rule: Rule, filters: Filters) -> Rule {
    Rule { filters, ..rule }
}

#[tokio::test]
async fn a_rule_leads_elsewhere_and_what_matches_none_is_not_found() {
    let mesh = Mesh::new(1);
    let (own, other) = (Origin::named("own").await, Origin::named("other").await);
    let vip = scene(&mesh, &[own.addr], &[("other", &[other.addr])]).await;
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/a").await.body, "own", "without a route the Service itself answers");
    mesh.route(route("r", vec![rule("/a", &[("other", 1)])]));
    assert_eq!(caller.get("/a").await.body, "other", "also on a connection that was there before");
    let missed = caller.get("/b").await;
    assert_eq!((missed.status, missed.reason()), (404, "route_not_found"));
    assert_eq!(caller.get("/a/b?c=d").await.body, "other", "and goes on behind an answer");
    // By HTTP/2 alike.
    let mut http2 = client(vip).await;
    let (response, _) = http2.send_request(get("/a"), true).unwrap();
    assert_eq!(data(&mut soon(response).await.unwrap().into_body()).await, "other");
    let (response, _) = http2.send_request(get("/b"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 404);
    let records = mesh.records(6).await;
    assert_eq!(records[0]["destination_service"], format!("web.shop.svc.cluster.local:{}", vip.port()));
    assert_eq!(records[1]["destination_service"], "other.shop.svc.cluster.local:80");
    let routes: Vec<_> = records.iter().map(|record| record["route"].as_str().unwrap_or_default()).collect();
    assert_eq!(routes, ["", "HTTPRoute/shop/r/0", "", "HTTPRoute/shop/r/0", "HTTPRoute/shop/r/0", ""]);
    assert_eq!(own.requests(), 1);
}

/// Whoever writes a route for requests says that there are some: none goes by its rules because of how the port is named.
#[tokio::test]
async fn a_route_finds_requests_on_a_port_of_any_name() {
    for name in ["web", "tcp-web", "redis", "https", "tls-web"] {
        let mesh = Mesh::new(1);
        let (own, other) = (Origin::named("own").await, Origin::named("other").await);
        let vip = mesh.pod_calling("web", &[own.addr], |service| service.ports[0].name = name.into()).await;
        let service = backend_service("other", &[other.addr]);
        mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
        mesh.route(route("r", vec![rule("/a", &[("other", 1)])]));
        let mut caller = Caller::new(vip).await;
        assert_eq!(caller.get("/a").await.body, "other", "{name}");
        let missed = caller.get("/b").await;
        assert_eq!((missed.status, missed.reason()), (404, "route_not_found"), "{name}");
        assert_eq!(own.requests(), 0, "{name}");
    }
}

/// Where the protocol changes, the head that says so is edited like another.
#[tokio::test]
async fn the_head_of_an_upgrade_is_edited_too() {
    let mesh = Mesh::new(1);
    let origin = Origin::start(|_| {
        "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Old: 1\r\n\r\n".to_owned()
    })
    .await;
    let vip = scene(&mesh, &[], &[("other", &[origin.addr])]).await;
    let response_headers = Some(edit(&[("x-new", "2")], &[], &["x-old"]));
    let filters = Filters { response_headers, ..Filters::default() };
    mesh.route(route("r", vec![filtered(rule("/", &[("other", 1)]), filters)]));
    let asked = "GET /a HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = connect(vip).await;
    super::http1::say(&mut client, asked).await;
    let head = until_text(&mut client, "\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("x-new: 2\r\n") && !head.contains("x-old"), "{head}");
}

#[tokio::test]
async fn weights_share_and_what_is_invalid_has_its_share_of_500() {
    let mesh = Mesh::new(1);
    let (one, two) = (Origin::named("one").await, Origin::named("two").await);
    let vip = scene(&mesh, &[], &[("one", &[one.addr]), ("two", &[two.addr])]).await;
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/").await.reason(), "no_ready_endpoint", "a Service that has nobody itself");
    let mut weighted = rule("/", &[("one", 3), ("two", 1), ("gone", 0)]);
    mesh.route(route("r", vec![weighted.clone()]));
    for _ in 0..400 {
        assert_eq!(caller.get("/").await.status, 200);
    }
    // Three quarters of 400, with a deviation of 8.7.
    assert!((255..=345).contains(&one.requests()), "{} of 400", one.requests());
    assert_eq!(one.requests() + two.requests(), 400);
    let denied = BackendRef::Invalid(BackendProblem::RefNotPermitted(key("secret")));
    weighted.backends = [to("one", 1), heddle_model::routing::Backend { to: denied, ..to("one", 1) }].into();
    mesh.route(route("r", vec![weighted.clone()]));
    let mut failed = 0;
    for _ in 0..100 {
        let got = caller.get("/").await;
        if got.status == 500 {
            assert_eq!(got.reason(), "backend_invalid");
            failed += 1;
        }
    }
    assert!((25..=75).contains(&failed), "{failed} of 100");
    // A Service that is not there, no backend at all, only weights of 0, and a rule that is broken.
    let broken = Rule { invalid: Some("spec.rules[0]: broken".into()), ..rule("/", &[("one", 1)]) };
    for (rule, reason) in [
        (rule("/", &[("gone", 1)]), "backend_invalid"),
        (rule("/", &[]), "backend_invalid"),
        (rule("/", &[("one", 0)]), "backend_invalid"),
        (broken, "route_invalid"),
    ] {
        mesh.route(route("r", vec![rule]));
        let got = caller.get("/").await;
        assert_eq!((got.status, got.reason()), (500, reason));
    }
    // A Service without endpoints is there, and has nobody.
    let empty = backend_service("empty", &[]);
    mesh.apply(heddle_model::Delta { services: vec![(empty.key(), Some(empty))], ..Default::default() });
    mesh.route(route("r", vec![rule("/", &[("empty", 1)])]));
    let got = caller.get("/").await;
    assert_eq!((got.status, got.reason()), (503, "no_ready_endpoint"));
    // One of each request made here.
    let records = mesh.records(400 + 100 + 4 + 1).await;
    let of_rule = records.iter().filter(|record| record["reason"] == "route_invalid");
    assert!(of_rule.map(|record| &record["route"]).eq(["HTTPRoute/shop/r/0"]), "also where it leads nowhere");
}

#[tokio::test]
async fn filters_change_heads_both_ways() {
    let mesh = Mesh::new(1);
    let seen = Arc::new(Mutex::new(String::new()));
    let last = seen.clone();
    let origin = Origin::start(move |request| {
        *last.lock().unwrap() = request.to_owned();
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: app\r\nX-Old: 1\r\n\r\nok".to_owned()
    })
    .await;
    let vip = scene(&mesh, &[], &[("v1", &[origin.addr])]).await;
    let mut ruled = filtered(
        rule("/old", &[("v1", 1)]),
        Filters {
            request_headers: Some(edit(&[("x-set", "new")], &[("x-add", "more")], &["x-gone"])),
            response_headers: Some(edit(&[("server", "mesh")], &[("x-seen", "1")], &["x-old"])),
            rewrite: Some(Rewrite {
                hostname: Some("v1.example".into()),
                path: Some(PathRewrite::Prefix("/new".into())),
            }),
            ..Filters::default()
        },
    );
    ruled.backends[0].filters.request_headers = Some(edit(&[("x-backend", "v1")], &[], &[]));
    ruled.backends[0].filters.response_headers = Some(edit(&[], &[("x-from", "v1")], &[]));
    mesh.route(route("r", vec![ruled]));
    let mut caller = Caller::new(vip).await;
    let request = "GET /old/a?q=1 HTTP/1.1\r\nHost: web\r\nX-Set: old\r\nX-Add: some\r\nX-Gone: 1\r\n\r\n";
    let got = caller.ask(request).await;
    let check = |seen: &str| {
        assert!(seen.starts_with("get /new/a?q=1 http/1.1\r\n"), "{seen}");
        for line in ["host: v1.example", "x-set: new", "x-add: some", "x-add: more", "x-backend: v1"] {
            assert!(seen.contains(&format!("{line}\r\n")), "{line} in {seen}");
        }
        assert!(!seen.contains("x-gone") && !seen.contains("x-set: old"), "{seen}");
    };
    check(&seen.lock().unwrap().to_lowercase());
    assert_eq!(
        (got.field("server"), got.field("x-seen"), got.field("x-from"), got.field("x-old")),
        (Some("mesh"), Some("1"), Some("v1"), None)
    );
    let mut http2 = client(vip).await;
    let mut request = get("/old/a?q=1");
    for (name, value) in [("x-set", "old"), ("x-add", "some"), ("x-gone", "1")] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let (response, _) = http2.send_request(request, true).unwrap();
    let response = soon(response).await.unwrap();
    check(&seen.lock().unwrap().to_lowercase());
    let field = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(
        (field("server"), field("x-seen"), field("x-from"), field("x-old")),
        (Some("mesh"), Some("1"), Some("v1"), None)
    );
}

#[tokio::test]
async fn redirects_and_preflights_are_answered_here() {
    let mesh = Mesh::new(1);
    // Of who may read what, the route has the say.
    let origin = Origin::start(|_| {
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 6\r\n\r\norigin".to_owned()
    })
    .await;
    let vip = scene(&mesh, &[], &[("v1", &[origin.addr])]).await;
    let redirect = Redirect {
        scheme: Some("https".into()),
        hostname: Some("shop.example".into()),
        path: Some(PathRewrite::Prefix("/b".into())),
        port: None,
        status: 301,
    };
    let cors = Cors {
        allow_origins: ["https://ui.example".into()].into(),
        allow_methods: ["GET".into(), "PUT".into()].into(),
        allow_headers: ["x-token".into()].into(),
        expose_headers: ["x-total".into()].into(),
        allow_credentials: true,
        max_age: Duration::from_secs(5),
    };
    mesh.route(route(
        "r",
        vec![
            filtered(rule("/a", &[]), Filters { redirect: Some(redirect.clone()), ..Filters::default() }),
            filtered(
                rule("/moved", &[]),
                Filters { redirect: Some(redirect), cors: Some(cors.clone()), ..Filters::default() },
            ),
            filtered(rule("/api", &[("v1", 1)]), Filters { cors: Some(cors.clone()), ..Filters::default() }),
            filtered(
                rule("/none", &[("gone", 1)]),
                Filters {
                    cors: Some(cors),
                    response_headers: Some(edit(&[("x-set", "1")], &[], &[])),
                    ..Filters::default()
                },
            ),
        ],
    ));
    let mut caller = Caller::new(vip).await;
    let got = caller.get("/a/c?d=e").await;
    assert_eq!((got.status, got.field("location")), (301, Some("https://shop.example/b/c?d=e")));
    let preflight = |origin: &str| {
        format!("OPTIONS /api HTTP/1.1\r\nHost: web\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\n\r\n")
    };
    let got = caller.ask(&preflight("https://ui.example")).await;
    assert_eq!((got.status, got.reason()), (204, "cors_preflight"));
    assert_eq!(got.field("access-control-allow-origin"), Some("https://ui.example"));
    assert_eq!(got.field("access-control-max-age"), Some("5"));
    assert_eq!(origin.requests(), 0);
    let got = caller.ask("GET /api HTTP/1.1\r\nHost: web\r\nOrigin: https://ui.example\r\n\r\n").await;
    assert_eq!((got.body.as_str(), got.field("access-control-allow-origin")), ("origin", Some("https://ui.example")));
    let got = caller.ask("GET /api HTTP/1.1\r\nHost: web\r\nOrigin: https://evil.example\r\n\r\n").await;
    assert_eq!((got.body.as_str(), got.field("access-control-allow-origin")), ("origin", None));
    let mut http2 = client(vip).await;
    let (response, _) = http2.send_request(get("/a/c"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["location"].to_str().unwrap()),
        (301, "https://shop.example/b/c")
    );
    // Whoever may read what a Service says may read also what is said in its place.
    for (path, status, set) in [("/moved", 301, None), ("/none", 500, Some("1"))] {
        let got = caller.ask(&format!("GET {path} HTTP/1.1\r\nHost: web\r\nOrigin: https://ui.example\r\n\r\n")).await;
        assert_eq!(
            (got.status, got.field("access-control-allow-origin")),
            (status, Some("https://ui.example")),
            "{path}"
        );
        assert_eq!((got.field("vary"), got.field("x-set")), (Some("origin"), set), "{path}");
        let got =
            caller.ask(&format!("GET {path} HTTP/1.1\r\nHost: web\r\nOrigin: https://evil.example\r\n\r\n")).await;
        assert_eq!((got.status, got.field("access-control-allow-origin")), (status, None), "{path}");
        let mut request = get(path);
        request.headers_mut().insert("origin", "https://ui.example".parse().unwrap());
        let (response, _) = http2.send_request(request, true).unwrap();
        let response = soon(response).await.unwrap();
        let field = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (response.status().as_u16(), field("access-control-allow-origin")),
            (status, Some("https://ui.example"))
        );
        assert_eq!(field("x-set"), set, "{path}");
    }
}

/// The host is a field in HTTP/1 and none in HTTP/2: a rule means the same.
#[tokio::test]
async fn a_host_is_matched_whichever_way_it_was_sent() {
    let mesh = Mesh::new(1);
    let origin = Origin::named("picked").await;
    let vip = scene(&mesh, &[], &[("v1", &[origin.addr])]).await;
    let mut picked = rule("/", &[("v1", 1)]);
    picked.matches[0].headers =
        [HeaderMatch { name: "host".into(), value: ValueMatch::Exact("a.example".into()) }].into();
    mesh.route(route("r", vec![picked]));
    let mut caller = Caller::new(vip).await;
    let mut http2 = client(vip).await;
    for (host, status) in [("a.example", 200), ("b.example", 404)] {
        let got = caller.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(got.status, status, "{host}");
        let got = caller.ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(got.status, status, "{host}");
        let mut request = get("/");
        *request.uri_mut() = format!("http://{host}/").parse().unwrap();
        let (response, _) = http2.send_request(request, true).unwrap();
        assert_eq!(soon(response).await.unwrap().status().as_u16(), status, "{host}");
    }
}

#[tokio::test]
async fn faults_delay_and_abort_what_they_match() {
    let mesh = Mesh::new(1);
    let origin = Origin::named("origin").await;
    let vip = scene(&mesh, &[], &[("v1", &[origin.addr])]).await;
    let faulty = |faults| {
        let traffic = RequestTraffic { faults: Some(Arc::new(faults)), ..RequestTraffic::default() };
        route("r", vec![Rule { traffic, ..rule("/", &[("v1", 1)]) }])
    };
    let matches = [HeaderMatch { name: "x-test".into(), value: ValueMatch::Exact("1".into()) }];
    let abort = Some((Share::ALL, Abort::Http(418)));
    mesh.route(faulty(Faults { matches: matches.clone().into(), delay: None, abort }));
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/").await.status, 200);
    let got = caller.ask("GET / HTTP/1.1\r\nHost: web\r\nX-Test: 1\r\n\r\n").await;
    assert_eq!((got.status, got.reason()), (418, "fault_injected"));
    // A gRPC call is told its own kind of status.
    let mut http2 = client(vip).await;
    let mut call = super::http2::call("Buy");
    call.headers_mut().insert("x-test", "1".parse().unwrap());
    mesh.route(faulty(Faults { matches: matches.into(), delay: None, abort: Some((Share::ALL, Abort::Grpc(8))) }));
    let (response, _) = http2.send_request(call, true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["grpc-status"].to_str().unwrap()), (200, "8"));
    // A delay waits, and the request goes on.
    let delay = Some((Share::ALL, Duration::from_millis(200)));
    mesh.route(faulty(Faults { matches: Box::default(), delay, abort: None }));
    let began = std::time::Instant::now();
    assert_eq!(caller.get("/").await.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(origin.requests(), 2);
    // No longer than the request may take, whatever was to come behind it.
    let (delay, abort) = (Some((Share::ALL, Duration::from_secs(3600))), Some((Share::ALL, Abort::Http(418))));
    for abort in [None, abort] {
        let faults = Some(Arc::new(Faults { matches: Box::default(), delay, abort }));
        let timeouts =
            heddle_model::traffic::Timeouts { request: Some(Duration::from_millis(100)), ..Default::default() };
        let traffic = RequestTraffic { faults, timeouts, ..RequestTraffic::default() };
        mesh.route(route("r", vec![Rule { traffic, ..rule("/", &[("v1", 1)]) }]));
        let got = Caller::new(vip).await.get("/").await;
        assert_eq!((got.status, got.reason()), (504, "route_timeout"), "{abort:?}");
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test]
async fn copies_go_to_mirrors_and_neither_delay_nor_fail_the_request() {
    let mesh = Mesh::new(1);
    let origin = Origin::start(|request| ok(request.rsplit("\r\n").next().unwrap())).await;
    let copies = Arc::new(Mutex::new(Vec::new()));
    let kept = copies.clone();
    let mirror = Origin::start(move |request| {
        kept.lock().unwrap().push(request.to_lowercase());
        status(500, "ignored")
    })
    .await;
    let (hanging, _holding) = silent_origin().await;
    let vip = scene(&mesh, &[], &[("v1", &[origin.addr]), ("copy", &[mirror.addr]), ("hangs", &[hanging])]).await;
    let mirrors = |names: &[&str], share| {
        let mirrors = names.iter().map(|name| Mirror { to: to(name, 1).to, share }).collect();
        route("r", vec![filtered(rule("/", &[("v1", 1)]), Filters { mirrors, ..Filters::default() })])
    };
    mesh.route(mirrors(&["copy", "hangs", "gone"], Share::ALL));
    let mut caller = Caller::new(vip).await;
    let began = std::time::Instant::now();
    assert_eq!(caller.get("/a?b=c").await.status, 200);
    let posted = "POST /p HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(caller.ask(posted).await.body, "body");
    assert!(began.elapsed() < Duration::from_secs(5));
    until("two copies", || copies.lock().unwrap().len() == 2).await;
    let both = copies.lock().unwrap().join("\n---\n");
    assert!(both.contains("get /a?b=c http/1.1\r\n") && both.contains("x-heddle-shadow: 1"), "{both}");
    assert!(both.contains("post /p http/1.1\r\n") && both.ends_with("body") || both.contains("\r\n\r\nbody"), "{both}");
    until("copies to be counted", || {
        let counts = mesh.upstream.counts();
        let of = |word| {
            counts.iter().filter(|(l, _)| l.event == Event::Mirrored && l.word == word).map(|(_, n)| n).sum::<u64>()
        };
        of("5xx") == 2
    })
    .await;
    // A body that is longer than what is kept is not copied.
    let long = "x".repeat(100_000);
    let posted = format!("POST /long HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    assert_eq!(caller.ask(&posted).await.body, long);
    until("it to be dropped", || {
        mesh.upstream
            .counts()
            .iter()
            .any(|(l, _)| l.event == Event::Mirrored && l.word == "dropped" && *l.service == *"copy")
    })
    .await;
    assert_eq!(mirror.requests(), 2);
    // Of a share of none there is no copy.
    mesh.route(mirrors(&["copy"], Share::of(0, 100)));
    assert_eq!(caller.get("/none").await.status, 200);
    assert_eq!((mirror.requests(), origin.requests()), (2, 4));
}

#[tokio::test]
async fn conditions_choose_between_rules() {
    let mesh = Mesh::new(1);
    let (stable, canary) = (Origin::named("stable").await, Origin::named("canary").await);
    let vip = scene(&mesh, &[], &[("stable", &[stable.addr]), ("canary", &[canary.addr])]).await;
    let mut by_header = rule("/", &[("canary", 1)]);
    let headers = [HeaderMatch { name: "x-canary".into(), value: ValueMatch::Exact("yes".into()) }];
    by_header.matches = [Match { headers: headers.into(), ..Match::default() }].into();
    let mut exact = rule("/", &[("canary", 1)]);
    exact.matches = [Match { path: PathMatch::Exact("/only".into()), ..Match::default() }].into();
    mesh.route(route("r", vec![rule("/", &[("stable", 1)]), by_header, exact]));
    let mut caller = Caller::new(vip).await;
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: web\r\n\r\n", "stable"),
        ("GET / HTTP/1.1\r\nHost: web\r\nX-Canary: yes\r\n\r\n", "canary"),
        ("GET / HTTP/1.1\r\nHost: web\r\nX-Canary: no\r\n\r\n", "stable"),
        ("GET /only HTTP/1.1\r\nHost: web\r\n\r\n", "canary"),
        ("GET /only/not HTTP/1.1\r\nHost: web\r\n\r\n", "stable"),
    ] {
        assert_eq!(caller.ask(request).await.body, expected, "{request}");
    }
}

/// What detection had dialled is of no use to a request that a rule leads elsewhere.
#[tokio::test]
async fn a_route_says_that_a_port_speaks_http() {
    let mesh = Mesh::new(1);
    let (own, other) = (Origin::named("own").await, Origin::named("other").await);
    let vip = mesh.pod_calling("web", &[own.addr], |service| service.ports[0].name = "main".into()).await;
    let service = backend_service("other", &[other.addr]);
    mesh.apply(heddle_model::Delta { services: vec![(service.key(), Some(service))], ..Default::default() });
    mesh.route(route("r", vec![rule("/", &[("other", 1)])]));
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/").await.body, "other");
    assert_eq!(own.requests(), 0);
    // What is no HTTP is told so.
    let mut bytes = connect(vip).await;
    super::http1::say(&mut bytes, "\x00\x01\x02 not http\r\n\r\n").await;
    assert!(until_text(&mut bytes, "\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
}

/// A route of connections: one Service by weight, or by the name in the client's TLS hello.
#[tokio::test]
async fn connections_are_led_elsewhere_too() {
    let mesh = Mesh::new(1);
    let (own, own_addr) = backend().await;
    let ((one, one_addr), (two, two_addr)) = (backend().await, backend().await);
    let vip = mesh.pod("web", &[own_addr]).await;
    for (name, addr) in [("one", one_addr), ("two", two_addr)] {
        let service = backend_service(name, &[addr]);
        mesh.apply(heddle_model::Delta { services: vec![(service.key(), Some(service))], ..Default::default() });
    }
    let of_kind = |kind, name: &str, hostnames: &[&str], to: &str| {
        let mut route = route(name, vec![rule("/", &[(to, 1)])]);
        route.key.kind = kind;
        route.hostnames = hostnames.iter().map(|name| (*name).into()).collect();
        let mut rule = heddle_model::routing::Rule::clone(&route.rules[0]);
        rule.id.route.kind = kind;
        rule.matches = Box::default();
        route.rules = [Arc::new(rule)].into();
        route
    };
    let tcp = of_kind(RouteKind::Tcp, "tcp", &[], "one");
    mesh.route(tcp.clone());
    let mut client = connect(vip).await;
    let mut server = super::http1::accept(&one).await;
    passes(&mut client, &mut server, b"bytes").await;
    // A client that says nothing is dialled for as ever.
    passes(&mut server, &mut client, b"and back").await;
    let removed = RoutingDelta { routes: vec![(tcp.key, None)], ..RoutingDelta::default() };
    mesh.apply(heddle_model::Delta { routing: removed, ..Default::default() });
    mesh.route(of_kind(RouteKind::Tls, "a", &["a.example"], "one"));
    mesh.route(of_kind(RouteKind::Tls, "b", &["*.b.example"], "two"));
    for (name, listener) in [("a.example", &one), ("x.b.example", &two)] {
        let mut client = connect(vip).await;
        let hello = super::detect::hello(name);
        soon(tokio::io::AsyncWriteExt::write_all(&mut client, &hello)).await.unwrap();
        let mut server = super::http1::accept(listener).await;
        let mut got = vec![0; hello.len()];
        soon(tokio::io::AsyncReadExt::read_exact(&mut server, &mut got)).await.unwrap();
        assert!(got == hello, "the hello arrives whole");
    }
    let mut client = connect(vip).await;
    let hello = super::detect::hello("c.example");
    soon(tokio::io::AsyncWriteExt::write_all(&mut client, &hello)).await.unwrap();
    is_reset(&mut client).await;
    // The two named connections have ended, the first of all is still open.
    let records = mesh.records(3).await;
    assert!(records.iter().any(|record| record["reason"] == "route_not_found"), "{records:?}");
    drop(own);
}
