//! CPU time of processes and of the whole machine, and pinning to cores.
//!
//! eBPF programs and the network stack run in the name of whoever sends or connects, so a proxy can look cheap by making
//! others pay: every comparison shows the whole machine beside the process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Where the load and the origin run.
pub const LOAD_CORE: usize = 0;
/// Where the proxies run.
pub const PROXY_CORE: usize = 1;

/// Ticks per second of `/proc/stat`; the kernel's user interface fixes it at 100.
const TICK: Duration = Duration::from_millis(10);

/// Keeps every thread of a process on one core; threads it starts later inherit that.
pub fn pin(pid: u32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core}"))?;
    for thread in threads(pid)? {
        sched_setaffinity(Pid::from_raw(thread), &set)
            .with_context(|| format!("cannot pin thread {thread} of {pid} to core {core}"))?;
    }
    Ok(())
}

/// CPU time that a process has used, in user space and in the kernel, with that of threads that have ended.
pub fn of_process(pid: u32) -> Result<Duration> {
    let clock =
        clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).with_context(|| format!("process {pid} is gone"))?;
    Ok(clock.now().with_context(|| format!("process {pid} is gone"))?.into())
}

/// CPU time the machine has been busy, all cores together; time stolen by a hypervisor is not work.
pub fn of_machine() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    busy(&text).context("/proc/stat has no line `cpu`")
}

fn threads(pid: u32) -> Result<Vec<i32>> {
    let folder = format!("/proc/{pid}/task");
    let listing = fs::read_dir(Path::new(&folder)).with_context(|| format!("process {pid} is gone"))?;
    let threads: Vec<i32> = listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    if threads.is_empty() {
        bail!("process {pid} has no threads");
    }
    Ok(threads)
}

fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<u32> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    let ticks = [0, 1, 2, 5, 6].into_iter().map(|index| fields.get(index).copied()).sum::<Option<u32>>()?;
    Some(TICK * ticks)
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("process {pid} has no VmRSS"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_work() {
        let text = "cpu  100 20 30 99999 88888 4 6 77777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy(text), Some(Duration::from_millis(1600)));
        assert_eq!(busy("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn a_process_that_works_uses_cpu_time() {
        let before = of_process(std::process::id()).unwrap();
        let mut sum = 0u64;
        for number in 0..20_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
        let used = of_process(std::process::id()).unwrap() - before;
        assert!(used > Duration::from_millis(1), "{used:?} for {sum}");
    }

    #[test]
    fn this_process_has_memory_and_an_absent_one_is_an_error() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(resident_bytes(u32::MAX).is_err());
    }
}
