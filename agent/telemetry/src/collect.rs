//! Small bricks for collectors: families built at scrape time from numbers kept elsewhere.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Name, help text and label names of one family: the declaration from which `docs/metrics.md` is checked.
#[derive(Clone, Copy, Debug)]
pub struct FamilyDesc {
    /// Full name; counters end in `_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Label names in order.
    pub labels: &'static [&'static str],
}

impl FamilyDesc {
    /// A counter family.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, kind: MetricType::COUNTER, labels }
    }

    /// A gauge family.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, kind: MetricType::GAUGE, labels }
    }

    /// A histogram family.
    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, kind: MetricType::HISTOGRAM, labels }
    }

    /// An empty family to push rows into.
    #[must_use]
    pub fn family(&self) -> Family {
        let mut inner = MetricFamily::default();
        inner.set_name(self.name.to_owned());
        inner.set_help(self.help.to_owned());
        inner.set_field_type(self.kind);
        Family { desc: *self, inner, rows: Vec::new() }
    }

    /// The registry's description; `None` only for an illegal name, which the tests of each declaring module exclude.
    #[must_use]
    pub fn desc(&self) -> Option<Desc> {
        let labels = self.labels.iter().map(|&l| l.to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, HashMap::new()).ok()
    }
}

/// A family being filled.
pub struct Family {
    desc: FamilyDesc,
    inner: MetricFamily,
    rows: Vec<Metric>,
}

impl Family {
    /// Adds one sample; `values` in the order of the declared labels.
    pub fn push(&mut self, values: &[&str], value: f64) {
        let mut metric = self.metric(values);
        if self.desc.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.rows.push(metric);
    }

    /// Adds one histogram: `counts[i]` observations at most `bounds[i]` and above the bound before, one more count for what
    /// is above the last.
    pub fn push_histogram(&mut self, values: &[&str], bounds: &[f64], counts: &[u64], sum: f64) {
        debug_assert_eq!(counts.len(), bounds.len() + 1, "{}", self.desc.name);
        let mut total = 0;
        let mut histogram = Histogram::default();
        let mut buckets = Vec::with_capacity(counts.len());
        for (bound, count) in bounds.iter().chain([&f64::INFINITY]).zip(counts) {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum);
        let mut metric = self.metric(values);
        metric.set_histogram(histogram);
        self.rows.push(metric);
    }

    fn metric(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(values.len(), self.desc.labels.len(), "{}", self.desc.name);
        let labels = self
            .desc
            .labels
            .iter()
            .zip(values)
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value((*value).to_owned());
                pair
            })
            .collect();
        Metric::from_label(labels)
    }

    /// The finished family.
    #[must_use]
    pub fn finish(mut self) -> MetricFamily {
        self.inner.set_metric(self.rows);
        self.inner
    }
}

/// A collector made of declarations and a function that reads the numbers.
pub struct FnCollector<F> {
    descs: Vec<Desc>,
    collect: F,
}

impl<F: Fn() -> Vec<Family> + Send + Sync> FnCollector<F> {
    /// `collect` is called at every scrape, on the scraper's thread; it returns families of `declared` only.
    pub fn boxed(declared: &[FamilyDesc], collect: F) -> Box<dyn Collector>
    where
        F: 'static,
    {
        let descs = declared.iter().filter_map(FamilyDesc::desc).collect();
        Box::new(Self { descs, collect })
    }
}

impl<F: Fn() -> Vec<Family> + Send + Sync> Collector for FnCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.collect)().into_iter().map(Family::finish).collect()
    }
}
