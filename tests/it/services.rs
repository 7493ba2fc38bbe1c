//! Tests of the fixture itself.

use sqlx::{AssertSqlSafe, Row};

use crate::support::{postgres, rabbitmq};

#[tokio::test]
async fn each_database_is_separate() {
    let shared = postgres::shared().await;
    let (one, two) = (shared.database("one").await, shared.database("one").await);
    for database in [&one, &two] {
        let mut connection = database.connect().await;
        sqlx::query(AssertSqlSafe(format!("CREATE TABLE own AS SELECT '{}' AS name", database.name)))
            .execute(&mut connection)
            .await
            .unwrap();
        let row = sqlx::query("SELECT name FROM own").fetch_one(&mut connection).await.unwrap();
        assert_eq!(row.get::<String, _>("name"), database.name);
    }
}

#[tokio::test]
async fn each_vhost_is_separate() {
    let shared = rabbitmq::shared().await;
    let vhost = shared.vhost("one").await;
    let connection = vhost.connect().await;
    connection.close(200, "done".into()).await.unwrap();
}
