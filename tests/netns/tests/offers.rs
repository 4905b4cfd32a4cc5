//! What an agent gives the keeper to keep (demand 4): listeners and keys. Only the real ones are taken.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use heddle_datapath::DatapathError;
use heddle_datapath::client::{KeeperClient, PodListeners};
use heddle_datapath::keys::KEYS_BYTES_MAX;
use heddle_proto::keeper::v1::{Role, error::Kind};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, OUTBOUND_PORT, assert_carried, both_families};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

fn agent_of(node: &Node) -> Result<KeeperClient> {
    Ok(KeeperClient::connect(&node.paths().run, Role::Agent, "test")?)
}

fn copy(of: &[Vec<TcpListener>]) -> Result<Vec<Vec<TcpListener>>> {
    of.iter().map(|shard| shard.iter().map(|s| Ok(s.try_clone()?)).collect()).collect()
}

fn copy_all(of: &PodListeners) -> Result<PodListeners> {
    let (outbound, inbound, hbone) = (copy(&of.outbound)?, copy(&of.inbound)?, copy(&of.hbone)?);
    Ok(PodListeners { outbound, inbound, hbone, ..*of })
}

/// As a listener, whatever it is: the type is a name for a descriptor.
fn as_listener(fd: impl Into<OwnedFd>) -> TcpListener {
    TcpListener::from(fd.into())
}

