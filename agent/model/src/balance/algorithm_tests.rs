//! Tables, laws and distributions of the algorithms beside least request.

use proptest::prelude::*;

use super::tests::{Random, many};
use super::*;

const DECAY: Duration = PeakEwma::DECAY;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn host(endpoint: &Endpoint) -> usize {
    match endpoint.addr.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]) - 1,
        std::net::IpAddr::V6(_) => 0,
    }
}

/// Chi-square of `hits` against shares in proportion to `weights`.
fn chi_square(hits: &[usize], weights: &[f64]) -> f64 {
    let (drawn, total) = (hits.iter().sum::<usize>() as f64, weights.iter().sum::<f64>());
    hits.iter()
        .zip(weights)
        .map(|(&hit, weight)| (hit as f64 - drawn * weight / total).powi(2) * total / drawn / weight)
        .sum()
}

#[test]
fn peaks_are_believed_at_once_and_the_rest_over_time() {
    let mut ewma = PeakEwma::new(millis(30), Duration::ZERO);
    assert_eq!(ewma.latency(Duration::ZERO, DECAY), millis(30));
    // A fast answer at the same moment changes nothing, one a decay later moves it most of the way.
    ewma.observe(millis(10), Duration::ZERO, DECAY);
    assert_eq!(ewma.latency(Duration::ZERO, DECAY), millis(30));
    ewma.observe(millis(10), DECAY, DECAY);
    let expected = 30.0 * (-1.0_f64).exp() + 10.0 * (1.0 - (-1.0_f64).exp());
    assert!((ewma.latency(DECAY, DECAY).as_secs_f64() * 1e3 - expected).abs() < 1e-3);
    // A slow one counts whole, at once.
    ewma.observe(millis(500), DECAY + millis(1), DECAY);
    assert_eq!(ewma.latency(DECAY + millis(1), DECAY), millis(500));
    // Without answers it fades.
    let faded = ewma.latency(DECAY * 2 + millis(1), DECAY).as_secs_f64();
    assert!((faded - 0.5 * (-1.0_f64).exp()).abs() < 1e-6, "{faded}");
    assert!(ewma.latency(DECAY * 100, DECAY) < Duration::from_nanos(1));
    // Time that stands still or goes back makes nothing younger.
    assert_eq!(ewma.latency(Duration::ZERO, DECAY), millis(500));
}

#[test]
fn what_was_waited_for_in_vain_only_raises() {
    let mut ewma = PeakEwma::new(millis(30), Duration::ZERO);
    assert!(!ewma.waited(millis(30), Duration::ZERO, DECAY) && !ewma.waited(millis(5), Duration::ZERO, DECAY));
    assert_eq!(ewma, PeakEwma::new(millis(30), Duration::ZERO), "nothing was learned");
    assert!(ewma.waited(millis(200), millis(1), DECAY));
    assert_eq!(ewma, PeakEwma::new(millis(200), millis(1)));
    // What has faded is less than what was remembered, and longer than that is news.
    let later = millis(1) + DECAY;
    let faded = ewma.latency(later, DECAY);
    assert!(faded < millis(100) && ewma.waited(millis(100), later, DECAY));
    assert_eq!(ewma.latency(later, DECAY), millis(100));
}

proptest! {
    #[test]
    fn no_wait_makes_an_endpoint_look_faster(
        initial in 0_u64..10_000, waited in 0_u64..10_000, at in 0_u64..60_000, later in 0_u64..60_000,
    ) {
        let before = PeakEwma::new(millis(initial), Duration::ZERO);
        let (mut after, at) = (before, millis(at));
        after.waited(millis(waited), at, DECAY);
        let then = at + millis(later);
        // To the nanosecond that is rounded.
        prop_assert!(after.latency(then, DECAY) + Duration::from_nanos(1) >= before.latency(then, DECAY));
        prop_assert!(after.latency(at, DECAY) + Duration::from_nanos(1) >= millis(waited));
    }
}

#[test]
fn what_is_packed_comes_back() {
    let now = Duration::from_secs(40 * 86_400);
    for latency in [Duration::ZERO, Duration::from_nanos(3), millis(1), millis(30), Duration::from_secs(3600)] {
        let word = PeakEwma::new(latency, now).pack();
        let at = |later: Duration| {
            PeakEwma::unpack(word, now + later).unwrap().latency(now + later, DECAY).as_secs_f64() * 1e9
        };
        let expected = latency.as_nanos().max(1) as f64;
        assert!((at(Duration::ZERO) / expected - 1.0).abs() < 1e-6, "{latency:?}");
        // It fades as before, across the wrap of what is kept of the time.
        let faded = expected * (-1.0_f64).exp();
        assert!((at(DECAY) - faded).abs() <= faded * 1e-3 + 1.0, "{latency:?}");
        assert!(at(Duration::from_secs(20 * 86_400)) <= 1.0, "{latency:?}");
        // Who reads may have looked at the clock before who wrote.
        let before = PeakEwma::unpack(word, now - millis(5)).unwrap();
        assert!((before.latency(now - millis(5), DECAY).as_secs_f64() * 1e9 / expected - 1.0).abs() < 1e-6);
    }
    assert_eq!(PeakEwma::unpack(0, now), None, "no answer yet");
    assert_ne!(PeakEwma::new(Duration::ZERO, Duration::ZERO).pack(), 0);
}

