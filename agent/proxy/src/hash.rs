//! Maps for the hot path: a fast hash with a seed per process, so that nobody outside can choose colliding keys.

use std::collections::HashMap;

/// A map keyed by small things: addresses, pointers, numbers.
pub(crate) type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
