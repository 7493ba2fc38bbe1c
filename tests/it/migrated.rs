//! Databases with errand's tables. They are made once and copied, because nearly every test needs one, and few are about how
//! it is made.

use std::path::Path;

use tokio::sync::OnceCell;

use crate::{
    harness::{Harness, in_memory, run, sandbox},
    support::{self, postgres::Database},
};

/// A database of the server that all tests share.
pub(crate) async fn postgres(hint: &str) -> Database {
    static ORIGINAL: OnceCell<Database> = OnceCell::const_new();
    let make = async || {
        let database = support::database("migrated").await;
        migrate(&database.url);
        database
    };
    support::copy_of(ORIGINAL.get_or_init(make).await, hint).await
}

/// Makes a file of SQLite.
pub(crate) async fn sqlite(file: &Path) {
    static ORIGINAL: OnceCell<Vec<u8>> = OnceCell::const_new();
    let make = async || {
        let folder = in_memory("errand-migrated-");
        let original = folder.path().join("errand.db");
        migrate(&format!("sqlite://{}", original.display()));
        assert!(
            !folder.path().join("errand.db-wal").exists(),
            "it is whole when the last connection is closed"
        );
        std::fs::read(original).unwrap()
    };
    std::fs::write(file, ORIGINAL.get_or_init(make).await).unwrap();
}

impl Harness {
    /// One whose database has no tables. A worker makes them when it starts, and so does `errand migrate`.
    pub(crate) async fn without_tables(hint: &str, faults: &str) -> Self {
        let (database, vhost) = tokio::join!(support::database(hint), support::vhost(hint));
        Self::of(database, vhost, sandbox(faults).await)
    }
}

fn migrate(url: &str) {
    let migrated = run(&["migrate"], &[("DATABASE_URL".to_owned(), url.to_owned())]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
}
