//! Who succeeds much less often than the others.

use super::SuccessRate;
use super::host::Window;

/// The indices of the outliers, the worst first.
pub(super) fn outliers(rule: &SuccessRate, windows: &[Window]) -> Vec<usize> {
    let mut rates: Vec<(usize, f64)> = windows
        .iter()
        .enumerate()
        .filter(|(_, window)| window.requests > 0 && window.requests >= rule.requests_min)
        .map(|(index, window)| (index, f64::from(window.successes) / f64::from(window.requests)))
        .collect();
    let count = rates.len();
    if count < 2 || u64::from(rule.hosts_min) > count as u64 {
        return Vec::new();
    }
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count as f64;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count as f64;
    let least = mean - rule.stdev_factor * variance.sqrt();
    rates.retain(|(_, rate)| *rate < least);
    rates.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    rates.into_iter().map(|(index, _)| index).collect()
}
