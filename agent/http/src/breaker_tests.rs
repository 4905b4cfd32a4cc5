//! Tables, laws and threads of the breaker.

use std::thread;

use proptest::prelude::*;

use super::*;

fn limits(connections_max: u32, pending_max: u32, requests_max: u32, retries_max: Option<u32>) -> Limits {
    Limits { connections_max, pending_max, requests_max, retries_max }
}

#[test]
fn every_resource_has_its_own_places() {
    assert!(Resource::ALL.iter().enumerate().all(|(index, r)| *r as usize == index));
    let breaker = Arc::new(Breaker::default());
    let limits = limits(1, 2, 3, Some(4));
    let mut permits = Vec::new();
    for (resource, max) in Resource::ALL.iter().zip(1_usize..) {
        assert_eq!(limit(&limits, *resource), max as u32);
        permits.extend(std::iter::from_fn(|| breaker.take(*resource, &limits)));
        assert_eq!(breaker.usage(*resource), Usage { used: max as u32, overflowed: 1 }, "{resource}");
        assert!(breaker.is_open(*resource, &limits), "{resource}");
    }
    drop(permits);
    for resource in Resource::ALL {
        assert_eq!(breaker.usage(*resource), Usage { used: 0, overflowed: 1 }, "{resource}");
        assert!(!breaker.is_open(*resource, &limits), "{resource}");
    }
}

#[test]
fn defaults_are_finite_but_for_retries_which_the_budget_bounds() {
    let of = |resource| limit(&Limits::default(), resource);
    assert_eq!([Resource::Connections, Resource::Pending, Resource::Requests].map(of), [1024; 3]);
    assert_eq!(of(Resource::Retries), u32::MAX);
}

#[test]
fn a_circuit_takes_both_places_or_none_and_says_which_was_full() {
    let (service, one, other) = (Arc::default(), Arc::default(), Arc::default());
    let limits = CircuitLimits { service: limits(9, 9, 3, None), endpoint: limits(9, 9, 2, None) };
    let to = |endpoint| Circuit { service: &service, endpoint };
    let first = to(&one).take(Resource::Requests, &limits).unwrap();
    let second = to(&one).take(Resource::Requests, &limits).unwrap();
    let overflow = to(&one).take(Resource::Requests, &limits).unwrap_err();
    assert_eq!(overflow, Overflow { scope: Scope::Endpoint, resource: Resource::Requests });
    assert_eq!(overflow.to_string(), "endpoint has no more requests");
    assert_eq!(overflow.reason(), Reason::UpstreamOverflow);
    assert_eq!(service.usage(Resource::Requests).used, 2, "what the endpoint refused takes no place at the Service");
    let third = to(&other).take(Resource::Requests, &limits).unwrap();
    let overflow = to(&other).take(Resource::Requests, &limits).unwrap_err();
    assert_eq!(overflow.scope, Scope::Service);
    assert_eq!(other.usage(Resource::Requests), Usage { used: 1, overflowed: 0 });
    drop((first, second, third));
    assert!([&service, &one, &other].iter().all(|b| b.usage(Resource::Requests).used == 0));
}

#[test]
fn a_lower_limit_holds_at_once_and_takes_nothing_back() {
    let breaker: Arc<Breaker> = Arc::default();
    let mut permits: Vec<_> =
        (0..10).map(|_| breaker.take(Resource::Requests, &limits(0, 0, 10, None)).unwrap()).collect();
    let lower = limits(0, 0, 5, None);
    assert!(breaker.take(Resource::Requests, &lower).is_none());
    assert_eq!(breaker.usage(Resource::Requests).used, 10);
    permits.truncate(4);
    assert!(breaker.take(Resource::Requests, &lower).is_some());
    assert!(breaker.take(Resource::Connections, &lower).is_none(), "a limit of nothing lets nothing through");
}

proptest! {
    #[test]
    fn places_are_counted_exactly(
        steps in prop::collection::vec((0_usize..4, any::<bool>(), any::<prop::sample::Index>()), 0..300),
        max in 0_u32..6, endpoint_max in 0_u32..4,
    ) {
        let (service, endpoints): (Arc<Breaker>, [Arc<Breaker>; 2]) = Default::default();
        let limits = CircuitLimits {
            service: limits(max, max, max, Some(max)),
            endpoint: limits(endpoint_max, endpoint_max, endpoint_max, Some(endpoint_max)),
        };
        let mut held: Vec<(usize, usize, CircuitPermit)> = Vec::new();
        for (resource, takes, which) in steps {
            let at = which.index(2);
            if takes {
                let used = |e: Option<usize>| {
                    held.iter().filter(|(r, at, _)| *r == resource && e.is_none_or(|e| e == *at)).count() as u32
                };
                let expected = if used(None) >= max {
                    Some(Scope::Service)
                } else if used(Some(at)) >= endpoint_max {
                    Some(Scope::Endpoint)
                } else {
                    None
                };
                let circuit = Circuit { service: &service, endpoint: &endpoints[at] };
                let taken = circuit.take(Resource::ALL[resource], &limits);
                prop_assert_eq!(taken.as_ref().err().map(|o| o.scope), expected);
                held.extend(taken.ok().map(|permit| (resource, at, permit)));
            } else if !held.is_empty() {
                held.swap_remove(which.index(held.len()));
            }
            for (index, resource) in Resource::ALL.iter().enumerate() {
                let used = held.iter().filter(|(r, ..)| *r == index).count() as u32;
                prop_assert_eq!(service.usage(*resource).used, used);
                prop_assert_eq!(endpoints.iter().map(|e| e.usage(*resource).used).sum::<u32>(), used);
            }
        }
    }
}

#[test]
fn threads_never_exceed_a_limit_and_are_never_refused_a_free_place() {
    const THREADS: u32 = 8;
    const TURNS: usize = 20_000;
    const EACH: usize = 4;
    let run = |max: u32| {
        let breaker: Arc<Breaker> = Arc::default();
        let limits = limits(0, 0, max, None);
        let highest = thread::scope(|scope| {
            let worker = || {
                let mut highest = 0;
                for _ in 0..TURNS / EACH {
                    let permits: Vec<_> = (0..EACH).filter_map(|_| breaker.take(Resource::Requests, &limits)).collect();
                    highest = highest.max(breaker.usage(Resource::Requests).used);
                    drop(permits);
                }
                highest
            };
            let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|w| w.join().unwrap()).max().unwrap()
        });
        assert_eq!(breaker.usage(Resource::Requests).used, 0);
        (highest, breaker.usage(Resource::Requests).overflowed)
    };
    let (highest, overflowed) = run(THREADS * EACH as u32);
    assert!(highest <= THREADS * EACH as u32);
    assert_eq!(overflowed, 0, "there was a place for everyone");
    let (highest, overflowed) = run(3);
    assert!(highest <= 3, "{highest} of 3");
    assert!(overflowed >= TURNS as u64 / EACH as u64, "four at a time into three places");
}
