//! Identifiers. Each is its own type, so that one cannot stand in for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Owner, Principal};

/// A text that is no UUID. Continues a sentence that begins with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a UUID such as 0190b0a0-0000-7000-8000-000000000001")]
pub struct IdError;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new ID that sorts by time of creation (UUIDv7).
            #[expect(clippy::new_without_default, reason = "a fresh ID is not a default value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text).map(Self).map_err(|_| IdError)
            }
        }
    };
}

uuid_newtype! {
    /// Names one job; the key that de-duplicates it. Apps may supply any UUID, so nothing may
    /// assume that job IDs are ordered.
    JobId
}
uuid_newtype! {
    /// Names one attempt towards the tool API (`x-request-id`).
    RequestId
}
uuid_newtype! {
    /// Names one worker process, fresh at every start.
    WorkerId
}

uuid_newtype! {
    /// Names a batch of jobs.
    BatchId
}

/// The namespace for job IDs that are derived from an AMQP `message_id`.
const MESSAGE_ID_NAMESPACE: Uuid = Uuid::from_u128(0x6a8f_2f0e_3f57_5c44_9d7e_6572_7261_6e64);

/// The namespace for batch IDs that are derived from an `Idempotency-Key`.
const BATCH_KEY_NAMESPACE: Uuid = Uuid::from_u128(0x1f0c_52d7_9a3e_5b61_8c4d_6572_7261_6e64);

impl JobId {
    /// Whether it is of the version of UUIDs that errand keeps for the jobs of batches (UUIDv8).
    pub fn is_derived(self) -> bool {
        self.0.get_version_num() == 8
    }

    /// The job ID that an AMQP `message_id` stands for: a UUID as it is, any other string as a
    /// UUIDv5 of owner and string, so that two owners' message IDs never collide.
    pub fn from_message_id(owner: &Owner, message_id: &str) -> Self {
        match Uuid::parse_str(message_id) {
            Ok(id) => Self(id),
            Err(_) => {
                let name = format!("{}\n{}\n{message_id}", owner.kind(), owner.id());
                Self(Uuid::new_v5(&MESSAGE_ID_NAMESPACE, name.as_bytes()))
            }
        }
    }
}

impl BatchId {
    /// The ID of the batch that this principal opens with this idempotency key.
    pub fn from_key(principal: &Principal, key: &str) -> Self {
        Self(Uuid::new_v5(&BATCH_KEY_NAMESPACE, format!("{principal}\n{key}").as_bytes()))
    }

    /// The ID of an item that brings none, so that the same item again is the same job.
    pub fn item(self, index: u64) -> JobId {
        self.derived(&format!("item {index}"))
    }

    /// The ID of the job that follows the completion of a generation, so that there is one at most.
    pub fn follow_up(self, generation: u32) -> JobId {
        self.derived(&format!("follow-up {generation}"))
    }

    /// Whoever guesses the idempotency key of a batch can work out these IDs, too, so they are of a version that nobody may
    /// give to a job ([`JobId::is_derived`]): nobody can take one before the batch does, or learn that it is taken.
    fn derived(self, name: &str) -> JobId {
        let hash = Uuid::new_v5(&self.0, name.as_bytes());
        JobId(uuid::Builder::from_custom_bytes(hash.into_bytes()).into_uuid())
    }
}

/// The proof of which claim a worker holds: it grows by one with every claim of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub i64);
