//! Attacks on identity and transport (issue 4, demand 7), each beside the same client without the one thing that is wrong: what is refused
//! is refused for that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{Authority, Credential, claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::usage;
use heddle_testkit::process::Process;
use heddle_tests_netns::peers::{PATIENCE, curl, script, serve_script};
use heddle_tests_netns::secure_peers::{
    MtlsClient, failed_handshakes, id_of, mtls_client, wait_certificate, wait_certified,
};
use heddle_tests_netns::{HBONE_PORT, SOON, both_families, wait_logged};
use serde_json::Value;

/// `client` on node a and `web` on node b; `attacker` on node a is outside the mesh.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .node("a")
        .pod("client")
        .pod("attacker")
        .unmeshed()
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8090)
        .backed_by("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

/// Where a peer of the mesh can knock: the application's own port, and HBONE's.
fn doors(mesh: &Mesh) -> [(SocketAddr, &'static str); 2] {
    let ip = mesh.pod("web").v4();
    [(SocketAddr::new(ip, 8080), "heddle/h2"), (SocketAddr::new(ip, HBONE_PORT), "h2")]
}

/// A tunnel to the echo server of web through one of the doors.
fn knock(mesh: &Mesh, (to, alpn): (SocketAddr, &str), credential: &Credential) -> MtlsClient {
    let authority = SocketAddr::new(mesh.pod("web").v4(), 8080);
    mtls_client(to, credential).with(&["--alpn", alpn]).tunnel(authority, "x").expects(&id_of(mesh.pod("web")))
}

#[test]
fn wrong_certificates_are_refused_and_counted_by_what_is_wrong() -> Result<()> {
    let mesh = mesh("wrong_certificates")?;
    let (attacker, node) = (mesh.pod("attacker"), mesh.node("b"));
    let id = spiffe_id("shop", "attacker");
    let good = mesh.ca().issue("good", &claims(&id))?;
    let foreign = Authority::new("root of somebody else")?;
    let elsewhere = "spiffe://elsewhere.example/ns/shop/sa/attacker";
    let wrong = [
        ("expired", mesh.ca().issue("expired", &claims(&id).expired())?),
        ("not_yet_valid", mesh.ca().issue("early", &claims(&id).not_yet_valid())?),
        ("wrong_trust_domain", mesh.ca().issue("elsewhere", &claims(elsewhere))?),
        ("unknown_root", foreign.issue(mesh.ca().credentials(), "foreign", &claims(&id))?),
        ("bad_certificate", mesh.ca().issue("nobody", &claims(&id).of_nobody())?),
        ("bad_certificate", mesh.ca().issue("two", &claims(&id).and(&spiffe_id("shop", "web")))?),
        ("bad_certificate", mesh.ca().issue("web-of-http", &claims("https://web.shop.svc"))?),
    ];
    for door in doors(&mesh) {
        let passes = || knock(&mesh, door, &good).run(attacker)?.assert_echoed("x").context("positive control");
        passes().with_context(|| node.agent_tail())?;
        // At a permissive port the application is called while the agent listens who comes; it hears nothing.
        let heard = mesh.pod("web").server(0).stats()?.bytes;
        for (reason, credential) in &wrong {
            let before = failed_handshakes(node, "server", reason)?;
            let told = knock(&mesh, door, credential).trusts(&good.root).run(attacker)?;
            told.assert_refused().with_context(|| format!("{reason} at {door:?}"))?;
            wait_until(&format!("{reason} is counted"), SOON, || {
                failed_handshakes(node, "server", reason).is_ok_and(|n| n == before + 1)
            })
            .with_context(|| format!("{door:?}\n{}", node.agent_tail()))?;
        }
        for (reason, words) in [("no_certificate", &["--no-certificate"][..]), ("protocol_version", &["--tls12"])] {
            let before = failed_handshakes(node, "server", reason)?;
            knock(&mesh, door, &good).with(words).run(attacker)?.assert_refused()?;
            wait_until(&format!("{reason} is counted"), SOON, || {
                failed_handshakes(node, "server", reason).is_ok_and(|n| n == before + 1)
            })
            .with_context(|| format!("{door:?}\n{}", node.agent_tail()))?;
        }
        assert_eq!(mesh.pod("web").server(0).stats()?.bytes, heard, "the application has heard none of them");
        passes()?;
        wait_until("positive control: it hears who may speak", SOON, || {
            mesh.pod("web").server(0).stats().is_ok_and(|stats| stats.bytes == heard + 1)
        })?;
    }
    Ok(())
}

#[test]
fn application_protocols_do_not_open_each_others_doors() -> Result<()> {
    let mesh = mesh("alpn_confusion")?;
    let attacker = mesh.pod("attacker");
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "attacker")))?;
    let [own, hbone] = doors(&mesh);
    for (to, alpn, passes) in [
        (own.0, "heddle/h2", true),
        (own.0, "h2,heddle/h2", true),
        // The application's own TLS: web's is an echo server, to which a ClientHello is a text.
        (own.0, "h2", false),
        (own.0, "heddle/h20", false),
        (own.0, "HEDDLE/H2", false),
        (own.0, "", false),
        (hbone.0, "h2", true),
        (hbone.0, "heddle/h2", false),
        (hbone.0, "http/1.1", false),
        (hbone.0, "", false),
    ] {
        let told = knock(&mesh, (to, alpn), &good).with(&["--timeout", "4"]).run(attacker)?;
        let what = || format!("ALPN {alpn:?} at {to}");
        if passes {
            told.assert_echoed("x").with_context(what)?;
        } else {
            told.assert_refused().with_context(what)?;
        }
    }
    Ok(())
}

