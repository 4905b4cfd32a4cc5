//! What `heddle check` says about certificates: one item for all that are well, one for each that is not, one for the authority.

use std::time::Duration;

use heddle_identity::{CertificateStatus, IssueErrorKind, IssuerStatus, State};
use heddle_proto::debug::v1::CheckItem;

use super::time;

/// A certificate with less than this part of its life left should have been renewed long ago: renewal begins at about half.
const REMAINING_PERCENT_MIN: u32 = 20;

/// Whether handshakes go on with it.
pub fn is_usable(state: State) -> bool {
    matches!(state, State::Valid | State::Renewing)
}

/// Items for the certificates of a node; `now` since 1970.
pub fn items(rows: &[CertificateStatus], authority: &str, issuer: &IssuerStatus, now: Duration) -> Vec<CheckItem> {
    let wrong: Vec<CheckItem> = rows.iter().filter_map(|row| wrong(row, now)).collect();
    let mut items = vec![CheckItem {
        name: "identity".into(),
        ok: true,
        detail: format!("{} of {} certificates are well", rows.len() - wrong.len(), rows.len()),
        fix: String::new(),
    }];
    items.extend(wrong);
    let answered = issuer.answered_ago.map(|ago| format!("answered {} s ago", ago.as_secs()));
    items.push(match &issuer.silence {
        Some(silence) => CheckItem {
            name: "certificate authority".into(),
            ok: false,
            detail: format!(
                "{authority}: no answer for {} s ({} attempts, {}); the last attempt said: {}; {}",
                silence.lasts.as_secs(),
                silence.attempts,
                answered.as_deref().unwrap_or("never answered"),
                silence.last_error,
                ends(rows, now)
            ),
            fix: "start it, or correct --ca; certificates in use stay until they end".into(),
        },
        None => CheckItem {
            name: "certificate authority".into(),
            ok: true,
            detail: format!("{authority}{}", answered.map(|when| format!(": {when}")).unwrap_or_default()),
            fix: String::new(),
        },
    });
    items
}

/// What ends when, if nobody renews it.
fn ends(rows: &[CertificateStatus], now: Duration) -> String {
    let held = rows.iter().filter_map(|row| row.certificate.as_ref());
    let mut ends: Vec<_> = held.map(|facts| (facts.validity.not_after, facts.id.as_str())).collect();
    ends.sort_unstable();
    let at = |(not_after, id): (Duration, &str)| {
        let left = not_after.saturating_sub(now).as_secs();
        format!("{id} at {} (in {left} s)", time(not_after))
    };
    match ends[..] {
        [] => "no certificate is held".to_owned(),
        [only] => format!("the one certificate held ends: {}", at(only)),
        [first, .., last] => {
            format!("of {} certificates the first ends: {}; the last: {}", ends.len(), at(first), at(last))
        }
    }
}

