//! What a token says: whose events, or those of which job or batch, may be read with it.

use std::borrow::Cow;

use axum::http::Uri;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    problem::{Kind, Problem},
    sealing::Seals,
};
use crate::{job::Owner, store::EventsOf};

/// What every token begins with, as access keys do, so that scanners for leaked secrets find it.
const PREFIX: &str = "errand_token_";

/// How long a token is valid at most, in seconds.
pub(super) const MAX_VALID_FOR: u32 = 3_600;

/// How far the clock of the host that made a token may be ahead of that of another one.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Where a token may be shown.
const PATH: &str = "/v1/events";

/// What a token says, which is sealed in it and stored nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Whose events may be read with it.
    pub(super) owner: Owner,
    pub(super) of: EventsOf,
    /// The key with which it was made, with which it ends; `None` where there are no keys.
    pub(super) key: Option<Uuid>,
    pub(super) expires_at: Timestamp,
}

/// The same as it is sealed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    owner: String,
    of: EventsOf,
    key: Option<Uuid>,
    expires_at: Timestamp,
}

impl Token {
    /// Whether a text is meant to be one.
    pub(super) fn is_like(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    pub(super) fn open(seals: &Seals, shown: &str) -> Result<Self, Problem> {
        let read = || {
            let content = seals.tokens.open("", shown.strip_prefix(PREFIX)?)?;
            let Sealed { owner, of, key, expires_at } = serde_json::from_slice(&content).ok()?;
            Some(Self { owner: owner.parse().ok()?, of, key, expires_at })
        };
        read().ok_or_else(Self::is_none)
    }

    pub(super) fn is_none() -> Problem {
        Problem::new(Kind::Unauthorized, "this is no token; show one as `POST /v1/tokens` has told it")
    }

    pub(super) fn seal(&self, seals: &Seals) -> Result<String, Problem> {
        let sealed =
            Sealed { owner: self.owner.to_string(), of: self.of, key: self.key, expires_at: self.expires_at };
        let content = serde_json::to_vec(&sealed)
            .map_err(|_| Problem::new(Kind::Internal, "the token cannot be written"))?;
        Ok(format!("{PREFIX}{}", seals.tokens.seal("", &content)))
    }

    pub(super) fn may_ask_for(&self, path: &str) -> Result<(), Problem> {
        if path == PATH {
            return Ok(());
        }
        Err(Problem::new(Kind::Forbidden, format!("a token is for GET {PATH} alone; use a key for this")))
    }

    pub(super) fn is_valid(&self, now: Timestamp) -> Result<(), Problem> {
        // None is made for longer, whatever it says.
        let latest = now + SignedDuration::from_secs(MAX_VALID_FOR.into()) + SKEW;
        if now < self.expires_at && self.expires_at <= latest { Ok(()) } else { Err(Self::has_ended()) }
    }

    pub(super) fn has_ended() -> Problem {
        let detail = "this token has expired, or the key with which it was made has ended; make another one";
        Problem::new(Kind::Unauthorized, detail)
    }
}

/// The token in the query of an event source, the first where there are several.
pub(super) fn in_query(uri: &Uri) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let is_token = |(name, _): &(Cow<'_, str>, Cow<'_, str>)| name == "token";
    pairs.find(is_token).filter(|_| uri.path() == PATH).map(|(_, token)| token.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::RANDOM_BYTES,
        job::{BatchId, JobId, OwnerKind},
    };

    #[test]
    fn a_token_is_what_was_sealed_or_none() {
        let seals = Seals::new(&[1; RANDOM_BYTES]).unwrap();
        let now = Timestamp::now();
        let owner = Owner::new(OwnerKind::Org, "org-7").unwrap();
        let token = |of| Token { owner: owner.clone(), of, key: Some(Uuid::now_v7()), expires_at: now };
        let all = [EventsOf::All, EventsOf::Job(JobId::new()), EventsOf::Batch(BatchId::new())].map(token);
        for token in all {
            let text = token.seal(&seals).unwrap();
            assert!(Token::is_like(&text));
            assert!(Token::open(&Seals::new(&[2; RANDOM_BYTES]).unwrap(), &text).is_err());
            assert!(Token::open(&seals, &format!("{text}A")).is_err());
            assert!(Token::open(&seals, &text[..text.len() - 1]).is_err());
            assert_eq!(Token::open(&seals, &text).unwrap(), token);
            assert!(
                token.is_valid(now).is_err() && token.is_valid(now - SignedDuration::from_secs(1)).is_ok()
            );
        }
    }
}
