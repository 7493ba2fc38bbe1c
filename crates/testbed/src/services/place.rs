//! Where private servers keep their files, and which ports they have been given.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, bail};

/// How many ports are tried before it is given up. There are 17,000.
const TRIES: u32 = 10_000;

/// The place of the private servers of one process. Clones are the same place: no port is given twice.
#[derive(Clone, Debug)]
pub struct Place {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: PathBuf,
    given: Mutex<HashSet<u16>>,
}

impl Default for Place {
    /// The directory is `/tmp`, not the directory for temporary files of this account: another account must
    /// be able to reach it, and the path of a socket in it has to stay short.
    fn default() -> Self {
        Self::below("/tmp")
    }
}

impl Place {
    /// Every server gets a new directory below this one, which is there and which others can pass through.
    #[must_use]
    pub fn below(base: impl Into<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { base: base.into(), given: Mutex::default() }) }
    }

    /// Where the servers have their directories.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.inner.base
    }

    /// A port of 127.0.0.1 on which nothing listens, and that this place has not given before.
    ///
    /// It lies below the range from which the kernel takes the ports of outgoing connections: a server that
    /// is killed and started again must find its port free. Another process may still be faster, so a start
    /// that fails is tried again with other ports.
    ///
    /// # Errors
    /// No port was free.
    pub fn free_port(&self) -> Result<u16> {
        for _ in 0..TRIES {
            let port = fastrand::u16(15_000..32_000);
            let mut given = self.inner.given.lock().unwrap_or_else(PoisonError::into_inner);
            if given.insert(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
        bail!(
            "no port of 127.0.0.1 between 15000 and 32000 is free: end some of the servers that listen there"
        )
    }
}
