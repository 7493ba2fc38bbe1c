//! errand's key for the tool API, which may be replaced while errand runs.

use std::{
    fmt,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use super::{SetupError, response::KeyScrubber};
use crate::{failure::chain, secret_file, sync::lock, tool::ApiError};

/// How many keys are taken out of texts: the one in use, and the one before, of which answers may still tell.
const SCRUBBED: usize = 2;

pub(super) struct ApiKey {
    /// Where the key is read from again.
    file: Option<PathBuf>,
    keys: Mutex<Keys>,
}

struct Keys {
    header: HeaderValue,
    /// What the last look has found in the file.
    seen: Option<SecretString>,
    /// The key in use comes first.
    scrubbers: Vec<KeyScrubber>,
}

impl ApiKey {
    pub(super) fn new(key: SecretString, file: Option<PathBuf>) -> Result<Self, SetupError> {
        let header = header(&key)?;
        let keys = Keys { header, seen: None, scrubbers: vec![KeyScrubber(key)] };
        Ok(Self { file, keys: Mutex::new(keys) })
    }

    /// The value of the header that carries the key.
    pub(super) fn header(&self) -> HeaderValue {
        lock(&self.keys).header.clone()
    }

    /// Takes the key that two looks in a row have found in the file, for all requests from now on; says whether it is
    /// another one. One look alone may meet a file that is being written.
    pub(super) async fn renew(&self) -> Result<bool, String> {
        let Some(file) = self.file.clone() else { return Ok(false) };
        let told = format!("the file {}", file.display());
        let read = tokio::task::spawn_blocking(move || read(&file)).await;
        let Some(text) = read.map_err(|error| error.to_string())?.map_err(|why| format!("{told} {why}"))?
        else {
            return Ok(false);
        };
        let key = SecretString::from(text);
        let header = header(&key).map_err(|error| format!("{told}: {error}"))?;
        let mut keys = lock(&self.keys);
        if keys.scrubbers.first().is_some_and(|current| current.0.expose_secret() == key.expose_secret()) {
            keys.seen = None;
            return Ok(false);
        }
        let seen = keys.seen.replace(key.clone());
        if seen.is_none_or(|seen| seen.expose_secret() != key.expose_secret()) {
            return Ok(false);
        }
        keys.header = header;
        keys.scrubbers.insert(0, KeyScrubber(key));
        keys.scrubbers.truncate(SCRUBBED);
        Ok(true)
    }

    pub(super) fn scrub(&self, text: String) -> String {
        lock(&self.keys).scrubbers.iter().fold(text, |text, scrubber| scrubber.scrub(text))
    }

    pub(super) fn scrub_error(&self, error: ApiError) -> ApiError {
        lock(&self.keys).scrubbers.iter().fold(error, |error, scrubber| scrubber.scrub_error(error))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What is in the file; nothing of a pipe, which gives its text once.
fn read(file: &Path) -> Result<Option<String>, String> {
    let kind = std::fs::metadata(file).map_err(|error| format!("cannot be read: {error}"))?.file_type();
    if kind.is_fifo() {
        return Ok(None);
    }
    // A device could keep whoever reads it waiting.
    if !kind.is_file() {
        return Err("is neither a file nor a pipe".to_owned());
    }
    secret_file::read(file).map(Some).map_err(|error| chain(&error))
}

/// By the rule of the settings, whether the key is from them or from the file later.
fn header(key: &SecretString) -> Result<HeaderValue, SetupError> {
    let text = key.expose_secret();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(SetupError::ApiKey);
    }
    let mut header = HeaderValue::from_str(text).map_err(|_| SetupError::ApiKey)?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_taken_when_two_looks_agree_and_a_pipe_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let key = ApiKey::new("ak_first_key".into(), Some(file.clone())).unwrap();
        for half in ["ak_sec", "ak_second", "ak_first_key", "ak_second"] {
            std::fs::write(&file, half).unwrap();
            assert_eq!(key.renew().await, Ok(false));
            assert_eq!(key.header(), "ak_first_key");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        assert_eq!(key.renew().await, Ok(false));
    }

    #[tokio::test]
    async fn the_key_in_the_file_is_taken_and_neither_it_nor_the_one_before_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "ak_first_key\n").unwrap();
        let key = ApiKey::new("ak_first_key".into(), Some(file.clone())).unwrap();
        assert_eq!(key.renew().await, Ok(false));
        std::fs::write(&file, "ak_second_key\n").unwrap();
        assert_eq!(key.renew().await, Ok(false), "it may be half of a key");
        assert_eq!(key.renew().await, Ok(true));
        assert_eq!(key.header(), "ak_second_key");
        assert_eq!(key.scrub("ak_first_key, ak_second_key".to_owned()), "***, ***");
        let unusable = "is empty or has other characters than visible ones of ASCII";
        for (unusable, said) in
            [("", "is empty"), ("ak_\u{1}", unusable), ("ak_ a", unusable), ("ak_é", unusable)]
        {
            std::fs::write(&file, unusable).unwrap();
            let error = key.renew().await.unwrap_err();
            assert!(error.contains(said) && !error.contains("ak_"), "{error}");
            assert_eq!(key.header(), "ak_second_key", "errand goes on with what it has");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(key.renew().await.unwrap_err().contains("cannot be read"));
        std::fs::create_dir(&file).unwrap();
        assert!(key.renew().await.unwrap_err().contains("neither a file nor a pipe"));
        assert!(!format!("{key:?}").contains("ak_"));
    }
}
