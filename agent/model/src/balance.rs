//! Choosing one endpoint: which are eligible, and which of those to take.
//!
//! Pure functions of (candidates, load, randomness, what was tried, what is remembered). Eligibility is decided once per
//! change of a Service ([`candidates`], when a snapshot is built); a choice touches two endpoints however many there are.

mod draw;
mod ewma;
mod round_robin;
mod weight;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::Family;
use crate::resolve::{Candidates, Class, Refusal};
use crate::service::{Endpoint, Service};

pub use ewma::{PeakEwma, peak_ewma};
pub use round_robin::RoundRobin;
pub use weight::{SlowStart, Weight, Weights};

use draw::{Drawn, two};

/// One endpoint chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick<'a> {
    /// Index into [`Candidates::endpoints`].
    pub index: usize,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Why this one.
    pub why: PickReason,
}

/// Why an endpoint was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PickReason {
    /// No other is eligible and untried.
    OnlyOne,
    /// Of two drawn at random, it has fewer active connections.
    LessLoaded {
        /// Its load.
        load: u32,
        /// The load of the other.
        other_load: u32,
    },
    /// Of two drawn at random, both have this load; the first drawn was taken.
    EqualLoad {
        /// The load of both.
        load: u32,
    },
    /// Of two drawn at random, one more request costs it less, or no more: latency times load.
    LessCostly {
        /// Its cost.
        cost_nanos: u64,
        /// The cost of the other.
        other_cost_nanos: u64,
    },
    /// It was drawn at random; where two are drawn by weight, both times.
    Drawn,
    /// It was its turn.
    InTurn,
}

/// What the session affinity of a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Stay with the endpoint at this index of [`Candidates::endpoints`]; remember it anew, at age zero.
    Keep(usize),
    /// Choose one ([`least_request`]) and remember it.
    Anew(Forgotten),
}

/// Why a client's remembered endpoint does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forgotten {
    /// Nothing is remembered.
    NewClient,
    /// It was last used longer ago than the Service's timeout.
    Expired,
    /// It is no longer eligible.
    NotEligible,
    /// It was tried for this very connection, without success.
    Tried,
}

/// The eligible endpoints of `service.ports[port_index]` for a client of `family` on `node`.
///
/// As kube-proxy decides:
/// * only endpoints of the family of the address that was called (a cluster programs each family apart);
/// * with `internalTrafficPolicy: Local` only those on `node`;
/// * of these the ready ones, or, if there is none, those that still serve while they terminate;
/// * `publishNotReadyAddresses` makes every one eligible.
///
/// # Errors
/// [`Refusal::NoSuchServicePort`], [`Refusal::NoLocalEndpoint`] or [`Refusal::NoReadyEndpoint`];
/// [`Refusal::InvalidObject`] for a rejected Service.
pub fn candidates(service: &Service, port_index: usize, family: Family, node: &str) -> Result<Candidates, Refusal> {
    if service.invalid {
        return Err(Refusal::InvalidObject);
    }
    let endpoints = &service.ports.get(port_index).ok_or(Refusal::NoSuchServicePort)?.endpoints;
    let reachable = |e: &&Endpoint| {
        Family::of(e.addr.ip()) == family && (!service.internal_local || (!node.is_empty() && *e.node == *node))
    };
    if service.internal_local && !endpoints.iter().any(|e| reachable(&e)) {
        return Err(Refusal::NoLocalEndpoint);
    }
    type Member = fn(&Endpoint) -> bool;
    let classes: &[(Class, Member)] = if service.publish_not_ready {
        &[(Class::Published, |_| true)]
    } else {
        &[(Class::Ready, |e| e.ready), (Class::ServingTerminating, |e| e.serving && e.terminating)]
    };
    for &(class, member) in classes {
        let eligible = |e: &&Endpoint| reachable(e) && member(e);
        let count = endpoints.iter().filter(eligible).count();
        if count == 0 {
            continue;
        }
        let indices = (count < endpoints.len())
            .then(|| (0_u32..).zip(endpoints.iter()).filter(|(_, e)| eligible(e)).map(|(i, _)| i).collect());
        return Ok(Candidates { endpoints: Arc::clone(endpoints), eligible: indices, class });
    }
    Err(Refusal::NoReadyEndpoint)
}

/// Least request by the power of two choices: draws two distinct endpoints and takes the one with less `load`.
///
/// `random` is 64 uniformly random bits. `tried` are the addresses that already failed for this connection and are not
/// chosen again; `None` means that every eligible endpoint was tried.
pub fn least_request<'a>(
    candidates: &'a Candidates,
    load: impl Fn(&Endpoint) -> u32,
    random: u64,
    tried: &[SocketAddr],
) -> Option<Pick<'a>> {
    least_request_weighted(candidates, load, None, random, tried)
}

