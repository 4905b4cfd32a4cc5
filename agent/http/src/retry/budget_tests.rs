//! The budget's two bounds and its floor, alone and under many threads.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;

const T0: Duration = Duration::ZERO;
const NO_FLOOR: BudgetLimits = BudgetLimits { percent: 20, floor_per_second: 0, saved_max: 100 };

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn begin(budget: &Arc<Budget>, count: usize) -> Vec<ActiveRequest> {
    (0..count).map(|_| budget.request()).collect()
}

#[test]
fn a_fifth_of_the_active_requests() {
    let budget = Arc::new(Budget::default());
    let requests = begin(&budget, 100);
    let tokens: Vec<Token> = std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).collect();
    assert_eq!(tokens.len(), 20);
    assert_eq!(budget.usage(), BudgetUse { requests: 100, retries: 20, refused: 1 });
    drop(tokens);
    drop(requests);
    assert_eq!(budget.usage(), BudgetUse { requests: 0, retries: 0, refused: 1 });
}

#[test]
fn a_token_that_is_given_back_frees_the_place_but_is_spent() {
    let budget = Arc::new(Budget::default());
    let _first = begin(&budget, 100);
    // One retry after the other: never more than one in flight, and still only a fifth.
    assert_eq!(std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).map(drop).count(), 20);
    let _second = begin(&budget, 5);
    assert!(budget.withdraw(&NO_FLOOR, T0).is_some(), "five more requests earned one more");
    assert!(budget.withdraw(&NO_FLOOR, T0).is_none());
}

#[test]
fn quiet_times_save_up_to_the_bound_and_the_places_still_count() {
    let budget = Arc::new(Budget::default());
    drop(begin(&budget, 100_000));
    let _active = begin(&budget, 10);
    let tokens: Vec<Token> = std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).collect();
    assert_eq!(tokens.len(), 2, "a fifth of ten active ones, whatever was saved");
    drop(tokens);
    assert_eq!(std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).map(drop).count(), 98, "a hundred saved at most");
}

#[test]
fn the_floor_grants_one_a_second_and_saves_nothing() {
    let limits = BudgetLimits { percent: 0, ..BudgetLimits::default() };
    let budget = Arc::new(Budget::default());
    let _request = budget.request();
    for (millis, expected) in
        [(0, true), (0, false), (999, false), (1_000, true), (1_500, false), (60_000, true), (60_001, false)]
    {
        assert_eq!(budget.withdraw(&limits, at(millis)).is_some(), expected, "at {millis} ms");
    }
    let five = BudgetLimits { floor_per_second: 5, ..limits };
    let granted = (61_000..71_000).filter(|ms| budget.withdraw(&five, at(*ms)).is_some()).count();
    assert!(granted == 50, "{granted} in ten seconds at five a second");
}

#[test]
fn the_floors_token_takes_no_place_from_the_others() {
    let budget = Arc::new(Budget::default());
    let _requests = begin(&budget, 5);
    let limits = BudgetLimits::default();
    let (paid, floor) = (budget.withdraw(&limits, T0), budget.withdraw(&limits, T0));
    assert!(paid.is_some_and(|t| !t.is_floor) && floor.is_some_and(|t| t.is_floor));
    assert_eq!(budget.usage().retries, 0);
}

