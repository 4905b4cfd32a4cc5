//! Bytes through the agents are the bytes and ends of a plain TCP connection (demand 9): half-close both ways, resets,
//! protocols in which the server speaks first, failures that the application learns of at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{both_families, wait_reason};

#[test]
fn streams_keep_their_shape() -> Result<()> {
    let mesh = Mesh::declare("streams")
        .node("a")
        .pod("client")
        .pod("near")
        .serves(tcp(1001).server_first("hello"))
        .serves(tcp(1002).echoes_after_half_close())
        .serves(tcp(1003).greets_and_half_closes("bye"))
        .serves(tcp(1004))
        .node("b")
        .pod("far")
        .serves(tcp(1001).server_first("hello"))
        .serves(tcp(1002).echoes_after_half_close())
        .serves(tcp(1003).greets_and_half_closes("bye"))
        .serves(tcp(1004))
        .start()?;
    let client = mesh.pod("client");
    for server in [mesh.pod("near"), mesh.pod("far")] {
        for ip in both_families(server) {
            let start = Instant::now();
            client.connect(&dial(ip, 1001).expect("hello").silent())?.assert_succeeded()?;
            client.connect(&dial(ip, 1001).expect("hello"))?.assert_succeeded()?;
            ensure!(start.elapsed() < Duration::from_secs(2), "a server that speaks first is not to wait for anything");
            let whole = client.connect(&dial(ip, 1002).bytes(1_000_000).half_close())?;
            whole.assert_succeeded()?;
            assert_eq!((whole.one()?.received, &whole.one()?.end), (1_000_000, &End::Eof));
            let half = client.connect(&dial(ip, 1003).expect("bye").without_echo().bytes(100_000).half_close())?;
            half.assert_succeeded()?;
            assert_eq!(half.one()?.end, End::Eof);
            client.connect(&dial(ip, 1004).bytes(8_000_000))?.assert_succeeded()?;
        }
        assert_eq!(
            server.server(2).wait_ended(2)?,
            [End::Eof, End::Eof],
            "the client's end arrives after the server's"
        );
    }
    Ok(())
}

#[test]
fn a_reset_arrives_as_a_reset() -> Result<()> {
    let mesh = Mesh::declare("resets")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(1001).resets_on_data())
        .serves(tcp(1002))
        .start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for ip in both_families(web) {
        let by_server = client.connect(&dial(ip, 1001).without_echo().wait_end())?;
        assert_eq!(by_server.one()?.end, End::Reset, "{by_server:?}");
        client.connect(&dial(ip, 1002).reset())?;
        // Positive control: a close in order arrives as such.
        client.connect(&dial(ip, 1002))?.assert_succeeded()?;
    }
    let mut ends = web.server(1).wait_ended(4)?;
    ends.sort();
    assert_eq!(ends, [End::Eof, End::Eof, End::Reset, End::Reset]);
    wait_reason(mesh.node("a"), "downstream_reset")?;
    wait_reason(mesh.node("a"), "upstream_reset")?;
    Ok(())
}

#[test]
fn an_application_learns_at_once_that_nobody_listens() -> Result<()> {
    let mesh = Mesh::declare("refused")
        .node("a")
        .pod("client")
        .pod("near")
        .serves(tcp(8080))
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .pod("plain")
        .unmeshed()
        .serves(tcp(8080))
        .start()?;
    let client = mesh.pod("client");
    for server in [mesh.pod("near"), mesh.pod("far"), mesh.pod("plain")] {
        for ip in both_families(server) {
            let start = Instant::now();
            let attempt = || client.connect(&dial(ip, 9999));
            refused_but(&format!("port without listener of {}", server.name()), attempt, || {
                client.connect(&dial(ip, 8080))
            })?;
            ensure!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
        }
    }
    wait_reason(mesh.node("a"), "upstream_connect_refused")?;
    Ok(())
}

#[test]
fn a_reader_that_stops_stops_the_writer() -> Result<()> {
    let mesh = Mesh::declare("pressure")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080).never_reads())
        .serves(tcp(8081))
        .start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let before = heddle_testkit::probe::usage(mesh.node("a").agent_pid()?)?;
    let stuck = client.connect(&dial(web.v4(), 8080).bytes(256 << 20).within(Duration::from_secs(2)))?;
    assert_eq!(stuck.one()?.end, End::Timeout, "{stuck:?}");
    let after = heddle_testkit::probe::usage(mesh.node("a").agent_pid()?)?;
    let grown = after.rss_kib.saturating_sub(before.rss_kib);
    ensure!(grown < 16 * 1024, "the agent kept {grown} KiB of what nobody reads");
    client.connect(&dial(web.v4(), 8081).bytes(8 << 20))?.assert_succeeded()
}
