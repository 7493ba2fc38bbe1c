//! Seals: texts that errand hands out and takes back, which nobody else can read, alter or make.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};

/// How many bytes a secret has, of which a seal is made.
pub const SECRET_BYTES: usize = 32;

/// How many characters the sealed text of so many bytes has.
pub const fn sealed_len(bytes: usize) -> usize {
    const TAG_LEN: usize = 16;
    ((NONCE_LEN + bytes + TAG_LEN) * 4).div_ceil(3)
}

/// Seals for one use, by a secret. Each time a content is sealed, it is another text, so that nobody can tell whether two are the
/// same.
pub struct Seal {
    sealing: LessSafeKey,
    /// Makes the nonces of this process, which are as good as random.
    nonces: hmac::Key,
    sealed: AtomicU64,
}

impl Seal {
    /// For a use, by a secret that is the same for every process, and bytes that are random in each. `None` unless the secret has
    /// [`SECRET_BYTES`] bytes.
    pub fn new(secret: &[u8], use_: &str, random: [u8; SECRET_BYTES]) -> Option<Self> {
        if secret.len() != SECRET_BYTES {
            return None;
        }
        // The keys of two uses tell nothing of each other.
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), use_.as_bytes());
        let sealing = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).ok()?);
        Some(Self { sealing, nonces: hmac::Key::new(hmac::HMAC_SHA256, &random), sealed: AtomicU64::new(0) })
    }

    /// Seals a content for somebody. It can be opened for nobody else.
    pub fn seal(&self, whose: &str, content: &[u8]) -> String {
        let count = self.sealed.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hmac::sign(&self.nonces, &count.to_be_bytes()).as_ref()[..NONCE_LEN]);
        let mut sealed = content.to_vec();
        let done = self.sealing.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(whose),
            &mut sealed,
        );
        // Only a content of more than 256 GiB is too long. What is not sealed must not leave here.
        if done.is_err() {
            return String::new();
        }
        BASE64.encode([&nonce[..], &sealed].concat())
    }

    /// The content of what was sealed for the same use and for them.
    pub fn open(&self, whose: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = BASE64.decode(sealed).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut content = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.sealing.open_in_place(nonce, Aad::from(whose), &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// By a secret of this byte, of one process.
    fn seal(secret: u8, use_: &str, process: u8) -> Seal {
        Seal::new(&[secret; SECRET_BYTES], use_, [process; SECRET_BYTES]).unwrap()
    }

    #[test]
    fn a_secret_has_one_length() {
        for bytes in [0, SECRET_BYTES - 1, SECRET_BYTES + 1] {
            assert!(Seal::new(&vec![1; bytes], "use", [1; SECRET_BYTES]).is_none());
        }
    }

    #[test]
    fn no_two_texts_are_alike_nor_in_two_processes() {
        let (one, other) = (seal(1, "use", 1), seal(1, "use", 2));
        let texts: Vec<_> = (0..1_000).flat_map(|_| [one.seal("a", b"1"), other.seal("a", b"1")]).collect();
        assert_eq!(texts.iter().map(|text| &text[..16]).collect::<HashSet<_>>().len(), texts.len());
        assert!(texts.iter().all(|text| one.open("a", text).is_some_and(|content| content == b"1")));
    }

    proptest! {
        #[test]
        fn a_content_is_opened_by_its_secret_for_its_use_for_whom_it_is_and_unaltered(
            content in proptest::collection::vec(any::<u8>(), 0..100),
            whose in "\\PC{0,20}",
            other in "\\PC{0,20}",
            place in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let sealed = seal(1, "use", 1).seal(&whose, &content);
            prop_assert_eq!(sealed.len(), sealed_len(content.len()));
            prop_assert_eq!(seal(1, "use", 2).open(&whose, &sealed), Some(content));
            prop_assert_eq!(seal(2, "use", 1).open(&whose, &sealed), None);
            prop_assert_eq!(seal(1, "another use", 1).open(&whose, &sealed), None);
            if other != whose {
                prop_assert_eq!(seal(1, "use", 1).open(&other, &sealed), None);
            }
            let mut bytes = BASE64.decode(&sealed).unwrap();
            let at = place.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(seal(1, "use", 1).open(&whose, &BASE64.encode(&bytes)), None);
            prop_assert_eq!(seal(1, "use", 1).open(&whose, &sealed[..place.index(sealed.len())]), None);
        }

        #[test]
        fn whatever_else_is_shown_opens_nothing(text in "[A-Za-z0-9_-]{0,80}|\\PC{0,80}") {
            prop_assert_eq!(seal(1, "use", 1).open("a", &text), None);
        }
    }
}
