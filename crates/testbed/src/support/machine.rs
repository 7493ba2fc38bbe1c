//! The place of the tests' servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::services::Place;

/// The place that all servers of this process share. `tests/run` names a directory of its own, into which it
/// looks when the tests have ended.
pub fn place() -> &'static Place {
    static PLACE: LazyLock<Place> =
        LazyLock::new(|| std::env::var_os("ERRAND_TEST_DIR").map_or_else(Place::default, Place::below));
    &PLACE
}

/// Where the services have their directories.
pub fn base() -> PathBuf {
    place().base().to_owned()
}

/// Lets other accounts pass through a directory without reading it.
pub fn open_for_others(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
}

/// A port of 127.0.0.1 on which nothing listens.
pub fn free_port() -> u16 {
    place().free_port().unwrap()
}
