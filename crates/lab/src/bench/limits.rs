//! What the process may open.

use anyhow::{Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside the connections to the stub: database, broker, logs, libraries.
const OTHER_FILES: u64 = 200;

/// Every call in flight is a connection, and the children inherit our limit.
pub(super) fn check_open_files(concurrency: u32) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let needed = u64::from(concurrency) + OTHER_FILES;
    match soft_limit(&limits) {
        Some(limit) if limit < needed => bail!(
            "{concurrency} calls in flight need {needed} open files and this shell allows {limit}; run \
             `ulimit -n {needed}` first, or lower --concurrency"
        ),
        _ => Ok(()),
    }
}

/// Raises our own limit for so many connections. The API does that for itself, where it needs twice as many.
pub(super) fn raise_open_files(connections: usize) -> Result<()> {
    let limits = getrlimit(Resource::Nofile);
    let needed = connections as u64 * 2;
    ensure!(
        limits.maximum.is_none_or(|most| most >= needed),
        "{connections} connections to the API need a hard limit of {needed} open files (`ulimit -H -n`)"
    );
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits })?)
}

/// The soft limit in the text of `/proc/PID/limits`; `None` when there is none or it cannot be told.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_found() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(soft_limit("Max open files unlimited unlimited files"), None);
        assert_eq!(soft_limit(""), None);
    }
}
