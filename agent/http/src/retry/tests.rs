//! Tables and laws of the decision.

use proptest::prelude::*;

use super::*;

/// 2026-08-09T10:11:12Z.
const NOW: Timestamp = Timestamp::from_unix(1_786_270_272);
const FIRST: Attempt =
    Attempt { idempotent: true, grpc: false, number: 1, replayable: true, response_begun: false, left: None };
const POST: Attempt = Attempt { idempotent: false, ..FIRST };
const CALL: Attempt = Attempt { grpc: true, ..POST };

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// `name: value` lines.
fn fields(lines: &[&str]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    map
}

/// Decides with every random bit set (the longest backoff) and a budget that grants all.
fn run(policy: &Policy, attempt: Attempt, outcome: Outcome<'_>) -> Result<Duration, Stop> {
    match decide(policy, &attempt, &outcome, NOW, u64::MAX, || Ok(())) {
        Decision::Retry { after, token: () } => Ok(after),
        Decision::Stop(stop) => Err(stop),
    }
}

fn response<'a>(status: u16, head: &'a HeaderMap, trailers: Option<&'a HeaderMap>) -> Outcome<'a> {
    Outcome::Response { status, head, trailers: trailers.map(|map| map as &dyn Lookup) }
}

#[test]
fn what_the_default_policy_retries() {
    let none = HeaderMap::new();
    let status = |status| response(status, &none, None);
    let yes = Ok(millis(25));
    // (outcome, for GET, for POST)
    let table = [
        (Outcome::ConnectFailed, yes, yes),
        (Outcome::Refused { graceful: false }, yes, yes),
        (Outcome::Refused { graceful: true }, yes, yes),
        (Outcome::Reset, yes, Err(Stop::NotIdempotent)),
        (Outcome::TimedOut, yes, Err(Stop::NotIdempotent)),
        (status(502), yes, Err(Stop::NotIdempotent)),
        (status(503), yes, Err(Stop::NotIdempotent)),
        (status(504), yes, Err(Stop::NotIdempotent)),
        (status(500), Err(Stop::NotRetriable), Err(Stop::NotRetriable)),
        (status(501), Err(Stop::NotRetriable), Err(Stop::NotRetriable)),
        (status(429), Err(Stop::NotRetriable), Err(Stop::NotRetriable)),
        (status(404), Err(Stop::NotRetriable), Err(Stop::NotRetriable)),
        (status(200), Err(Stop::NotRetriable), Err(Stop::NotRetriable)),
    ];
    for (outcome, get, post) in table {
        assert_eq!(run(&Policy::default(), FIRST, outcome), get, "GET {outcome:?}");
        assert_eq!(run(&Policy::default(), POST, outcome), post, "POST {outcome:?}");
    }
}

#[test]
fn every_condition_alone() {
    let none = HeaderMap::new();
    let marked = fields(&["x-try-again: whatever"]);
    let outcomes = [
        ("connect", Outcome::ConnectFailed),
        ("refused", Outcome::Refused { graceful: false }),
        ("reset", Outcome::Reset),
        ("timeout", Outcome::TimedOut),
        ("500", response(500, &none, None)),
        ("503", response(503, &none, None)),
        ("409", response(409, &none, None)),
        ("marked", response(200, &marked, None)),
    ];
    let on = Conditions::default;
    let table: [(Conditions, &[&str]); 9] = [
        (on(), &[]),
        (Conditions { connect_failure: true, ..on() }, &["connect"]),
        (Conditions { refused_stream: true, ..on() }, &["refused"]),
        (Conditions { reset_before_response: true, ..on() }, &["reset"]),
        (Conditions { per_try_timeout: true, ..on() }, &["timeout"]),
        (Conditions { statuses: StatusSet::SERVER_ERROR, ..on() }, &["500", "503"]),
        (Conditions { statuses: StatusSet::GATEWAY_ERROR, ..on() }, &["503"]),
        (Conditions { statuses: StatusSet::NONE.with(409), ..on() }, &["409"]),
        (Conditions { headers: ["x-try-again".into()].into(), ..on() }, &["marked"]),
    ];
    for (conditions, expected) in table {
        for (name, outcome) in outcomes {
            let policy = Policy { idempotent: conditions.clone(), ..Policy::default() };
            let actual = run(&policy, FIRST, outcome);
            let expected = if expected.contains(&name) { Ok(millis(25)) } else { Err(Stop::NotRetriable) };
            assert_eq!(actual, expected, "{name} with {conditions:?}");
        }
    }
}

