//! A persistent map in fixed shards: a clone shares everything, a write copies one shard.
//!
//! Why not a tree with structural sharing: lookups are the hot path, and a hash map's are the cheapest; 256 shards make
//! the copy of one small at any size this agent meets (100,000 entries: 400 per shard, some ten microseconds).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Shards per map; a power of two.
const SHARDS: usize = 256;

/// See the module documentation.
#[derive(Clone)]
pub(crate) struct Sharded<K, V> {
    shards: Arc<[Arc<HashMap<K, V>>]>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let empty: Arc<HashMap<K, V>> = Arc::default();
        Self { shards: std::iter::repeat_n(empty, SHARDS).collect(), hasher: RandomState::new(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.shards[self.shard_of(key)].get(key)
    }

    /// Sets the value of a key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.shard_mut(&key).insert(key, value).is_none() {
            self.len += 1;
        }
    }

    /// The value of a key to change, a default one if there is none.
    pub(crate) fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        if self.get(&key).is_none() {
            self.len += 1;
        }
        self.shard_mut(&key).entry(key).or_default()
    }

    /// Removes a key. Copies nothing if it is absent.
    pub(crate) fn remove(&mut self, key: &K) {
        if self.get(key).is_some() && self.shard_mut(key).remove(key).is_some() {
            self.len -= 1;
        }
    }

    /// Number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All values, in no particular order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    fn shard_mut(&mut self, key: &K) -> &mut HashMap<K, V> {
        let shard = self.shard_of(key);
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard])
    }

    fn shard_of(&self, key: &K) -> usize {
        (self.hasher.hash_one(key) as usize) & (SHARDS - 1)
    }
}

/// Equal content; hash seeds and sharing do not count.
impl<K: Hash + Eq + Clone, V: Clone + PartialEq> PartialEq for Sharded<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self.shards.iter().flat_map(|s| s.iter()).all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K, V> fmt::Debug for Sharded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharded").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_copies_one_shard_and_leaves_the_clone_alone() {
        let mut first = Sharded::default();
        for key in 0..10_000_u32 {
            first.insert(key, key);
        }
        let mut second = first.clone();
        second.insert(7, 70);
        second.remove(&8);
        second.remove(&8);
        assert_eq!((first.get(&7), first.get(&8), first.len()), (Some(&7), Some(&8), 10_000));
        assert_eq!((second.get(&7), second.get(&8), second.len()), (Some(&70), None, 9_999));
        let copied = first.shards.iter().zip(second.shards.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!((1..=2).contains(&copied), "{copied} shards copied for two keys");
    }

    #[test]
    fn equality_ignores_seeds_and_order() {
        let (mut a, mut b) = (Sharded::default(), Sharded::default());
        (0..100).for_each(|k| a.insert(k, k));
        (0..100).rev().for_each(|k| b.insert(k, k));
        assert!(a == b);
        b.insert(5, 6);
        assert!(a != b);
        b.insert(5, 5);
        b.insert(100, 100);
        assert!(a != b, "one more entry in the other");
        assert!(b != a);
    }
}