#[test]
fn cost_is_latency_times_what_would_share_it() {
    let ewma = PeakEwma::new(millis(10), Duration::ZERO);
    let cost = |load| ewma.cost(load, Duration::ZERO, DECAY);
    assert_eq!((cost(0), cost(1), cost(9)), (10_000_000, 20_000_000, 100_000_000));
    assert_eq!(PeakEwma::new(Duration::MAX, Duration::ZERO).cost(u32::MAX, Duration::ZERO, DECAY), u64::MAX);
    assert_eq!(ewma.cost(9, millis(1), Duration::ZERO), 0, "no decay time: no memory");
}

#[test]
fn the_less_costly_of_two_is_taken() {
    let three = many(3);
    let cost = |e: &Endpoint| [50, 20, 20][host(e)];
    let why = |cost_nanos, other_cost_nanos| PickReason::LessCostly { cost_nanos, other_cost_nanos };
    let pick = peak_ewma(&three, cost, None, 0, &[]).unwrap();
    assert_eq!((pick.index, pick.why), (1, why(20, 50)));
    let pick = peak_ewma(&three, cost, None, u64::MAX, &[]).unwrap();
    assert_eq!((pick.index, pick.why), (2, why(20, 20)), "of equals the first drawn");
    let tried: Vec<_> = three.iter().skip(1).map(|e| e.addr).collect();
    let pick = peak_ewma(&three, cost, None, 0, &tried).unwrap();
    assert_eq!((pick.index, pick.why), (0, PickReason::OnlyOne));
    let tried: Vec<_> = three.iter().map(|e| e.addr).collect();
    assert_eq!(peak_ewma(&three, cost, None, 0, &tried), None);
}

#[test]
fn turns() {
    let three = many(3);
    let mut robin = RoundRobin { turn: 0 };
    let mut next = |tried: &[SocketAddr]| robin.next(&three, None, tried).map(|pick| (pick.index, pick.why));
    let turn = |index| Some((index, PickReason::InTurn));
    assert_eq!([next(&[]), next(&[]), next(&[]), next(&[])], [turn(0), turn(1), turn(2), turn(0)]);
    let addr = |index: usize| three.endpoints[index].addr;
    assert_eq!(next(&[addr(1)]), turn(2), "1 was tried");
    assert_eq!(next(&[addr(0), addr(1)]), Some((2, PickReason::OnlyOne)));
    assert_eq!(next(&[addr(0), addr(1), addr(2)]), None);
    assert_eq!(next(&[]), turn(0));
    assert_eq!(RoundRobin { turn: u64::MAX }.next(&three, None, &[]).unwrap().index, (u64::MAX % 3) as usize);
}

#[test]
fn weighted_turns_are_exact_and_evenly_spaced() {
    let four = many(4);
    let shares = [1.0, 0.5, 0.25, 1.0 / 64.0];
    let weight = |e: &Endpoint| Weight::of_share(shares[host(e)]);
    let mut robin = RoundRobin::starting_at(u64::MAX);
    let (mut hits, mut last, mut widest) = ([0_usize; 4], [0_usize; 4], [0_usize; 4]);
    for n in 0..64 * 1_000 {
        let index = robin.next(&four, Some(&weight), &[]).unwrap().index;
        widest[index] = widest[index].max(n - last[index]);
        (hits[index], last[index]) = (hits[index] + 1, n);
    }
    let total: f64 = shares.iter().sum();
    for (index, share) in shares.iter().enumerate() {
        let expected = 64_000.0 * share / total;
        assert!((hits[index] as f64 - expected).abs() <= 2.0, "{hits:?}");
        // Between two turns of its lie 1 / share rounds of 1.77 turns each, and no more than one round more.
        assert!(widest[index] as f64 <= total / share + 4.0, "{widest:?}");
    }
}

