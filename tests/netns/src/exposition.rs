//! The agents' metrics as numbers: Prometheus's text format, read strictly enough to be sure what was counted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;

/// One line of the exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `istio_requests_total`, `istio_request_bytes_bucket`.
    pub name: String,
    /// In the order of their names.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// The samples of a node's agent.
///
/// # Errors
/// The agent does not answer, or its answer is no exposition.
pub fn scrape(node: &Node) -> Result<Vec<Sample>> {
    samples(&node.metrics()?)
}

/// Reads an exposition.
///
/// # Errors
/// A line is no sample; the error shows it.
pub fn samples(text: &str) -> Result<Vec<Sample>> {
    let body = text.split_once("\r\n\r\n").map_or(text, |(_, body)| body);
    let lines = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| sample(line).with_context(|| format!("no sample: {line}"))).collect()
}

fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let value = value.parse().with_context(|| format!("value {value}"))?;
    let (name, mut rest) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').context("labels do not end")?),
        None => (series, ""),
    };
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").context("no label")?;
        let (value, after) = unquote(quoted).context("a value does not end")?;
        let former = labels.insert(label.to_owned(), value);
        ensure!(former.is_none(), "label {label} twice");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// A label's value without its escapes, and what follows its closing quote.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

/// Sum of the samples of this name that have all of `labels`.
#[must_use]
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
    };
    // Not `sum()`: of nothing that is -0.
    samples.iter().filter(has).fold(0.0, |sum, sample| sum + sample.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_escapes() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total{p=\"q\\\"b\\\\,\",x=\"\"} 3\na_total{p=\"other\"} 4.5\nb -2\n";
        let all = samples(text).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].labels["p"], "q\"b\\,");
        assert_eq!(
            (sum(&all, "a_total", &[]), sum(&all, "a_total", &[("x", "")]), sum(&all, "b", &[])),
            (7.5, 3.0, -2.0)
        );
        assert!(
            samples("a{b=\"c} 1").is_err() && samples("a one").is_err() && samples("a{b=\"1\",b=\"2\"} 1").is_err()
        );
    }
}
