//! Temporary.
use super::StoreErrorKind;
use sqlx::postgres::PgDatabaseError;
pub(super) fn kind_of(_: &PgDatabaseError) -> StoreErrorKind {
    StoreErrorKind::Unavailable
}
