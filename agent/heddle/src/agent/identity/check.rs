//! What `heddle check` says about certificates: one item for all that are well, one for each that is not, one for the authority.

use std::time::Duration;

use heddle_identity::{CertificateStatus, IssueErrorKind, State};
use heddle_proto::debug::v1::CheckItem;

/// A certificate that lives on less than this part of its life should have been renewed long ago: renewal begins at about half.
const REMAINING_MIN: u32 = 5;

/// Whether handshakes go on with it.
pub fn is_usable(state: State) -> bool {
    matches!(state, State::Valid | State::Renewing)
}

/// Items for the certificates of a node; `now` since 1970.
pub fn items(rows: &[CertificateStatus], authority: &str, now: Duration) -> Vec<CheckItem> {
    let wrong: Vec<CheckItem> = rows.iter().filter_map(|row| wrong(row, now)).collect();
    let mut items = vec![CheckItem {
        name: "identity".into(),
        ok: true,
        detail: format!("{} of {} certificates are well", rows.len() - wrong.len(), rows.len()),
        fix: String::new(),
    }];
    items.extend(wrong);
    let unreachable = |row: &&CertificateStatus| {
        let kind = row.last_error.as_ref().map(|error| error.kind);
        matches!(kind, Some(IssueErrorKind::Unavailable | IssueErrorKind::Timeout))
    };
    items.push(match rows.iter().find(unreachable).and_then(|row| row.last_error.as_ref()) {
        Some(error) => CheckItem {
            name: "certificate authority".into(),
            ok: false,
            detail: format!("{authority}: {error}"),
            fix: "start it, or correct --ca; certificates in use stay until they end".into(),
        },
        None => CheckItem {
            name: "certificate authority".into(),
            ok: true,
            detail: authority.to_owned(),
            fix: String::new(),
        },
    });
    items
}

fn wrong(row: &CertificateStatus, now: Duration) -> Option<CheckItem> {
    let said = row.last_error.as_ref().map(|error| format!("; the last attempt said: {error}")).unwrap_or_default();
    let validity = row.certificate.as_ref().map(|facts| facts.validity);
    let remaining = validity.map(|validity| validity.not_after.saturating_sub(now));
    let lifetime = validity.map(|validity| validity.not_after.saturating_sub(validity.not_before));
    let is_expiring = matches!((remaining, lifetime), (Some(left), Some(whole)) if left < whole / REMAINING_MIN);
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

    use heddle_identity::{CertificateFacts, IssueError, SpiffeId, Validity};

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
        let items = items(rows, "https://ca:15012", now);
        let failed: Vec<_> = items.into_iter().filter(|item| !item.ok).collect();
        assert!(failed.iter().all(|item| !item.fix.is_empty()), "each has a fix: {failed:?}");
        let text = failed.iter().map(|item| format!("{}. ", item.detail)).collect();
        (failed.into_iter().map(|item| item.name).collect(), text)
    }

    #[test]
    fn each_kind_of_trouble_has_its_words() {
        use IssueErrorKind::{Refused, Unavailable};
        use State::{Expired, Failed, Renewing, Valid, WarmUp};
        let (certificate, authority) = ("certificate spiffe://cluster.local/ns/shop/sa/web", "certificate authority");
        for (state, failures, error, now, names, word) in [
            (Valid, 0, None, 2 * HOUR, &[][..], ""),
            (Renewing, 0, None, 6 * HOUR, &[], ""),
            (Renewing, 0, None, 10 * HOUR, &[certificate], "ends in 3600 s"),
            (Renewing, 3, Some(Refused), 6 * HOUR, &[certificate], "3 attempts to renew failed; 18000 s are left"),
            (Renewing, 1, Some(Unavailable), 6 * HOUR, &[certificate, authority], "unavailable: planted"),
            (WarmUp, 0, None, 6 * HOUR, &[certificate], "no certificate yet"),
            (Failed, 1, Some(Refused), 6 * HOUR, &[certificate], "no certificate yet; the last attempt said: refused"),
            (Expired, 9, Some(Unavailable), 12 * HOUR, &[certificate, authority], "has ended"),
        ] {
            let (found, text) = failed(&[row(state, failures, error)], now);
            assert_eq!(found, names, "{state:?} {failures} {error:?}");
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}