#[test]
fn only_the_pods_own_listeners_are_taken_back() -> Result<()> {
    let mesh = Mesh::declare("offers").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    let former = agent_of(node)?;
    let uid = |name: &str| -> Result<String> {
        let pods = former.inspect()?.pods;
        Ok(pods.iter().find(|p| p.name == name).context("the pod")?.uid.clone())
    };
    let (client_uid, web_uid) = (uid("client")?, uid("web")?);
    let (real, others) = (former.take_listeners(&client_uid)?, former.take_listeners(&web_uid)?);
    ensure!(real.ipv6 && real.outbound.len() >= 2, "positive control");
    node.kill_agent()?;
    // A connection accepted from the real listener: the agent's by its storage, in the right namespace, but no listener.
    let _waiting = client.netns().inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, OUTBOUND_PORT)))??;
    let accepted = real.outbound.iter().find_map(|s| s[0].accept().ok()).context("accept")?.0;
    node.end_keeper(Signal::SIGKILL)?;
    node.start_keeper()?;
    let keeper = agent_of(node)?;
    let attached = keeper.attach()?;
    assert_eq!(attached.pods.len(), 2, "positive control: the pods were taken over");

    let refused = |what: &str, offer: &PodListeners, wanted: Kind| -> Result<()> {
        match keeper.offer_listeners(&client_uid, offer) {
            Err(DatapathError::Refused { kind, message }) if kind == wanted && message.contains(&client_uid) => Ok(()),
            other => bail!("{what}: {other:?}, wanted {wanted:?}"),
        }
    };
    refused("another pod's", &others, Kind::NotAllowed)?;
    let swap = |exchange: fn(&mut PodListeners)| -> Result<PodListeners> {
        let mut offer = copy_all(&real)?;
        exchange(&mut offer);
        Ok(offer)
    };
    let swapped = swap(|offer| std::mem::swap(&mut offer.outbound, &mut offer.inbound))?;
    refused("inbound for outbound", &swapped, Kind::NotAllowed)?;
    let unasked = swap(|offer| std::mem::swap(&mut offer.inbound, &mut offer.hbone))?;
    refused("HBONE for inbound", &unasked, Kind::NotAllowed)?;
    let short = swap(|offer| offer.hbone.clear())?;
    refused("none for HBONE", &short, Kind::Malformed)?;
    let unmarked = client.netns().inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 16001)))??;
    let planted = |fd: OwnedFd| -> Result<PodListeners> {
        let mut offer = copy_all(&real)?;
        offer.outbound[1][0] = as_listener(fd);
        Ok(offer)
    };
    refused("an unmarked socket among real ones", &planted(unmarked.into())?, Kind::NotAllowed)?;
    refused("an accepted connection", &planted(accepted.into())?, Kind::NotAllowed)?;
    refused("a file", &planted(File::open("/dev/null")?.into())?, Kind::NotAllowed)?;
    let upstream = keeper.make_sockets(&client_uid, false, 1)?.pop().context("a socket")?;
    refused("an upstream socket", &planted(upstream)?, Kind::NotAllowed)?;
    let mut families = copy_all(&real)?;
    families.outbound[0].swap(0, 1);
    refused("IPv6 for IPv4", &families, Kind::NotAllowed)?;
    match keeper.offer_listeners("nobody", &real) {
        Err(DatapathError::Refused { kind: Kind::UnknownPod, .. }) => {}
        other => bail!("{other:?}"),
    }

    // Positive control: the real ones, once.
    keeper.offer_listeners(&client_uid, &real)?;
    refused_again(&keeper, &client_uid, &real)?;
    drop((keeper, real, others, families, swapped, unasked, short));
    node.start_agent()?;
    for ip in both_families(web) {
        assert_carried(client, web, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    Ok(())
}

fn refused_again(keeper: &KeeperClient, uid: &str, offer: &PodListeners) -> Result<()> {
    match keeper.offer_listeners(uid, offer) {
        Err(DatapathError::Refused { kind: Kind::Limit, message }) if message.contains("has its listeners") => Ok(()),
        other => bail!("{other:?}"),
    }
}

const SEALS: SealFlag =
    SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

fn memfd(bytes: &[u8], seals: SealFlag) -> Result<File> {
    let mut file = File::from(memfd_create(c"keys", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

#[test]
fn sealed_keys_outlive_the_agent() -> Result<()> {
    let mesh = Mesh::declare("keys").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let node = mesh.node("a");
    let refused = |what: &str, keys: &File, wanted: Kind, word: &str| -> Result<()> {
        match agent_of(node)?.put_keys(keys.as_fd()) {
            Err(DatapathError::Refused { kind, message }) if kind == wanted && message.contains(word) => Ok(()),
            other => bail!("{what}: {other:?}"),
        }
    };
    ensure!(agent_of(node)?.get_keys()?.is_none(), "none yet");
    refused("a file", &File::open("/dev/null")?, Kind::Malformed, "not a memfd")?;
    refused("unsealed", &memfd(b"secret", SealFlag::empty())?, Kind::Malformed, "sealed")?;
    for missing in [SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW, SealFlag::F_SEAL_SEAL] {
        refused("half sealed", &memfd(b"secret", SEALS - missing)?, Kind::Malformed, "sealed")?;
    }
    refused("too large", &memfd(&vec![7; KEYS_BYTES_MAX + 1], SEALS)?, Kind::Limit, "no room")?;
    ensure!(agent_of(node)?.get_keys()?.is_none(), "something was kept");

    agent_of(node)?
        .put_keys(memfd(&vec![9; KEYS_BYTES_MAX], SEALS)?.as_fd())
        .context("positive control: just not too large")?;
    agent_of(node)?.put_keys(memfd(b"secret", SEALS)?.as_fd())?;
    refused("unsealed, later", &memfd(b"forged", SealFlag::empty())?, Kind::Malformed, "sealed")?;
    node.kill_agent()?;
    node.start_agent()?;
    for _ in 0..2 {
        let kept = File::from(agent_of(node)?.get_keys()?.context("the keys are gone")?);
        let mut bytes = vec![0; usize::try_from(kept.metadata()?.len())?];
        kept.read_exact_at(&mut bytes, 0)?;
        assert_eq!(bytes, b"secret");
        ensure!(kept.write_at(b"forged", 0).is_err(), "what is kept can be changed");
    }
    let web = mesh.pod("web");
    let to = SocketAddr::new(web.v4(), 8080);
    assert_carried(mesh.pod("client"), web, &dial(to.ip(), to.port()), 8080, Carried::BothSides)
}
