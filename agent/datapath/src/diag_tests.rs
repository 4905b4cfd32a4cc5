//! Which connections count, and that no bytes of an answer surprise.

use proptest::prelude::*;

use super::*;

fn spec(strict: bool, strict_except: &[u16]) -> PodSpec {
    PodSpec {
        uid: "u".into(),
        namespace: "shop".into(),
        name: "web".into(),
        netns_path: "/run/netns/web".into(),
        addresses: vec![],
        fail_open: false,
        exclude_outbound_cidrs: vec![],
        exclude_outbound_ports: vec![],
        exclude_inbound_ports: vec![],
        hbone: false,
        strict,
        strict_except: strict_except.to_vec(),
    }
}

fn socket(state: u8, local: &str, remote: &str) -> Entry {
    let (local, remote) = (local.parse().expect("local"), remote.parse().expect("remote"));
    Entry { family: 2, state, id: [0; ID_LEN], local, remote, agents: false }
}

#[test]
fn which_connections_count_table() {
    const ESTABLISHED: u8 = 1;
    let all = spec(true, &[9100]);
    let one = spec(false, &[40_000]);
    let table = [
        (&all, socket(ESTABLISHED, "10.1.0.1:80", "10.9.0.1:5000"), true, "from outside"),
        (&all, socket(ESTABLISHED, "[fd00::1]:80", "[fd00::9]:5000"), true, "by IPv6"),
        (&all, socket(8, "10.1.0.1:80", "10.9.0.1:5000"), true, "half closed by the client"),
        (&all, socket(6, "10.1.0.1:80", "10.9.0.1:5000"), false, "over"),
        (&all, socket(SYN_RECV, "10.1.0.1:80", "10.9.0.1:5000"), false, "a handshake may be the agent's"),
        (&all, Entry { agents: true, ..socket(ESTABLISHED, "10.1.0.1:80", "10.9.0.1:5000") }, false, "the agent's"),
        (&all, socket(ESTABLISHED, "10.1.0.1:9100", "10.9.0.1:5000"), false, "not STRICT"),
        (&all, socket(ESTABLISHED, "10.1.0.1:80", "10.1.0.1:5000"), false, "the pod's own, or the agent's second leg"),
        (&all, socket(ESTABLISHED, "10.1.0.1:80", "192.168.9.9:5000"), false, "from its other address"),
        (&all, socket(ESTABLISHED, "127.0.0.1:80", "127.0.0.1:5000"), false, "over loopback"),
        (&all, socket(ESTABLISHED, "10.1.0.1:40000", "10.9.0.1:443"), false, "to outside"),
        (&all, socket(ESTABLISHED, "10.1.0.1:50000", "10.9.0.1:443"), true, "it listens on 50000"),
        (&one, socket(ESTABLISHED, "10.1.0.1:40000", "10.9.0.1:443"), true, "named, whoever opened it"),
        (&one, socket(ESTABLISHED, "10.1.0.1:80", "10.9.0.1:5000"), false, "not named"),
    ];
    for (spec, connection, expected, what) in table {
        let own = ["10.1.0.1", "fd00::1", "192.168.9.9"].map(|ip| ip.parse().expect("ip")).into();
        let look = Look { spec, own, half_open: false };
        let entries = [connection.clone(), socket(LISTEN, "0.0.0.0:50000", "0.0.0.0:0")];
        let found = look.among(&entries, &(32_768..=60_999));
        assert_eq!(found.len(), usize::from(expected), "{what}: {found:?}");
        let look = Look { half_open: true, ..look };
        let half_open = usize::from(expected || connection.state == SYN_RECV);
        assert_eq!(look.among(&entries, &(32_768..=60_999)).len(), half_open, "{what}");
    }
}

#[test]
fn a_message_is_read_as_the_kernel_lays_it_out() {
    let mut payload = vec![10, 1, 0, 0];
    payload.extend(8080_u16.to_be_bytes());
    payload.extend(40_000_u16.to_be_bytes());
    payload.extend("::ffff:10.1.0.1".parse::<Ipv6Addr>().expect("mapped").octets());
    payload.extend("::ffff:10.9.0.1".parse::<Ipv6Addr>().expect("mapped").octets());
    payload.resize(MESSAGE_LEN, 0);
    let bare = entry(&payload).expect("an entry");
    assert_eq!((bare.family, bare.state, bare.agents), (10, 1, false));
    assert_eq!(Direct(bare).to_string(), "10.9.0.1:40000 → 10.1.0.1:8080");
    let mut other = payload.clone();
    other.extend(attribute(STORAGES, &[]));
    other.extend(attribute(15, &[1, 2, 3]));
    assert!(!entry(&other).expect("an entry").agents, "no value in the map");
    other.extend(attribute(STORAGES, &attribute(1, &[1; 28])));
    assert!(entry(&other).expect("an entry").agents);
    assert_eq!(entry(&payload[..MESSAGE_LEN - 1]), None);
}

#[test]
fn a_request_says_its_length() {
    let ask = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, 2, 2, &[0; ID_LEN], &attribute(REQ_STORAGES, &[0; 8]));
    assert_eq!(ask.len(), 16 + 56 + 12);
    let (kind, payload) = messages(&ask).next().expect("whole");
    assert_eq!((kind, payload.len()), (SOCK_DIAG_BY_FAMILY, 68));
    assert!(messages(&ask[..ask.len() - 1]).next().is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_messages_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..400), length in 0u32..400) {
        let mut framed = length.to_ne_bytes().to_vec();
        framed.extend(&bytes);
        for (_, payload) in messages(&framed).chain(messages(&bytes)).take(500) {
            let _ = (entry(payload), error_of(payload));
        }
    }
}
