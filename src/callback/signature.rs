//! Signatures as in [Standard Webhooks](https://www.standardwebhooks.com), version `v1`: HMAC-SHA256 over the ID of a message,
//! its time and its body.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ring::hmac;
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};

/// The fewest bytes of a secret.
pub const MIN_SECRET_BYTES: usize = 24;

/// The most bytes of a secret.
pub const MAX_SECRET_BYTES: usize = 64;

/// How far the time of a message may be from the receiver's clock, either way.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// How many bytes a secret has that errand makes.
const GENERATED_BYTES: usize = 32;

/// What the text of a secret begins with.
const PREFIX: &str = "whsec_";

/// What stands in front of a signature, in the header.
const VERSION: &str = "v1";

/// The most signatures of a header that are looked at. Each is compared with each secret, over the whole body.
const MAX_SIGNATURES: usize = 16;

/// What the sender and the receiver of callbacks share.
#[derive(Clone)]
pub struct Secret(SecretSlice<u8>);

impl Secret {
    /// One that nobody can guess.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut random = vec![0; GENERATED_BYTES];
        getrandom::fill(&mut random)?;
        Ok(Self(random.into()))
    }

    /// # Errors
    /// There are fewer than [`MIN_SECRET_BYTES`] or more than [`MAX_SECRET_BYTES`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadSecret> {
        if !(MIN_SECRET_BYTES..=MAX_SECRET_BYTES).contains(&bytes.len()) {
            return Err(BadSecret::Length(bytes.len()));
        }
        Ok(Self(bytes.to_vec().into()))
    }

    /// The bytes, to be kept sealed.
    pub fn expose_bytes(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// The text that a receiver is given: `whsec_` and the bytes in standard base64.
    pub fn to_text(&self) -> SecretString {
        format!("{PREFIX}{}", BASE64.encode(self.0.expose_secret())).into()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret())
    }
}

impl FromStr for Secret {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(BadSecret::Prefix)?;
        let bytes = SecretSlice::from(BASE64.decode(encoded).map_err(|_| BadSecret::Base64)?);
        Self::from_bytes(bytes.expose_secret())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a text or bytes are no secret, to be continued from its name. It never quotes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("does not begin with `{PREFIX}`")]
    Prefix,
    #[error("is not standard base64, with its padding, behind `{PREFIX}`")]
    Base64,
    #[error("has {0} bytes, but needs {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}")]
    Length(usize),
}

