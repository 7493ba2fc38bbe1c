//! Reading rows of either database, by the names of their columns.

use std::{str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::value::RawValue;
use sqlx::{Row as _, postgres::PgRow, sqlite::SqliteRow};
use uuid::Uuid;

use super::{StoreError, convert::to_duration};
use crate::job::{Digest, Owner, OwnerKind};

/// A row, whichever database it comes from.
pub(super) trait StoreRow {
    /// A value as it is kept.
    fn read<T: Readable>(&self, column: &str) -> Result<T, StoreError>;

    /// A word of a closed choice, or a name with rules.
    fn parse<T: FromStr>(&self, column: &str) -> Result<T, StoreError> {
        self.read::<String>(column)?.parse().map_err(|_| StoreError::corrupt(column))
    }

    fn parse_if_any<T: FromStr>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self.read(column)?;
        text.map(|text| text.parse().map_err(|_| StoreError::corrupt(column))).transpose()
    }

    /// A count, which databases keep signed.
    fn count(&self, column: &str) -> Result<u32, StoreError> {
        u32::try_from(self.read::<i32>(column)?).map_err(|_| StoreError::corrupt(column))
    }

    /// A count of rows, or a size.
    fn total(&self, column: &str) -> Result<u64, StoreError> {
        u64::try_from(self.read::<i64>(column)?).map_err(|_| StoreError::corrupt(column))
    }

    /// A span between two of the store's instants.
    fn span(&self, column: &str) -> Result<Duration, StoreError> {
        self.read(column).map(to_duration)
    }

    /// A duration of the envelope.
    fn millis(&self, column: &str) -> Result<Option<Duration>, StoreError> {
        let millis: Option<i64> = self.read(column)?;
        let millis = millis.map(u64::try_from).transpose().map_err(|_| StoreError::corrupt(column))?;
        Ok(millis.map(Duration::from_millis))
    }

    fn json(&self, column: &str) -> Result<Option<Arc<RawValue>>, StoreError> {
        let text: Option<String> = self.read(column)?;
        let json = text.map(RawValue::from_string).transpose().map_err(|_| StoreError::corrupt(column))?;
        Ok(json.map(Arc::from))
    }

    fn digest(&self) -> Result<Digest, StoreError> {
        let bytes: Vec<u8> = self.read("digest")?;
        bytes.as_slice().try_into().map(Digest).map_err(|_| StoreError::corrupt("digest"))
    }

    fn owner(&self) -> Result<Owner, StoreError> {
        let kind: OwnerKind = self.parse("owner_kind")?;
        Owner::new(kind, self.read::<String>("owner_id")?).map_err(|_| StoreError::corrupt("owner_id"))
    }
}

impl StoreRow for PgRow {
    fn read<T: Readable>(&self, column: &str) -> Result<T, StoreError> {
        T::from_postgres(self, column)
    }
}

impl StoreRow for SqliteRow {
    fn read<T: Readable>(&self, column: &str) -> Result<T, StoreError> {
        T::from_sqlite(self, column)
    }
}

/// A value that both databases keep.
pub(super) trait Readable: Sized {
    fn from_postgres(row: &PgRow, column: &str) -> Result<Self, StoreError>;
    fn from_sqlite(row: &SqliteRow, column: &str) -> Result<Self, StoreError>;
}

macro_rules! readable {
    ($($type:ty),*) => {
        $(impl Readable for $type {
            fn from_postgres(row: &PgRow, column: &str) -> Result<Self, StoreError> {
                Ok(row.try_get(column)?)
            }

            fn from_sqlite(row: &SqliteRow, column: &str) -> Result<Self, StoreError> {
                Ok(row.try_get(column)?)
            }
        })*
    };
}

readable!(Uuid, Option<Uuid>, Vec<u8>, String, Option<String>, i16, i32, Option<i32>, i64, Option<i64>, bool);

impl Readable for Option<Timestamp> {
    fn from_postgres(row: &PgRow, column: &str) -> Result<Self, StoreError> {
        let time: Option<jiff_sqlx::Timestamp> = row.try_get(column)?;
        Ok(time.map(jiff_sqlx::Timestamp::to_jiff))
    }

    fn from_sqlite(row: &SqliteRow, column: &str) -> Result<Self, StoreError> {
        let micros: Option<i64> = row.try_get(column)?;
        micros.map(Timestamp::from_microsecond).transpose().map_err(|_| StoreError::corrupt(column))
    }
}

impl Readable for Timestamp {
    fn from_postgres(row: &PgRow, column: &str) -> Result<Self, StoreError> {
        Option::from_postgres(row, column)?.ok_or_else(|| StoreError::corrupt(column))
    }

    fn from_sqlite(row: &SqliteRow, column: &str) -> Result<Self, StoreError> {
        Option::from_sqlite(row, column)?.ok_or_else(|| StoreError::corrupt(column))
    }
}