/// What a peer, or an application, says about itself counts for nothing.
#[test]
fn headers_authenticate_nobody() -> Result<()> {
    let mesh = mesh("headers")?;
    let (client, attacker, web) = (mesh.pod("client"), mesh.pod("attacker"), mesh.pod("web"));
    let id = spiffe_id("shop", "attacker");
    let good = mesh.ca().issue("good", &claims(&id))?;
    let victim = SocketAddr::new(client.v4(), 4321).to_string();
    let of_victim = [
        format!("forwarded=for=\"{victim}\";by=x"),
        format!("x-forwarded-for={}", client.v4()),
        format!("x-forwarded-client-cert=By=x;URI={}", id_of(client)),
        format!("baggage=k8s.namespace.name=shop,source.principal={}", id_of(client)),
        format!("x-heddle-client={victim}"),
        format!("x-heddle-principal={}", id_of(client)),
    ];
    let [own, hbone] = doors(&mesh);
    for door in [own, hbone] {
        for field in &of_victim {
            let told = knock(&mesh, door, &good).with(&["--field", field]).run(attacker)?;
            told.assert_echoed("x").with_context(|| format!("{field} at {door:?}"))?;
        }
    }
    // «This CONNECT is the application's own»: on the mesh's transport it is then a request to the application, which here speaks no HTTP,
    // with no more rights than its peer has. HBONE knows no such word.
    for value in ["", "application", "yes"] {
        let field = format!("x-heddle-connect={value}");
        let told = knock(&mesh, own, &good).with(&["--field", &field]).run(attacker)?;
        ensure!(told.status()? == "502", "{field:?} at {own:?}: {}", told.0);
        knock(&mesh, hbone, &good).with(&["--field", &field]).run(attacker)?.assert_echoed("x").context(field)?;
    }
    let seen = web.server(0).accepted()?;
    ensure!(seen.len() >= 12, "{seen:?}");
    ensure!(
        seen.iter().all(|a| a.accept.ip().to_canonical() == attacker.v4()),
        "the application was lied to: {seen:?}"
    );
    let node = mesh.node("b");
    let is_lie = |r: &Value| r["source_principal"] == id_of(client).as_str() || r["source_pod"] == "client";
    wait_logged(node, "the attacker as who it is", |r| r["source_principal"] == id.as_str())?;
    let lies: Vec<Value> = node.access_log().into_iter().filter(is_lie).collect();
    ensure!(lies.is_empty(), "{lies:?}");
    // The attacker may say its own port.
    let own = SocketAddr::new(attacker.v4(), 4321);
    for (door, field) in
        doors(&mesh).into_iter().zip([format!("x-heddle-client={own}"), format!("forwarded=for=\"{own}\"")])
    {
        knock(&mesh, door, &good).with(&["--field", &field]).run(attacker)?.assert_echoed("x")?;
    }
    let seen = web.server(0).accepted()?;
    ensure!(
        seen.iter().filter(|a| a.accept.port() == 4321).count() == 2,
        "positive control: fields are read: {seen:?}"
    );

    // An application in the mesh says the same in a request: nothing of it arrives, nothing of it counts.
    let _server = serve_script(web, "http1_server.py", &["h11"], 8090)?;
    let url = format!("http://{}/echo?spoofed", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let liar = attacker.v4().to_string();
    let fields = [
        format!("x-heddle-client: {liar}:4321"),
        "x-heddle-connect: application".to_owned(),
        "x-heddle-version: 2".to_owned(),
        format!("x-heddle-principal: {id}"),
        "x-honest: yes".to_owned(),
    ];
    let words: Vec<&str> = fields.iter().flat_map(|field| ["-H", field]).chain([url.as_str()]).collect();
    let told: Value = serde_json::from_str(curl(client, &words)?.trim())?;
    ensure!(told["headers"]["x-honest"] == "yes" && !told.to_string().contains("x-heddle"), "{told}");
    let record = wait_logged(node, "the request", |r| r["path"] == "/echo?spoofed")?;
    ensure!(record["source_principal"] == id_of(client).as_str() && !record.to_string().contains(&liar), "{record}");
    Ok(())
}

/// The agent does not take another identity for the one it calls, whatever roots vouch for it.
#[test]
fn a_server_that_is_somebody_else_is_not_spoken_to() -> Result<()> {
    let mesh = Mesh::declare("wrong_server")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .unmeshed()
        .annotated("ambient.istio.io/redirection", "enabled")
        .serves(tcp(8080))
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let id = id_of(web);
    let foreign = Authority::new("root of somebody else")?;
    let good = mesh.ca().issue("good", &claims(&id))?;
    for (reason, credential, words) in [
        ("wrong_identity", mesh.ca().issue("client-cert", &claims(&id_of(client)))?, &[][..]),
        (
            "wrong_trust_domain",
            mesh.ca().issue("elsewhere", &claims("spiffe://elsewhere.example/ns/shop/sa/web"))?,
            &[],
        ),
        ("expired", mesh.ca().issue("expired", &claims(&id).expired())?, &[]),
        ("not_yet_valid", mesh.ca().issue("early", &claims(&id).not_yet_valid())?, &[]),
        ("unknown_root", foreign.issue(mesh.ca().credentials(), "foreign", &claims(&id))?, &[]),
        // Python's server has no common version with us and hangs up without a word.
        ("closed", mesh.ca().issue("old", &claims(&id))?, &["--tls12"]),
    ] {
        // It would take anybody's certificate, so that nothing but its own is wrong.
        let roots = good.root.display().to_string();
        let words = [&["--roots", &roots], words].concat();
        let server = heddle_tests_netns::secure_peers::hbone_server(web, &credential, &words)?;
        let outcome = client.connect(&dial(web.v4(), 8080))?;
        outcome.assert_refused().with_context(|| reason.to_owned())?;
        wait_until(&format!("{reason} is counted"), SOON, || {
            failed_handshakes(mesh.node("a"), "client", reason).is_ok_and(|n| n > 0)
        })
        .with_context(|| mesh.node("a").agent_tail())?;
        ensure!(server.count("connect")? == 0, "{reason}: it was told what is wanted of it\n{}", server.tail());
        drop(server);
        let server = heddle_tests_netns::secure_peers::hbone_server(web, &good, &[])?;
        wait_until("positive control", SOON, || {
            client.connect(&dial(web.v4(), 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
        })
        .with_context(|| format!("{}\n{}", server.tail(), mesh.node("a").agent_tail()))?;
    }
    Ok(())
}

/// A pod takes over the address of another: nobody is sent to it for the other, and nobody takes it for the other.
#[test]
fn a_pod_with_the_address_of_another_is_not_taken_for_it() -> Result<()> {
    let mesh = mesh("address_reuse")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let to = dial(web.v4(), 8080);
    let held = client.hold(&to, 3)?;
    ensure!(held.ping()? == (3, 0), "{}", held.tail());
    wait_logged(mesh.node("b"), "nothing yet", |_| true).ok();
    web.delete_object()?;
    held.wait_ended(3, SOON * 2).context("connections to a pod that is gone")?;
    web.edit(|plan| plan.name = "heir".to_owned())?;
    let heir = spiffe_id("shop", "heir");
    wait_certificate(mesh.node("b"), &heir)?;
    wait_until("the heir is reached", SOON, || client.connect(&to).is_ok_and(|o| o.assert_succeeded().is_ok()))
        .with_context(|| mesh.node("a").agent_tail())?;
    for node in [mesh.node("a"), mesh.node("b")] {
        wait_logged(node, "the heir as who it is", |r| {
            r["transport"] == "heddle"
                && r["destination_principal"] == heir.as_str()
                && r["source_principal"] == id_of(client)
        })?;
    }
    // The other way: what the heir says now is the heir's.
    web.connect(&dial(client.v4(), 9999))?.assert_refused()?;
    wait_logged(mesh.node("a"), "the heir calls", |r| r["source_principal"] == heir.as_str())?;
    // The certificate of the one who is gone is gone with it.
    let certs = mesh.node("b").json(&["certs"])?.to_string();
    ensure!(certs.contains(&heir) && !certs.contains(&id_of(web)), "{certs}");
    Ok(())
}

/// The same where the caller's agent has not heard of it: it finds somebody else at the address, and tells him nothing.
#[test]
fn an_agent_that_has_not_heard_of_an_heir_tells_him_nothing() -> Result<()> {
    let mesh = Mesh::declare("stale_object").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).with_ca();
    let mesh = mesh.start()?;
    wait_certified(&mesh)?;
    let (client, web, a, b) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"), mesh.node("b"));
    // From here on a's agent reads objects of its own.
    let stale = mesh.source().copy("stale")?;
    let old = a.replace_agent_reading(&stale)?;
    ensure!(old.wait(SOON * 2)?.success(), "{}", old.tail());
    wait_until("the agent with objects of its own is ready", SOON, || a.is_ready())?;
    client.connect(&dial(web.v4(), 8080))?.assert_succeeded().context("positive control: web is web")?;

    web.delete_object()?;
    web.edit(|plan| plan.name = "heir".to_owned())?;
    let heir = spiffe_id("shop", "heir");
    wait_certificate(b, &heir)?;
    wait_until("the address is the heir's", SOON, || {
        b.json(&["certs"]).is_ok_and(|certs| !certs.to_string().contains(&id_of(web)))
    })?;
    let redirected = |transport: &str| {
        web.write_into(&stale, |plan| {
            plan.name = "web".to_owned();
            if transport == "hbone" {
                plan.labels.insert("heddle.dev/mesh".to_owned(), "disabled".to_owned());
                plan.annotations.insert("ambient.istio.io/redirection".to_owned(), "enabled".to_owned());
            }
        })
    };
    for (transport, port) in [("heddle", 8080), ("hbone", HBONE_PORT)] {
        redirected(transport)?;
        let wire = a.capture("uplink")?;
        let heard = web.server(0).stats()?.bytes;
        let mut last = None;
        wait_until(&format!("calls of web go by {transport}, and end there"), SOON, || {
            let before = failed_handshakes(a, "client", "wrong_identity").unwrap_or(0);
            let seen = (a.access_log().len(), wire.bytes_of_port(port).unwrap_or(0));
            last = client.connect(&dial(web.v4(), 8080).send("for web alone")).ok();
            let is_refused = last.as_ref().is_some_and(|o| o.assert_refused().is_ok());
            let is_wrong = |r: &Value| r["reason"] == "tls_wrong_identity";
            let logged = || a.access_log().iter().skip(seen.0).any(is_wrong);
            is_refused
                && wait_until("its record", SOON / 5, logged).is_ok()
                && wire.bytes_of_port(port).is_ok_and(|bytes| bytes > seen.1)
                && failed_handshakes(a, "client", "wrong_identity").is_ok_and(|n| n > before)
        })
        .with_context(|| format!("{last:?}\n{}", a.agent_tail()))?;
        for ip in both_families(web) {
            client.connect(&dial(ip, 8080).send("for web alone"))?.assert_refused()?;
        }
        assert_eq!(web.server(0).stats()?.bytes, heard, "{transport}: the heir's application heard something");
    }
    // Positive control: once it has heard who is there, the same call is answered.
    let file = |name: &str| heddle_testkit::objects::pod_file("shop", name);
    std::fs::copy(mesh.source().directory().join(file("heir")), stale.directory().join(file("heir")))?;
    stale.remove(&file("web"))?;
    wait_until("the heir is reached as who it is", SOON, || {
        client.connect(&dial(web.v4(), 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
    })
    .with_context(|| a.agent_tail())?;
    wait_logged(a, "the heir as who it is", |r| r["destination_principal"] == heir.as_str())?;
    Ok(())
}

/// Handshakes are given up after ten seconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_handshake_that_never_ends_is_ended() -> Result<()> {
    let mesh = mesh("slow")?;
    let (attacker, node) = (mesh.pod("attacker"), mesh.node("b"));
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "attacker")))?;
    let door = doors(&mesh)[1];
    // Slow, but in time.
    knock(&mesh, door, &good).with(&["--slow-ms", "2"]).run(attacker)?.assert_echoed("x")?;
    let before = failed_handshakes(node, "server", "timeout")?;
    let limit = (HANDSHAKE_LIMIT * 2).as_secs().to_string();
    let start = Instant::now();
    let slow = knock(&mesh, door, &good).with(&["--slow-ms", "100", "--timeout", &limit]).start(attacker)?;
    let half = knock(&mesh, door, &good).with(&["--hello-only", "40", "--timeout", &limit]).start(attacker)?;
    let silent = knock(&mesh, door, &good).with(&["--hello-only", "0", "--timeout", &limit]).start(attacker)?;
    for client in [slow, half, silent] {
        let told = client.finish()?;
        told.assert_refused()?;
        ensure!(told.0["end"] != "timeout", "it was left waiting: {}", told.0);
    }
    ensure!(
        start.elapsed() > HANDSHAKE_LIMIT / 2 && start.elapsed() < HANDSHAKE_LIMIT * 3 / 2,
        "{:?}",
        start.elapsed()
    );
    wait_until("they are counted", SOON, || {
        failed_handshakes(node, "server", "timeout").is_ok_and(|n| n >= before + 3)
    })
    .with_context(|| node.agent_tail())?;
    knock(&mesh, door, &good).run(attacker)?.assert_echoed("x")
}

