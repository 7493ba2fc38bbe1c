//! What each operation changes is in the audit log.

use errand::access::Shown;

use super::*;

/// Operations of which the audit log does not tell, with the reason.
const NOT_TOLD: [(&str, &str); 6] = [
    ("enqueueJob", "a new job tells of itself"),
    ("createBatch", "a new batch and its jobs tell of themselves"),
    ("addBatchItems", "the jobs tell of themselves"),
    ("sealBatch", "the batch tells that all its items have come"),
    ("createToken", "a token is not stored, and with it events of its maker's are read"),
    ("createAction", "a preview changes nothing, and its confirmation is told"),
];

impl World {
    /// All entries, the newest first.
    async fn entries(&self) -> Vec<Value> {
        let list = Asked { path: "/v1/audit-log?limit=500".to_owned(), body: None, header: None };
        let told = self.ask(&Method::GET, &list, Some(&self.operator)).await;
        assert_eq!(told.status, 200, "{told:?}");
        let page: Value = serde_json::from_str(&told.body).unwrap();
        assert_eq!(page["next"], Value::Null, "there are more");
        page["items"].as_array().unwrap().clone()
    }

    /// Carries each operation out that changes something, as who may.
    async fn each_change_is_told(&self) {
        let mut not_told = BTreeMap::from(NOT_TOLD);
        for operation in &self.document {
            let id = &*operation.id;
            if operation.method == Method::GET || operation.scopes.is_empty() {
                continue;
            }
            let is_operators = ids::OPERATORS.contains(&id);
            let secret = if is_operators { &self.operator } else { &self.ids.secret };
            let asked = &operation.requests(&self.ids)[0];
            let before = self.entries().await.len();
            let told = self.ask(&operation.method, asked, Some(secret)).await;
            assert!((200..300).contains(&told.status), "{id}: {asked:?} is answered by {told:?}");
            let entries = self.entries().await;
            let new = &entries[..entries.len() - before];
            if let Some(why) = not_told.remove(id) {
                assert!(new.is_empty(), "{id} is to have no entry, because {why}: {new:?}");
                continue;
            }
            let [entry] = new else { panic!("{id} has these entries, and not one: {new:?}") };
            let by = format!("key {}", Shown::read(secret).unwrap().id);
            assert_eq!((&entry["by"], &entry["from"]), (&json!(by), &json!("127.0.0.1")), "{id}: {entry}");
            assert_eq!(entry["as_operator"], is_operators, "{id}: {entry}");
            let object = entry["object"].as_str().unwrap();
            let names = |text: &str| text.contains(object);
            assert!(names(&asked.path) || names(&told.body), "{id} is about something else: {entry}");
        }
        assert!(not_told.is_empty(), "these are no operations that change something: {not_told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_that_changes_something_has_its_entry_or_a_reason_why_not() {
    let (_folder, _sandbox, world) = World::in_sqlite().await;
    world.each_change_is_told().await;
}
