//! Values kept for the next request of the same worker, so that an idle connection holds none and a busy one allocates none.

use std::cell::RefCell;

/// Values kept of each kind.
const KEPT_MAX: usize = 64;

/// Emptied byte vectors.
pub(crate) struct SpareBytes {
    kept: RefCell<Vec<Vec<u8>>>,
    /// Capacity of a new one.
    capacity: usize,
    /// One with a larger capacity is not kept.
    kept_bytes_max: usize,
    kept_max: usize,
}

impl Default for SpareBytes {
    /// For heads of messages.
    fn default() -> Self {
        Self { kept: RefCell::default(), capacity: 1024, kept_bytes_max: 8 << 10, kept_max: KEPT_MAX }
    }
}

impl SpareBytes {
    /// Of `capacity` bytes each, which their users do not outgrow.
    pub(crate) fn of(capacity: usize, kept_max: usize) -> Self {
        Self { kept: RefCell::default(), capacity, kept_bytes_max: capacity, kept_max }
    }

    /// An empty one.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.kept.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(self.capacity))
    }

    /// For the next one who asks.
    pub(crate) fn give(&self, mut bytes: Vec<u8>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < self.kept_max && bytes.capacity() <= self.kept_bytes_max {
            bytes.clear();
            kept.push(bytes);
        }
    }
}

/// Boxed values that are overwritten by their next use.
#[derive(Default)]
pub(crate) struct Spare<T>(RefCell<Vec<Box<T>>>);

impl<T: Default> Spare<T> {
    /// One as its last use left it.
    pub(crate) fn take(&self) -> Box<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// For the next one who asks.
    pub(crate) fn give(&self, value: Box<T>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(value);
        }
    }
}