#[test]
fn equal_small_weights_do_not_rest_together() {
    let many = many(200);
    let weight = |_: &Endpoint| Weight::LEAST;
    let mut robin = RoundRobin::starting_at(0);
    let mut steps = Vec::new();
    for _ in 0..2_000 {
        let before = robin.turn;
        assert!(robin.next(&many, Some(&weight), &[]).is_some());
        steps.push(robin.turn - before);
    }
    assert!(*steps.iter().max().unwrap() < 64 * 8, "{:?} steps for one turn", steps.iter().max());
    // Also a single one with the least weight is found.
    let one = super::tests::many(1);
    assert!((0..200).all(|_| robin.next(&one, Some(&weight), &[]).is_some()));
}

#[test]
fn draws_follow_the_weights() {
    const DRAWS: usize = 100_000;
    let shares = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.1, 0.1, 0.05, 0.02];
    let weight = |e: &Endpoint| Weight::of_share(shares[host(e)]);
    let weights: Vec<f64> = shares.iter().map(|share| f64::from(Weight::of_share(*share).get())).collect();
    let ten = many(10);
    let mut bits = Random(3);
    let (mut by_random, mut by_load, mut by_cost) = ([0; 10], [0; 10], [0; 10]);
    for _ in 0..DRAWS {
        by_random[random(&ten, Some(&weight), bits.next(), &[]).unwrap().index] += 1;
        by_load[least_request_weighted(&ten, |_| 3, Some(&weight), bits.next(), &[]).unwrap().index] += 1;
        by_cost[peak_ewma(&ten, |_| 3, Some(&weight), bits.next(), &[]).unwrap().index] += 1;
    }
    // Nine degrees of freedom: 27.9 is exceeded with probability 0.001.
    for hits in [by_random, by_load, by_cost] {
        let chi = chi_square(&hits, &weights);
        assert!(chi < 27.9, "chi-square {chi}, {hits:?}");
    }
}

#[test]
fn the_exact_draw_that_follows_rejection_has_the_same_shares() {
    // All light but one: most draws are rejected, so most choices come from the walk.
    const DRAWS: usize = 100_000;
    let shares: Vec<f64> = (0..20).map(|n| if n == 7 { 1.0 } else { 1.0 / 64.0 }).collect();
    let weight = |e: &Endpoint| Weight::of_share(shares[host(e)]);
    let twenty = many(20);
    let mut bits = Random(5);
    let mut hits = [0; 20];
    for _ in 0..DRAWS {
        hits[random(&twenty, Some(&weight), bits.next(), &[]).unwrap().index] += 1;
    }
    // Nineteen degrees of freedom: 43.8 is exceeded with probability 0.001.
    let chi = chi_square(&hits, &shares);
    assert!(chi < 43.8, "chi-square {chi}, {hits:?}");
}

#[test]
fn a_light_endpoint_that_is_idle_takes_at_most_twice_its_share() {
    const DRAWS: usize = 100_000;
    for count in [2, 3, 10] {
        let candidates = many(count);
        let weight = |e: &Endpoint| Weight::of_share(if host(e) == 0 { 0.1 } else { 1.0 });
        let mut bits = Random(9);
        let load = |e: &Endpoint| u32::from(host(e) != 0);
        let is_light = |bits| least_request_weighted(&candidates, load, Some(&weight), bits, &[]).unwrap().index == 0;
        let hits = (0..DRAWS).filter(|_| is_light(bits.next())).count();
        let share = hits as f64 / DRAWS as f64 / (0.1 / (f64::from(count) - 0.9));
        assert!((1.8..2.05).contains(&share), "{share} times its share, one of {count}");
    }
}

#[test]
fn even_draws_are_uniform_and_spare_the_tried() {
    const DRAWS: usize = 100_000;
    let ten = many(10);
    let tried: Vec<_> = [2, 5].iter().map(|index| ten.endpoints[*index].addr).collect();
    let mut bits = Random(11);
    let (mut all, mut left) = ([0; 10], [0; 10]);
    for _ in 0..DRAWS {
        all[random(&ten, None, bits.next(), &[]).unwrap().index] += 1;
        left[random(&ten, None, bits.next(), &tried).unwrap().index] += 1;
    }
    assert!(chi_square(&all, &[1.0; 10]) < 27.9, "{all:?}");
    assert_eq!((left[2], left[5]), (0, 0));
    let left: Vec<usize> = left.into_iter().filter(|hits| *hits > 0).collect();
    // Seven degrees of freedom: 24.3 is exceeded with probability 0.001.
    assert!(chi_square(&left, &[1.0; 8]) < 24.3, "{left:?}");
}