/// Connections to the port of HBONE that never finish a handshake, more than handshakes of a pod may be under way.
const FLOOD: usize = 3000;
/// What the agent may take for them: 16 KiB each.
const FLOOD_KIB_MAX: u64 = FLOOD as u64 * 16;
/// How long an honest peer may be held up by a flood that has said nothing.
const KNOCK_LIMIT: Duration = Duration::from_secs(2);

/// Connections of an attacker, all open and each with a whole ClientHello or nothing behind it.
struct Flood {
    process: Process,
}

impl Flood {
    fn start(mesh: &Mesh, words: &[&str]) -> Result<Self> {
        let to = SocketAddr::new(mesh.pod("web").v4(), HBONE_PORT);
        let mut command = script("tls_flood.py", &[])?;
        command.arg(to.to_string()).arg(FLOOD.to_string()).args(words);
        let flood = Self { process: mesh.pod("attacker").spawn("flood", command)? };
        wait_until("the flood has begun", PATIENCE, || flood.process.stdout().contains("\"begun\""))
            .with_context(|| flood.process.tail())?;
        Ok(flood)
    }

    /// How many of its connections are open still, and how many of them have been answered.
    fn state(&self) -> Result<(usize, usize)> {
        let lines = || self.process.stdout().lines().count();
        let before = lines();
        self.process.send_line("state")?;
        wait_until("the flood tells its state", SOON, || lines() > before).with_context(|| self.process.tail())?;
        let printed = self.process.stdout();
        let last: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
        let count = |field: &str| last[field].as_u64().and_then(|n| usize::try_from(n).ok());
        count("open").zip(count("answered")).with_context(|| last.to_string())
    }
}

