//! Processes that this program starts of itself to measure them or to break them: what they use, and how they
//! notice that nobody waits for them any more.

use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::io::AsyncReadExt as _;

/// The kernel counts processor time in ticks of a hundredth of a second, on every platform.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// The memory that is resident now.
    pub(crate) resident_bytes: u64,
    /// The most memory that was resident at any time.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// What this process has used.
    ///
    /// # Errors
    /// It is not there any more.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let folder = Path::new("/proc").join(process.to_string());
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        let status = std::fs::read_to_string(folder.join("status"))?;
        Ok(Self {
            cpu_seconds: cpu_seconds(&stat).context("/proc/PID/stat cannot be read")?,
            resident_bytes: bytes(&status, "VmRSS:").context("/proc/PID/status cannot be read")?,
            peak_bytes: bytes(&status, "VmHWM:").context("/proc/PID/status cannot be read")?,
        })
    }
}

/// Returns when the standard input ends: the sign to end for a child.
pub(crate) async fn parent_is_gone() {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 64]);
    while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
}

/// The fields behind the name of the program, which may contain anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// A line of `/proc/PID/status` that is an amount of memory.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_and_memory_are_read() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 900 0 0 0 150 75 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.25));
        assert_eq!(bytes("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 * 1024 * 1024));
        assert!(Usage::of(std::process::id()).unwrap().peak_bytes > 0);
    }
}
