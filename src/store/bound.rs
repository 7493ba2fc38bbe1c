//! A statement with its values, which knows for whom it is.

use sqlx::{Database, Encode, Error, Executor, IntoArguments, Type, query::Query};

use crate::job::Owner;

pub(super) struct Bound<DB: Database> {
    query: Query<'static, DB, <DB as Database>::Arguments>,
    owner: Option<Owner>,
}

impl<DB: Database> Bound<DB>
where
    DB::Arguments: IntoArguments<DB>,
{
    pub(super) fn new(text: &'static str) -> Self {
        Self { query: sqlx::query(text), owner: None }
    }

    pub(super) fn bind<'t, T: Encode<'t, DB> + Type<DB>>(self, value: T) -> Self {
        Self { query: self.query.bind(value), ..self }
    }

    /// The same for this owner, or for whom it was where there is none. Whoever is a parameter needs not be named again.
    pub(super) fn asked_by(self, owner: Option<&Owner>) -> Self {
        Self { owner: owner.cloned().or(self.owner), ..self }
    }

    /// The owner who asks; `None` for the operator, and for parts of errand.
    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    pub(super) async fn fetch_all<'c>(
        self,
        db: impl Executor<'c, Database = DB>,
    ) -> Result<Vec<DB::Row>, Error> {
        self.query.fetch_all(db).await
    }

    pub(super) async fn fetch_optional<'c>(
        self,
        db: impl Executor<'c, Database = DB>,
    ) -> Result<Option<DB::Row>, Error> {
        self.query.fetch_optional(db).await
    }

    pub(super) async fn fetch_one<'c>(self, db: impl Executor<'c, Database = DB>) -> Result<DB::Row, Error> {
        self.query.fetch_one(db).await
    }

    pub(super) async fn execute<'c>(
        self,
        db: impl Executor<'c, Database = DB>,
    ) -> Result<DB::QueryResult, Error> {
        self.query.execute(db).await
    }
}
