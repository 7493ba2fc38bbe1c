//! Secrets in files, such as those that an orchestrator or systemd puts beside a program.

use std::{fs::File, io::Read as _, path::Path};

/// The largest file with a secret, in bytes.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Why there is no secret. Continues the name of the file; quotes nothing that is in it.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("is empty")]
    Empty,
    #[error("has more than {MAX_SECRET_BYTES} bytes")]
    TooLarge,
}

/// The secret in a file, without blanks and line breaks around it. Waits for whoever writes into a pipe.
///
/// # Errors
/// The file cannot be read, is empty, is larger than [`MAX_SECRET_BYTES`], or is no text.
pub fn read(path: &Path) -> Result<String, Unread> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_SECRET_BYTES {
        return Err(Unread::TooLarge);
    }
    // Tools of Windows begin a text with a mark.
    let secret = text.trim_start_matches('\u{feff}').trim();
    if secret.is_empty() { Err(Unread::Empty) } else { Ok(secret.to_owned()) }
}
