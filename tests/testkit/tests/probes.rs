//! The probes find what is there, so that what they do not find is not there.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{BpfObjects, TcpSocket, netns_holders, status_field, usage};

#[test]
fn leftovers_are_found_one_by_one() -> Result<()> {
    let mesh = Mesh::declare("leftovers").node("a").pod("web").start_without_heddle()?;
    let (node, web) = (mesh.node("a"), mesh.pod("web"));
    let none = BpfObjects::default();
    assert_eq!(node.leftovers(&none)?, Vec::<String>::new());
    let only = |kind: &str| -> Result<()> {
        let found = node.leftovers(&none)?;
        ensure!(found.len() == 1 && found[0].contains(kind), "planted a {kind}, found {found:#?}");
        Ok(())
    };

    let unrelated = web.serve(&tcp(8080))?;
    assert_eq!(node.leftovers(&none)?, Vec::<String>::new(), "an application's own listener is none of Heddle's");
    drop(unrelated);
    let listener = web.serve(&tcp(15006).on_pod_addresses())?;
    assert_eq!(node.leftovers(&none)?.len(), 2, "one of IPv4, one of IPv6");
    drop(listener);

    let mut holder = Command::new("sleep").arg("60").stdin(Stdio::from(File::open(web.netns().path())?)).spawn()?;
    let noticed = only("holds namespace");
    holder.kill()?;
    holder.wait()?;
    noticed?;
    assert!(netns_holders(&[web.netns()]).is_empty());

    let mut command = Command::new("sleep");
    command.arg("60");
    let process = node.heddle_place().spawn("planted", command)?;
    only("in the agent's cgroup")?;
    drop(process);

    let socket = node.paths().run.join("keeper.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    only("file ")?;
    fs::remove_file(&socket)?;

    fs::create_dir_all(&node.paths().pins)?;
    let pin = node.paths().pins.join("planted");
    let made = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&pin)
        .args(["type", "hash", "key", "4", "value", "4", "entries", "1", "name", "planted"])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let objects = node.bpf_objects()?;
    assert_eq!((objects.maps.len(), objects.programs.len()), (1, 0), "{objects:?}");
    assert_eq!(node.leftovers(&none)?.len(), 2, "the pin, and the object behind it");
    // Held by a descriptor alone it is still found, by its id.
    let elsewhere = std::path::Path::new("/sys/fs/bpf").join(mesh.id().name("elsewhere"));
    fs::rename(&pin, &elsewhere)?;
    assert_eq!(objects.alive()?.len(), 1);
    let found = node.leftovers(&objects)?;
    ensure!(found.len() == 1 && found[0].starts_with("bpf map"), "{found:?}");
    fs::remove_file(&elsewhere)?;
    wait_until("the map is freed", std::time::Duration::from_secs(5), || objects.alive().is_ok_and(|a| a.is_empty()))?;
    assert_eq!(node.leftovers(&objects)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_socket_tables_show_both_ends() -> Result<()> {
    let mesh = Mesh::declare("tables")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for ip in [web.v4(), web.v6()] {
        let held = client.hold(&dial(ip, 8080), 2)?;
        let carried = |s: &&TcpSocket| s.established && s.remote.port() == 8080;
        let here: Vec<_> = client.tcp_sockets()?.iter().filter(carried).map(|s| (s.local, s.remote)).collect();
        assert_eq!(here.len(), 2);
        for (local, remote) in here {
            assert_eq!((remote.ip(), local.ip().is_ipv4()), (ip, ip.is_ipv4()));
            let there = web.tcp_sockets()?;
            assert!(there.iter().any(|s| s.established && (s.local, s.remote) == (remote, local)), "{there:?}");
        }
        held.close()?;
        wait_until("the table is empty again", std::time::Duration::from_secs(5), || {
            client.tcp_sockets().is_ok_and(|s| !s.iter().any(|s| s.established))
        })?;
    }
    Ok(())
}

#[test]
fn usage_follows_what_a_process_takes() -> Result<()> {
    let mesh = Mesh::declare("usage").node("a").pod("client").pod("web").serves(tcp(8080)).start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let pid = web.server(0).pid();
    let before = usage(pid)?;
    let held = client.hold(&dial(web.v4(), 8080), 100)?;
    assert_eq!(usage(pid)?.fds, before.fds + 100);
    drop(held);
    wait_until("descriptors are as before", std::time::Duration::from_secs(5), || {
        usage(pid).is_ok_and(|u| u.fds == before.fds)
    })?;
    assert_ne!(status_field(pid, "CapEff")?, "0000000000000000", "podapp runs as root");
    assert!(status_field(pid, "NoSuchField").is_err());
    Ok(())
}

#[test]
fn consecutive_source_ports_are_used() -> Result<()> {
    let mesh = Mesh::declare("ports").node("a").pod("client").pod("web").serves(tcp(8080)).start_without_heddle()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _held = client.hold(&dial(web.v4(), 8080).bound_from(std::net::SocketAddr::new(client.v4(), 41_000)), 20)?;
    let mut ports: Vec<u16> = web.server(0).wait_accepted(20)?.iter().map(|a| a.accept.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, (41_000..41_020).collect::<Vec<_>>());
    Ok(())
}
