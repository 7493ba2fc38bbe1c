//! An ID of one's own, of something of another kind, is as good as one that nobody has.
//!
//! IDs of all kinds look alike, so that an app may take one for another. The walk takes each operation with a name in its path,
//! and asks with the IDs of everything else that a tenant has, as that tenant and as the operator.

use errand_testbed::factory::id;

use super::*;

/// A pin may be of any toolkit, whether somebody has heard of it or not.
const TAKE_ANY_NAME: [&str; 1] = ["setPin"];

/// The IDs of what a tenant has, by the part of the path under which they are known.
fn kinds(ids: &Ids) -> [(&'static str, Vec<&String>); 5] {
    [
        ("jobs", ids.jobs().chain([&ids.alias]).collect()),
        ("batches", ids.batches.iter().collect()),
        ("actions", ids.actions.iter().collect()),
        ("keys", vec![&ids.key, &ids.other_key]),
        ("rejected", vec![&ids.message]),
    ]
}

/// A place in each list that has pages.
fn places(ids: &Ids) -> [(&'static str, String); 8] {
    [
        ("listJobs", ids.place.clone()),
        ("listBatches", ids.batch_place.clone()),
        ("listActions", ids.action_place.clone()),
        ("listKeys", format!("k{}", ids.key)),
        ("listRejected", ids::place('r', &ids.message)),
        ("listChanges", ids.place.replacen('j', "c", 1)),
        ("listDeliveries", ids.delivery_place.clone()),
        ("listCallbacks", format!("o{}", ids.owner)),
    ]
}

impl Operation {
    /// Requests with this in place of what the path names.
    fn about(&self, named: &str, ids: &Ids) -> Vec<Asked> {
        let (_, name) = self.parameters.iter().find(|(place, _)| place == "path").unwrap();
        let path = self.path.replace(&format!("{{{name}}}"), named);
        let path = path + &ids.named_by(&self.id).unwrap_or_default();
        let bodies: Vec<Option<Value>> = if self.has_body {
            ids.bodies(&self.id).unwrap().into_iter().map(Some).collect()
        } else {
            vec![None]
        };
        bodies.into_iter().map(|body| Asked { path: path.clone(), body, header: None }).collect()
    }
}

impl World {
    /// Those who ask an operation for what is theirs.
    fn askers(&self, operation: &Operation) -> Vec<&str> {
        let tenant = (!ids::OPERATORS.contains(&&*operation.id)).then_some(&*self.ids.secret);
        tenant.into_iter().chain([&*self.operator]).collect()
    }

    async fn walk_with_other_kinds(&self) {
        let before = self.rows.all().await;
        let kinds = kinds(&self.ids);
        let mut met = BTreeSet::new();
        for operation in self.document.iter().filter(|operation| operation.is_about_one()) {
            if TAKE_ANY_NAME.contains(&&*operation.id) {
                continue;
            }
            let own = operation.path.split('/').nth(2).unwrap();
            met.insert(own);
            let others = kinds.iter().filter(|(kind, _)| *kind != own).flat_map(|(_, ids)| ids);
            for other in others {
                for secret in self.askers(operation) {
                    self.is_unknown(operation, other, secret).await;
                }
            }
            assert_eq!(
                self.rows.all().await,
                before,
                "{} with an ID of another kind changed something",
                operation.id
            );
        }
        assert!(kinds.iter().all(|(kind, _)| met.contains(kind)), "the walk has met {met:?} alone");
    }

    /// It is answered as what nobody has.
    async fn is_unknown(&self, operation: &Operation, own: &str, secret: &str) {
        let nobodys = id();
        let pairs = operation.about(own, &self.ids).into_iter().zip(operation.about(&nobodys, &self.ids));
        for (asked, unknown) in pairs {
            let Operation { id, method, .. } = operation;
            let told = self.ask(method, &asked, Some(secret)).await;
            assert_eq!(told.status, 404, "{id}: {method} {asked:?} is answered by {told:?}");
            let mut other = self.ask(method, &unknown, Some(secret)).await;
            other.body = other.body.replace(&nobodys, own);
            assert_eq!(told, other, "{id}: {asked:?} is told from {unknown:?}");
        }
    }

    /// A cursor is for the list that it is of.
    async fn cursors_are_of_one_list(&self) {
        let places = places(&self.ids);
        let has_pages = |operation: &&Operation| {
            operation.parameters.iter().any(|(place, name)| place == "query" && name == "cursor")
        };
        for operation in self.document.iter().filter(has_pages) {
            assert!(
                places.iter().any(|(list, _)| *list == operation.id),
                "{}: say in tests/it/isolation/kinds.rs what a cursor of it is",
                operation.id
            );
            for (list, cursor) in &places {
                let asked =
                    Asked { path: format!("{}?cursor={cursor}", operation.path), body: None, header: None };
                let expected = if *list == operation.id { 200 } else { 400 };
                for secret in self.askers(operation) {
                    let told = self.ask(&Method::GET, &asked, Some(secret)).await;
                    assert_eq!(told.status, expected, "{}: {asked:?}: {told:?}", operation.id);
                    assert!(expected == 200 || told.body.contains("cursor"), "{told:?}");
                }
            }
        }
    }

    /// A filter by an ID finds what has that ID among its own kind.
    async fn filters_find_nothing_of_other_kinds(&self) {
        let singular =
            BTreeMap::from([("jobs", "job"), ("batches", "batch"), ("actions", "action"), ("keys", "key")]);
        let kinds = kinds(&self.ids);
        let mut paths = Vec::new();
        for (of, ids) in &kinds {
            for id in ids {
                if *of != "batches" {
                    paths.push(format!("/v1/jobs?batch={id}"));
                }
                let others = singular.iter().filter(|(kind, _)| *kind != of);
                paths.extend(others.map(|(_, kind)| format!("/v1/audit-log?kind={kind}&id={id}")));
            }
        }
        for (of, ids) in &kinds {
            for id in ids {
                for wanted in ["job", "batch"].into_iter().filter(|wanted| singular.get(of) != Some(wanted)) {
                    let asked = Asked { path: format!("/v1/events?{wanted}={id}"), body: None, header: None };
                    for secret in [&self.ids.secret, &self.operator] {
                        let told = self.ask(&Method::GET, &asked, Some(secret)).await;
                        assert_eq!(told.status, 404, "{asked:?}: {told:?}");
                    }
                }
            }
        }
        for path in paths {
            let asked = Asked { path, body: None, header: None };
            for secret in [&self.ids.secret, &self.operator] {
                let told = self.ask(&Method::GET, &asked, Some(secret)).await;
                assert_eq!(told.status, 200, "{asked:?}: {told:?}");
                let list: Value = serde_json::from_str(&told.body).unwrap();
                assert_eq!((&list["items"], &list["next"]), (&json!([]), &Value::Null), "{asked:?}");
            }
        }
    }

    async fn takes_ids_for_what_they_are(&self) {
        self.walk_with_other_kinds().await;
        self.cursors_are_of_one_list().await;
        self.filters_find_nothing_of_other_kinds().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_id_of_another_kind_is_unknown_to_every_operation_with_postgresql() {
    let harness = Harness::new("kinds", FAULT).await;
    let rows = Rows::of_postgres(&harness.database).await;
    let world = World::new(&harness.env(), rows, async || harness.worker(&[EVENTS]).await).await;
    world.takes_ids_for_what_they_are().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_id_of_another_kind_is_unknown_to_every_operation_with_sqlite() {
    let (_folder, _sandbox, world) = World::in_sqlite().await;
    world.takes_ids_for_what_they_are().await;
}
