//! Copy buffers: kept per worker, lent while a connection has bytes to carry, charged to the connection's pod.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use heddle_telemetry::ProxyMetrics;

use crate::budget::PodBudget;

/// Sizes: a connection starts with the first and moves up while reads fill what it has.
pub(crate) const SIZES: [usize; 3] = [16 << 10, 64 << 10, 256 << 10];
/// Buffers kept for reuse per size: at most 1.5 MiB per worker.
const KEPT_MAX: [usize; 3] = [32, 8, 2];

/// One worker's buffers.
pub(crate) struct BufferPool {
    kept: RefCell<[Vec<Box<[u8]>>; SIZES.len()]>,
    kept_bytes: Cell<u64>,
    lent_bytes: Cell<u64>,
    metrics: ProxyMetrics,
    worker: usize,
}

/// A buffer on loan; returned, and the pod's budget with it, when dropped.
pub(crate) struct Lent {
    bytes: Box<[u8]>,
    class: usize,
    pool: Rc<BufferPool>,
    budget: std::sync::Arc<PodBudget>,
}

impl BufferPool {
    pub(crate) fn new(metrics: ProxyMetrics, worker: usize) -> Rc<Self> {
        Rc::new(Self {
            kept: RefCell::new([Vec::new(), Vec::new(), Vec::new()]),
            kept_bytes: Cell::new(0),
            lent_bytes: Cell::new(0),
            metrics,
            worker,
        })
    }

    /// Lends a buffer of size `SIZES[class]`, or a smaller one if only that fits the pod's budget; `None` if none does.
    pub(crate) fn lend(self: &Rc<Self>, class: usize, budget: &std::sync::Arc<PodBudget>, max: u64) -> Option<Lent> {
        let class = (0..=class).rev().find(|&c| budget.try_buffer(SIZES[c] as u64, max))?;
        let kept = self.kept.borrow_mut()[class].pop();
        if kept.is_some() {
            self.kept_bytes.set(self.kept_bytes.get() - SIZES[class] as u64);
        }
        let bytes = kept.unwrap_or_else(|| vec![0; SIZES[class]].into_boxed_slice());
        self.lent_bytes.set(self.lent_bytes.get() + SIZES[class] as u64);
        self.publish();
        Some(Lent { bytes, class, pool: self.clone(), budget: budget.clone() })
    }

    fn publish(&self) {
        self.metrics.shard(self.worker).set_buffers(self.lent_bytes.get(), self.kept_bytes.get());
    }
}

impl Lent {
    /// Index into [`SIZES`].
    pub(crate) fn class(&self) -> usize {
        self.class
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (pool, size) = (&self.pool, SIZES[self.class] as u64);
        self.budget.unbuffer(size);
        pool.lent_bytes.set(pool.lent_bytes.get() - size);
        let kept = &mut pool.kept.borrow_mut()[self.class];
        if kept.len() < KEPT_MAX[self.class] {
            kept.push(std::mem::take(&mut self.bytes));
            pool.kept_bytes.set(pool.kept_bytes.get() + size);
        }
        pool.publish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_model::PodUid;
    use std::sync::Arc;

    #[test]
    fn a_full_budget_gets_smaller_buffers_then_none() {
        let pool = BufferPool::new(ProxyMetrics::new(1), 0);
        let budget = Arc::new(PodBudget::new(PodUid::new("a"), 1));
        let max = (SIZES[1] + SIZES[0]) as u64;
        let first = pool.lend(2, &budget, max).unwrap();
        let second = pool.lend(2, &budget, max).unwrap();
        assert_eq!((first.class(), second.class()), (1, 0));
        assert!(pool.lend(0, &budget, max).is_none());
        assert_eq!(budget.usage().buffered_bytes, max);
        drop((first, second));
        assert_eq!(budget.usage().buffered_bytes, 0);
        assert_eq!((pool.lent_bytes.get(), pool.kept_bytes.get()), (0, max));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pool = BufferPool::new(ProxyMetrics::new(1), 0);
        let budget = Arc::new(PodBudget::new(PodUid::new("a"), 1));
        let lent: Vec<_> = (0..100).map(|_| pool.lend(2, &budget, u64::MAX).unwrap()).collect();
        drop(lent);
        assert_eq!(pool.kept_bytes.get(), (KEPT_MAX[2] * SIZES[2]) as u64);
    }
}
