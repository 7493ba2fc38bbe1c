//! What an `Idempotency-Key` belongs to: an owner, and the kind of thing that is asked for.

use super::{items::Place, *};
use crate::api::read_answer;

/// Something that is asked for with a key.
struct Wanted {
    secret: String,
    path: &'static str,
    body: Value,
}

impl Place {
    async fn keyed(&self, wanted: &Wanted) -> (u16, Value) {
        let request = self.request(Method::POST, wanted.path, &wanted.secret);
        let request = request.header("idempotency-key", "night-1").json(&wanted.body);
        let (status, answer) = read_answer(request.send().await.unwrap()).await;
        (status.as_u16(), answer)
    }

    /// The IDs of all things that a key finds under a path.
    async fn listed(&self, wanted: &Wanted) -> Vec<Value> {
        let request = self.request(Method::GET, wanted.path, &wanted.secret);
        let (status, list) = read_answer(request.send().await.unwrap()).await;
        assert_eq!(status, 200, "{list}");
        list["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_of_another_owner_or_for_another_kind_of_thing_is_another_key() {
    let place = Place::new().await;
    let mut all = Vec::new();
    for (whose, field) in [("--user", "user_id"), ("--org", "org_id")] {
        let secret = place.key(&[whose, "a"]);
        for (path, body) in [
            ("/v1/jobs", json!({field: "a", "tool": "GITHUB_GET_REPO", "arguments": {}})),
            ("/v1/batches", json!({"sealed": false})),
            ("/v1/actions", json!({"action": "cancel", "filter": {"tool": "GITHUB_NO_SUCH_TOOL"}})),
        ] {
            let wanted = Wanted { secret: secret.clone(), path, body };
            let (status, made) = place.keyed(&wanted).await;
            assert_eq!(status, 201, "{path} of {whose}: {made}");
            all.push((wanted, made["id"].clone()));
        }
    }
    let ids: BTreeSet<_> = all.iter().map(|(_, id)| id.as_str().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "{ids:?}");
    for (wanted, id) in &all {
        let (status, again) = place.keyed(wanted).await;
        assert_eq!((status, &again["id"]), (200, id), "{}: {again}", wanted.path);
        assert_eq!(place.listed(wanted).await, std::slice::from_ref(id), "{}", wanted.path);
    }
}
