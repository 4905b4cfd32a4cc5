//! Rotation of the root as a state machine without files or clock, and the text it is kept in.
//!
//! ```text
//!            prepare                activate                finish
//!   Steady ───────────▶ Prepared ─────────────▶ Activated ───────────▶ Steady
//!      ▲     new root      │      the new one      │       the old root
//!      │   told to all     │      signs            │       is forgotten
//!      └──────cancel───────┘
//! ```
//!
//! Between two steps every certificate signed before the first must have been renewed: with it each agent learns the roots. So each step
//! waits for the longest lifetime a leaf can have.

use std::fmt;
use std::time::Duration;

use heddle_identity::TrustDomain;
use serde::{Deserialize, Serialize};

use super::json;

/// How much longer than a leaf's lifetime to wait: a running authority takes a moment to see a change.
pub const SETTLED: Duration = Duration::from_secs(5);
const VERSION: u32 = 1;

/// What is signed with and what is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// One root.
    Steady,
    /// The next root is trusted, the old one signs.
    Prepared,
    /// The new one signs, the old root is still trusted.
    Activated,
}

impl Phase {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Prepared => "prepared",
            Self::Activated => "activated",
        }
    }
}

/// The contents of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    trust_domain: String,
    lifetime_max_seconds: u64,
    phase: Phase,
    /// Seconds since 1970.
    phase_since: u64,
    active: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<u64>,
}

/// Why a step is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotateError {
    /// Another step comes first.
    #[error("the phase is `{}`; `{step}` follows `{}`", phase.as_str(), wanted.as_str())]
    Phase {
        /// What was asked.
        step: &'static str,
        /// Where it stands.
        phase: Phase,
        /// Where it would have to stand.
        wanted: Phase,
    },
    /// Certificates are in use whose holders do not know what they would have to know.
    #[error(
        "too early: `{step}` must wait {} s more, until every certificate of before `{}` has been renewed; --force cuts off whoever has not",
        remaining.as_secs(),
        phase.as_str()
    )]
    TooEarly {
        /// What was asked.
        step: &'static str,
        /// Where it stands.
        phase: Phase,
        /// How much longer.
        remaining: Duration,
    },
}

/// Why a state file is refused: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(String);

impl State {
    /// The beginning.
    #[must_use]
    pub fn new(trust_domain: &TrustDomain, lifetime_max: Duration, active: u64, now: Duration) -> Self {
        Self {
            version: VERSION,
            trust_domain: trust_domain.to_string(),
            lifetime_max_seconds: lifetime_max.as_secs(),
            phase: Phase::Steady,
            phase_since: now.as_secs(),
            active,
            other: None,
        }
    }

