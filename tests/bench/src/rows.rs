//! Results: one row per scenario, metric and baseline, from interleaved rounds.
//!
//! Machines drift, so a ratio is taken within each round and the median of the ratios is reported, never the ratio of two
//! medians from different minutes.

use std::fmt::Write;

use serde::Serialize;

/// One line of the result file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub scenario: String,
    /// Connections at a time, or open.
    pub connections: usize,
    pub metric: String,
    pub unit: String,
    /// Median over the rounds.
    pub value: f64,
    /// What Heddle is compared with; absent where there is nothing to compare with.
    pub baseline: Option<String>,
    pub baseline_value: Option<f64>,
    /// Median of the rounds' own ratios.
    pub ratio: Option<f64>,
    /// The ratio (or, without a baseline, the value) not to exceed.
    pub bar: Option<f64>,
    pub met: Option<bool>,
}

/// A metric with its measurements, one per round.
#[derive(Debug, Clone)]
pub struct Measured {
    pub metric: &'static str,
    pub unit: &'static str,
    pub values: Vec<f64>,
}

impl Row {
    /// A value that stands alone, with a bar of its own if an issue names one.
    pub fn alone(scenario: &str, connections: usize, metric: &str, unit: &str, value: f64, bar: Option<f64>) -> Row {
        Row {
            scenario: scenario.to_owned(),
            connections,
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            value,
            baseline: None,
            baseline_value: None,
            ratio: None,
            bar,
            met: bar.map(|bar| value <= bar),
        }
    }

    /// A value beside that of a baseline in the same rounds.
    pub fn against(
        scenario: &str,
        connections: usize,
        ours: &Measured,
        baseline: &str,
        theirs: &Measured,
        bar: Option<f64>,
    ) -> Row {
        let ratios = ours.values.iter().zip(&theirs.values).filter(|(_, theirs)| **theirs > 0.0);
        let ratio = median(ratios.map(|(ours, theirs)| ours / theirs).collect());
        Row {
            scenario: scenario.to_owned(),
            connections,
            metric: ours.metric.to_owned(),
            unit: ours.unit.to_owned(),
            value: median(ours.values.clone()).unwrap_or_default(),
            baseline: Some(baseline.to_owned()),
            baseline_value: median(theirs.values.clone()),
            ratio,
            bar,
            // A bar that could not be measured is not met.
            met: bar.map(|bar| ratio.is_some_and(|ratio| ratio <= bar)),
        }
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The rows as a table for a person.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut scenario = "";
    for row in rows {
        if row.scenario != scenario {
            scenario = &row.scenario;
            let _ = writeln!(text, "\n{scenario} ({} connections)", row.connections);
        }
        let value = format!("{} {}", number(row.value), row.unit);
        let _ = write!(text, "  {:<26} {value:>16}", row.metric);
        if let (Some(baseline), Some(theirs)) = (&row.baseline, row.baseline_value) {
            let _ = write!(text, "   {baseline:<22} {:>10}", number(theirs));
        }
        if let Some(ratio) = row.ratio {
            let _ = write!(text, "   × {ratio:.2}");
        }
        if let (Some(bar), Some(met)) = (row.bar, row.met) {
            let _ = write!(text, "   bar {} {}", number(bar), if met { "met" } else { "NOT MET" });
        }
        text.push('\n');
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(values: &[f64]) -> Measured {
        Measured { metric: "CPU per connection", unit: "µs", values: values.to_vec() }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_own_ratios() {
        // The machine was three times slower in the last round: the medians alone would say 1.0.
        let row =
            Row::against("s", 1, &measured(&[10.0, 10.0, 30.0]), "envoy", &measured(&[20.0, 20.0, 60.0]), Some(1.0));
        assert_eq!((row.value, row.baseline_value, row.ratio, row.met), (10.0, Some(20.0), Some(0.5), Some(true)));
        let drifting =
            Row::against("s", 1, &measured(&[10.0, 30.0, 50.0]), "envoy", &measured(&[20.0, 15.0, 25.0]), Some(1.0));
        assert_eq!((drifting.ratio, drifting.met), (Some(2.0), Some(false)));
    }

    #[test]
    fn what_could_not_be_compared_does_not_meet_its_bar() {
        let row = Row::against("s", 1, &measured(&[10.0]), "envoy", &measured(&[0.0]), Some(1.0));
        assert_eq!((row.ratio, row.met), (None, Some(false)));
        let absent = Row::against("s", 1, &measured(&[1.0]), "direct", &measured(&[2.0]), None);
        assert_eq!((absent.bar, absent.met), (None, None));
    }

    #[test]
    fn a_value_alone_is_held_against_its_bar() {
        assert_eq!(Row::alone("m", 0, "RSS", "MiB", 24.0, Some(25.0)).met, Some(true));
        assert_eq!(Row::alone("m", 0, "RSS", "MiB", 26.0, Some(25.0)).met, Some(false));
    }

    #[test]
    fn the_fields_are_those_that_were_agreed() {
        let json = serde_json::to_value(Row::alone("m", 0, "RSS", "MiB", 1.0, None)).unwrap();
        let mut names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut agreed =
            ["scenario", "connections", "metric", "unit", "value", "baseline", "baseline_value", "ratio", "bar", "met"];
        agreed.sort_unstable();
        assert_eq!(names, agreed);
        assert!(json["bar"].is_null() && json["met"].is_null());
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
