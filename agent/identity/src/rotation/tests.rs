//! The state machine against a simulated issuer, network and two clocks.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/account-{n}").parse().unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Issuer {
    Works,
    Fails(IssueErrorKind, Retry),
    Silent,
}

const DOWN: Issuer = Issuer::Fails(IssueErrorKind::Unavailable, Retry::Backoff);

/// Rotation, an issuer and time. Every step checks what must always hold.
struct World {
    rotation: Rotation,
    settings: Settings,
    now: Now,
    issuer: Issuer,
    latency: Duration,
    lifetime: Duration,
    /// How far the issuer's clock is ahead.
    issued_ahead: Duration,
    open: BTreeMap<RequestId, (SpiffeId, Duration)>,
    brought: HashMap<RequestId, Validity>,
    held: BTreeMap<SpiffeId, Validity>,
    asked: Vec<(Duration, SpiffeId)>,
    steps: usize,
}

impl World {
    fn new(settings: Settings, seed: u64) -> Self {
        Self {
            rotation: Rotation::new(settings.clone(), seed),
            settings,
            now: Now { monotonic: secs(5), unix: secs(1_800_000_000) },
            issuer: Issuer::Works,
            latency: Duration::from_millis(20),
            lifetime: secs(86_400),
            issued_ahead: Duration::ZERO,
            open: BTreeMap::new(),
            brought: HashMap::new(),
            held: BTreeMap::new(),
            asked: Vec::new(),
            steps: 0,
        }
    }

    fn step(&mut self, event: Event<'_>) {
        self.steps += 1;
        for action in self.rotation.step(self.now, event) {
            match action {
                Action::Request(id, request) => {
                    assert!(self.open.values().all(|(open, _)| *open != id), "two requests at once for {id}");
                    assert!(self.open.insert(request, (id.clone(), self.now.monotonic + self.latency)).is_none());
                    self.asked.push((self.now.monotonic, id));
                }
                Action::Cancel(request) => {
                    assert!(self.open.remove(&request).is_some() || self.brought.remove(&request).is_some());
                }
                Action::Use(id, request) => {
                    let validity = self.brought.remove(&request).expect("uses what was brought");
                    self.held.insert(id, validity);
                }
            }
        }
        assert_eq!(self.rotation.open_requests(), self.open.len());
        assert!(self.open.len() <= self.settings.requests_max);
        assert!(self.rotation.next_wake(self.now) > Duration::ZERO, "would spin");
        assert_eq!(
            self.rotation.timers.len(),
            self.rotation.entries.values().filter(|entry| entry.timer.is_some()).count()
        );
        let queued = |entry: &&Entry| matches!(entry.phase, Phase::Queued { .. });
        assert_eq!(self.rotation.queue.len(), self.rotation.entries.values().filter(queued).count());
    }

    fn need(&mut self, id: &SpiffeId, priority: Priority) {
        self.step(Event::Need(id, priority));
    }

    fn forget(&mut self, id: &SpiffeId) {
        self.held.remove(id);
        self.step(Event::Forget(id));
    }

    fn answer(&mut self, request: RequestId) {
        let (id, _) = self.open.remove(&request).expect("open");
        match self.issuer {
            Issuer::Works => {
                let not_before = self.now.unix + self.issued_ahead;
                let validity = Validity { not_before, not_after: not_before + self.lifetime };
                self.brought.insert(request, validity);
                self.step(Event::Issued(&id, request, validity));
            }
            Issuer::Fails(kind, retry) => self.step(Event::Failed(&id, request, kind, retry)),
            Issuer::Silent => self.step(Event::Failed(&id, request, IssueErrorKind::Timeout, Retry::Backoff)),
        }
    }

    /// Both clocks move on; requests are answered and timers fire when they are due.
    fn run(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        while self.now.monotonic < end {
            let answer = self.open.iter().map(|(request, (_, at))| (*at, *request)).min();
            let wake = self.now.monotonic + self.rotation.next_wake(self.now);
            let next = answer.map_or(wake, |(at, _)| at.min(wake)).min(end).max(self.now.monotonic);
            self.now.unix += next - self.now.monotonic;
            self.now.monotonic = next;
            match answer {
                Some((at, request)) if at <= next => self.answer(request),
                _ => self.step(Event::Tick),
            }
        }
    }

