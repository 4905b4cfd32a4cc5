//! Values kept for the next request of the same worker, so that an idle connection holds none and a busy one allocates none.

use std::cell::RefCell;

/// Values kept of each kind.
const KEPT_MAX: usize = 64;
/// A byte vector larger than this is not kept.
const KEPT_BYTES_MAX: usize = 8 << 10;

/// Emptied byte vectors.
#[derive(Default)]
pub(crate) struct SpareBytes(RefCell<Vec<Vec<u8>>>);

impl SpareBytes {
    /// An empty one.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(1024))
    }

    /// For the next one who asks.
    pub(crate) fn give(&self, mut bytes: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT_MAX && bytes.capacity() <= KEPT_BYTES_MAX {
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
