//! The standard `process_*` metrics, read from `/proc/self` at scrape time.
//!
//! A value that cannot be read (hidden /proc, a process made undumpable by a change of user) is left out, never invented.

use std::fs;

use prometheus::core::Collector;

use crate::collect::{Family, FamilyDesc, FnCollector};

/// Clock ticks per second of `/proc/*/stat`: `USER_HZ`, 100 on every Linux architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 7] = [
    FamilyDesc::counter("process_cpu_seconds_total", "User and system CPU time of the agent.", &[]),
    FamilyDesc::gauge("process_resident_memory_bytes", "Resident memory.", &[]),
    FamilyDesc::gauge("process_virtual_memory_bytes", "Virtual memory.", &[]),
    FamilyDesc::gauge("process_open_fds", "Open file descriptors.", &[]),
    FamilyDesc::gauge("process_max_fds", "Soft limit of open file descriptors.", &[]),
    FamilyDesc::gauge("process_threads", "Threads.", &[]),
    FamilyDesc::gauge("process_start_time_seconds", "Start time since the Unix epoch.", &[]),
];

/// What the registry scrapes.
#[must_use]
pub fn collector() -> Box<dyn Collector> {
    FnCollector::boxed(&FAMILIES, || {
        let values = read();
        FAMILIES
            .iter()
            .zip(values)
            .filter_map(|(desc, value)| {
                let mut family: Family = desc.family();
                family.push(&[], value?);
                Some(family)
            })
            .collect()
    })
}

/// In the order of [`FAMILIES`].
fn read() -> [Option<f64>; 7] {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let system = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    let kib = |key| field(&status, key).map(|v| v * 1024.0);
    [
        cpu_seconds(&stat),
        kib("VmRSS:"),
        kib("VmSize:"),
        fds,
        limits.lines().find_map(|l| l.strip_prefix("Max open files")).and_then(first_number),
        field(&status, "Threads:"),
        start_time(&stat, &system),
    ]
}

fn field(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(key)).and_then(first_number)
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Field `number` (1-based, proc(5)) of `/proc/*/stat`; the command in parentheses may hold spaces and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
}

fn start_time(stat: &str, system: &str) -> Option<f64> {
    Some(field(system, "btime ")? + stat_field(stat, 22)? / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_command_name() {
        let stat = "42 (a) b (c) S 1 1 1 0 -1 4194560 1 0 0 0 250 150 0 0 20 0 3 0 5000 1 1";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(start_time(stat, "cpu 1\nbtime 1000\n"), Some(1050.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn this_process_reads_plausibly() {
        let [cpu, rss, virt, fds, max_fds, threads, start] = read().map(|v| v.expect("readable in a test"));
        assert!(cpu >= 0.0 && rss > 100_000.0 && virt >= rss, "{cpu} {rss} {virt}");
        assert!(fds >= 3.0 && max_fds >= fds && threads >= 1.0, "{fds} {max_fds} {threads}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - start).abs() < 24.0 * 3600.0, "{start} is not about now {now}");
    }
}