fn wrong(row: &CertificateStatus, now: Duration) -> Option<CheckItem> {
    let said = row.last_error.as_ref().map(|error| format!("; the last attempt said: {error}")).unwrap_or_default();
    let validity = row.certificate.as_ref().map(|facts| facts.validity);
    let remaining = validity.map(|validity| validity.not_after.saturating_sub(now));
    let lifetime = validity.map(|validity| validity.not_after.saturating_sub(validity.not_before));
    let is_expiring =
        matches!((remaining, lifetime), (Some(left), Some(whole)) if left * 100 < whole * REMAINING_PERCENT_MIN);
    let left = remaining.unwrap_or_default().as_secs();
    let detail = match row.state {
        State::Expired => format!("its certificate has ended{said}"),
        State::NeededNow | State::WarmUp | State::Failed => format!("no certificate yet{said}"),
        State::Valid | State::Renewing if is_expiring => {
            format!("its certificate ends in {left} s and was not renewed ({} attempts failed){said}", row.failures)
        }
        State::Valid | State::Renewing if row.failures > 0 => {
            format!("{} attempts to renew failed; {left} s are left{said}", row.failures)
        }
        State::Valid | State::Renewing => return None,
    };
    let fix = match row.last_error.as_ref().map(|error| error.kind) {
        Some(IssueErrorKind::Refused) => {
            "the authority will not sign it for this node: is its pod here, in the authority's source too?"
        }
        Some(IssueErrorKind::BadAnswer) => {
            "the authority's answer cannot be used: is it the one of this trust domain, are both clocks right?"
        }
        Some(IssueErrorKind::Local) => "this node could not make the request: see the agent's log",
        Some(IssueErrorKind::Unavailable | IssueErrorKind::Timeout) => "make the certificate authority answer",
        None => "wait; it is being asked for",
    };
    Some(CheckItem { name: format!("certificate {}", row.id), ok: false, detail, fix: fix.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use heddle_identity::{CertificateFacts, IssueError, Silence, SpiffeId, Validity};

    const HOUR: Duration = Duration::from_secs(3600);

    fn row(state: State, failures: u32, last_error: Option<IssueErrorKind>) -> CertificateStatus {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id");
        let held = matches!(state, State::Valid | State::Renewing | State::Expired);
        let facts = CertificateFacts {
            id: id.clone(),
            serial: "7f".into(),
            validity: Validity { not_before: HOUR, not_after: 11 * HOUR },
            issuer: "CN=test".into(),
        };
        CertificateStatus {
            id,
            state,
            certificate: held.then_some(facts),
            due_in: None,
            failures,
            last_error: last_error.map(|kind| Arc::new(IssueError::new(kind, "planted"))),
        }
    }

    /// Names of the failed items, and all they say.
    fn failed(rows: &[CertificateStatus], now: Duration) -> (Vec<String>, String) {
        let items = items(rows, "https://ca:15012", &IssuerStatus::default(), now);
        let failed: Vec<_> = items.into_iter().filter(|item| !item.ok).collect();
        assert!(failed.iter().all(|item| !item.fix.is_empty()), "each has a fix: {failed:?}");
        let text = failed.iter().map(|item| format!("{}. ", item.detail)).collect();
        (failed.into_iter().map(|item| item.name).collect(), text)
    }

    #[test]
    fn each_kind_of_trouble_has_its_words() {
        use IssueErrorKind::{Refused, Unavailable};
        use State::{Expired, Failed, Renewing, Valid, WarmUp};
        let certificate = "certificate spiffe://cluster.local/ns/shop/sa/web";
        for (state, failures, error, now, names, word) in [
            (Valid, 0, None, 2 * HOUR, &[][..], ""),
            (Renewing, 0, None, 6 * HOUR, &[], ""),
            (Renewing, 0, None, 10 * HOUR, &[certificate], "ends in 3600 s"),
            (Renewing, 3, Some(Refused), 6 * HOUR, &[certificate], "3 attempts to renew failed; 18000 s are left"),
            (Renewing, 1, Some(Unavailable), 6 * HOUR, &[certificate], "unavailable: planted"),
            (WarmUp, 0, None, 6 * HOUR, &[certificate], "no certificate yet"),
            (Failed, 1, Some(Refused), 6 * HOUR, &[certificate], "no certificate yet; the last attempt said: refused"),
            (Expired, 9, Some(Unavailable), 12 * HOUR, &[certificate], "has ended"),
        ] {
            let (found, text) = failed(&[row(state, failures, error)], now);
            assert_eq!(found, names, "{state:?} {failures} {error:?}");
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }

    /// Certificates are renewed once in half their life: that nobody is there to do so is known long before one fails.
    #[test]
    fn a_silent_authority_is_told_while_all_certificates_are_well() {
        let planted = Arc::new(IssueError::new(IssueErrorKind::Timeout, "planted"));
        let silence = Silence { lasts: Duration::from_secs(754), attempts: 38, last_error: planted };
        let mut later = row(State::Valid, 0, None);
        later.id = "spiffe://cluster.local/ns/shop/sa/api".parse().expect("an id");
        if let Some(facts) = &mut later.certificate {
            facts.id = later.id.clone();
            facts.validity.not_after += HOUR;
        }
        let web = || row(State::Valid, 0, None);
        let of = |rows: &[CertificateStatus], issuer: &IssuerStatus| {
            let found = items(rows, "https://ca:15012", issuer, 2 * HOUR).pop().expect("an item for the authority");
            assert_eq!(found.name, "certificate authority");
            (found.ok, found.detail)
        };
        let mut issuer = IssuerStatus { answered_ago: Some(Duration::from_secs(790)), silence: Some(silence) };
        let begin = "https://ca:15012: no answer for 754 s (38 attempts, answered 790 s ago); the last attempt said: \
                     timeout: planted; ";
        let web_ends = "spiffe://cluster.local/ns/shop/sa/web at 1970-01-01T11:00:00.000000Z (in 32400 s)";
        let api_ends = "spiffe://cluster.local/ns/shop/sa/api at 1970-01-01T12:00:00.000000Z (in 36000 s)";
        for (rows, end) in [
            (vec![], "no certificate is held".to_owned()),
            (vec![row(State::WarmUp, 0, None)], "no certificate is held".to_owned()),
            (vec![web()], format!("the one certificate held ends: {web_ends}")),
            (vec![later, web()], format!("of 2 certificates the first ends: {web_ends}; the last: {api_ends}")),
        ] {
            assert_eq!(of(&rows, &issuer), (false, format!("{begin}{end}")));
        }
        issuer.answered_ago = None;
        assert!(of(&[web()], &issuer).1.contains("(38 attempts, never answered)"));
        let well = IssuerStatus { answered_ago: Some(Duration::from_secs(3)), silence: None };
        assert_eq!(of(&[web()], &well), (true, "https://ca:15012: answered 3 s ago".to_owned()));
    }
}
