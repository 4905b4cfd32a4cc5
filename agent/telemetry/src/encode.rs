//! Metric families as text: Prometheus 0.0.4 and OpenMetrics 1.0, chosen by the `Accept` header.
//!
//! Sources: <https://prometheus.io/docs/instrumenting/exposition_formats/> and the OpenMetrics 1.0 specification.

use std::fmt::Write;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

/// An exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0 text.
    OpenMetrics,
}

impl Format {
    /// The better of the two by an `Accept` header (RFC 9110 §12.5.1): OpenMetrics only if it is named with a quality not
    /// below that of plain text. Wildcards mean plain text.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let (mut open_metrics, mut text) = (0.0f32, 0.0f32);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0f32, None);
            for (name, value) in parts.filter_map(|p| p.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"').to_owned()),
                    _ => {}
                }
            }
            match media.as_str() {
                "application/openmetrics-text" if matches!(version.as_deref(), None | Some("1.0.0" | "0.0.1")) => {
                    open_metrics = open_metrics.max(quality);
                }
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Value of the `Content-Type` header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Encodes families as gathered by a registry.
#[must_use]
pub fn encode(families: &[MetricFamily], format: Format) -> String {
    let mut out = Encoder { out: String::with_capacity(8 << 10), format };
    for family in families {
        out.family(family);
    }
    if format == Format::OpenMetrics {
        out.out.push_str("# EOF\n");
    }
    out.out
}

struct Encoder {
    out: String,
    format: Format,
}

impl Encoder {
    fn family(&mut self, family: &MetricFamily) {
        let kind = family.get_field_type();
        let mut base = family.name();
        let mut sample = base.to_owned();
        if self.format == Format::OpenMetrics && kind == MetricType::COUNTER {
            // OpenMetrics: the family has no suffix, its sample has `_total`.
            base = base.strip_suffix("_total").unwrap_or(base);
            sample = format!("{base}_total");
        }
        let type_name = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::SUMMARY => "summary",
            MetricType::HISTOGRAM => "histogram",
            MetricType::UNTYPED if self.format == Format::OpenMetrics => "unknown",
            MetricType::UNTYPED => "untyped",
        };
        let help = self.escape_help(family.help());
        let _ = writeln!(self.out, "# HELP {base} {help}\n# TYPE {base} {type_name}");
        for metric in family.get_metric() {
            match kind {
                MetricType::COUNTER => self.sample(&sample, metric, None, metric.get_counter().get_value()),
                MetricType::GAUGE => self.sample(&sample, metric, None, metric.get_gauge().get_value()),
                MetricType::UNTYPED => {}
                MetricType::SUMMARY => self.summary(base, metric),
                MetricType::HISTOGRAM => self.histogram(base, metric),
            }
        }
    }

    fn summary(&mut self, base: &str, metric: &Metric) {
        let summary = metric.get_summary();
        for quantile in summary.get_quantile() {
            let label = ("quantile", self.number(quantile.quantile()));
            self.sample(base, metric, Some(label), quantile.value());
        }
        self.sample(&format!("{base}_sum"), metric, None, summary.sample_sum());
        self.sample(&format!("{base}_count"), metric, None, summary.sample_count() as f64);
    }

    fn histogram(&mut self, base: &str, metric: &Metric) {
        let histogram = metric.get_histogram();
        let bucket_name = format!("{base}_bucket");
        let mut has_infinity = false;
        for bucket in histogram.get_bucket() {
            has_infinity |= bucket.upper_bound().is_infinite();
            let label = ("le", self.number(bucket.upper_bound()));
            self.sample(&bucket_name, metric, Some(label), bucket.cumulative_count() as f64);
        }
        if !has_infinity {
            let label = ("le", "+Inf".to_owned());
            self.sample(&bucket_name, metric, Some(label), histogram.get_sample_count() as f64);
        }
        self.sample(&format!("{base}_sum"), metric, None, histogram.get_sample_sum());
        self.sample(&format!("{base}_count"), metric, None, histogram.get_sample_count() as f64);
    }

    fn sample(&mut self, name: &str, metric: &Metric, extra: Option<(&str, String)>, value: f64) {
        self.out.push_str(name);
        let labels = metric.get_label();
        if !labels.is_empty() || extra.is_some() {
            let own = labels.iter().map(|l: &LabelPair| (l.name(), l.value()));
            let pairs = own.chain(extra.iter().map(|(name, value)| (*name, value.as_str())));
            for (i, (name, value)) in pairs.enumerate() {
                self.out.push(if i == 0 { '{' } else { ',' });
                self.out.push_str(name);
                self.out.push_str("=\"");
                escape_value(&mut self.out, value);
                self.out.push('"');
            }
            self.out.push('}');
        }
        let value = plain_number(value);
        let _ = writeln!(self.out, " {value}");
    }

    /// Label values that are numbers (`le`, `quantile`): OpenMetrics wants canonical floats.
    fn number(&self, value: f64) -> String {
        let mut text = plain_number(value);
        if self.format == Format::OpenMetrics && text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
            text.push_str(".0");
        }
        text
    }

    fn escape_help(&self, help: &str) -> String {
        let escaped = help.replace('\\', "\\\\").replace('\n', "\\n");
        if self.format == Format::OpenMetrics { escaped.replace('"', "\\\"") } else { escaped }
    }
}

fn plain_number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

fn escape_value(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

    fn registry() -> Registry {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "Quoted \"help\"\nof two lines."), &["path"]).unwrap();
        counter.with_label_values(&["q\"b\\s\nn"]).inc_by(3);
        let gauge = IntGauge::new("b_now", "A gauge.").unwrap();
        gauge.set(-2);
        let histogram = Histogram::with_opts(HistogramOpts::new("c_seconds", "H.").buckets(vec![1.0, 2.5])).unwrap();
        histogram.observe(2.0);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        registry
    }

    #[test]
    fn text_is_exact() {
        let expected = "# HELP a_total Quoted \"help\"\\nof two lines.\n# TYPE a_total counter\n\
            a_total{path=\"q\\\"b\\\\s\\nn\"} 3\n# HELP b_now A gauge.\n# TYPE b_now gauge\nb_now -2\n\
            # HELP c_seconds H.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"1\"} 0\nc_seconds_bucket{le=\"2.5\"} 1\n\
            c_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_sum 2\nc_seconds_count 1\n";
        assert_eq!(encode(&registry().gather(), Format::Text), expected);
    }

    #[test]
    fn openmetrics_is_exact() {
        let expected = "# HELP a Quoted \\\"help\\\"\\nof two lines.\n# TYPE a counter\n\
            a_total{path=\"q\\\"b\\\\s\\nn\"} 3\n# HELP b_now A gauge.\n# TYPE b_now gauge\nb_now -2\n\
            # HELP c_seconds H.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"1.0\"} 0\n\
            c_seconds_bucket{le=\"2.5\"} 1\nc_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_sum 2\nc_seconds_count 1\n# EOF\n";
        assert_eq!(encode(&registry().gather(), Format::OpenMetrics), expected);
    }

    #[test]
    fn accept_header_decides() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("application/openmetrics-text; version=1.0.0; q=0, text/plain"), Format::Text),
            (Some("application/openmetrics-text;q=0.1, text/plain;q=0.9"), Format::Text),
            (Some("application/openmetrics-text; version=9.0.0"), Format::Text),
            (Some(";;,=,q"), Format::Text),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
        }
    }
}
