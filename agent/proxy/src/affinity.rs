//! The memory behind `sessionAffinity: ClientIP`; the decision itself is `model::balance::affinity`.
//!
//! Shared by all workers, so that a client stays with its endpoint whichever worker accepts. Only connections to Services
//! with affinity come here. Bounded: when a shard is full its expired entries go, else the one used longest ago.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heddle_model::ServiceKey;

const SHARDS: usize = 16;

/// Which Service port, which client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) service: ServiceKey,
    pub(crate) port: u16,
    pub(crate) client: IpAddr,
}

struct Remembered {
    endpoint: SocketAddr,
    used: Instant,
    timeout: Duration,
}

/// Which endpoint each client used last.
pub(crate) struct AffinityTable {
    shards: Box<[Mutex<HashMap<Key, Remembered>>]>,
    shard_max: usize,
    hasher: RandomState,
}

impl AffinityTable {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_max: (entries_max / SHARDS).max(1),
            hasher: RandomState::new(),
        }
    }

    /// The endpoint last used and how long ago.
    pub(crate) fn get(&self, key: &Key, now: Instant) -> Option<(SocketAddr, Duration)> {
        self.shard(key).get(key).map(|r| (r.endpoint, now.saturating_duration_since(r.used)))
    }

    /// Remembers the endpoint of a connection that was made at `now`.
    pub(crate) fn remember(&self, key: Key, endpoint: SocketAddr, timeout: Duration, now: Instant) {
        let mut shard = self.shard(&key);
        if shard.len() >= self.shard_max && !shard.contains_key(&key) {
            shard.retain(|_, r| now.saturating_duration_since(r.used) < r.timeout);
            if shard.len() >= self.shard_max
                && let Some(oldest) = shard.iter().min_by_key(|(_, r)| r.used).map(|(k, _)| k.clone())
            {
                shard.remove(&oldest);
            }
        }
        shard.insert(key, Remembered { endpoint, used: now, timeout });
    }

    /// Entries held.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Remembered>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key { service: ("shop".into(), "db".into()), port: 80, client: IpAddr::V4(n.into()) }
    }

    #[test]
    fn remembers_the_last_use_and_stays_bounded() {
        let table = AffinityTable::new(64);
        let start = Instant::now();
        let hour = Duration::from_secs(3600);
        let endpoint = "10.0.0.1:80".parse().unwrap();
        for n in 0..10_000 {
            table.remember(key(n), endpoint, hour, start + Duration::from_millis(n.into()));
        }
        assert!(table.len() <= 64, "{}", table.len());
        let now = start + Duration::from_secs(20);
        let (found, age) = table.get(&key(9_999), now).expect("the newest is never the one to go");
        assert_eq!((found, age), (endpoint, Duration::from_millis(10_001)));
        assert_eq!(table.get(&key(0), now), None);
    }

    #[test]
    fn a_full_shard_lets_expired_entries_go() {
        let table = AffinityTable::new(SHARDS * 2);
        let start = Instant::now();
        let (endpoint, second) = ("10.0.0.1:80".parse().unwrap(), Duration::from_secs(1));
        for n in 0..1000 {
            table.remember(key(n), endpoint, second, start);
        }
        assert_eq!(table.len(), SHARDS * 2);
        for n in 1000..2000 {
            table.remember(key(n), endpoint, second * 60, start + second * 2);
        }
        // Every shard was full and got a live entry: no expired one is left.
        let old = (0..1000).filter(|n| table.get(&key(*n), start + second * 2).is_some()).count();
        assert_eq!((old, table.len()), (0, SHARDS * 2));
    }
}