    fn state(&self, id: &SpiffeId) -> Option<State> {
        self.rotation.state(id, self.now)
    }
}

fn world() -> World {
    World::new(Settings::default(), 7)
}

#[test]
fn a_new_account_is_served_and_renewed_at_half_life() {
    let (mut w, a) = (world(), id(1));
    w.need(&a, Priority::WarmUp);
    assert_eq!(w.state(&a), Some(State::WarmUp));
    w.run(secs(1));
    assert_eq!(w.state(&a), Some(State::Valid));
    assert_eq!(w.asked.len(), 1);
    for _ in 0..20 {
        let due = w.rotation.due(&a).unwrap() - w.now.monotonic;
        assert!((secs(38_800)..secs(47_600)).contains(&due), "{due:?}");
        let before = w.asked.len();
        w.run(due - secs(1));
        assert_eq!(w.asked.len(), before);
        w.run(secs(2));
        assert_eq!((w.asked.len(), w.state(&a)), (before + 1, Some(State::Valid)));
    }
}

#[test]
fn waiting_handshakes_come_before_warm_up_before_renewal() {
    let mut w = World::new(Settings { requests_max: 1, ..Settings::default() }, 1);
    let ids: Vec<_> = (0..5).map(id).collect();
    w.need(&ids[0], Priority::WarmUp);
    w.run(secs(1));
    // One is due for renewal, one slot is taken, then three more come, the last of them while a handshake waits.
    w.latency = secs(10);
    w.need(&ids[1], Priority::WarmUp);
    let due = w.rotation.due(&ids[0]).unwrap();
    w.now.unix += due - w.now.monotonic;
    w.now.monotonic = due;
    w.step(Event::Tick);
    w.need(&ids[2], Priority::WarmUp);
    w.need(&ids[3], Priority::WarmUp);
    w.need(&ids[4], Priority::NeededNow);
    w.need(&ids[3], Priority::NeededNow);
    w.asked.clear();
    w.run(secs(60));
    let order: Vec<_> = w.asked.iter().map(|(_, id)| id.clone()).collect();
    assert_eq!(order, [&ids[4], &ids[3], &ids[2], &ids[0]].map(Clone::clone));
}

#[test]
fn backoff_doubles_from_half_a_second_to_150() {
    let (mut w, a) = (world(), id(1));
    w.issuer = DOWN;
    w.latency = Duration::from_millis(1);
    w.need(&a, Priority::NeededNow);
    w.run(secs(7200));
    assert_eq!(w.state(&a), Some(State::Failed));
    let times: Vec<_> = w.asked.iter().map(|(at, _)| *at).collect();
    let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
    for (n, gap) in gaps.iter().enumerate() {
        let full = (0.5 * 2_f64.powi(n as i32 + 1)).min(150.0);
        assert!((full / 2.0..=full + 0.1).contains(gap), "gap {n} is {gap}, of {full}");
    }
    assert!((60..120).contains(&gaps.len()), "{}", gaps.len());
    assert!(gaps[12..].iter().any(|gap| (gap - gaps[11]).abs() > 1.0), "no jitter: {gaps:?}");
}

#[test]
fn the_last_valid_one_is_kept_and_asked_for_more_often_towards_its_end() {
    let (mut w, a) = (world(), id(1));
    w.lifetime = secs(600);
    w.need(&a, Priority::WarmUp);
    w.run(secs(1));
    let held = w.held[&a];
    w.issuer = DOWN;
    w.run(secs(500));
    assert_eq!((w.state(&a), w.held[&a]), (Some(State::Renewing), held));
    assert!(w.rotation.failures(&a) > 3);
    // It comes back 8 s before the end: soon enough.
    w.run(held.not_after - w.now.unix - secs(8));
    w.issuer = Issuer::Works;
    w.run(secs(7));
    assert_eq!(w.state(&a), Some(State::Valid));
    // And an outage beyond the end is told, and survived.
    w.issuer = DOWN;
    w.run(secs(700));
    assert_eq!(w.state(&a), Some(State::Expired));
    w.issuer = Issuer::Works;
    w.run(secs(160));
    assert_eq!(w.state(&a), Some(State::Valid));
}