#[test]
fn the_counter_may_wrap() {
    let budget = Arc::new(Budget::default());
    // As after 2³² − 3 requests since the last retry, and then ten more.
    budget.requests.store(u64::from(u32::MAX - 2) << 32, Relaxed);
    budget.saved.store(u64::from(u32::MAX - 2) << 32, Relaxed);
    let _requests = begin(&budget, 10);
    assert_eq!(std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).map(drop).count(), 2);
    // More than 2³¹ without a retry are counted too.
    budget.requests.fetch_add(3 << 62, Relaxed);
    assert_eq!(std::iter::from_fn(|| budget.withdraw(&NO_FLOOR, T0)).map(drop).count(), 100);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    End(prop::sample::Index),
    Withdraw,
    GiveBack(prop::sample::Index),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Begin),
        2 => any::<prop::sample::Index>().prop_map(Step::End),
        4 => Just(Step::Withdraw),
        2 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
        1 => (0_u16..700).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_both_bounds_hold(
        steps in prop::collection::vec(step(), 0..400), percent in 0_u32..=100, floor_per_second in 0_u32..4,
    ) {
        let limits = BudgetLimits { percent, floor_per_second, saved_max: 100 };
        let budget = Arc::new(Budget::default());
        let (mut requests, mut tokens) = (Vec::new(), Vec::new());
        let (mut now, mut begun, mut granted) = (0_u64, 0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Begin => {
                    requests.push(budget.request());
                    begun += 1;
                }
                Step::End(which) if !requests.is_empty() => drop(requests.swap_remove(which.index(requests.len()))),
                Step::GiveBack(which) if !tokens.is_empty() => drop(tokens.swap_remove(which.index(tokens.len()))),
                Step::Withdraw => {
                    let paid = |tokens: &[Token]| tokens.iter().filter(|t| !t.is_floor).count();
                    let before = paid(&tokens);
                    if let Some(token) = budget.withdraw(&limits, at(now)) {
                        tokens.push(token);
                        granted += 1;
                        let most = (requests.len() * percent as usize).div_ceil(100);
                        prop_assert!(paid(&tokens) == before || paid(&tokens) <= most);
                    }
                }
                Step::Wait(millis) => now += u64::from(millis),
                Step::End(_) | Step::GiveBack(_) => {}
            }
            let most = begun as f64 * f64::from(percent) / 100.0 + f64::from(floor_per_second) * (now as f64 / 1000.0) + 1.0;
            prop_assert!(granted as f64 <= most, "{} granted of at most {}", granted, most);
            prop_assert_eq!(budget.usage().requests as usize, requests.len());
        }
        drop(tokens);
        prop_assert_eq!(budget.usage().retries, 0);
    }
}

#[test]
fn threads_that_share_it_spend_no_more_and_not_much_less() {
    const THREADS: usize = 8;
    const REQUESTS: usize = 20_000;
    const ACTIVE: usize = 50;
    let budget = Arc::new(Budget::default());
    let ended = AtomicBool::new(false);
    let (granted, highest) = thread::scope(|scope| {
        // Every thread keeps `ACTIVE` requests active and wants a retry after each.
        let worker = || {
            let (mut active, mut tokens) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
            let mut granted = 0_usize;
            for turn in 0..REQUESTS {
                active.push_back(budget.request());
                if let Some(token) = budget.withdraw(&NO_FLOOR, T0) {
                    granted += 1;
                    tokens.push_back((turn, token));
                }
                // Short retries, so that what was earned bounds them and not the places.
                while tokens.front().is_some_and(|(since, _)| since + 10 < turn) {
                    tokens.pop_front();
                }
                if active.len() > ACTIVE {
                    active.pop_front();
                }
            }
            granted
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        let watcher = scope.spawn(|| {
            let mut highest = 0;
            while !ended.load(Relaxed) {
                highest = highest.max(budget.usage().retries);
                thread::yield_now();
            }
            highest
        });
        let granted: usize = workers.into_iter().map(|w| w.join().unwrap()).sum();
        ended.store(true, Relaxed);
        (granted, watcher.join().unwrap())
    });
    let exact = THREADS * REQUESTS / 5;
    assert!(granted <= exact, "{granted} of {exact}: over-spent");
    assert!(granted * 100 >= exact * 95, "{granted} of {exact}: more than 5 % were lost");
    assert!(highest as usize <= THREADS * (ACTIVE + 1) / 5 + THREADS, "{highest} in flight");
    assert_eq!((budget.usage().requests, budget.usage().retries), (0, 0));
}

#[test]
fn places_under_threads_are_never_more_than_the_share() {
    const THREADS: usize = 8;
    let budget = Arc::new(Budget::default());
    drop(begin(&budget, 1_000));
    let _active = begin(&budget, 200);
    let highest = thread::scope(|scope| {
        let worker = || {
            let mut highest = 0;
            for _ in 0..5_000 {
                let _earns = budget.request();
                let tokens: Vec<_> = (0..6).filter_map(|_| budget.withdraw(&NO_FLOOR, T0)).collect();
                highest = highest.max(budget.usage().retries);
                drop(tokens);
            }
            highest
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|w| w.join().unwrap()).max().unwrap()
    });
    // 200 to 208 are active all the while.
    assert!(highest <= 42, "{highest} of at most 42");
}
