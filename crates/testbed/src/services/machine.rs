//! What private servers need from the machine: programs, an account, answers on a port, and a thread to
//! wait on.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

/// How often a server is started on other ports before it is given up.
const STARTS: u32 = 3;

/// A user and its group.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's group.
    pub gid: u32,
}

/// The account for a server that refuses to run as root: `nobody` if this process is root's, and this
/// process's own otherwise.
///
/// # Errors
/// The process is root's, and there is no `nobody`.
pub fn unprivileged() -> Result<Option<Account>> {
    let me = fs::metadata("/proc/self").context("/proc has to be mounted")?.uid();
    if me != 0 {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let nobody = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("nobody:")?.split(':').skip(1);
        Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    });
    nobody.map(Some).context(
        "PostgreSQL does not run as root, and there is no account `nobody`: add one, or run this as another user",
    )
}

/// Finds a program in one of the given directories or where the shell does.
///
/// # Errors
/// It is not installed.
pub fn program(name: &str, package: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from);
    let listed = directories.iter().map(|directory| directory.join(name));
    listed
        .chain(in_path(name))
        .chain(usual.iter().map(|directory| directory.join(name)))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "cannot find `{name}`: install the Debian package `{package}`, or run tests/install-services"
            )
        })
}

/// Asks a shell, which knows `PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let found = Command::new("/bin/sh")
        .args(["-c", r#"command -v "$0""#, name])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(found.stdout).ok()?.trim_end());
    path.is_absolute().then_some(path)
}

/// The subdirectory `below` of each versioned directory in `parent`, newest version first.
#[must_use]
pub fn versions(parent: &Path, below: &str) -> Vec<PathBuf> {
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

/// Sends a request to a port of 127.0.0.1, and reads the first `N` bytes of what comes back.
#[must_use]
pub fn ask<const N: usize>(port: u16, request: &[u8]) -> Option<[u8; N]> {
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
///
/// # Errors
/// No start succeeded; the message has the reasons of all of them.
pub fn start_with_retries<T>(service: &str, start: impl Fn() -> Result<T>) -> Result<T> {
    let mut failures = Vec::new();
    for _ in 0..STARTS {
        match start() {
            Ok(started) => return Ok(started),
            Err(failure) => failures.push(format!("{failure:#}")),
        }
    }
    bail!("{service} does not start:\n{}", failures.join("\n"))
}

/// Runs blocking work beside the runtime. The servers belong to the process, so nothing about them is tied
/// to a runtime, which may end earlier.
///
/// # Errors
/// What the work returns, or that it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(anyhow!("a thread that looks after a private server failed: {error}")),
    }
}

/// A name for a database or virtual host: readable, and free of quoting trouble.
#[must_use]
pub fn name(hint: &str, number: u32) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let hint: String = hint.chars().take(40).map(plain).collect();
    format!("{hint}_{number}")
}