#[test]
fn retry_after_is_obeyed_and_a_refusal_is_repeated_rarely() {
    let (mut w, a) = (world(), id(1));
    w.issuer = Issuer::Fails(IssueErrorKind::Unavailable, Retry::After(secs(40)));
    w.need(&a, Priority::NeededNow);
    w.run(secs(39));
    assert_eq!(w.asked.len(), 1);
    w.run(secs(8));
    assert_eq!(w.asked.len(), 2);

    let (mut w, b) = (world(), id(2));
    w.issuer = Issuer::Fails(IssueErrorKind::Refused, Retry::Hopeless);
    w.need(&b, Priority::NeededNow);
    for _ in 0..100 {
        w.need(&b, Priority::NeededNow);
        w.run(Duration::from_millis(700));
    }
    assert_eq!(w.asked.len(), 1, "waiting handshakes must not make it ask again");
    w.run(secs(80));
    assert_eq!(w.asked.len(), 2);
}

#[test]
fn one_success_ends_the_wait_of_those_who_waited_for_the_issuer_only() {
    let (mut w, a, b, c) = (world(), id(1), id(2), id(3));
    w.issuer = DOWN;
    w.need(&a, Priority::WarmUp);
    w.run(secs(900));
    w.issuer = Issuer::Fails(IssueErrorKind::Refused, Retry::Hopeless);
    w.need(&b, Priority::WarmUp);
    w.run(Duration::from_millis(100));
    assert!(w.rotation.due(&a).unwrap() > w.now.monotonic + secs(6), "the test wants a long wait; choose another seed");
    w.issuer = Issuer::Works;
    w.need(&c, Priority::WarmUp);
    w.run(secs(6));
    assert_eq!((w.state(&a), w.state(&b), w.state(&c)), (Some(State::Valid), Some(State::Failed), Some(State::Valid)));
}

#[test]
fn a_certificate_that_begins_later_waits_while_the_old_one_holds() {
    let (mut w, a) = (world(), id(1));
    w.issued_ahead = secs(50);
    w.need(&a, Priority::WarmUp);
    w.run(secs(1));
    let first = w.held[&a];
    assert!(first.not_before > w.now.unix, "nothing better was held, so it is in use at once");
    w.run(w.rotation.due(&a).unwrap() - w.now.monotonic + secs(1));
    assert_eq!((w.held[&a], w.state(&a)), (first, Some(State::Renewing)), "staged");
    w.run(secs(51));
    assert_ne!(w.held[&a], first);
    assert_eq!(w.state(&a), Some(State::Valid));
    // Forgotten while staged: nothing stays.
    w.run(w.rotation.due(&a).unwrap() - w.now.monotonic + secs(1));
    w.forget(&a);
    assert!(w.brought.is_empty() && w.rotation.is_empty());
}

#[test]
fn restored_certificates_ask_for_nothing_until_due_and_overdue_ones_are_spread() {
    let mut w = World::new(Settings { requests_max: 1000, ..Settings::default() }, 3);
    let fresh = Validity { not_before: w.now.unix - secs(60), not_after: w.now.unix + secs(86_340) };
    let overdue = Validity { not_before: w.now.unix - secs(80_000), not_after: w.now.unix + secs(6_400) };
    let gone = Validity { not_before: w.now.unix - secs(80_000), not_after: w.now.unix - secs(1) };
    w.step(Event::Restored(&id(0), fresh));
    w.step(Event::Restored(&id(1), gone));
    assert_eq!(w.asked.len(), 1, "what has ended is asked for at once");
    for n in 10..110 {
        w.step(Event::Restored(&id(n), overdue));
        w.need(&id(n), Priority::NeededNow);
        assert_eq!(w.state(&id(n)), Some(State::Valid));
    }
    w.asked.clear();
    w.run(secs(31));
    assert_eq!(w.asked.len(), 100);
    let in_first_third = w.asked.iter().filter(|(at, _)| *at < secs(5 + 10)).count();
    assert!((15..55).contains(&in_first_third), "{in_first_third} of 100 in the first third");
    assert_eq!(w.state(&id(0)), Some(State::Valid));
}