#[test]
fn grpc_statuses_wherever_they_stand() {
    let policy = Policy {
        other: Conditions { grpc_codes: GrpcCodes::UNAVAILABLE, ..Conditions::untouched() },
        ..Policy::default()
    };
    let (none, unavailable, ok) = (HeaderMap::new(), fields(&["grpc-status: 14"]), fields(&["grpc-status: 0"]));
    let nonsense = fields(&["grpc-status: 99"]);
    let yes = Ok(millis(25));
    let no = Err(Stop::NotRetriable);
    // (status, head, trailers, expected)
    let table = [
        (200, &unavailable, None, yes),
        (200, &none, Some(&unavailable), yes),
        (200, &none, Some(&ok), no),
        (200, &none, None, no),
        (200, &ok, None, no),
        (200, &nonsense, None, no),
        (200, &none, Some(&nonsense), no),
        // Trailers count before the head, and an HTTP error stands for a code where there is none.
        (200, &ok, Some(&unavailable), yes),
        (503, &none, None, yes),
        (429, &none, None, yes),
        (500, &none, None, no),
        // The codes do not ask for it, and the status does for idempotent methods only.
        (503, &ok, None, Err(Stop::NotIdempotent)),
    ];
    for (status, head, trailers, expected) in table {
        let actual = run(&policy, CALL, response(status, head, trailers));
        assert_eq!(actual, expected, "{status} {head:?} {trailers:?}");
    }
    // What is no gRPC call has no gRPC status.
    assert_eq!(run(&policy, POST, response(200, &unavailable, None)), no);
    // The default retries no call that a server may have acted on.
    assert_eq!(run(&Policy::default(), CALL, response(200, &unavailable, None)), no);
}

#[test]
fn a_status_that_is_still_to_come_is_not_known() {
    let none = HeaderMap::new();
    assert_eq!(grpc_code(200, &none, None), None);
    assert_eq!(grpc_code(200, &none, Some(&none)), Some(2));
    assert_eq!(grpc_code(404, &none, None), Some(12));
    assert_eq!(grpc_code(200, &fields(&["grpc-status: 16"]), None), Some(16));
    assert_eq!(grpc_code(200, &fields(&["grpc-status: x"]), None), Some(2));
}

#[test]
fn what_stops_a_retry_in_order() {
    let late = Some(millis(25));
    let all = Attempt { number: 3, replayable: false, response_begun: true, left: late, ..FIRST };
    let table = [
        (all, Err(Stop::ResponseBegun)),
        (Attempt { response_begun: false, ..all }, Err(Stop::LimitReached)),
        (Attempt { response_begun: false, number: 2, ..all }, Err(Stop::BodyNotReplayable)),
        (Attempt { response_begun: false, number: 1, replayable: true, ..all }, Err(Stop::DeadlineTooNear)),
        (Attempt { left: Some(millis(26)), ..FIRST }, Ok(millis(25))),
        (Attempt { number: 2, ..FIRST }, Ok(millis(50))),
        (Attempt { left: Some(Duration::ZERO), ..FIRST }, Err(Stop::DeadlineTooNear)),
    ];
    for (attempt, expected) in table {
        assert_eq!(run(&Policy::default(), attempt, Outcome::ConnectFailed), expected, "{attempt:?}");
    }
    let never = Policy { retries_max: 0, ..Policy::default() };
    assert_eq!(run(&never, FIRST, Outcome::ConnectFailed), Err(Stop::LimitReached));
    for refused in [Stop::BudgetExhausted, Stop::UpstreamOverflow] {
        let broke = decide(&Policy::default(), &FIRST, &Outcome::Reset, NOW, 0, || Err::<(), _>(refused));
        assert_eq!(broke.stop(), Some(refused));
    }
}

