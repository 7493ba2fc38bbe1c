//! What a batch takes: jobs of its own owner and of nobody else, whoever makes it.

use reqwest::RequestBuilder;

use super::*;
use crate::api::{kind, read_answer};

/// An API without a worker, and all that its database keeps.
pub(super) struct Place {
    api: Api,
    rows: Rows,
    env: Env,
    _folder: TempDir,
}

impl Place {
    pub(super) async fn new() -> Self {
        let folder = in_memory("errand-items-");
        let file = folder.path().join("errand.db");
        let env = vec![("DATABASE_URL".to_owned(), format!("sqlite://{}", file.display()))];
        assert!(run(&["migrate"], &env).status.success());
        Self { api: Api::start(&env).await, rows: Rows::of_sqlite(&file).await, env, _folder: folder }
    }

    /// The secret of a new key with all scopes.
    pub(super) fn key(&self, whose: &[&str]) -> String {
        made(&self.env, &[whose, &["--scope", "enqueue,read,manage"]].concat()).1
    }

    pub(super) fn request(&self, method: Method, path: &str, secret: &str) -> RequestBuilder {
        self.api.request(method, path).bearer_auth(secret)
    }

    /// Sends an object as JSON, and a list as lines.
    async fn post(&self, secret: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(Method::POST, path, secret);
        let request = match body.as_array() {
            Some(list) => {
                let lines: String = list.iter().map(|line| format!("{line}\n")).collect();
                request.header("content-type", "application/x-ndjson").body(lines)
            }
            None => request.json(body),
        };
        let (status, answer) = read_answer(request.send().await.unwrap()).await;
        (status.as_u16(), answer)
    }

    /// Sends what is refused because of one part of it, and makes sure that nothing is left of it. Returns what is said of
    /// that part.
    async fn refused(&self, secret: &str, path: &str, body: &Value) -> Value {
        let before = self.rows.all().await;
        let (status, refused) = self.post(secret, path, body).await;
        assert_eq!((status, kind(&refused)), (422, "invalid-batch"), "{path} {body}: {refused}");
        let errors = refused["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{path} {body}: {refused}");
        assert_eq!(self.rows.all().await, before, "{path} {body} has left something");
        errors[0].clone()
    }

    /// Opens such a batch with one item, and returns the path for further ones.
    async fn opened(&self, secret: &str, batch: &Value) -> String {
        let batch = batch.clone().with("sealed", false).with("items", vec![own()]);
        let (status, opened) = self.post(secret, "/v1/batches", &batch).await;
        assert_eq!(status, 201, "{opened}");
        format!("/v1/batches/{}/items?from=1", opened["id"].as_str().unwrap())
    }
}

/// A job of this owner without an ID.
fn job_of(field: &str, owner: &str) -> Value {
    read("anybody").nameless().with("user_id", Value::Null).with(field, owner)
}

fn own() -> Value {
    job_of("user_id", "user-1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_no_item_line_or_follow_up_of_another_owner() {
    let place = Place::new().await;
    let (user, operator) = (place.key(&["--user", "user-1"]), place.key(&["--operator"]));
    let named = json!({"user_id": "user-1"});
    for (secret, batch) in [(&user, &json!({})), (&user, &named), (&operator, &named)] {
        let items = place.opened(secret, batch).await;
        // Another user, and an organization of the same name.
        for (field, owner) in [("user_id", "user-2"), ("org_id", "user-1")] {
            let foreign = job_of(field, owner);
            let with_item = batch.clone().with("items", vec![own(), foreign.clone()]);
            let with_follow_up = batch.clone().with("items", vec![own()]).with("follow_up", foreign.clone());
            let lines = json!([own(), foreign]);
            for (path, body, pointer) in [
                ("/v1/batches", &with_item, format!("/items/1/{field}")),
                ("/v1/batches", &with_follow_up, "/follow_up".to_owned()),
                (&*items, &lines, format!("/items/2/{field}")),
            ] {
                let error = place.refused(secret, path, body).await;
                assert_eq!(
                    (error["pointer"].as_str(), kind(&error)),
                    (Some(&*pointer), "forbidden"),
                    "{error}"
                );
            }
        }
        // What is wrong with them is their owner alone.
        let whole = batch.clone().with("items", vec![own(), own()]).with("follow_up", own());
        let (status, made) = place.post(secret, "/v1/batches", &whole).await;
        assert_eq!((status, &made["total"]), (201, &json!(2)), "{made}");
        let (status, filled) = place.post(secret, &items, &json!([own(), own()])).await;
        assert_eq!((status, &filled["total"]), (201, &json!(3)), "{filled}");
    }
}

/// Whoever forgets the owner is told so. What a key is of is no default.
#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_without_an_owner_is_not_taken_for_one_of_the_keys_owner() {
    const ASKED_FOR: &str = "give `user_id` or `org_id`";
    let place = Place::new().await;
    let user = place.key(&["--user", "user-1"]);
    let nobodys = job_of("user_id", "nobody").with("user_id", Value::Null);
    let before = place.rows.all().await;
    for path in ["/v1/jobs", "/v1/jobs?dry_run=true"] {
        let (status, refused) = place.post(&user, path, &nobodys).await;
        assert_eq!((status, kind(&refused)), (422, "invalid-job"), "{path}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(ASKED_FOR), "{path}: {refused}");
    }
    assert_eq!(place.rows.all().await, before);
    let named = json!({"user_id": "user-1"});
    let items = place.opened(&user, &named).await;
    for (path, body, pointer) in [
        ("/v1/batches", named.clone().with("items", vec![own(), nobodys.clone()]), "/items/1"),
        (
            "/v1/batches",
            named.clone().with("items", vec![own()]).with("follow_up", nobodys.clone()),
            "/follow_up",
        ),
        (&*items, json!([own(), nobodys]), "/items/2"),
    ] {
        let error = place.refused(&user, path, &body).await;
        assert!(error["pointer"].as_str().unwrap().starts_with(pointer), "{error}");
        assert_eq!(kind(&error), "invalid-job", "{error}");
        assert!(error["detail"].as_str().unwrap().contains(ASKED_FOR), "{error}");
    }
    assert_eq!(place.post(&user, "/v1/jobs", &own()).await.0, 201, "with an owner it is one");
}
