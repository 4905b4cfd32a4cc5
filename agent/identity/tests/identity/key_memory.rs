//! Where a secret is while a key is in use, and that it is nowhere afterwards: the whole memory of this process is searched.

use std::time::Duration;

use heddle_identity::{Alpn, ClientConfigs, ServerConfigs};

use crate::memory::Masked;
use crate::pki::{Ca, Node, id};
use crate::wire::handshake;

#[tokio::test]
async fn a_key_is_gone_when_its_lease_is() {
    let node = Node::start(Ca::root("root"));
    let (web, api) = (node.lease(&id("web")).await, node.lease(&id("api")).await);
    let client = ClientConfigs::new(&node.store).get(&web, &id("api").into(), Alpn::Heddle).unwrap();
    let server = ServerConfigs::new(&node.store).get(&api, Alpn::Heddle).unwrap();
    for _ in 0..20 {
        assert!(handshake(&client, &server, Alpn::Heddle).is_good());
    }
    let export = node.store.export().unwrap();
    let secret = Masked::of_pkcs8(&export);
    let with_export = secret.places();
    drop(export);
    let in_use = secret.places();
    assert!(in_use >= 1 && with_export > in_use, "control: {with_export} places with the export, {in_use} in use");
    // Taken over by a second store, as after a restart, and dropped there too.
    {
        let second = Node::start(Ca::root("other"));
        let export = node.store.export().unwrap();
        assert_eq!(second.store.restore(&export).unwrap().certificates, 2);
        let lease = second.store.lease(&id("api")).unwrap();
        lease.ready(Duration::from_secs(1)).await.unwrap();
        drop(export);
        assert!(secret.places() > in_use, "control");
    }
    drop((web, api));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The configs are still held; the keys are not theirs.
    assert_eq!(secret.places(), 0, "the secret is still in memory");
    drop((client, server));
}

#[tokio::test]
async fn nothing_prints_a_key() {
    let node = Node::start(Ca::root("root"));
    let lease = node.lease(&id("web")).await;
    let credential = lease.slot().credential().unwrap();
    let text = format!("{:?} {:?} {:?} {:?} {:?}", node.store, lease, lease.slot(), credential, node.store.status());
    assert!(text.contains("sa/web") && !text.to_lowercase().contains("key"), "{text}");
}
