//! How the issuer answers, over all requests together. One account's certificate is renewed twice a day, so its attempts say little about
//! whether anybody is there; the roots are asked for all the time.

use std::sync::Arc;
use std::time::Duration;

use crate::issuer::{IssueError, IssueErrorKind};

/// What is known of the issuer now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerStatus {
    /// Since it answered last, for the better or the worse; `None` if it never has.
    pub answered_ago: Option<Duration>,
    /// Set while it does not answer.
    pub silence: Option<Silence>,
}

/// Attempts that nobody answered, and none that anybody did since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Since the first of them.
    pub lasts: Duration,
    /// How many.
    pub attempts: u32,
    /// What the last of them said.
    pub last_error: Arc<IssueError>,
}

/// The record that [`IssuerStatus`] is read from. Times are of the monotonic clock: a clock that is set right makes nobody silent.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    answered: Option<Duration>,
    silent: Option<(Duration, u32, Arc<IssueError>)>,
}

impl Contact {
    pub(crate) fn answered(&mut self, now: Duration) {
        self.answered = Some(now);
        self.silent = None;
    }

    /// A refusal is an answer, and what went wrong on this node says nothing about the issuer.
    pub(crate) fn failed(&mut self, now: Duration, error: &IssueError) {
        match error.kind {
            IssueErrorKind::Refused | IssueErrorKind::BadAnswer => self.answered(now),
            IssueErrorKind::Unavailable | IssueErrorKind::Timeout => {
                let (since, attempts) =
                    self.silent.as_ref().map_or((now, 0), |(since, attempts, _)| (*since, *attempts));
                self.silent = Some((since, attempts.saturating_add(1), Arc::new(error.clone())));
            }
            IssueErrorKind::Local => {}
        }
    }

    pub(crate) fn status(&self, now: Duration) -> IssuerStatus {
        let silence = self.silent.as_ref().map(|(since, attempts, last_error)| Silence {
            lasts: now.saturating_sub(*since),
            attempts: *attempts,
            last_error: Arc::clone(last_error),
        });
        IssuerStatus { answered_ago: self.answered.map(|at| now.saturating_sub(at)), silence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_lasts_from_the_first_attempt_to_the_next_answer() {
        use IssueErrorKind::{BadAnswer, Local, Refused, Timeout, Unavailable};
        let at = Duration::from_secs;
        let mut contact = Contact::default();
        assert_eq!(contact.status(at(5)), IssuerStatus::default());
        // When, what happened (`None`: an answer), and then: seconds of silence and attempts.
        for (now, event, silence) in [
            (10, Some(Local), None),
            (20, Some(Unavailable), Some((0, 1))),
            (30, Some(Local), Some((10, 1))),
            (50, Some(Timeout), Some((30, 2))),
            (60, None, None),
            (70, Some(Timeout), Some((0, 1))),
            (80, Some(Refused), None),
            (90, Some(Unavailable), Some((0, 1))),
            (95, Some(BadAnswer), None),
        ] {
            match event {
                Some(kind) => contact.failed(at(now), &IssueError::new(kind, format!("{now}"))),
                None => contact.answered(at(now)),
            }
            let found = contact.status(at(now)).silence;
            let told = found.as_ref().map(|found| (found.lasts.as_secs(), found.attempts));
            assert_eq!(told, silence, "at {now}");
            if let (Some(found), Some(Unavailable | Timeout)) = (found, event) {
                assert_eq!(found.last_error.message, now.to_string());
            }
        }
        assert_eq!(contact.status(at(100)).answered_ago, Some(at(5)));
    }
}
