//! heddle.keeper.v1 from the wrong side (demand 4): other versions, nonsense, people who may not, and clients that take
//! more than their share. Each gets a clear answer; the keeper and everybody else go on.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heddle_abi::ABI_VERSION;
use heddle_datapath::DatapathError;
use heddle_datapath::client::KeeperClient;
use heddle_datapath::wire::{PACKET_BYTES_MAX, receive, send, send_now};
use heddle_proto::keeper::v1::{self as wire, Role, error::Kind, reply::Reply, request::Request};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, SOON, assert_carried};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, seteuid, write};
use socket2::{Domain, SockAddr, Socket, Type};

/// `--user` of the testkit's agents.
const AGENT_UID: u32 = 65532;

fn seqpacket(run_dir: &Path) -> Result<(Socket, SockAddr)> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(SOON))?;
    Ok((socket, SockAddr::unix(run_dir.join("keeper.sock"))?))
}

/// A connection on which nothing was said yet.
fn raw(node: &Node) -> Result<OwnedFd> {
    let (socket, address) = seqpacket(&node.paths().run)?;
    socket.connect(&address)?;
    Ok(socket.into())
}

fn ask(fd: &OwnedFd, request: Option<Request>) -> Result<Reply> {
    send(fd.as_fd(), &wire::Request { request }, &[])?;
    let (reply, _) = receive::<wire::Reply>(fd.as_fd())?.context("the keeper closed")?;
    reply.reply.context("an empty reply")
}

/// Kind and message of a refusal.
fn refusal(reply: Reply) -> Result<(Kind, String)> {
    let Reply::Error(error) = reply else { bail!("not refused: {reply:?}") };
    Ok((error.kind(), error.message))
}

fn hello(role: Role, protocol: (u32, u32), abi_version: u32) -> Request {
    Request::Hello(wire::Hello {
        protocol_min: protocol.0,
        protocol_max: protocol.1,
        abi_version,
        binary_version: "9.9.9".into(),
        role: role.into(),
        instance: 0,
    })
}

fn client(node: &Node, role: Role) -> Result<KeeperClient> {
    Ok(KeeperClient::connect(&node.paths().run, role, "test")?)
}

/// Connects with another effective user: that is what SO_PEERCRED shows. Tests run in a process each.
fn as_user<T>(uid: u32, work: impl FnOnce() -> T) -> Result<T> {
    seteuid(Uid::from_raw(uid))?;
    let outcome = work();
    seteuid(Uid::from_raw(0))?;
    Ok(outcome)
}

fn start(test: &str) -> Result<Mesh> {
    Mesh::declare(test).node("a").pod("client").pod("web").serves(tcp(8080)).start()
}

/// The same keeper as before serves agent, tools and traffic.
fn unharmed(mesh: &Mesh, keeper: u32) -> Result<()> {
    let (node, web) = (mesh.node("a"), mesh.pod("web"));
    ensure!(node.keeper_pid()? == keeper, "it is another keeper");
    ensure!(client(node, Role::Cli)?.inspect()?.agent_attached, "the agent is not attached any more");
    assert_carried(mesh.pod("client"), web, &dial(web.v4(), 8080), 8080, Carried::BothSides)
}