#[test]
fn servers_say_when() {
    let policy = Policy {
        other: Conditions { grpc_codes: GrpcCodes::UNAVAILABLE, ..Conditions::untouched() },
        ..Policy::default()
    };
    // (for a gRPC call, field, longest wait or why not); the backoff is 25 ms.
    let table: &[(bool, &str, Result<u64, Stop>)] = &[
        (false, "retry-after: 0", Ok(25)),
        (false, "retry-after: 2", Ok(2_025)),
        (false, "retry-after: 10", Ok(10_025)),
        (false, "retry-after: 11", Err(Stop::WaitTooLong)),
        (false, "retry-after: 99999999999999999999999", Err(Stop::WaitTooLong)),
        (false, "retry-after: Sun, 09 Aug 2026 10:11:15 GMT", Ok(3_025)),
        (false, "retry-after: Sun, 09 Aug 2026 10:11:12 GMT", Ok(25)),
        (false, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT", Ok(25)),
        (false, "retry-after: Sun, 09 Aug 2026 10:12:12 GMT", Err(Stop::WaitTooLong)),
        (false, "retry-after: soon", Ok(25)),
        (false, "retry-after: -1", Ok(25)),
        (false, "retry-after: 1.5", Ok(25)),
        (false, "grpc-retry-pushback-ms: -1", Ok(25)),
        (true, "grpc-retry-pushback-ms: 0", Ok(0)),
        (true, "grpc-retry-pushback-ms: 700", Ok(700)),
        (true, "grpc-retry-pushback-ms: 10001", Err(Stop::WaitTooLong)),
        (true, "grpc-retry-pushback-ms: -1", Err(Stop::PushedBack)),
        (true, "grpc-retry-pushback-ms: x", Err(Stop::PushedBack)),
        (true, "grpc-retry-pushback-ms: 99999999999", Err(Stop::PushedBack)),
        (true, "retry-after: 2", Ok(2_025)),
    ];
    for (grpc, line, expected) in table {
        let expected = expected.map(millis);
        let head = fields(&[line]);
        let attempt = Attempt { grpc: *grpc, idempotent: !grpc, ..FIRST };
        assert_eq!(run(&policy, attempt, response(503, &head, None)), expected, "{line}");
        if *grpc && line.starts_with(PUSHBACK) {
            let (none, trailers) = (HeaderMap::new(), fields(&["grpc-status: 14", line]));
            assert_eq!(run(&policy, attempt, response(200, &none, Some(&trailers))), expected, "trailers {line}");
        }
    }
    // Never beyond the deadline.
    let head = fields(&["retry-after: 2"]);
    let near = Attempt { left: Some(millis(2_010)), ..FIRST };
    assert_eq!(run(&policy, near, response(503, &head, None)), Err(Stop::DeadlineTooNear));
}

#[test]
fn backoff_doubles_up_to_its_most() {
    let backoff = Backoff::default();
    let most: Vec<u128> = (0..8).map(|retry| backoff.wait(retry, u64::MAX).as_millis()).collect();
    assert_eq!(most, [25, 25, 50, 100, 200, 250, 250, 250]);
    assert_eq!(backoff.wait(u32::MAX, u64::MAX), millis(250));
    assert_eq!(backoff.wait(1, 0), Duration::ZERO);
    let half = backoff.wait(1, 1 << 63);
    assert!((millis(12)..millis(13)).contains(&half), "{half:?}");
    let at_once = Backoff { base: Duration::ZERO, max: Duration::ZERO, ..backoff };
    assert_eq!(at_once.wait(3, u64::MAX), Duration::ZERO);
    let least = Backoff { least: millis(100), ..backoff };
    assert_eq!(
        [least.wait(1, 0), least.wait(1, u64::MAX), least.wait(9, u64::MAX)].map(|time| time.as_millis()),
        [100, 125, 350]
    );
    let endless = Backoff { base: Duration::MAX, max: Duration::MAX, ..backoff };
    assert_eq!(endless.wait(9, u64::MAX).as_nanos(), u128::from(u64::MAX));
}

#[test]
fn sets_hold_errors_only() {
    let wild: StatusSet = [0, 99, 200, 399, 400, 418, 599, 600, u16::MAX].into_iter().collect();
    let held: Vec<u16> = (0..=u16::MAX).filter(|status| wild.contains(*status)).collect();
    assert_eq!(held, [400, 418, 599]);
    let held = (0..=u16::MAX).filter(|status| StatusSet::SERVER_ERROR.contains(*status));
    assert!(held.eq(500..=599));
    assert!(StatusSet::NONE.is_empty() && !wild.is_empty());
    let codes: GrpcCodes = [0, 1, 14, 16, 17, 255].into_iter().collect();
    assert!((0..=255).filter(|code| codes.contains(*code)).eq([1, 14, 16]));
    assert!(GrpcCodes::NONE.is_empty());
}

#[test]
fn http1_fields_read_the_same() {
    let mut list = h1::Fields::default();
    list.append(b"Retry-After", b"1").unwrap();
    let outcome = Outcome::Response { status: 503, head: &list, trailers: None };
    let decision = decide(&Policy::default(), &FIRST, &outcome, NOW, 0, || Ok(()));
    assert_eq!(decision, Decision::Retry { after: Duration::from_secs(1), token: () });
}

fn conditions() -> impl Strategy<Value = Conditions> {
    (
        any::<[bool; 4]>(),
        prop::collection::vec(400_u16..600, 0..5),
        prop::collection::vec(0_u8..20, 0..5),
        any::<bool>(),
    )
        .prop_map(
            |([connect_failure, refused_stream, reset_before_response, per_try_timeout], statuses, codes, marked)| {
                Conditions {
                    connect_failure,
                    refused_stream,
                    reset_before_response,
                    per_try_timeout,
                    statuses: statuses.into_iter().collect(),
                    grpc_codes: codes.into_iter().collect(),
                    headers: if marked { ["x-again".into()].into() } else { [].into() },
                }
            },
        )
}

fn policy() -> impl Strategy<Value = Policy> {
    (conditions(), conditions(), 0_u32..4, 0_u64..100, 0_u64..400, 0_u64..5_000).prop_map(
        |(idempotent, other, retries_max, base, max, wait_max)| Policy {
            idempotent,
            other,
            retries_max,
            per_try_timeout: None,
            backoff: Backoff { base: millis(base), max: millis(max), ..Backoff::default() },
            wait_max: millis(wait_max),
            said: None,
        },
    )
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.2));
    (flags, 1_u32..5, prop::option::of(0_u64..3_000)).prop_map(
        |((idempotent, grpc, replayable, response_begun), number, left)| Attempt {
            idempotent,
            grpc,
            number,
            replayable,
            response_begun,
            left: left.map(millis),
        },
    )
}