/// An honest peer knocks at this door; how long it took.
fn timed_knock(mesh: &Mesh, door: (SocketAddr, &'static str), credential: &Credential) -> Result<Duration> {
    let told = knock(mesh, door, credential).run(mesh.pod("attacker"))?;
    told.assert_echoed("x").with_context(|| format!("at {door:?}: {}\n{}", told.0, mesh.node("b").agent_tail()))?;
    Ok(Duration::from_secs_f64(told.0["seconds"].as_f64().context("seconds")?))
}

#[test]
fn a_flood_that_says_nothing_has_bounded_memory_and_holds_nobody_up() -> Result<()> {
    let mesh = mesh("flood_silent")?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("b"));
    client.connect(&dial(web.v4(), 8080))?.assert_succeeded()?;
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "good")))?;
    let rss = || Ok::<_, anyhow::Error>(usage(node.agent_pid()?)?.rss_kib);
    let before = rss()?;
    for round in 0..2 {
        let flood = Flood::start(&mesh, &[])?;
        for door in [doors(&mesh)[1], doors(&mesh)[0]] {
            let took = timed_knock(&mesh, door, &good)?;
            ensure!(took < KNOCK_LIMIT, "a peer was held up for {took:?} at {door:?}");
            let (open, _) = flood.state()?;
            ensure!(open > FLOOD * 9 / 10, "positive control: the flood was there all the time, {open} of it are left");
        }
        client.connect(&dial(web.v6(), 8080).many(4, 4))?.assert_succeeded()?;
        let grown = rss()?.saturating_sub(before);
        ensure!(grown < FLOOD_KIB_MAX, "round {round}: {grown} KiB for {FLOOD} connections");
        wait_until("they are given up", HANDSHAKE_LIMIT * 2, || flood.state().is_ok_and(|(open, _)| open == 0))?;
    }
    Ok(())
}