#[test]
fn clocks_that_jump_cost_neither_a_renewal_nor_a_storm() {
    let (mut w, a) = (world(), id(1));
    w.need(&a, Priority::WarmUp);
    w.run(secs(1));
    let due = w.rotation.due(&a).unwrap();
    // Set back by a week: the plan by the monotonic clock stands.
    w.now.unix -= secs(7 * 86_400);
    w.run(secs(60));
    assert_eq!(w.rotation.due(&a), Some(due));
    // Slept for 20 hours: seen within the interval of comparison.
    w.now.unix += secs(7 * 86_400 + 20 * 3600);
    assert_eq!(w.asked.len(), 1);
    w.run(w.settings.clock_check + secs(1));
    assert_eq!(w.asked.len(), 2);
    // Far into the future: expired, renewed at once, nothing else.
    w.now.unix += secs(30 * 86_400);
    assert_eq!(w.state(&a), Some(State::Expired));
    w.run(w.settings.clock_check + secs(1));
    assert_eq!((w.state(&a), w.asked.len()), (Some(State::Valid), 3));
    // A clock that creeps is seen when it adds up.
    let due = w.rotation.due(&a).unwrap();
    for _ in 0..10_000 {
        w.now.unix += Duration::from_millis(900);
        w.step(Event::Tick);
    }
    assert!(w.rotation.due(&a).unwrap() < due - secs(8_000));
}

#[test]
fn answers_to_forgotten_requests_are_ignored() {
    let (mut w, a) = (world(), id(1));
    w.need(&a, Priority::WarmUp);
    let (&request, _) = w.open.first_key_value().unwrap();
    w.forget(&a);
    assert!(w.open.is_empty() && w.rotation.open_requests() == 0);
    let validity = Validity { not_before: w.now.unix, not_after: w.now.unix + secs(60) };
    for event in
        [Event::Issued(&a, request, validity), Event::Failed(&a, request, IssueErrorKind::Timeout, Retry::Backoff)]
    {
        assert!(w.rotation.step(w.now, event).is_empty());
    }
    w.need(&a, Priority::WarmUp);
    assert!(w.rotation.step(w.now, Event::Issued(&a, request, validity)).is_empty(), "a late answer to the former one");
    assert_eq!(w.state(&a), Some(State::WarmUp));
}

