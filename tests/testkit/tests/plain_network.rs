//! The testkit without Heddle: the network carries, `podapp` reports the truth, nothing stays behind.
//!
//! These are the positive controls of every other suite: what fails here is not Heddle's fault.

use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::cgroup::Cgroup;
use heddle_testkit::id::MeshId;
use heddle_testkit::prelude::*;
use heddle_testkit::{probe, sweep};

#[test]
fn pods_reach_each_other_and_see_true_addresses() -> Result<()> {
    let mesh = Mesh::declare("plain")
        .node("a")
        .pod("client")
        .pod("neighbour")
        .serves(tcp(8080))
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .external("internet")
        .serves(tcp(443))
        .start_without_heddle()?;
    let client = mesh.pod("client");
    let servers = [
        (mesh.pod("neighbour").place(), mesh.pod("neighbour").server(0), 8080),
        (mesh.pod("web").place(), mesh.pod("web").server(0), 8080),
        (mesh.external("internet"), mesh.external_server("internet"), 443),
    ];
    for (place, server, port) in servers {
        for (to, from) in [(place.v4(), client.v4()), (place.v6(), client.v6())] {
            let outcome = client.connect(&dial(to, port))?;
            outcome.assert_succeeded()?;
            let seen = outcome.one()?;
            assert_eq!(seen.peer.map(|a| (a.ip(), a.port())), Some((to, port)));
            assert_eq!(seen.local.map(|a| a.ip()), Some(from));
            let accepted = server.wait_accepted(1)?;
            let last = accepted.last().unwrap();
            assert_eq!(last.accept.ip().to_canonical(), from, "{last:?}");
            assert_eq!(Some(last.accept), last.peer);
            assert_eq!(last.local.map(|a| a.ip().to_canonical()), Some(to));
            assert_eq!(Some(last.accept.port()), seen.local.map(|a| a.port()));
        }
    }
    // From the node itself, and back to nowhere.
    mesh.node("a").connect(&dial(mesh.pod("web").v4(), 8080))?.assert_succeeded()?;
    client.connect(&dial(mesh.pod("web").v4(), 9999))?.assert_refused()
}

#[test]
fn a_client_may_use_every_kind_of_socket() -> Result<()> {
    let mesh = Mesh::declare("sockets")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080).fast_open())
        .serves(tcp(8081).mptcp())
        .start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for (to, source) in [(web.v4(), client.v4()), (web.v6(), client.v6())] {
        let base = dial(to, 8080);
        let bound = std::net::SocketAddr::new(source, 12345);
        let kinds = [
            base.clone().nonblocking(),
            base.clone().epoll(),
            base.clone().bound_to(bound),
            base.clone().bound_to_device("eth0"),
            base.clone().fast_open(),
            base.clone().msg_fastopen(),
            base.clone().mptcp(),
            dial(to, 8081).mptcp(),
            dial(to, 8081),
            base.clone().bytes(3_000_000),
            base.clone().half_close(),
        ];
        for kind in kinds {
            let outcome = client.connect(&kind)?;
            outcome.assert_succeeded()?;
            assert_eq!(outcome.one()?.peer, Some(kind.target()), "{kind:?}");
        }
    }
    let mapped = client.connect(&dial(web.v4(), 8080).v4_mapped())?;
    mapped.assert_succeeded()?;
    assert!(mapped.one()?.peer.is_some_and(|a| a.is_ipv6()), "{mapped:?}");
    Ok(())
}

#[test]
fn servers_and_clients_do_what_they_say() -> Result<()> {
    let mesh = Mesh::declare("modes")
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(1).server_first("hello"))
        .serves(tcp(2).echoes_after_half_close())
        .serves(tcp(3).greets_and_half_closes("bye"))
        .serves(tcp(4).resets())
        .serves(tcp(5).never_reads())
        .serves(tcp(6).discards())
        .serves(tcp(7).http())
        .serves(tcp(8).on_loopback())
        .serves(tcp(9).on_pod_addresses())
        .start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let to = |port| dial(web.v4(), port);
    client.connect(&to(1).expect("hello"))?.assert_succeeded()?;
    let whole = client.connect(&to(2).bytes(100_000).half_close())?;
    whole.assert_succeeded()?;
    assert_eq!((whole.one()?.received, &whole.one()?.end), (100_000, &End::Eof));
    let half = client.connect(&to(3).expect("bye").without_echo().wait_end())?;
    assert_eq!((half.one()?.text.as_str(), &half.one()?.end), ("bye", &End::Eof));
    assert_eq!(client.connect(&to(4).silent().wait_end())?.one()?.end, End::Reset);
    let stuck = client.connect(&to(5).within(Duration::from_millis(300)))?;
    assert_eq!(stuck.one()?.end, End::Timeout);
    client.connect(&to(6).without_echo().half_close())?.assert_succeeded()?;
    assert_eq!(web.server(5).wait_ended(1)?, [End::Eof]);
    let request = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    let page = client.connect(&to(7).send(request).without_echo().wait_end().within(Duration::from_millis(300)))?;
    assert!(page.one()?.text.contains("200 OK") && page.one()?.text.contains(&client.v4().to_string()), "{page:?}");
    refused_but("a loopback-only listener from outside", || client.connect(&to(8)), || client.connect(&to(9)))?;
    web.connect(&dial("127.0.0.1".parse()?, 8))?.assert_succeeded()?;
    web.connect(&dial("127.0.0.1".parse()?, 9))?.assert_refused()?;
    client.connect(&to(2).reset().half_close().send("x"))?;
    Ok(())
}