/// The value of the header `webhook-signature`: one signature by each secret, in their order. While a secret is replaced, those
/// who know the old one and those who know the new one can check it.
///
/// The time is in seconds since 1970. The ID must not contain a full stop: it separates what is signed.
pub fn sign(secrets: &[&Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let timestamp = timestamp.to_string();
    let one = |secret: &&Secret| {
        let mut context = hmac::Context::with_key(&secret.key());
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        format!("{VERSION},{}", BASE64.encode(context.sign()))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// Whether a message is what somebody sent who knows one of the secrets, within [`TOLERANCE`] of `now`, in seconds since 1970.
/// `timestamp` and `signatures` are the headers `webhook-timestamp` and `webhook-signature`. Signatures of other versions, and
/// those behind the first 16, are ignored.
///
/// How long it takes tells nothing of a secret.
///
/// # Errors
/// The first reason not to believe it, in the order of [`BadSignature`].
pub fn verify(
    secrets: &[&Secret],
    id: &str,
    timestamp: &str,
    signatures: &str,
    body: &[u8],
    now: i64,
) -> Result<(), BadSignature> {
    // The text is what was signed, so there is but one for a time.
    let sent = timestamp.parse::<i64>().ok().filter(|sent| sent.to_string() == timestamp);
    let sent = sent.ok_or(BadSignature::Timestamp)?;
    let age = i128::from(now) - i128::from(sent);
    let tolerance = i128::from(TOLERANCE.as_secs());
    if age > tolerance {
        return Err(BadSignature::TooOld);
    }
    if age < -tolerance {
        return Err(BadSignature::TooNew);
    }
    let known = signatures.split(' ').filter_map(|text| text.strip_prefix(VERSION)?.strip_prefix(','));
    let tags: Vec<Vec<u8>> =
        known.take(MAX_SIGNATURES).filter_map(|encoded| BASE64.decode(encoded).ok()).collect();
    if tags.is_empty() {
        return Err(BadSignature::Missing);
    }
    let content = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let keys: Vec<hmac::Key> = secrets.iter().map(|secret| secret.key()).collect();
    let fits = |tag: &Vec<u8>| keys.iter().any(|key| hmac::verify(key, &content, tag).is_ok());
    if tags.iter().any(fits) { Ok(()) } else { Err(BadSignature::Mismatch) }
}

/// Why a message is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    #[error("the timestamp is no number of seconds since 1970")]
    Timestamp,
    #[error("the timestamp is too old: the message was sent long ago, or a clock is wrong")]
    TooOld,
    #[error("the timestamp is in the future: a clock is wrong")]
    TooNew,
    #[error("there is no signature of the version `{VERSION}`")]
    Missing,
    #[error("no signature is by one of the secrets for this ID, timestamp and body")]
    Mismatch,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of two libraries for Standard Webhooks: secret, ID, time, body, signature.
    const PUBLISHED: [(&str, &str, i64, &str, &str); 2] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];

    fn secret(byte: u8) -> Secret {
        Secret::from_bytes(&[byte; 32]).unwrap()
    }

    #[test]
    fn published_signatures_are_made_and_believed() {
        for (text, id, time, body, signature) in PUBLISHED {
            let secret: Secret = text.parse().unwrap();
            assert_eq!(secret.to_text().expose_secret(), text);
            assert_eq!(sign(&[&secret], id, time, body.as_bytes()), signature);
            assert_eq!(verify(&[&secret], id, &time.to_string(), signature, body.as_bytes(), time), Ok(()));
        }
    }

    #[test]
    fn a_secret_has_24_to_64_bytes_and_shows_none() {
        for (bytes, fits) in [(0, false), (23, false), (24, true), (32, true), (64, true), (65, false)] {
            let made = Secret::from_bytes(&vec![7; bytes]);
            assert_eq!(made.is_ok(), fits, "{bytes}");
            let text = format!("whsec_{}", BASE64.encode(vec![7; bytes]));
            assert_eq!(text.parse::<Secret>().err(), made.err(), "{bytes}");
        }
        let made = Secret::generate().unwrap();
        assert_eq!(made.expose_bytes().len(), GENERATED_BYTES);
        assert_ne!(made.expose_bytes(), Secret::generate().unwrap().expose_bytes());
        assert_eq!(format!("{made:?} {:?}", made.to_text()), "Secret SecretBox<str>([REDACTED])");
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_it() {
        let text = BASE64.encode([7; 25]);
        for (wrong, why) in [
            (text.clone(), "does not begin with `whsec_`"),
            (format!("WHSEC_{text}"), "does not begin with `whsec_`"),
            (format!("whsec_ {text}"), "is not standard base64, with its padding, behind `whsec_`"),
            (
                format!("whsec_{}", text.trim_end_matches('=')),
                "is not standard base64, with its padding, behind `whsec_`",
            ),
            (
                format!("whsec_{}", "-_-_".repeat(8)),
                "is not standard base64, with its padding, behind `whsec_`",
            ),
            ("whsec_AAAA".to_owned(), "has 3 bytes, but needs 24 to 64"),
        ] {
            assert_eq!(wrong.parse::<Secret>().unwrap_err().to_string(), why, "{wrong}");
        }
    }

    #[test]
    fn a_time_is_believed_for_five_minutes_either_way_and_in_one_spelling() {
        let (secret, now) = (secret(1), 1_700_000_000);
        let tried = |time: &str, now| {
            let signature = sign(&[&secret], "id", time.parse().unwrap_or(0), b"{}");
            verify(&[&secret], "id", time, &signature, b"{}", now)
        };
        for (time, answer) in [
            (now - 301, Err(BadSignature::TooOld)),
            (now - 300, Ok(())),
            (now + 300, Ok(())),
            (now + 301, Err(BadSignature::TooNew)),
            (i64::MIN, Err(BadSignature::TooOld)),
            (i64::MAX, Err(BadSignature::TooNew)),
        ] {
            assert_eq!(tried(&time.to_string(), now), answer, "{time}");
        }
        assert_eq!(tried("-1", 0), Ok(()));
        for text in ["", "+0", "00", "-0", " 0", "0 ", "0.0", "1e3", "٠", "soon", "9223372036854775808"] {
            assert_eq!(tried(text, 0), Err(BadSignature::Timestamp), "{text:?}");
        }
    }

    #[test]
    fn of_a_header_only_the_first_signatures_of_our_version_count() {
        let (old, new, other) = (secret(1), secret(2), secret(3));
        let tried = |secrets: &[&Secret], header: &str| verify(secrets, "id", "0", header, b"{}", 0);
        let both = sign(&[&old, &new], "id", 0, b"{}");
        assert_eq!(tried(&[&old], &both), Ok(()));
        assert_eq!(tried(&[&new], &both), Ok(()));
        assert_eq!(tried(&[&other, &new], &both), Ok(()));
        assert_eq!(tried(&[&other], &both), Err(BadSignature::Mismatch));
        assert_eq!(tried(&[], &both), Err(BadSignature::Mismatch));

        let one = sign(&[&old], "id", 0, b"{}");
        assert_eq!(tried(&[&old], &format!("v1a,AAAA v1,!! nonsense v2,{0} {one}", &one[3..])), Ok(()));
        let padded = |before: usize| format!("{}{one}", "v1,AAAA ".repeat(before));
        assert_eq!(tried(&[&old], &padded(MAX_SIGNATURES - 1)), Ok(()));
        assert_eq!(tried(&[&old], &padded(MAX_SIGNATURES)), Err(BadSignature::Mismatch));
        for header in
            ["", " ", "v1", "v1 ,AAAA", &one[3..], &format!("v2{}", &one[2..]), &format!("V{}", &one[1..])]
        {
            assert_eq!(tried(&[&old], header), Err(BadSignature::Missing), "{header:?}");
        }
        assert_eq!(tried(&[&old], "v1,"), Err(BadSignature::Mismatch));
        assert_eq!(tried(&[&old], &one[..one.len() - 1]), Err(BadSignature::Missing));
    }

    proptest! {
        #[test]
        fn signatures_are_those_of_the_standards_own_library(
            bytes in proptest::collection::vec(any::<u8>(), MIN_SECRET_BYTES..=MAX_SECRET_BYTES),
            id in "[a-zA-Z0-9_-]{1,40}",
            time in any::<i64>(),
            body in "\\PC{0,200}",
        ) {
            let secret = Secret::from_bytes(&bytes).unwrap();
            let oracle = standardwebhooks::Webhook::new(secret.to_text().expose_secret()).unwrap();
            let expected = oracle.sign(&id, time, body.as_bytes()).unwrap();
            prop_assert_eq!(sign(&[&secret], &id, time, body.as_bytes()), expected);
        }

        #[test]
        fn a_message_is_believed_by_its_secrets_and_unaltered(
            id in "[a-zA-Z0-9_-]{1,40}",
            time in any::<i64>(),
            body in proptest::collection::vec(any::<u8>(), 0..200),
            place in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let (old, new) = (secret(1), secret(2));
            let header = sign(&[&old, &new], &id, time, &body);
            let text = time.to_string();
            for known in [&old, &new] {
                prop_assert_eq!(verify(&[known], &id, &text, &header, &body, time), Ok(()));
            }
            let refused = Err(BadSignature::Mismatch);
            prop_assert_eq!(verify(&[&secret(3)], &id, &text, &header, &body, time), refused);
            prop_assert_eq!(verify(&[&old], &format!("{id}x"), &text, &header, &body, time), refused);
            let later = time.checked_add(1).unwrap_or(0);
            prop_assert_eq!(verify(&[&old], &id, &later.to_string(), &header, &body, later), refused);
            let mut altered = body.clone();
            altered.push(0);
            prop_assert_eq!(verify(&[&old], &id, &text, &header, &altered, time), refused);
            let at = place.index(altered.len());
            altered[at] ^= 1_u8 << bit;
            prop_assert_eq!(verify(&[&old], &id, &text, &header, &altered, time), refused);
        }

        #[test]
        fn whatever_else_is_shown_is_not_believed(
            header in "(v1,[A-Za-z0-9+/]{43}= ?){0,3}|\\PC{0,80}",
            text in "[0-9]{0,12}|\\PC{0,12}",
        ) {
            let answer = verify(&[&secret(1)], "id", &text, &header, b"body", 0);
            prop_assert!(answer.is_err());
            prop_assert!(text.parse::<Secret>().is_err());
        }
    }
}
