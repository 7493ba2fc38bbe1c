//! Reading rows of either database, by the names of their columns.

use std::{str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::value::RawValue;
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type, postgres::PgRow, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Result, StoreError, convert::to_duration};
use crate::{
    failure::chain,
    job::{Digest, Effect, Owner, OwnerKind},
    string_enum::OpenWord,
    telemetry::metrics,
};

pub(super) trait StoreRow {
    fn read<T: Readable>(&self, column: &str) -> Result<T>;

    fn time_if_any(&self, column: &str) -> Result<Option<Timestamp>>;

    fn time(&self, column: &str) -> Result<Timestamp> {
        self.time_if_any(column)?.ok_or_else(|| StoreError::corrupt(column))
    }

    /// A word of a closed choice, or a name with rules.
    fn parse<T: FromStr>(&self, column: &str) -> Result<T> {
        self.read::<String>(column)?.parse().map_err(|_| StoreError::corrupt(column))
    }

    fn parse_if_any<T: FromStr>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<String> = self.read(column)?;
        text.map(|text| text.parse().map_err(|_| StoreError::corrupt(column))).transpose()
    }

    /// A word of a choice that newer versions may widen.
    fn word<T: FromStr + OpenWord>(&self, column: &str) -> Result<T> {
        self.word_if_any(column)?.ok_or_else(|| StoreError::corrupt(column))
    }

    fn word_if_any<T: FromStr + OpenWord>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<String> = self.read(column)?;
        Ok(text.map(|text| text.parse().unwrap_or(T::UNRECOGNIZED)))
    }

    /// What repeating a call does. Of a word that a newer version has added, the most careful is assumed.
    fn effect_if_any(&self, column: &str) -> Result<Option<Effect>> {
        let text: Option<String> = self.read(column)?;
        Ok(text.map(|text| text.parse().unwrap_or(Effect::Once)))
    }

    /// A number that databases keep signed.
    fn unsigned_if_any<T: TryFrom<i32>>(&self, column: &str) -> Result<Option<T>> {
        let number: Option<i32> = self.read(column)?;
        number.map(T::try_from).transpose().map_err(|_| StoreError::corrupt(column))
    }

    fn count(&self, column: &str) -> Result<u32> {
        self.unsigned_if_any(column)?.ok_or_else(|| StoreError::corrupt(column))
    }

    /// A count of rows, or a size.
    fn total(&self, column: &str) -> Result<u64> {
        u64::try_from(self.read::<i64>(column)?).map_err(|_| StoreError::corrupt(column))
    }

    /// A span between two of the store's instants.
    fn span(&self, column: &str) -> Result<Duration> {
        self.read(column).map(to_duration)
    }

    fn span_if_any(&self, column: &str) -> Result<Option<Duration>> {
        Ok(self.read::<Option<_>>(column)?.map(to_duration))
    }

    fn millis(&self, column: &str) -> Result<Option<Duration>> {
        let millis: Option<i64> = self.read(column)?;
        let millis = millis.map(u64::try_from).transpose().map_err(|_| StoreError::corrupt(column))?;
        Ok(millis.map(Duration::from_millis))
    }

    fn json(&self, column: &str) -> Result<Option<Arc<RawValue>>> {
        let text: Option<String> = self.read(column)?;
        let json = text.map(RawValue::from_string).transpose().map_err(|_| StoreError::corrupt(column))?;
        Ok(json.map(Arc::from))
    }

    fn digest(&self) -> Result<Digest> {
        self.digest_if_any("digest")?.ok_or_else(|| StoreError::corrupt("digest"))
    }

    fn digest_if_any(&self, column: &str) -> Result<Option<Digest>> {
        let bytes: Option<Vec<u8>> = self.read(column)?;
        let digest = bytes.map(|bytes| bytes.as_slice().try_into().map(Digest));
        digest.transpose().map_err(|_| StoreError::corrupt(column))
    }

    fn owner(&self) -> Result<Owner> {
        let kind: OwnerKind = self.parse("owner_kind")?;
        Owner::known(kind, self.read::<String>("owner_id")?).map_err(|_| StoreError::corrupt("owner_id"))
    }
}

/// What those rows say that this version of errand can read. One that it cannot, such as one of a newer version, is
/// left out and must harm nobody but itself.
pub(super) fn readable<R: StoreRow, T>(rows: &[R], read: impl Fn(&R) -> Result<T>) -> Vec<T> {
    rows.iter().filter_map(|row| if_readable(row, read(row))).collect()
}

/// The same for one row.
pub(super) fn if_readable<T>(row: &impl StoreRow, read: Result<T>) -> Option<T> {
    let unreadable = |error: &StoreError| {
        metrics::UNREADABLE_ROWS.add([], 1);
        let id = row.read::<Uuid>("id").ok();
        tracing::warn!(id = id.map(tracing::field::display), error = %chain(error), "a row cannot be read, and is left as it is");
    };
    read.inspect_err(unreadable).ok()
}

impl StoreRow for PgRow {
    fn read<T: Readable>(&self, column: &str) -> Result<T> {
        Ok(self.try_get(column)?)
    }

    fn time_if_any(&self, column: &str) -> Result<Option<Timestamp>> {
        let time: Option<jiff_sqlx::Timestamp> = self.try_get(column)?;
        Ok(time.map(jiff_sqlx::Timestamp::to_jiff))
    }
}

impl StoreRow for SqliteRow {
    fn read<T: Readable>(&self, column: &str) -> Result<T> {
        Ok(self.try_get(column)?)
    }

    fn time_if_any(&self, column: &str) -> Result<Option<Timestamp>> {
        let micros: Option<i64> = self.try_get(column)?;
        micros.map(Timestamp::from_microsecond).transpose().map_err(|_| StoreError::corrupt(column))
    }
}

/// A value that both databases keep alike; they do not keep times so.
pub(super) trait Readable:
    for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite>
{
}

impl<T> Readable for T where
    T: for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite>
{
}
