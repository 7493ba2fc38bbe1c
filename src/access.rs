//! Access keys, by which apps use the HTTP API: what they allow, and how their secrets are made and recognized.
//!
//! A secret is `errand_`, the public ID of the key and 32 random bytes, in hexadecimal digits. Who has it may do what the
//! key allows. errand keeps the SHA-256 of it and nothing else: as the random part cannot be guessed, it needs no salt.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::{
    job::{Owner, Principal},
    string_enum::string_enum,
};

/// What every secret begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "errand_";

/// How many bytes there are of what nobody may guess.
pub const RANDOM_BYTES: usize = 32;

string_enum! {
    /// One thing that a key may do.
    Scope {
        /// Enqueue jobs of its owner.
        Enqueue = "enqueue",
        /// Read its owner's jobs, with their results.
        Read = "read",
        /// Cancel, retry, release and prune its owner's jobs, also by filters, and make and end keys that may do no more than itself.
        Manage = "manage",
    }
}

/// What a key may do: at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("name at least one of {}, with commas between them", Scope::WORDS.join(", "))]
pub struct NoScopes;

impl Scopes {
    /// All that there is.
    pub fn all() -> Self {
        Self(Scope::ALL.to_vec())
    }

    /// # Errors
    /// There is none.
    pub fn new(mut scopes: Vec<Scope>) -> Result<Self, NoScopes> {
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() { Err(NoScopes) } else { Ok(Self(scopes)) }
    }

    /// This one alone.
    pub fn of(scope: Scope) -> Self {
        Self(vec![scope])
    }

    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }

    /// Whether these allow nothing that the others do not.
    pub fn are_within(&self, others: &Self) -> bool {
        self.0.iter().all(|scope| others.allow(*scope))
    }

    /// In the order of [`Scope::ALL`].
    pub fn words(&self) -> Vec<&'static str> {
        self.0.iter().map(|scope| scope.as_str()).collect()
    }
}

impl fmt::Display for Scopes {
    /// `enqueue,read`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.words().join(","))
    }
}

impl FromStr for Scopes {
    type Err = NoScopes;

    fn from_str(text: &str) -> Result<Self, NoScopes> {
        let scopes = text.split(',').map(|word| word.trim().parse()).collect::<Result<_, _>>();
        Self::new(scopes.map_err(|_| NoScopes)?)
    }
}

/// The SHA-256 of a secret.
#[derive(Debug, Clone, Copy)]
pub struct SecretDigest(pub [u8; 32]);

impl SecretDigest {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Takes as long for every other digest.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A secret that somebody shows.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub id: Uuid,
    pub digest: SecretDigest,
}

impl Shown {
    /// `None` if it cannot be the secret of any key.
    pub fn read(secret: &str) -> Option<Self> {
        let (id, random) = secret.strip_prefix(PREFIX)?.split_once('_')?;
        let is_hex = random.len() == 2 * RANDOM_BYTES && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = Uuid::try_parse(id).ok().filter(|_| id.len() == 32 && is_hex)?;
        Some(Self { id, digest: SecretDigest::of(secret) })
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// The operating system gives no random bytes.
pub fn random() -> Result<[u8; RANDOM_BYTES], getrandom::Error> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random)?;
    Ok(random)
}

/// A key that is not there yet, without its secret.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub id: Uuid,
    pub digest: SecretDigest,
    /// Whose it is.
    pub principal: Principal,
    pub scopes: Scopes,
    /// How long it is valid; for ever without.
    pub valid_for: Option<Duration>,
}

impl NewKey {
    /// With its secret, which is nowhere else.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn generate(
        principal: Principal,
        scopes: Scopes,
        valid_for: Option<Duration>,
    ) -> Result<(Self, SecretString), getrandom::Error> {
        let id = Uuid::now_v7();
        let random: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret = format!("{PREFIX}{}_{random}", id.simple());
        let key = Self { id, digest: SecretDigest::of(&secret), principal, scopes, valid_for };
        Ok((key, secret.into()))
    }
}

/// A key as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    pub id: Uuid,
    pub principal: Principal,
    pub scopes: Scopes,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// The key that took its place.
    pub replaced_by: Option<Uuid>,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A key in JSON. The names are an interface.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = NewKey, description = "A key that was just made, with its secret.")]
pub struct KeyJson<'a> {
    pub id: Uuid,
    /// Of a key that was just made.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
    #[schema(value_type = Option<String>)]
    pub secret: Option<&'a SecretString>,
    /// `null` for a key of the operator.
    pub owner: Option<&'a Owner>,
    #[schema(value_type = Vec<Scope>)]
    pub scopes: Vec<&'static str>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub replaced_by: Option<Uuid>,
    pub last_used_at: Option<Timestamp>,
}

/// A secret as JSON, where it is told.
fn exposed<S: Serializer>(secret: &Option<&SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.map(|secret| secret.expose_secret()).serialize(serializer)
}

impl AccessKey {
    pub fn json(&self) -> KeyJson<'_> {
        KeyJson {
            id: self.id,
            secret: None,
            owner: self.principal.owner(),
            scopes: self.scopes.words(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            replaced_by: self.replaced_by,
            last_used_at: self.last_used_at,
        }
    }

    /// For how long it was made; `None` if for ever.
    pub fn valid_for(&self) -> Option<Duration> {
        let expires_at = self.expires_at?;
        Some(expires_at.duration_since(self.created_at).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> (NewKey, SecretString) {
        NewKey::generate(Principal::Operator, Scopes::all(), None).unwrap()
    }

    #[test]
    fn a_secret_is_recognized_and_no_other() {
        let (one, two) = (key(), key());
        let shown = |secret: &SecretString| Shown::read(secret.expose_secret()).unwrap();
        assert_eq!(shown(&one.1).id, one.0.id);
        assert!(shown(&one.1).digest.is(&one.0.digest));
        assert!(!shown(&one.1).digest.is(&two.0.digest));
        let secret = one.1.expose_secret();
        assert_eq!(secret.len(), PREFIX.len() + 32 + 1 + 64);
        // What is read as the same key is not the same secret.
        let upper = PREFIX.to_owned() + &secret[PREFIX.len()..].to_uppercase();
        assert!(!Shown::read(&upper).unwrap().digest.is(&one.0.digest));
        let debug = format!("{one:?}");
        assert!(!debug.contains(&secret[secret.len() - 64..]), "{debug}");
    }

    #[test]
    fn scopes_are_words_in_one_order() {
        assert_eq!("manage, read".parse::<Scopes>().unwrap().to_string(), "read,manage");
        assert_eq!("read,read".parse::<Scopes>().unwrap().words(), ["read"]);
        for none in ["", ",", "write", "read,write"] {
            assert!(none.parse::<Scopes>().is_err(), "{none}");
        }
        let read: Scopes = "read".parse().unwrap();
        assert!(read.are_within(&Scopes::all()) && !Scopes::all().are_within(&read));
    }

    proptest! {
        #[test]
        fn what_is_read_as_a_secret_has_all_its_parts(text in "(errand_)?([0-9a-f]{32}_)?[0-9a-f]{60,66}|\\PC{0,120}") {
            if let Some(shown) = Shown::read(&text) {
                prop_assert!(text.len() == 104 && text.starts_with(&format!("errand_{}_", shown.id.simple())), "{text}");
            }
        }
    }
}
