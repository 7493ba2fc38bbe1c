//! What the fixture needs from the machine: programs, an account, ports, and a thread to wait on.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

/// Where the services have their directories.
///
/// Not the directory for temporary files of this account: another account must be able to reach it, and the
/// path of a socket in it has to stay short. `tests/run` names a directory of its own, into which it looks
/// when the tests have ended.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("ERRAND_TEST_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// Lets other accounts pass through a directory without reading it.
pub(crate) fn open_for_others(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).expect("set the mode of a directory");
}

/// A user and its group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The account for a server that refuses to run as root: `nobody` if this process is root's, and this
/// process's own otherwise.
pub(crate) fn unprivileged() -> Option<Account> {
    let me = fs::metadata("/proc/self").expect("/proc is mounted").uid();
    if me != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let entry =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[0] == "nobody");
    let entry = entry.expect("PostgreSQL does not run as root, and there is no account `nobody`");
    Some(Account { uid: entry[2].parse().expect("a user id"), gid: entry[3].parse().expect("a group id") })
}

/// Finds a program in `PATH` or in one of the given directories.
pub(crate) fn program(name: &str, package: &str, directories: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("cannot find `{name}`: install the Debian package `{package}`, or let `tests/run` do it")
        })
}

/// The subdirectory `below` of each versioned directory in `parent`, newest version first.
pub(crate) fn versions(parent: &str, below: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let version = name.split(['.', '-']).filter_map(|part| part.parse().ok()).collect();
            (version, entry.path().join(below))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// A port of 127.0.0.1 on which nothing listens, and that this process has not been given before.
///
/// It lies below the range from which the kernel takes the ports of outgoing connections: a server that is
/// killed and started again must find its port free. Another process may still be faster, so a start that
/// fails is tried again with other ports.
pub(crate) fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    loop {
        let port = fastrand::u16(15_000..32_000);
        if GIVEN.lock().expect("no panic while it is locked").insert(port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            return port;
        }
    }
}

/// Sends a request to a port of 127.0.0.1, and reads the first `N` bytes of what comes back.
pub(crate) fn ask<const N: usize>(port: u16, request: &[u8]) -> Option<[u8; N]> {
    let limit = Duration::from_secs(1);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = [0; N];
    stream.read_exact(&mut answer).ok()?;
    Some(answer)
}

/// Tries a start several times, because a free port may be taken at the wrong moment.
pub(crate) fn start_with_retries<T>(service: &str, start: impl Fn() -> Result<T, String>) -> T {
    let mut failures = Vec::new();
    for _ in 0..3 {
        match start() {
            Ok(started) => return started,
            Err(failure) => failures.push(failure),
        }
    }
    panic!("{service} does not start:\n{}", failures.join("\n"));
}

/// Runs blocking work beside the runtime of the calling test. The servers belong to the process and not to
/// a test, so nothing about them is tied to a runtime, which ends with its test.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A name for a database or virtual host: readable, unique in this process, and free of quoting trouble.
pub(crate) fn unique(hint: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let hint: String = hint
        .chars()
        .take(40)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    format!("{hint}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