#[test]
fn another_version_is_told_what_to_do() -> Result<()> {
    let mesh = start("version")?;
    let node = mesh.node("a");
    let keeper = node.keeper_pid()?;
    let fd = raw(node)?;
    let (kind, message) = refusal(ask(&fd, Some(hello(Role::Agent, (7, 9), ABI_VERSION)))?)?;
    assert_eq!(kind, Kind::Version);
    for word in ["9.9.9", "7 to 9", "1 to 2", "within one version"] {
        ensure!(message.contains(word), "{word} is not in {message:?}");
    }
    let (kind, message) = refusal(ask(&fd, Some(hello(Role::Agent, (0, 0), ABI_VERSION)))?)?;
    ensure!(kind == Kind::Version && message.contains("0 to 0"), "{message}");
    let (kind, message) = refusal(ask(&fd, Some(hello(Role::Agent, (1, 9), 99)))?)?;
    assert_eq!(kind, Kind::Version);
    for word in ["ABI 99", "has 3", "upgrade the keeper"] {
        ensure!(message.contains(word), "{word} is not in {message:?}");
    }
    // Protocol 1 knew no HBONE listeners: an agent would take them for others. A tool takes none.
    let (kind, message) = refusal(ask(&fd, Some(hello(Role::Agent, (1, 1), ABI_VERSION)))?)?;
    assert_eq!(kind, Kind::Version);
    for word in ["protocol 1 at most", "2 at least", "upgrade the agent"] {
        ensure!(message.contains(word), "{word} is not in {message:?}");
    }
    // Refused as an agent is not admitted as anything.
    let (kind, _) = refusal(ask(&fd, Some(Request::Inspect(wire::Inspect {})))?)?;
    assert_eq!(kind, Kind::Malformed);
    // Positive controls: a newer client that still speaks ours; a tool of another ABI, which touches no map.
    let Reply::Hello(reply) = ask(&fd, Some(hello(Role::Agent, (1, 9), ABI_VERSION)))? else { bail!("refused") };
    assert_eq!((reply.protocol, reply.abi_version), (2, ABI_VERSION));
    let Reply::Hello(_) = ask(&raw(node)?, Some(hello(Role::Cli, (1, 1), 99)))? else { bail!("refused") };
    unharmed(&mesh, keeper)
}

/// The other way: what a client makes of a keeper that is not of its kind.
#[test]
fn a_client_says_what_is_wrong_with_a_keeper() -> Result<()> {
    let too_old = wire::Error { kind: Kind::Version.into(), message: "bring both within one version".into() };
    let answers: [(Vec<u8>, &str); 4] = [
        (prost::Message::encode_to_vec(&wire::Reply { reply: Some(Reply::Error(too_old)) }), "within one version"),
        // Field 500 of a reply nobody knows yet.
        (vec![0xa2, 0x1f, 0x00], "is the keeper newer?"),
        (vec![0xff; 40], "undecodable"),
        (Vec::new(), "closed the connection"),
    ];
    for (bytes, told) in answers {
        let directory = std::env::temp_dir().join(format!("heddle-fake-keeper-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let (listener, address) = seqpacket(&directory)?;
        listener.bind(&address)?;
        listener.listen(1)?;
        let error = std::thread::scope(|scope| -> Result<DatapathError> {
            let keeper = scope.spawn(move || -> Result<()> {
                let (peer, _) = listener.accept()?;
                receive::<wire::Request>(peer.as_fd())?.context("no Hello")?;
                if !bytes.is_empty() {
                    write(&peer, &bytes)?;
                }
                Ok(())
            });
            let outcome = KeeperClient::connect(&directory, Role::Agent, "test");
            keeper.join().map_err(|_| anyhow::anyhow!("the fake panicked"))??;
            outcome.err().context("it was taken for a keeper")
        });
        std::fs::remove_dir_all(&directory)?;
        let error = error?.to_string();
        ensure!(error.contains(told), "{told:?} is not in {error:?}");
    }
    Ok(())
}

#[test]
fn nonsense_ends_one_session_and_no_other() -> Result<()> {
    let mesh = start("nonsense")?;
    let node = mesh.node("a");
    let keeper = node.keeper_pid()?;
    let bystander = client(node, Role::Cli)?;

    let (kind, message) = refusal(ask(&raw(node)?, Some(Request::Inspect(wire::Inspect {})))?)?;
    ensure!(kind == Kind::Malformed && message.contains("Hello"), "{message}");
    let (kind, message) = refusal(ask(&raw(node)?, Some(hello(Role::Unspecified, (1, 1), 1)))?)?;
    ensure!(kind == Kind::Malformed && message.contains("role"), "{message}");
    let (kind, message) = refusal(ask(&raw(node)?, None)?)?;
    ensure!(kind == Kind::Malformed && message.contains("does not know"), "{message}");

    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for length in [1, 2, 7, 64, 1000, 65_536, PACKET_BYTES_MAX, PACKET_BYTES_MAX + 1, PACKET_BYTES_MAX + 50_000] {
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8 | 0x80
        })
        .take(length)
        .collect();
        let fd = raw(node)?;
        write(&fd, &garbage)?;
        let (reply, _) = receive::<wire::Reply>(fd.as_fd())?.context("no answer")?;
        let (kind, message) = refusal(reply.reply.context("empty")?)?;
        ensure!(kind == Kind::Malformed, "{length} bytes: {message}");
        if length > PACKET_BYTES_MAX {
            ensure!(message.contains("truncated"), "{length} bytes: {message}");
        }
        ensure!(receive::<wire::Reply>(fd.as_fd())?.is_none(), "{length} bytes: the session goes on");
    }
    // Descriptors nobody asked for are closed, not kept.
    let before = bystander.inspect()?.open_fds;
    let null = std::fs::File::open("/dev/null")?;
    let fd = raw(node)?;
    for _ in 0..20 {
        let request = wire::Request { request: Some(hello(Role::Cli, (1, 1), 1)) };
        send(fd.as_fd(), &request, &vec![null.as_fd(); 200])?;
        receive::<wire::Reply>(fd.as_fd())?.context("no answer")?;
    }
    drop(fd);
    wait_until("the keeper closes what it was sent", SOON, || bystander.inspect().is_ok_and(|i| i.open_fds <= before))?;
    unharmed(&mesh, keeper)
}

