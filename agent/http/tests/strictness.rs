//! Every case of `strictness.txt`, whole and in pieces.

mod support;

use support::{Case, Verdict, asked, cases, run};

fn verdict_of(case: &Case, pieces: &[&[u8]]) -> Verdict {
    run(pieces.iter().copied(), case.response_to.as_deref().map(asked))
}

#[test]
fn every_case_has_its_verdict() {
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let verdict = verdict_of(case, &[&case.bytes]);
            (verdict != case.verdict).then(|| format!("{}: {verdict:?}, not {:?}", case.name, case.verdict))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_split_changes_a_verdict() {
    for case in cases() {
        let bytes = &case.bytes[..];
        // Large cases are about limits: their ends are where splits matter.
        let places: Vec<usize> = if bytes.len() <= 400 {
            (0..bytes.len()).collect()
        } else {
            (0..40).chain(bytes.len() - 40..bytes.len()).collect()
        };
        for at in places {
            let (first, second) = bytes.split_at(at);
            assert_eq!(verdict_of(&case, &[first, second]), case.verdict, "{} split at {at}", case.name);
        }
        for size in if bytes.len() <= 400 { vec![1, 2, 3, 7] } else { vec![251, 1460] } {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(verdict_of(&case, &pieces), case.verdict, "{} in pieces of {size}", case.name);
        }
    }
}

#[test]
fn every_rule_of_the_codec_has_a_case() {
    use heddle_http::Reject;
    // Rules of a whole exchange or of HTTP/2: tested where those are.
    let elsewhere = [
        Reject::TooManyInterim,
        Reject::UnexpectedBytes,
        Reject::HeadIncomplete,
        Reject::BodyIncomplete,
        Reject::BodyTooLong,
        Reject::PseudoHeader,
        Reject::ProtocolUnknown,
        Reject::ExtendedConnect,
        Reject::GrpcOverHttp1,
        Reject::UpgradeDeclined,
        Reject::ConnectionField,
        Reject::TeInvalid,
    ];
    let cases = cases();
    for rule in Reject::ALL.iter().filter(|rule| !elsewhere.contains(rule)) {
        let word = rule.as_str();
        let has = cases.iter().any(|case| matches!(&case.verdict, Verdict::Reject(rule) if rule == word));
        assert!(has, "no case for {word}");
    }
}