    /// From the text of `state.json`.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let state: Self = json::parse(text).map_err(StateError)?;
        let wrong = |field: &str, why: &dyn fmt::Display| Err(StateError(format!("field `{field}`: {why}")));
        if state.version != VERSION {
            return wrong("version", &format_args!("{} is not {VERSION}, the one this program knows", state.version));
        }
        if let Err(why) = state.trust_domain.parse::<TrustDomain>() {
            return wrong("trust_domain", &why);
        }
        if state.lifetime_max_seconds == 0 {
            return wrong("lifetime_max_seconds", &"must not be 0");
        }
        match (state.phase, state.other) {
            (Phase::Steady, Some(_)) => return wrong("other", &"set in phase `steady`"),
            (Phase::Prepared | Phase::Activated, None) => {
                return wrong("other", &format_args!("missing in phase `{}`", state.phase.as_str()));
            }
            (_, other) if other == Some(state.active) => return wrong("other", &"is the active one"),
            _ => {}
        }
        Ok(state)
    }

    /// As it stands in `state.json`.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Fails only for maps with keys that are no strings.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Whose identities are signed.
    ///
    /// # Errors
    /// None for a state that was parsed or made here.
    pub fn trust_domain(&self) -> Result<TrustDomain, StateError> {
        self.trust_domain.parse().map_err(|why| StateError(format!("field `trust_domain`: {why}")))
    }

    /// Longest lifetime of a leaf.
    #[must_use]
    pub const fn lifetime_max(&self) -> Duration {
        Duration::from_secs(self.lifetime_max_seconds)
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when, since 1970.
    #[must_use]
    pub const fn phase_since(&self) -> Duration {
        Duration::from_secs(self.phase_since)
    }

    /// The generation that signs.
    #[must_use]
    pub const fn active(&self) -> u64 {
        self.active
    }

    /// The other one that is trusted.
    #[must_use]
    pub const fn other(&self) -> Option<u64> {
        self.other
    }

    /// A number that was never used.
    #[must_use]
    pub fn unused(&self) -> u64 {
        self.active.max(self.other.unwrap_or(0)).saturating_add(1)
    }

    /// How long until the next step may be taken; zero when it may.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Duration {
        if self.phase == Phase::Steady {
            return Duration::ZERO;
        }
        (self.phase_since() + self.lifetime_max() + SETTLED).saturating_sub(now)
    }

    /// Another root is told to all.
    ///
    /// # Errors
    /// A rotation is under way.
    pub fn prepare(&self, next: u64, now: Duration) -> Result<Self, RotateError> {
        self.expect("prepare", Phase::Steady)?;
        Ok(Self { phase: Phase::Prepared, phase_since: now.as_secs(), other: Some(next), ..self.clone() })
    }

    /// It signs from now on.
    ///
    /// # Errors
    /// Not prepared, or not long enough ago unless `force`.
    pub fn activate(&self, now: Duration, force: bool) -> Result<Self, RotateError> {
        self.expect("activate", Phase::Prepared)?;
        self.wait("activate", now, force)?;
        let active = self.other.unwrap_or(self.active);
        let other = Some(self.active);
        Ok(Self { phase: Phase::Activated, phase_since: now.as_secs(), active, other, ..self.clone() })
    }

    /// The old root is forgotten.
    ///
    /// # Errors
    /// Not activated, or not long enough ago unless `force`.
    pub fn finish(&self, now: Duration, force: bool) -> Result<Self, RotateError> {
        self.expect("finish", Phase::Activated)?;
        self.wait("finish", now, force)?;
        Ok(Self { phase: Phase::Steady, phase_since: now.as_secs(), other: None, ..self.clone() })
    }

    /// The prepared root is forgotten: nothing was signed with it.
    ///
    /// # Errors
    /// Not prepared.
    pub fn cancel(&self, now: Duration) -> Result<Self, RotateError> {
        self.expect("cancel", Phase::Prepared)?;
        Ok(Self { phase: Phase::Steady, phase_since: now.as_secs(), other: None, ..self.clone() })
    }

    /// The same root with another intermediate, at any time: agents trust roots.
    #[must_use]
    pub fn reissued(&self, active: u64) -> Self {
        Self { active, ..self.clone() }
    }

    fn expect(&self, step: &'static str, wanted: Phase) -> Result<(), RotateError> {
        if self.phase == wanted { Ok(()) } else { Err(RotateError::Phase { step, phase: self.phase, wanted }) }
    }

    fn wait(&self, step: &'static str, now: Duration, force: bool) -> Result<(), RotateError> {
        let remaining = self.remaining(now);
        if force || remaining.is_zero() {
            return Ok(());
        }
        Err(RotateError::TooEarly { step, phase: self.phase, remaining })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const START: Duration = Duration::from_secs(1_700_000_000);

    fn steady() -> State {
        State::new(&"td".parse().unwrap(), DAY, 1, START)
    }

    #[test]
    fn a_rotation_takes_its_steps_in_order_and_in_time() {
        let prepared = steady().prepare(2, START).unwrap();
        assert_eq!((prepared.active(), prepared.other()), (1, Some(2)));
        let soon = START + DAY;
        let error = prepared.activate(soon, false).unwrap_err();
        assert_eq!(error, RotateError::TooEarly { step: "activate", phase: Phase::Prepared, remaining: SETTLED });
        let late = soon + SETTLED;
        let activated = prepared.activate(late, false).unwrap();
        assert_eq!(activated, State { phase_since: late.as_secs(), ..prepared.activate(soon, true).unwrap() });
        assert_eq!((activated.active(), activated.other()), (2, Some(1)));
        assert!(matches!(activated.finish(late + DAY, false), Err(RotateError::TooEarly { step: "finish", .. })));
        let finished = activated.finish(late + DAY + SETTLED, false).unwrap();
        assert_eq!((finished.phase(), finished.active(), finished.other()), (Phase::Steady, 2, None));
        assert_eq!(finished.unused(), 3);
    }

    #[test]
    fn no_step_is_skipped_not_even_by_force() {
        let (steady, now) = (steady(), START + 10 * DAY);
        let prepared = steady.prepare(2, START).unwrap();
        let activated = prepared.activate(START, true).unwrap();
        for (state, refused) in [
            (&steady, [false, true, true, true]),
            (&prepared, [true, false, true, false]),
            (&activated, [true, true, false, true]),
        ] {
            let outcomes =
                [state.prepare(9, now), state.activate(now, true), state.finish(now, true), state.cancel(now)];
            assert_eq!(outcomes.map(|outcome| outcome.is_err()), refused, "{:?}", state.phase());
        }
        assert_eq!(prepared.cancel(START).unwrap(), steady);
    }

    #[test]
    fn a_clock_set_back_does_not_shorten_the_wait() {
        let prepared = steady().prepare(2, START).unwrap();
        assert!(prepared.activate(START - DAY, false).is_err());
    }

    #[test]
    fn text_is_read_back_and_errors_name_the_field() {
        let prepared = steady().prepare(2, START).unwrap();
        for state in [steady(), prepared.clone(), prepared.activate(START, true).unwrap()] {
            assert_eq!(State::parse(&state.to_text()).unwrap(), state);
        }
        let text = prepared.to_text();
        for (from, to, word) in [
            ("\"version\": 1", "\"version\": 7", "field `version`: 7"),
            ("\"td\"", "\"T D\"", "field `trust_domain`"),
            ("86400", "0", "field `lifetime_max_seconds`"),
            ("86400", "-1", "field `lifetime_max_seconds`: invalid value"),
            ("prepared", "begun", "field `phase`: unknown variant `begun`"),
            ("prepared", "steady", "field `other`: set"),
            ("\"other\": 2", "\"other\": 1", "field `other`: is the active one"),
            (",\n  \"other\": 2", "", "field `other`: missing"),
            ("  \"active\": 1,\n", "", "missing field `active`"),
            ("\"other\"", "\"another\"", "unknown field `another`"),
            ("}", "", "EOF"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            let error = State::parse(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(word), "{from} → {to}: {error}");
        }
    }
}
