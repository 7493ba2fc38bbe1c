//! What every request shares: reading an answer within its limits, and the texts of errors.

use reqwest::{
    Response,
    header::{HeaderMap, HeaderName},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{failure, tool::ApiError};

/// The notice that a version will go away.
pub(super) const DEPRECATED: HeaderName = HeaderName::from_static("composio-deprecated-toolkits");

/// What is reserved for a body of unknown size before any of it has arrived.
const FIRST_READ: usize = 8 * 1024;

/// Longest header of the API that is passed on, in bytes.
const MAX_HEADER_BYTES: usize = 1024;

/// Why a body was not read to its end.
pub(super) enum Unread {
    TooLarge,
    Broken(String),
}

/// Reads a body up to a limit, which holds while reading: no more than one chunk above it is ever
/// in memory.
pub(super) async fn collect(response: &mut Response, limit: usize) -> Result<Vec<u8>, Unread> {
    let announced = response.content_length().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Unread::TooLarge);
    }
    // What is announced is believed only so far, because thousands of calls may wait at once.
    let mut body = Vec::with_capacity(announced.unwrap_or(FIRST_READ).min(FIRST_READ));
    while let Some(chunk) = response.chunk().await.map_err(|error| Unread::Broken(chain(error)))? {
        if body.len() + chunk.len() > limit {
            return Err(Unread::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

pub(super) fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(name)?.as_bytes());
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(MAX_HEADER_BYTES).collect();
    (!text.is_empty()).then_some(text)
}

/// An error with its causes, without the URL.
pub(super) fn chain(error: reqwest::Error) -> String {
    failure::chain(&error.without_url())
}

/// Takes errand's own key out of texts, should the API ever quote it.
#[derive(Debug)]
pub(super) struct KeyScrubber(pub(super) SecretString);

/// No real key is shorter, in bytes. One that is, such as `test`, is a part of words.
const MIN_KEY_BYTES: usize = 8;

impl KeyScrubber {
    pub(super) fn scrub(&self, text: String) -> String {
        let key = self.0.expose_secret();
        if key.is_empty() || !text.contains(key) {
            return text;
        }
        if key.len() >= MIN_KEY_BYTES {
            return text.replace(key, "***");
        }
        let mut scrubbed = String::with_capacity(text.len());
        let mut rest = 0;
        for (at, _) in text.match_indices(key) {
            let ends_word = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
            let end = at + key.len();
            if ends_word(text[..at].chars().next_back()) && ends_word(text[end..].chars().next()) {
                scrubbed.push_str(&text[rest..at]);
                scrubbed.push_str("***");
                rest = end;
            }
        }
        scrubbed.push_str(&text[rest..]);
        scrubbed
    }

    pub(super) fn scrub_error(&self, error: ApiError) -> ApiError {
        let scrub = |text: Option<String>| text.map(|text| self.scrub(text));
        ApiError {
            message: scrub(error.message),
            code: error.code,
            slug: scrub(error.slug),
            suggested_fix: scrub(error.suggested_fix),
            errors: error.errors.into_iter().map(|text| self.scrub(text)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_out_and_words_stay_whole() {
        let scrubbed = |key: &str, text: &str| KeyScrubber(key.into()).scrub(text.to_owned());
        assert_eq!(scrubbed("ak_live_1234", "the keyak_live_1234x is wrong"), "the key***x is wrong");
        let lookup = "failed to lookup address information: Name or service not known";
        assert_eq!(scrubbed("k", lookup), lookup);
        assert_eq!(scrubbed("k", "the key `k` is wrong: k"), "the key `***` is wrong: ***");
        assert_eq!(scrubbed("aa", "aaa aa"), "aaa ***");
        assert_eq!(scrubbed("", "nothing"), "nothing");
    }
}
