//! Adding up a client's connections.

use heddle_testkit::report::{Connection, End, Summary};

/// Totals so far.
#[derive(Default)]
pub struct Tally {
    summary: Summary,
    exchanges_us: Vec<u64>,
}

impl Tally {
    /// Adds one connection.
    pub fn add(&mut self, connection: &Connection) {
        let sum = &mut self.summary;
        sum.attempted += 1;
        sum.received += connection.received;
        sum.slowest_connect_us = sum.slowest_connect_us.max(connection.connect_us);
        if connection.connect_error.is_none() {
            sum.connected += 1;
        }
        if connection.refused() {
            sum.refused += 1;
        }
        if connection.succeeded() {
            sum.succeeded += 1;
            self.exchanges_us.extend(connection.exchange_us);
        } else {
            let why = connection.connect_error.clone().unwrap_or_else(|| match &connection.end {
                End::Error(name) => name.clone(),
                end => format!("{end:?}").to_lowercase(),
            });
            *sum.failures.entry(why).or_default() += 1;
        }
    }

    /// Counts a connection that was never started.
    pub fn skip(&mut self) {
        self.summary.skipped += 1;
    }

    /// The totals.
    pub fn finish(mut self) -> Summary {
        self.exchanges_us.sort_unstable();
        let at = |percent: usize| {
            let last = self.exchanges_us.len().saturating_sub(1);
            self.exchanges_us.get(last * percent / 100).copied().unwrap_or(0)
        };
        self.summary.exchange_p50_us = at(50);
        self.summary.exchange_p99_us = at(99);
        self.summary.slowest_exchange_us = at(100);
        self.summary
    }
}