#[test]
fn loads_holds_and_floods_report_totals() -> Result<()> {
    let mesh = Mesh::declare("loads")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080).quiet())
        .serves(tcp(8081))
        .serves(tcp(8082).never_reads().quiet())
        .start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let many = client.connect(&dial(web.v4(), 8080).many(20, 25))?;
    many.assert_succeeded()?;
    assert_eq!(many.summary.attempted, 500);
    let paced = client.connect(&dial(web.v4(), 8080).rate(200, Duration::from_secs(1)))?;
    paced.assert_succeeded()?;
    assert_eq!(paced.summary.attempted, 200);
    assert_eq!(web.server(0).stats()?.accepted, 700);

    let held = client.hold(&dial(web.v6(), 8081), 10)?;
    assert_eq!(held.ping()?, (10, 0));
    web.server(1).kill();
    assert_eq!(held.wait_ended(10, Duration::from_secs(5))?.len(), 10);
    assert_eq!(held.ping()?, (0, 0));

    let flood = client.flood(&dial(web.v4(), 8082), 50, Duration::from_millis(700))?.finish()?;
    assert_eq!(flood.summary.connected, 50, "{flood:?}");
    let failing = client.connect(&dial(web.v4(), 9).many(2, 3))?;
    failing.assert_refused()?;
    assert!(failing.assert_succeeded().is_err(), "a check that cannot fail");
    Ok(())
}

#[test]
fn one_family_only() -> Result<()> {
    let mesh = Mesh::declare("families")
        .node("a")
        .pod("four")
        .with_families(Families::V4)
        .serves(tcp(80))
        .pod("six")
        .with_families(Families::V6)
        .serves(tcp(80))
        .pod("both")
        .start_without_heddle()?;
    let both = mesh.pod("both");
    both.connect(&dial(mesh.pod("four").v4(), 80))?.assert_succeeded()?;
    both.connect(&dial(mesh.pod("six").v6(), 80))?.assert_succeeded()?;
    assert_eq!((mesh.pod("four").addresses().len(), mesh.pod("six").addresses().len()), (1, 1));
    Ok(())
}

#[test]
fn nothing_stays_behind() -> Result<()> {
    let mesh = Mesh::declare("cleanup").node("a").pod("web").serves(tcp(80)).start_without_heddle()?;
    let id = mesh.id();
    let (pod, pids) = (mesh.pod("web"), mesh.pod("web").cgroup().processes());
    assert!(!pids.is_empty());
    assert_eq!(pod.listeners()?.iter().map(std::net::SocketAddr::port).collect::<Vec<_>>(), [80]);
    ensure!(sweep::traces(id)?.len() >= 4, "positive control: {:?}", sweep::traces(id)?);
    drop(mesh);
    assert_eq!(sweep::traces(id)?, Vec::<String>::new());
    for pid in pids {
        assert!(probe::usage(pid).is_err(), "process {pid} still runs");
    }
    Ok(())
}

#[test]
fn a_panic_cleans_up_too() -> Result<()> {
    let (report, inbox) = std::sync::mpsc::sync_channel(1);
    let test = std::thread::spawn(move || {
        let mesh = Mesh::declare("panic").node("a").pod("web").serves(tcp(80)).start_without_heddle().unwrap();
        report.send(mesh.id()).unwrap();
        panic!("on purpose");
    });
    let id = inbox.recv()?;
    assert!(test.join().is_err());
    assert_eq!(sweep::traces(id)?, Vec::<String>::new());
    Ok(())
}

/// The first test process is played by `sleep`: alive, then killed.
#[test]
fn the_sweep_removes_what_a_killed_test_left() -> Result<()> {
    probe::need_root()?;
    let mut owner = std::process::Command::new("sleep").arg("600").spawn()?;
    let id = MeshId::of(owner.id(), 0);
    let cgroup = Cgroup::root()?.join(id.to_string()).join("a");
    std::fs::create_dir_all(&cgroup)?;
    std::fs::create_dir_all(id.directory().join("source"))?;
    let made = std::process::Command::new("ip").args(["netns", "add", &id.name("a")]).status()?;
    ensure!(made.success());
    let mut orphan = std::process::Command::new("sleep").arg("600").spawn()?;
    std::fs::write(cgroup.join("cgroup.procs"), orphan.id().to_string())?;

    sweep::sweep()?;
    let kept = sweep::traces(id)?;
    owner.kill()?;
    owner.wait()?;
    sweep::sweep()?;
    let swept = sweep::traces(id)?;
    // Reaped here, so that the sweep sees a zombie no longer than it must.
    let ended = orphan.wait()?;
    assert_eq!(kept.len(), 3, "a living test's things stay: {kept:?}");
    assert_eq!(swept, Vec::<String>::new());
    assert!(heddle_testkit::process::was_killed(ended), "{ended}");
    Ok(())
}