#[test]
fn slow_start_ramps() {
    let even = SlowStart::over(millis(10_000));
    let (fast, slow) = (SlowStart { aggression: 2.0, ..even }, SlowStart { aggression: 0.5, ..even });
    // (age in ms, share in thousandths: even, fast, slow)
    let table = [
        (0, 100, 100, 100),
        (500, 100, 224, 100),
        (2_500, 250, 500, 100),
        (5_000, 500, 707, 250),
        (9_000, 900, 949, 810),
        (10_000, 1_000, 1_000, 1_000),
        (60_000, 1_000, 1_000, 1_000),
    ];
    for (age, for_even, for_fast, for_slow) in table {
        for (start, expected) in [(even, for_even), (fast, for_fast), (slow, for_slow)] {
            let share = f64::from(start.weight(millis(age)).get()) / 4.096;
            assert!((share - f64::from(expected)).abs() < 0.6, "{share} of {expected} at {age} ms with {start:?}");
        }
    }
    assert_eq!(SlowStart::over(Duration::ZERO).weight(Duration::ZERO), Weight::FULL);
    assert_eq!(SlowStart { aggression: 0.0, ..even }.weight(millis(5_000)), even.weight(millis(5_000)));
    assert_eq!(SlowStart { aggression: f64::NAN, ..even }.weight(millis(5_000)), even.weight(millis(5_000)));
}

#[test]
fn shares_beyond_their_bounds() {
    let of = |share| Weight::of_share(share);
    assert_eq!(
        (of(0.0), of(-1.0), of(f64::NAN), of(1e-9)),
        (Weight::LEAST, Weight::LEAST, Weight::LEAST, Weight::LEAST)
    );
    assert_eq!((of(1.0), of(2.0), of(f64::INFINITY)), (Weight::FULL, Weight::FULL, Weight::FULL));
}

#[test]
fn filtered_candidates_stay_in_order() {
    let ten = many(10);
    let odd = ten.filtered(|e| host(e) % 2 == 1).unwrap();
    assert_eq!(odd.indices().collect::<Vec<_>>(), [1, 3, 5, 7, 9]);
    let some = odd.filtered(|e| host(e) > 4).unwrap();
    assert_eq!(some.indices().collect::<Vec<_>>(), [5, 7, 9]);
    assert_eq!(some.find(ten.endpoints[7].addr), Some(7));
    assert_eq!(some.find(ten.endpoints[3].addr), None);
    assert_eq!(ten.filtered(|_| true), Some(ten.clone()));
    assert_eq!(ten.filtered(|_| false), None);
}

proptest! {
    #[test]
    fn every_algorithm_takes_an_eligible_untried_endpoint(
        count in 1_u32..12, left_out in prop::collection::vec(0_usize..12, 0..4), tried in prop::collection::vec(0_usize..12, 0..6),
        shares in prop::collection::vec(0.0_f64..1.2, 12), is_weighted: bool, costs in prop::collection::vec(any::<u64>(), 12), bits: u64,
    ) {
        let Some(candidates) = many(count).filtered(|e| !left_out.contains(&host(e))) else { return Ok(()) };
        let tried: Vec<_> =
            tried.into_iter().filter_map(|host| candidates.endpoints.get(host)).map(|e| e.addr).collect();
        let weight = |e: &Endpoint| Weight::of_share(shares[host(e)]);
        let weights: Weights<'_> = if is_weighted { Some(&weight) } else { None };
        let untried: Vec<SocketAddr> =
            candidates.iter().map(|e| e.addr).filter(|addr| !tried.contains(addr)).collect();
        let cost = |e: &Endpoint| costs[host(e)];
        let picks = [
            least_request_weighted(&candidates, |e| costs[host(e)] as u32, weights, bits, &tried),
            peak_ewma(&candidates, cost, weights, bits, &tried),
            random(&candidates, weights, bits, &tried),
            RoundRobin::starting_at(bits).next(&candidates, weights, &tried),
        ];
        for pick in picks {
            let Some(pick) = pick else {
                prop_assert!(untried.is_empty());
                continue;
            };
            prop_assert!(untried.contains(&pick.endpoint.addr));
            prop_assert_eq!(candidates.find(pick.endpoint.addr), Some(pick.index));
            prop_assert_eq!(pick.why == PickReason::OnlyOne, untried.len() == 1);
            if let PickReason::LessCostly { cost_nanos, other_cost_nanos } = pick.why {
                prop_assert!(cost_nanos == cost(pick.endpoint) && cost_nanos <= other_cost_nanos);
            }
        }
    }

    #[test]
    fn an_average_lies_between_its_samples(
        samples in prop::collection::vec((0_u64..5_000, 0_u64..60_000), 1..50), initial in 0_u64..1_000,
    ) {
        let mut ewma = PeakEwma::new(millis(initial), Duration::ZERO);
        let (mut now, mut highest) = (Duration::ZERO, initial);
        for (latency, pause) in samples {
            now += millis(pause);
            ewma.observe(millis(latency), now, DECAY);
            highest = highest.max(latency);
            let seen = ewma.latency(now, DECAY);
            prop_assert!(seen + Duration::from_nanos(2) >= millis(latency) && seen <= millis(highest));
        }
    }
}
