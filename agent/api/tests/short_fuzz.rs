//! Short fuzzing without a fuzzer, for every CI run: arbitrary bytes, and files that are nearly right.
//! The long run is `tests/fuzz`, with the same seeds and the same claim.

use heddle_api::{Object, Reading, read};
use heddle_model::policy::Rules;
use proptest::prelude::*;

const SEEDS: [&str; 5] = [
    include_str!("../../../tests/fuzz/seeds/yaml_objects/shop.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/mesh.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/odd.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/policies.yaml"),
    include_str!("../../../tests/fuzz/seeds/yaml_objects/routes.yaml"),
];

const BEFORE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: before-the-fuzz}\n---\n";
const AFTER: &str = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: after-the-fuzz}\n";

/// Reads bytes between two good documents, which must come through.
fn between(bytes: &[u8]) -> Reading {
    let reading = read("fuzz", &[BEFORE.as_bytes(), bytes, AFTER.as_bytes()].concat());
    for name in ["before-the-fuzz", "after-the-fuzz"] {
        let found = reading.items.iter().any(|item| &*item.object.key().name == name);
        assert!(found, "{name} is lost beside {:?}", String::from_utf8_lossy(bytes));
    }
    reading
}

/// One edit of a text.
#[derive(Clone, Debug)]
enum Edit {
    Delete(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Swap(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index, usize),
    Truncate(prop::sample::Index),
}

fn some_edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    let token = prop::sample::select(vec![
        "---\n",
        "...\n",
        "\n",
        "\t",
        " ",
        ":",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "|\n",
        ">\n",
        "#",
        "!!int ",
        "? ",
        "%TAG ! x\n",
        "\u{feff}",
        "\u{0}",
        "\u{2028}",
        "0",
        "-1",
        "65536",
        "1e999",
        "null",
        "~",
        "yes",
        "\\x",
    ]);
    let token = token.prop_map(|token| token.as_bytes().to_vec());
    prop_oneof![
        (at(), 1_usize..40).prop_map(|(from, count)| Edit::Delete(from, count)),
        (at(), token).prop_map(|(to, bytes)| Edit::Insert(to, bytes)),
        (at(), proptest::collection::vec(any::<u8>(), 1..4)).prop_map(|(to, bytes)| Edit::Insert(to, bytes)),
        (at(), at()).prop_map(|(a, b)| Edit::Swap(a, b)),
        (at(), 1_usize..80).prop_map(|(from, count)| Edit::Repeat(from, count)),
        at().prop_map(Edit::Truncate),
    ]
}

fn edited(seed: &str, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = seed.as_bytes().to_vec();
    for edit in edits {
        let length = bytes.len().max(1);
        match edit {
            Edit::Delete(from, count) => {
                let from = from.index(length).min(bytes.len());
                bytes.drain(from..(from + count).min(bytes.len()));
            }
            Edit::Insert(to, new) => {
                let to = to.index(length).min(bytes.len());
                bytes.splice(to..to, new.iter().copied());
            }
            Edit::Swap(a, b) if !bytes.is_empty() => bytes.swap(a.index(length), b.index(length)),
            Edit::Swap(..) => {}
            Edit::Repeat(from, count) => {
                let from = from.index(length).min(bytes.len());
                let copy = bytes[from..(from + count).min(bytes.len())].to_vec();
                bytes.splice(from..from, copy);
            }
            Edit::Truncate(at) => bytes.truncate(at.index(length)),
        }
    }
    bytes
}

#[test]
fn the_seeds_reach_every_kind() {
    let all: Vec<Reading> = SEEDS.iter().map(|seed| between(seed.as_bytes())).collect();
    let kinds: std::collections::BTreeSet<&str> =
        all.iter().flat_map(|r| &r.items).map(|item| item.object.key().kind.as_str()).collect();
    let every = "AuthorizationPolicy EndpointSlice GRPCRoute HTTPRoute Mesh MeshTLS Namespace NetworkPolicy Pod ReferenceGrant Service \
                 TCPRoute TLSRoute TrafficPolicy";
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), every.split_whitespace().collect::<Vec<_>>());
    for policies in &all[3..] {
        assert_eq!(
            (&policies.invalid, &policies.warnings),
            (&vec![], &vec![]),
            "nor is anything wrong with the policies"
        );
    }
    assert_eq!(all[0].invalid, [], "the first seed is all right, so that an edit has something to break");
    assert!(!all[2].invalid.is_empty() && !all[2].warnings.is_empty() && all[2].ignored == 2);
}