/// (kind, status, head, trailers)
fn outcome() -> impl Strategy<Value = (u8, u16, HeaderMap, Option<HeaderMap>)> {
    let line = prop_oneof![
        (0_u32..8).prop_map(|s| format!("retry-after: {s}")),
        (-2_i32..4_000).prop_map(|ms| format!("grpc-retry-pushback-ms: {ms}")),
        (0_u8..20).prop_map(|code| format!("grpc-status: {code}")),
        Just("x-again: 1".to_owned()),
    ];
    let map = prop::collection::vec(line, 0..3)
        .prop_map(|lines| fields(&lines.iter().map(String::as_str).collect::<Vec<_>>()));
    (0_u8..10, prop_oneof![Just(200_u16), 400_u16..600, Just(503)], map.clone(), prop::option::of(map))
}

proptest! {
    #[test]
    fn a_retry_is_always_allowed_by_everything(
        policy in policy(), attempt in attempt(), (kind, status, head, trailers) in outcome(), random: u64, budget: bool,
    ) {
        let outcome = match kind {
            0 => Outcome::ConnectFailed,
            1 => Outcome::Refused { graceful: false },
            2 => Outcome::Refused { graceful: true },
            3 => Outcome::Reset,
            4 => Outcome::TimedOut,
            _ => response(status, &head, trailers.as_ref()),
        };
        let mut asked = 0;
        let decision = decide(&policy, &attempt, &outcome, NOW, random, || {
            asked += 1;
            budget.then_some(()).ok_or(Stop::BudgetExhausted)
        });
        let conditions = policy.conditions(attempt.idempotent);
        match decision {
            Decision::Retry { after, token: () } => {
                prop_assert!(budget && asked == 1);
                prop_assert!(!attempt.response_begun && attempt.replayable && attempt.number <= policy.retries_max);
                prop_assert!(attempt.left.is_none_or(|left| after < left));
                prop_assert!(after <= policy.wait_max + policy.backoff.max);
                let code = grpc_code(status, &head, trailers.as_ref().map(|map| map as &dyn Lookup));
                let is_wanted = match kind {
                    0 => conditions.connect_failure,
                    1 | 2 => conditions.refused_stream,
                    3 => conditions.reset_before_response,
                    4 => conditions.per_try_timeout,
                    _ => conditions.statuses.contains(status)
                        || !conditions.headers.is_empty() && head.contains_key("x-again")
                        || attempt.grpc && code.is_some_and(|code| conditions.grpc_codes.contains(code)),
                };
                prop_assert!(is_wanted);
            }
            Decision::Stop(Stop::BudgetExhausted) => prop_assert!(!budget && asked == 1),
            // The budget is not asked for what would not happen anyway.
            Decision::Stop(_) => prop_assert_eq!(asked, 0),
        }
        // The same inputs, the same decision.
        let again = || budget.then_some(()).ok_or(Stop::BudgetExhausted);
        prop_assert_eq!(decision, decide(&policy, &attempt, &outcome, NOW, random, again));
    }

    #[test]
    fn backoff_is_uniform_below_its_most(retry in 1_u32..8, seed: u64) {
        const DRAWS: u64 = 4_000;
        let backoff = Backoff::default();
        let most = backoff.wait(retry, u64::MAX);
        // A Weyl sequence: evenly spread bits without a generator.
        let draw = |n: u64| backoff.wait(retry, seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let total: Duration = (0..DRAWS).map(draw).sum();
        prop_assert!((0..DRAWS).all(|n| draw(n) <= most));
        let mean = total.as_secs_f64() / DRAWS as f64 / most.as_secs_f64();
        prop_assert!((0.48..0.52).contains(&mean), "mean {} of the most", mean);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), seconds in 0_i64..5_000_000_000) {
        let _ = retry_after(&bytes, Timestamp::from_unix(seconds));
        let _ = Pushback::read(&bytes);
    }
}