/// A whole ClientHello is answered, with a signature, and waited for: only so many at a time. What such a flood costs is bounded, and however
/// long it goes on, everybody else gets his turn within the time that a handshake may take.
#[test]
fn a_flood_of_handshakes_has_bounded_memory_and_does_not_keep_others_out() -> Result<()> {
    let mesh = mesh("flood")?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("b"));
    let held = client.hold(&dial(web.v4(), 8080), 4)?;
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "good")))?;
    let rss = || Ok::<_, anyhow::Error>(usage(node.agent_pid()?)?.rss_kib);
    let before = rss()?;
    // Evenly, and anew whenever one is given up: there is no moment at which it is over.
    let limit = HANDSHAKE_LIMIT.as_secs().to_string();
    let flood = Flood::start(&mesh, &["--hello", "--again", "--over", &limit])?;
    for door in [doors(&mesh)[1], doors(&mesh)[0]] {
        let took = timed_knock(&mesh, door, &good)?;
        let (open, answered) = flood.state()?;
        ensure!(
            open > FLOOD * 9 / 10 && answered > FLOOD / 4,
            "positive control: the flood is there all the time: {open} of it are open, {answered} are answered, after {took:?}"
        );
        ensure!(held.ping()? == (4, 0), "connections of the mesh from before go on\n{}", held.tail());
        let grown = rss()?.saturating_sub(before);
        ensure!(grown < FLOOD_KIB_MAX, "{grown} KiB for {FLOOD} handshakes");
    }
    flood.process.kill();
    wait_until("its memory is used again", SOON, || node.connections().is_ok_and(|all| all.len() < 50))?;
    let timeouts = failed_handshakes(node, "server", "timeout")?;
    ensure!(timeouts as usize > FLOOD / 2, "they are counted: {timeouts}");
    Ok(())
}