proptest! {
    // More cases by PROPTEST_CASES=100000.

    #[test]
    fn arbitrary_bytes_end_and_keep_their_siblings(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        between(&bytes);
    }

    #[test]
    fn arbitrary_text_ends_and_keeps_its_siblings(text in "[ -~\n\t\u{e9}\u{2028}]{0,300}") {
        between(text.as_bytes());
    }

    #[test]
    fn nearly_right_files_end_and_keep_their_siblings(
        seed in 0..SEEDS.len(), edits in proptest::collection::vec(some_edit(), 1..8),
    ) {
        let bytes = edited(SEEDS[seed], &edits);
        let reading = between(&bytes);
        // Whatever is reported is in the file, and says something.
        let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64 + 20;
        for report in reading.invalid.iter().chain(&reading.warnings) {
            prop_assert!(report.line <= lines && !report.message.is_empty(), "{}", report);
        }
        // Reading is a function of the bytes.
        prop_assert_eq!(reading.items, between(&bytes).items);
    }

    #[test]
    fn an_object_is_read_whole_or_marked_invalid(edits in proptest::collection::vec(some_edit(), 1..3)) {
        let service = SEEDS[0].split("---\n").nth(2).unwrap();
        let reading = read("fuzz", &edited(service, &edits));
        if let [item] = reading.items.as_slice()
            && let Object::Service(service) = &item.object
        {
            let object = item.object.key().object();
            // One without a usable name is kept under its place in the file, to refuse its addresses.
            let unnamed = service.name.contains(':');
            let about = |object_told: &str| unnamed || object_told == object;
            let told = reading.invalid.iter().any(|r| &*r.kind == "Service" && about(&r.object));
            prop_assert_eq!(service.invalid, told, "{:?} {:?}", service, reading.invalid);
        }
    }
    #[test]
    fn a_policy_is_read_whole_or_rejected(which in 0_usize..3, edits in proptest::collection::vec(some_edit(), 1..4)) {
        let policy = SEEDS[3].split("---\n").nth(which).unwrap();
        let reading = read("fuzz", &edited(policy, &edits));
        if let [item] = reading.items.as_slice() {
            let rejected = match &item.object {
                Object::AuthorizationPolicy(dated) => dated.policy.rules == Rules::Rejected,
                Object::NetworkPolicy(dated) => dated.policy.is_rejected,
                _ => return Ok(()),
            };
            // An edit may have made another document of its end.
            let kind = item.object.key().kind.as_str();
            let told = reading.invalid.iter().any(|report| &*report.kind == kind);
            prop_assert_eq!(rejected, told, "{:?} {:?}", item, reading.invalid);
        }
    }

    #[test]
    fn a_traffic_policy_is_read_whole_or_rejected(which in 5_usize..7, edits in proptest::collection::vec(some_edit(), 1..4)) {
        let policy = SEEDS[4].split("---\n").nth(which).unwrap();
        let reading = read("fuzz", &edited(policy, &edits));
        if let [item] = reading.items.as_slice()
            && let Object::TrafficPolicy(policy) = &item.object
        {
            let told = reading.invalid.iter().any(|report| &*report.kind == "TrafficPolicy");
            prop_assert_eq!(policy.settings.is_err(), told, "{:?} {:?}", item, reading.invalid);
        }
    }

    #[test]
    fn a_rule_is_right_or_told_of(which in 0_usize..2, edits in proptest::collection::vec(some_edit(), 1..4)) {
        let route = SEEDS[4].split("---\n").nth(which).unwrap();
        let reading = read("fuzz", &edited(route, &edits));
        if let [item] = reading.items.as_slice()
            && let Object::Route(route) = &item.object
        {
            for invalid in route.rules.iter().filter_map(|rule| rule.invalid.as_ref()) {
                let is_told = |report: &heddle_model::InvalidObject| invalid.ends_with(&*report.message);
                prop_assert!(reading.invalid.iter().any(is_told), "{} {:?}", invalid, reading.invalid);
            }
        }
    }
}
