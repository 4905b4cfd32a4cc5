//! The algorithms side by side on a simulated Service of which one endpoint in ten is slow: the reason not to take turns.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::tests::{Random, many};
use super::*;

const ENDPOINTS: usize = 10;
const REQUESTS: usize = 40_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Algorithm {
    LeastRequest,
    PeakEwma,
    RoundRobin,
    Random,
}

/// What came of a run.
#[derive(Debug)]
struct Report {
    p50: Duration,
    p99: Duration,
    /// Share of the requests that went to the slow endpoint.
    slow_share: f64,
}

/// Uniform in (0, 1].
fn unit(random: &mut Random) -> f64 {
    ((random.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
}

fn exponential(random: &mut Random, mean: Duration) -> Duration {
    mean.mul_f64(-unit(random).ln())
}

/// Requests arrive at random, `rate` per second; each endpoint serves all it has at once, in exponential time of mean 10 ms, the first ten
/// times slower.
fn race(algorithm: Algorithm, rate: f64, seed: u64) -> Report {
    let mut random = Random(seed);
    let candidates = many(ENDPOINTS as u32);
    let mut robin = RoundRobin::starting_at(random.next());
    let mut load = [0_u32; ENDPOINTS];
    let mut ewma = [PeakEwma::new(PeakEwma::INITIAL, Duration::ZERO); ENDPOINTS];
    let mut running: BinaryHeap<Reverse<(Duration, usize, Duration)>> = BinaryHeap::new();
    let mut latencies = Vec::with_capacity(REQUESTS);
    let (mut now, mut to_slow) = (Duration::ZERO, 0_usize);
    let place = |e: &Endpoint| candidates.find(e.addr).unwrap();
    for n in 0..REQUESTS {
        now += exponential(&mut random, Duration::from_secs_f64(1.0 / rate));
        while let Some(Reverse((end, index, began))) = running.peek().copied().filter(|Reverse((end, ..))| *end <= now)
        {
            running.pop();
            load[index] -= 1;
            ewma[index].observe(end - began, end, PeakEwma::DECAY);
        }
        let bits = random.next();
        let index = match algorithm {
            Algorithm::LeastRequest => least_request(&candidates, |e| load[place(e)], bits, &[]),
            Algorithm::PeakEwma => {
                let cost = |e: &Endpoint| ewma[place(e)].cost(load[place(e)], now, PeakEwma::DECAY);
                peak_ewma(&candidates, cost, None, bits, &[])
            }
            Algorithm::RoundRobin => robin.next(&candidates, None, &[]),
            Algorithm::Random => super::random(&candidates, None, bits, &[]),
        };
        let index = index.unwrap().index;
        let latency = exponential(&mut random, Duration::from_millis(if index == 0 { 100 } else { 10 }));
        load[index] += 1;
        running.push(Reverse((now + latency, index, now)));
        // The beginning, when nobody knows anything yet, is not judged.
        if n >= REQUESTS / 10 {
            latencies.push(latency);
            to_slow += usize::from(index == 0);
        }
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize];
    Report { p50: at(0.5), p99: at(0.99), slow_share: to_slow as f64 / latencies.len() as f64 }
}

#[test]
fn one_slow_endpoint_in_ten() {
    for seed in [1, 2, 3] {
        let [least, ewma, robin, random] =
            [Algorithm::LeastRequest, Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::Random]
                .map(|algorithm| race(algorithm, 4_000.0, seed));
        let all =
            format!("seed {seed}: least request {least:?}, EWMA {ewma:?}, round robin {robin:?}, random {random:?}");
        // In turn a tenth goes to the slow one, whose 90th percentile (230 ms) is then the 99th of all.
        assert!((0.099..0.101).contains(&robin.slow_share) && robin.p99 > Duration::from_millis(200), "{all}");
        assert!((0.09..0.11).contains(&random.slow_share) && random.p99 > Duration::from_millis(200), "{all}");
        assert!(least.p99 < robin.p99 / 2, "{all}");
        assert!(ewma.p99 < robin.p99 / 3, "{all}");
        assert!(least.slow_share < 0.02 && ewma.slow_share < 0.01, "{all}");
        // The fast ones pay nothing for it.
        assert!([&least, &ewma].iter().all(|r| r.p50 < robin.p50.mul_f64(1.1)), "{all}");
    }
}

#[test]
fn at_a_low_rate_loads_say_little_and_latency_still_tells() {
    for seed in [1, 2, 3] {
        let [least, ewma, robin] = [Algorithm::LeastRequest, Algorithm::PeakEwma, Algorithm::RoundRobin]
            .map(|algorithm| race(algorithm, 50.0, seed));
        let all = format!("seed {seed}: least request {least:?}, EWMA {ewma:?}, round robin {robin:?}");
        assert!(ewma.p99 < robin.p99 / 2 && ewma.slow_share < least.slow_share, "{all}");
    }
}

#[test]
fn the_same_seed_runs_the_same_race() {
    let run = |seed| format!("{:?}", race(Algorithm::PeakEwma, 4_000.0, seed));
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