/// A connection that ends without TLS's own word for it has been cut: the application must not take it for the end of what was said.
#[test]
fn truncation_is_no_end() -> Result<()> {
    let mesh = mesh("truncation")?;
    let (attacker, web) = (mesh.pod("attacker"), mesh.pod("web"));
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "attacker")))?;
    for door in doors(&mesh) {
        let before = web.server(0).ends()?.len();
        knock(&mesh, door, &good).run(attacker)?.assert_echoed("x")?;
        let ends = web.server(0).wait_ended(before + 1)?;
        assert_eq!(ends.last(), Some(&End::Eof), "positive control: an end is an end");
        // Half of a text came, then nothing.
        knock(&mesh, door, &good).with(&["--open-end", "--truncate"]).run(attacker)?;
        let ends = web.server(0).wait_ended(before + 2)?;
        assert_eq!(ends.last(), Some(&End::Reset), "at {door:?}");
    }
    Ok(())
}

/// A peer with a good certificate reaches what its connection was made to, and nothing else of the pod or beside it.
#[test]
fn a_peer_reaches_the_port_it_came_to_and_no_other() -> Result<()> {
    let mesh = mesh("confused_port")?;
    let (attacker, client, web) = (mesh.pod("attacker"), mesh.pod("client"), mesh.pod("web"));
    let good = mesh.ca().issue("good", &claims(&spiffe_id("shop", "attacker")))?;
    for ip in both_families(web) {
        let own = SocketAddr::new(ip, 8080);
        let to = |authority: &str| {
            let client =
                mtls_client(own, &good).with(&["--alpn", "heddle/h2", "--authority", authority, "--send", "x"]);
            client.run(attacker)
        };
        to(&own.to_string())?.assert_echoed("x")?;
        for authority in [
            SocketAddr::new(ip, 8081).to_string(),
            SocketAddr::new(ip, 15001).to_string(),
            SocketAddr::new("127.0.0.1".parse()?, 8080).to_string(),
            SocketAddr::new(client.v4(), 8080).to_string(),
            SocketAddr::new(mesh.service("web").cluster_v4(), 80).to_string(),
            "web:8080".to_owned(),
        ] {
            let told = to(&authority)?;
            let stream = told.stream()?;
            let is_refused =
                stream["status"] == "400" || stream["end"].as_str().is_some_and(|e| e.starts_with("reset"));
            ensure!(is_refused, "CONNECT {authority}: {}", told.0);
        }
    }
    Ok(())
}