/// [`least_request`] where endpoints are drawn as often as their weights say. Of two drawn the less loaded is taken whatever its weight: shares
/// are exact while loads are equal, and a light endpoint that is less loaded takes up to twice its own.
pub fn least_request_weighted<'a>(
    candidates: &'a Candidates,
    load: impl Fn(&Endpoint) -> u32,
    weights: Weights<'_>,
    random: u64,
    tried: &[SocketAddr],
) -> Option<Pick<'a>> {
    match two(candidates, weights, random, tried) {
        Drawn::Nothing => None,
        Drawn::OnlyOne(index) => at(candidates, index, PickReason::OnlyOne),
        Drawn::Twice(index) => at(candidates, index, PickReason::Drawn),
        Drawn::Two(first, second) => {
            let (load_first, load_second) =
                (load(candidates.endpoints.get(first)?), load(candidates.endpoints.get(second)?));
            if load_second < load_first {
                at(candidates, second, PickReason::LessLoaded { load: load_second, other_load: load_first })
            } else if load_first < load_second {
                at(candidates, first, PickReason::LessLoaded { load: load_first, other_load: load_second })
            } else {
                at(candidates, first, PickReason::EqualLoad { load: load_first })
            }
        }
    }
}

/// Any endpoint, as often as its weight says; `random` and `tried` as in [`least_request`].
pub fn random<'a>(
    candidates: &'a Candidates,
    weights: Weights<'_>,
    random: u64,
    tried: &[SocketAddr],
) -> Option<Pick<'a>> {
    match two(candidates, weights, random, tried) {
        Drawn::Nothing => None,
        Drawn::OnlyOne(index) => at(candidates, index, PickReason::OnlyOne),
        Drawn::Two(first, _) | Drawn::Twice(first) => at(candidates, first, PickReason::Drawn),
    }
}

fn at(candidates: &Candidates, index: usize, why: PickReason) -> Option<Pick<'_>> {
    candidates.endpoints.get(index).map(|endpoint| Pick { index, endpoint, why })
}

/// `sessionAffinity: ClientIP`: whether a client stays with the endpoint it last used.
///
/// `remembered` is that endpoint's address and how long ago the client last opened a connection to it. As in
/// kube-proxy each new connection starts the timeout anew, and only the client's address counts, not its port.
#[must_use]
pub fn affinity(
    candidates: &Candidates,
    remembered: Option<(SocketAddr, Duration)>,
    timeout: Duration,
    tried: &[SocketAddr],
) -> Affinity {
    let Some((addr, age)) = remembered else { return Affinity::Anew(Forgotten::NewClient) };
    if age >= timeout {
        return Affinity::Anew(Forgotten::Expired);
    }
    match candidates.find(addr) {
        None => Affinity::Anew(Forgotten::NotEligible),
        Some(_) if tried.contains(&addr) => Affinity::Anew(Forgotten::Tried),
        Some(index) => Affinity::Keep(index),
    }
}

impl Candidates {
    /// Number of eligible endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.eligible.as_ref().map_or(self.endpoints.len(), |eligible| eligible.len())
    }

    /// Whether there is none; never so for candidates that came from [`candidates`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The eligible endpoints, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.indices().filter_map(|index| self.endpoints.get(index))
    }

    /// These without those that `keep` refuses (ejected ones, say); `None` if none is left.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&Endpoint) -> bool) -> Option<Self> {
        let is_kept = |index: &usize| self.endpoints.get(*index).is_some_and(&mut keep);
        let eligible: Vec<u32> = self.indices().filter(is_kept).filter_map(|index| u32::try_from(index).ok()).collect();
        if eligible.is_empty() {
            return None;
        }
        let eligible = (eligible.len() < self.endpoints.len()).then(|| eligible.into());
        Some(Self { endpoints: Arc::clone(&self.endpoints), eligible, class: self.class })
    }

    /// Whether these are those, by where they are: made from one another.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let is_eligible_same = match (&self.eligible, &other.eligible) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        is_eligible_same && Arc::ptr_eq(&self.endpoints, &other.endpoints)
    }

    /// The index into `endpoints` of the eligible endpoint with this address.
    #[must_use]
    pub fn find(&self, addr: SocketAddr) -> Option<usize> {
        let index = self.endpoints.binary_search_by_key(&addr, |e| e.addr).ok()?;
        match &self.eligible {
            None => Some(index),
            Some(eligible) => eligible.binary_search(&u32::try_from(index).ok()?).ok().map(|_| index),
        }
    }

    /// The index into `endpoints` of the `n`th eligible endpoint.
    fn index(&self, n: usize) -> Option<usize> {
        match &self.eligible {
            None => (n < self.endpoints.len()).then_some(n),
            Some(eligible) => eligible.get(n).map(|&index| index as usize),
        }
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter_map(|n| self.index(n))
    }
}

#[cfg(test)]
mod algorithm_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