#[test]
fn everyone_may_ask_only_what_is_theirs() -> Result<()> {
    let mesh = start("roles")?;
    let node = mesh.node("a");
    let keeper = node.keeper_pid()?;
    let uid = client(node, Role::Cli)?.inspect()?.pods[0].uid.clone();

    let not_allowed = |error: DatapathError| -> Result<()> {
        ensure!(error.is_not_allowed(), "{error}");
        Ok(())
    };
    let tool = client(node, Role::Cli)?;
    not_allowed(tool.attach().err().context("attach by a tool")?)?;
    not_allowed(tool.ready().err().context("ready by a tool")?)?;
    not_allowed(tool.set_pods(&[]).err().context("set_pods by a tool")?)?;
    not_allowed(tool.take_listeners(&uid).err().context("listeners for a tool")?)?;
    not_allowed(tool.make_sockets(&uid, false, 1).err().context("sockets for a tool")?)?;
    not_allowed(tool.get_keys().err().context("keys for a tool")?)?;
    // Positive control: the same connection may look.
    assert_eq!(tool.inspect()?.pods.len(), 2);

    // The agent's user may not free the node; nor may an agent that is not attached say which pods there are.
    let agent = as_user(AGENT_UID, || client(node, Role::Agent))??;
    not_allowed(agent.release(false).err().context("release by the agent's user")?)?;
    not_allowed(agent.uninstall().err().context("uninstall by the agent's user")?)?;
    not_allowed(agent.set_pods(&[]).err().context("set_pods without attach")?)?;
    not_allowed(agent.ready().err().context("ready without attach")?)?;
    agent.attach()?;
    not_allowed(agent.set_pods(&[]).err().context("set_pods before ready")?)?;
    ensure!(agent.make_sockets(&uid, false, 3)?.len() == 3, "positive control: it is let in as an agent");
    for (count, kind) in [(0, Kind::Limit), (241, Kind::Limit), (u32::MAX, Kind::Limit)] {
        match agent.make_sockets(&uid, false, count) {
            Err(DatapathError::Refused { kind: told, .. }) if told == kind => {}
            other => bail!("{count} sockets: {other:?}"),
        }
    }
    match agent.make_sockets("nobody", false, 1) {
        Err(DatapathError::Refused { kind: Kind::UnknownPod, message }) if message.contains("nobody") => {}
        other => bail!("{other:?}"),
    }

    // Anybody else: kept out by the socket's mode, and by SO_PEERCRED were it open.
    let stranger = || -> Result<String> {
        let source = format!("files:{}", node.paths().source.display());
        let output = Command::new(&node.paths().heddle)
            .args(["agent", "--node", "a", "--keeper", "connect", "--source", &source, "--user", "12345"])
            .arg("--run-dir")
            .arg(&node.paths().run)
            .uid(12345)
            .gid(12345)
            .output()?;
        ensure!(!output.status.success(), "a stranger got in");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let socket = node.paths().run.join("keeper.sock");
    let told = stranger()?;
    ensure!(told.contains("keeper.sock") && told.contains("Permission denied"), "{told}");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
    let told = stranger()?;
    ensure!(told.contains("only root and the agent's user"), "{told}");
    for _ in 0..50 {
        let error = as_user(12345, || KeeperClient::connect(&node.paths().run, Role::Cli, "test"))?;
        not_allowed(error.err().context("a stranger got in")?)?;
    }
    unharmed(&mesh, keeper)
}

#[test]
fn too_many_connections_keep_nobody_else_out() -> Result<()> {
    let mesh = start("crowd")?;
    let node = mesh.node("a");
    let keeper = node.keeper_pid()?;
    let mut crowd = Vec::new();
    let error = loop {
        ensure!(crowd.len() <= heddle_datapath::keeper::CONNECTIONS_MAX, "{} connections were taken", crowd.len());
        match as_user(AGENT_UID, || KeeperClient::connect(&node.paths().run, Role::Agent, "test"))? {
            Ok(client) => crowd.push(client),
            Err(error) => break error,
        }
    };
    ensure!(crowd.len() > 20, "only {} got in", crowd.len());
    // Every one is told, however its request and the refusal cross.
    for _ in 0..100 {
        match as_user(AGENT_UID, || KeeperClient::connect(&node.paths().run, Role::Agent, "test"))? {
            Err(DatapathError::Refused { kind: Kind::Limit, message }) if message.contains("too many") => {}
            Err(other) => bail!("{other}, first {error}"),
            Ok(_) => bail!("it got in"),
        }
    }
    // An operator gets in whatever the agent's user does.
    unharmed(&mesh, keeper)?;
    let answer = node.heddle(&["release", "--node"])?;
    ensure!(answer.status.success(), "{answer:?}");
    let answer = node.heddle(&["release", "--node", "--resume"])?;
    ensure!(answer.status.success(), "{answer:?}");
    drop(crowd);
    wait_until("the pods are in again", SOON, || {
        client(node, Role::Cli).and_then(|c| Ok(c.inspect()?)).is_ok_and(|i| i.pods.len() == 2)
    })?;
    unharmed(&mesh, keeper)
}

#[test]
fn a_watcher_that_does_not_read_holds_nothing_up() -> Result<()> {
    let mesh = start("deaf")?;
    let node = mesh.node("a");
    let keeper = node.keeper_pid()?;
    let fd = raw(node)?;
    let Reply::Hello(_) = ask(&fd, Some(hello(Role::Agent, (1, 2), ABI_VERSION)))? else { bail!("refused") };
    let Reply::Done(_) = ask(&fd, Some(Request::Watch(wire::Watch {})))? else { bail!("refused") };
    let (kind, message) = refusal(ask(&fd, Some(Request::Watch(wire::Watch {})))?)?;
    ensure!(kind == Kind::Malformed && message.contains("already"), "{message}");
    // Answers pile up unread until the keeper cannot send to this connection any more, nor we to it.
    let inspect = wire::Request { request: Some(Request::Inspect(wire::Inspect {})) };
    wait_until("neither side can send", SOON, || send_now(fd.as_fd(), &inspect).is_err())?;
    let old = node.replace_agent()?;
    let status = old.wait(SOON * 2)?;
    ensure!(status.success(), "the old agent was not told: {status}");
    wait_until("the new agent is ready", SOON, || node.is_ready())?;
    unharmed(&mesh, keeper)?;

    // And those that come, watch and go leave nothing.
    let before = client(node, Role::Cli)?.inspect()?.open_fds;
    for _ in 0..200 {
        client(node, Role::Agent)?.watch()?;
    }
    wait_until("watchers that are gone are forgotten", SOON, || {
        client(node, Role::Cli).and_then(|c| Ok(c.inspect()?)).is_ok_and(|i| i.open_fds <= before + 2)
    })?;
    unharmed(&mesh, keeper)
}

#[test]
fn one_pod_with_too_many_exclusions_stops_nobody() -> Result<()> {
    let mesh = start("oversized")?;
    let node = mesh.node("a");
    node.kill_agent()?;
    let agent = client(node, Role::Agent)?;
    let enrolled = agent.attach()?.pods.len();
    ensure!(enrolled == 2, "positive control");
    agent.ready()?;
    let inspected = agent.inspect()?;
    let mut pods: Vec<wire::PodSpec> = inspected
        .pods
        .iter()
        .map(|pod| wire::PodSpec {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            netns_path: mesh.pod(&pod.name).netns().path().display().to_string(),
            addresses: pod.addresses.clone(),
            // As many as one may have: twenty such pods do not fit into one packet.
            exclude_outbound_cidrs: (0..256).map(|n| format!("2001:db8:ffff:{n:x}::/64")).collect(),
            ..wire::PodSpec::default()
        })
        .collect();
    for number in 0..20 {
        let ghost = format!("ghost{number}");
        let (uid, netns_path) = (ghost.clone(), "/run/netns/heddle-test-none".to_owned());
        pods.push(wire::PodSpec { uid, namespace: "shop".into(), name: ghost, netns_path, ..pods[0].clone() });
    }
    let greedy = (0..10_000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let uid = "greedy".to_owned();
    pods.push(wire::PodSpec { uid, name: "greedy".into(), exclude_outbound_cidrs: greedy, ..pods[0].clone() });
    let states = agent.set_pods(&pods)?;
    assert_eq!(states.len(), pods.len(), "each has an answer");
    let state = |uid: &str| states.iter().find(|s| s.uid == uid).context("a state");
    for pod in &inspected.pods {
        ensure!(state(&pod.uid)?.enrolled, "{:?}", state(&pod.uid)?);
    }
    let greedy = state("greedy")?;
    ensure!(!greedy.enrolled && greedy.reason.contains("list fewer"), "{greedy:?}");
    ensure!(state("ghost7")?.reason.contains("heddle-test-none"), "{:?}", state("ghost7")?);

    // A pod that is in cannot talk itself out of capture: with a list that is too long it stays as it was.
    let mut escaping = pods[..2].to_vec();
    escaping[0].exclude_outbound_cidrs = pods[pods.len() - 1].exclude_outbound_cidrs.clone();
    escaping[1].exclude_outbound_cidrs = (0..300).map(|n| format!("10.0.{}.{}/32", n / 256, n % 256)).collect();
    let states = agent.set_pods(&escaping)?;
    for (pod, why) in escaping.iter().zip(["list fewer", "more than 256"]) {
        let state = states.iter().find(|s| s.uid == pod.uid).context("a state")?;
        ensure!(state.enrolled && state.reason.contains(why), "{state:?}");
    }
    Ok(())
}

#[test]
fn pins_of_another_abi_are_left_alone() -> Result<()> {
    let mesh = start("abi")?;
    let (node, web) = (mesh.node("a"), mesh.pod("web"));
    let pin = node.paths().pins.join("maps").join(heddle_abi::names::META);
    let set_abi = |version: &str| -> Result<()> {
        let output = Command::new("bpftool")
            .args(["map", "update", "pinned"])
            .arg(&pin)
            .args(["key", "0", "0", "0", "0", "value", version, "0", "0", "0", "0", "0", "0", "0"])
            .output()
            .context("bpftool")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    node.kill_agent()?;
    node.end_keeper(Signal::SIGTERM)?;
    let before = node.bpf_objects()?;
    set_abi("99")?;
    let keeper = node.spawn_keeper(node.node_cgroup().path())?;
    let status = keeper.wait(SOON)?;
    let told = keeper.stderr();
    ensure!(!status.success(), "it took them: {told}");
    for word in ["ABI version 99", "speaks 3", "heddle uninstall --node"] {
        ensure!(told.contains(word), "{word} is not in {told}");
    }
    // An agent says where to look, and does not wait for ever.
    let agent = node.spawn_agent()?;
    let status = agent.wait(SOON)?;
    ensure!(!status.success() && agent.stderr().contains("ABI version 99"), "{}", agent.tail());
    assert_eq!(node.bpf_objects()?, before, "capture is what it was");
    // The version that made them goes on with them.
    set_abi(&ABI_VERSION.to_string())?;
    node.start_agent()?;
    assert_carried(mesh.pod("client"), web, &dial(web.v4(), 8080), 8080, Carried::BothSides)?;
    assert_eq!(node.bpf_objects()?.links, before.links);
    // And the way out that was told is one.
    node.stop_agent()?;
    node.end_keeper(Signal::SIGTERM)?;
    set_abi("99")?;
    let answer = node.heddle(&["uninstall", "--node"])?;
    ensure!(answer.status.success(), "{answer:?}");
    wait_until("nothing is left", Duration::from_secs(5), || node.leftovers(&before).is_ok_and(|l| l.is_empty()))
}