#[derive(Clone, Debug)]
enum Deed {
    Need(usize, Priority),
    Forget(usize),
    Restore(usize, i64, u64),
    Run(u64),
    JumpBy(i64),
    Issuer(Issuer),
    Latency(u64),
    Ahead(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let issuer = prop_oneof![
        3 => Just(Issuer::Works),
        1 => Just(DOWN),
        1 => Just(Issuer::Silent),
        1 => Just(Issuer::Fails(IssueErrorKind::Refused, Retry::Hopeless)),
        1 => (0..2000_u64).prop_map(|s| Issuer::Fails(IssueErrorKind::Unavailable, Retry::After(secs(s)))),
    ];
    let priority = prop_oneof![Just(Priority::NeededNow), Just(Priority::WarmUp)];
    let deed = prop_oneof![
        6 => (0..12_usize, priority).prop_map(|(n, p)| Deed::Need(n, p)),
        2 => (0..12_usize).prop_map(Deed::Forget),
        1 => (0..12_usize, -90_000..10_i64, 1..180_000_u64).prop_map(|(n, from, len)| Deed::Restore(n, from, len)),
        5 => (1..40_000_u64).prop_map(Deed::Run),
        2 => (1..3_000_000_u64).prop_map(|ms| Deed::Run(ms / 1000 + 1)),
        1 => (-1_000_000..1_000_000_i64).prop_map(Deed::JumpBy),
        2 => issuer.prop_map(Deed::Issuer),
        1 => (1..20_000_u64).prop_map(Deed::Latency),
        1 => (0..61_u64).prop_map(Deed::Ahead),
    ];
    proptest::collection::vec(deed, 1..60)
}

fn shift(time: Duration, by: i64) -> Duration {
    if by < 0 { time.saturating_sub(secs(by.unsigned_abs())) } else { time + secs(by.unsigned_abs()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens: one request per account, bounded in all, never closer than the shortest wait, no spinning, nothing left behind.
    #[test]
    fn nothing_makes_it_spin_double_or_leak(deeds in deeds(), seed: u64, lifetime in 10..100_000_u64, slots in 1..4_usize) {
        let mut w = World::new(Settings { requests_max: slots, ..Settings::default() }, seed);
        w.lifetime = secs(lifetime);
        let started = w.now.monotonic;
        let mut external = 0;
        for deed in deeds {
            external += 1;
            match deed {
                Deed::Need(n, priority) => w.need(&id(n), priority),
                Deed::Forget(n) => w.forget(&id(n)),
                Deed::Restore(n, from, length) => {
                    let not_before = shift(w.now.unix, from);
                    w.step(Event::Restored(&id(n), Validity { not_before, not_after: not_before + secs(length) }));
                }
                Deed::Run(s) => w.run(secs(s % 4000)),
                Deed::JumpBy(s) => w.now.unix = shift(w.now.unix, s),
                Deed::Issuer(issuer) => w.issuer = issuer,
                Deed::Latency(ms) => w.latency = Duration::from_millis(ms),
                Deed::Ahead(s) => w.issued_ahead = secs(s),
            }
        }
        // Work is in proportion to time: per account at most one request, answer and timer per shortest wait; plus the comparison of clocks.
        let elapsed = (w.now.monotonic - started).as_secs() as usize;
        prop_assert!(w.steps <= external + elapsed / 30 + 6 * w.asked.len() + 14 + external * 14, "{} steps", w.steps);
        for n in 0..12 {
            w.forget(&id(n));
        }
        prop_assert!(w.rotation.is_empty() && w.rotation.queue.is_empty() && w.rotation.timers.is_empty());
        prop_assert_eq!(w.rotation.open_requests(), 0);
        prop_assert!(w.open.is_empty() && w.brought.is_empty());
    }

    /// With an issuer that works, also a slow one, nobody's certificate ever ends, at any lifetime, however many accounts share the slots.
    #[test]
    fn renewal_is_always_before_the_end(seed: u64, lifetime in 60..90_000_u64, accounts in 1..40_usize, latency_ms in 1..4000_u64) {
        let mut w = World::new(Settings::default(), seed);
        w.lifetime = secs(lifetime);
        w.latency = Duration::from_millis(latency_ms);
        for n in 0..accounts {
            w.need(&id(n), Priority::WarmUp);
        }
        w.run(secs(22));
        for _ in 0..40 {
            w.run(secs(lifetime / 8));
            for n in 0..accounts {
                let state = w.state(&id(n));
                prop_assert!(matches!(state, Some(State::Valid | State::Renewing)), "{:?} after {:?}", state, w.now);
                prop_assert!(w.held[&id(n)].not_after > w.now.unix);
            }
        }
        // And not too often: every half-life, give or take the jitter.
        let per_account = w.asked.len() / accounts;
        prop_assert!((8..=14).contains(&per_account), "{} requests per account in five lifetimes", per_account);
    }

    /// A failing issuer is asked at most as often as back-off says, by all accounts together.
    #[test]
    fn a_failing_issuer_is_not_hammered(seed: u64, accounts in 1..30_usize, silent: bool) {
        let mut w = World::new(Settings::default(), seed);
        w.issuer = if silent { Issuer::Silent } else { DOWN };
        for n in 0..accounts {
            w.need(&id(n), Priority::NeededNow);
        }
        w.run(secs(3600));
        prop_assert!(w.asked.len() <= accounts * (10 + 3600 / 75), "{} requests by {} accounts", w.asked.len(), accounts);
        let mut last: HashMap<&SpiffeId, Duration> = HashMap::new();
        for (at, id) in &w.asked {
            if let Some(before) = last.insert(id, *at) {
                prop_assert!(*at - before >= w.settings.backoff_min);
            }
        }
    }
}
