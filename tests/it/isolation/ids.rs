//! What a tenant has, and what of it each operation takes.

use errand_testbed::factory::id;
use jiff::{SignedDuration, Timestamp};

use super::*;

/// Operations that only the operator's keys may use.
pub(super) const OPERATORS: [&str; 9] = [
    "listQueues",
    "showStats",
    "pauseQueue",
    "resumeQueue",
    "listWorkers",
    "listRejected",
    "showRejected",
    "showRejectedBody",
    "requeueRejected",
];

/// Operations that tell everybody the same.
pub(super) const EVERYBODYS: [&str; 1] = ["showTool"];

pub(super) fn tomorrow() -> String {
    (Timestamp::now() + SignedDuration::from_hours(24)).to_string()
}

/// The IDs of what a tenant has, or of what nobody has.
pub(super) struct Ids {
    pub(super) owner: String,
    pub(super) waiting: Vec<String>,
    pub(super) failed: String,
    pub(super) held: String,
    pub(super) done: String,
    /// Another ID of one of these.
    pub(super) alias: String,
    /// The place of one in lists.
    pub(super) place: String,
    pub(super) key: String,
    pub(super) other_key: String,
    pub(super) idempotency_key: String,
    tag: String,
    tool: String,
    /// A toolkit with a pin.
    toolkit: String,
    pub(super) message: String,
    /// Two that are open, and one that is complete and has a failed job.
    pub(super) batches: [String; 3],
    pub(super) batch_place: String,
    /// Two that are not confirmed.
    pub(super) actions: [String; 2],
    pub(super) action_place: String,
    /// The place of one of its events.
    pub(super) event_place: String,
    /// The place of its delivery.
    pub(super) delivery_place: String,
    /// A secret that is valid, and one that was revoked.
    pub(super) secret: String,
    pub(super) revoked: String,
}

impl Ids {
    /// Of nobody, but as long as those of somebody.
    pub(super) fn unknown() -> Self {
        Self {
            owner: "user:user-9".into(),
            waiting: vec![id(), id()],
            failed: id(),
            held: id(),
            done: id(),
            alias: id(),
            place: self::place('j', &id()),
            key: id(),
            other_key: id(),
            idempotency_key: "other-key".into(),
            tag: "other=tag".into(),
            tool: "OTHER_TOOL".into(),
            toolkit: "other".into(),
            message: id(),
            batches: std::array::from_fn(|_| id()),
            batch_place: self::place('b', &id()),
            actions: std::array::from_fn(|_| id()),
            action_place: self::place('a', &id()),
            event_place: "A".repeat(48),
            delivery_place: self::place('d', &id()),
            secret: String::new(),
            revoked: String::new(),
        }
    }

    /// Makes everything that a tenant can have.
    pub(super) async fn made(world: &World, worker: impl AsyncFnOnce() -> Process) -> Self {
        let (_, secret) = world.owner("enqueue,read,manage");
        let (revoked_id, revoked) = world.owner("enqueue,read,manage");
        assert!(run(&["keys", "revoke", &revoked_id], &world.env).status.success());
        let marked = |job: Value| job.with("tags", json!({MARK: "tag"})).with("requested_by", MARK);
        let (done, held) = (marked(read("user-7")), marked(send("user-7")));
        let failed = marked(job("user-7", "ZEBRA_TOOL", &json!({MARK: 1})));
        let waiting: Vec<_> = (0..2).map(|_| marked(read("user-7")).with("run_at", tomorrow())).collect();
        let keyed = waiting[0].clone().with("idempotency_key", "zebra-key");
        let again = keyed.clone().with("id", id());
        for job in [&done, &held, &waiting[1], &keyed, &again] {
            let told = world.ask(&Method::POST, &job.clone().into(), Some(&secret)).await;
            assert!([200, 201].contains(&told.status), "{told:?}");
        }
        let pin = Asked {
            path: format!("/v1/pins/{MARK}?force=true"),
            body: Some(json!({"version": "20250101_00"})),
            header: None,
        };
        assert_eq!(world.ask(&Method::PUT, &pin, Some(&secret)).await.status, 200);
        let callback = Asked {
            path: "/v1/callbacks".into(),
            body: Some(json!({"url": format!("https://{MARK}.example/hooks")})),
            header: None,
        };
        assert_eq!(world.ask(&Method::PUT, &callback, Some(&secret)).await.status, 200);
        let delivery = id();
        world.rows.deliver(&delivery).await;
        let message = id();
        world.rows.reject(&message, &marked(read("user-7")).with("id", Value::Null)).await;
        let make = async |path: &str, body: Value| {
            let asked = Asked { path: path.to_owned(), body: Some(body), header: None };
            let told = world.ask(&Method::POST, &asked, Some(&secret)).await;
            assert_eq!(told.status, 201, "{told:?}");
            let made: Value = serde_json::from_str(&told.body).unwrap();
            let at: Timestamp = made["created_at"].as_str().unwrap().parse().unwrap();
            let made = made["id"].as_str().unwrap().to_owned();
            // Cursors begin with the letter of their list.
            let place = format!("{}{}.{made}", &path["/v1/".len()..][..1], at.as_microsecond());
            (made, place)
        };
        // A batch runs those jobs again that it has enqueued itself.
        let mut batches = Vec::new();
        for (sealed, item) in [(false, &waiting[1]), (false, &waiting[1]), (true, &failed)] {
            batches.push(make("/v1/batches", json!({"sealed": sealed, "items": [item]})).await);
        }
        let process = worker().await;
        for (job, state) in [(&done, "succeeded"), (&held, "held"), (&failed, "failed")] {
            let path = format!("/v1/jobs/{}", job.id());
            until(state, PATIENCE, async || {
                let request = world.api.request(Method::GET, &path).bearer_auth(&secret);
                let found: Value = request.send().await.ok()?.json().await.ok()?;
                (found["state"] == state).then_some(())
            })
            .await;
        }
        let complete = format!("/v1/batches/{}", batches[2].0);
        until("a complete batch", PATIENCE, async || {
            let request = world.api.request(Method::GET, &complete).bearer_auth(&secret);
            let found: Value = request.send().await.ok()?.json().await.ok()?;
            found["completed_at"].is_string().then_some(())
        })
        .await;
        let mut process = process;
        assert!(process.stop().await.success());
        let place = async |path: &str| {
            let list = Asked { path: format!("{path}?limit=1"), body: None, header: None };
            let list = world.ask(&Method::GET, &list, Some(&secret)).await;
            serde_json::from_str::<Value>(&list.body).unwrap()["next"].as_str().unwrap().to_owned()
        };
        let (place, delivery_place) = (place("/v1/jobs").await, place("/v1/deliveries").await);
        assert!(delivery_place.ends_with(&delivery), "{delivery_place}");
        let events = Asked { path: "/v1/events".into(), body: None, header: None };
        let events = world.ask(&Method::GET, &events, Some(&secret)).await;
        let events = serde_json::from_str::<Value>(&events.body).unwrap();
        let event_place = events["items"][0]["cursor"].as_str().unwrap().to_owned();
        let text = |job: &Value| job.id().to_owned();
        let cancel = json!({"action": "cancel", "filter": {"tool": "ZEBRA_TOOL", "state": "scheduled"}});
        let [first, second] = [make("/v1/actions", cancel.clone()).await, make("/v1/actions", cancel).await];
        let batch_place = batches[2].1.clone();
        Self {
            owner: OWNER.into(),
            waiting: waiting.iter().map(text).collect(),
            failed: text(&failed),
            held: text(&held),
            done: text(&done),
            alias: text(&again),
            place,
            key: world.owner("manage").0,
            other_key: world.owner("manage").0,
            idempotency_key: "zebra-key".into(),
            tag: "zebra=tag".into(),
            tool: "ZEBRA_TOOL".into(),
            toolkit: MARK.into(),
            message,
            batches: batches.into_iter().map(|(id, _)| id).collect::<Vec<_>>().try_into().unwrap(),
            batch_place,
            actions: [first.0, second.0],
            action_place: second.1,
            event_place,
            delivery_place,
            secret,
            revoked,
        }
    }

    /// The IDs of its jobs.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &String> {
        self.waiting.iter().chain([&self.failed, &self.held, &self.done])
    }

    /// All words that tell of it.
    pub(super) fn all(&self) -> impl Iterator<Item = String> {
        let own = [
            &self.alias,
            &self.place,
            &self.key,
            &self.other_key,
            &self.owner,
            &self.idempotency_key,
            &self.tag,
            &self.tool,
            &self.message,
            &self.batch_place,
            &self.action_place,
            &self.event_place,
            &self.delivery_place,
        ];
        self.jobs().chain(own).chain(&self.batches).chain(&self.actions).map(|id| id.to_lowercase())
    }

    /// Its jobs, from that one on with which an operation succeeds.
    fn jobs_from(&self, first: &str) -> Vec<String> {
        let others = self.jobs().chain([&self.alias]).filter(|job| *job != first);
        [first.to_owned()].into_iter().chain(others.cloned()).collect()
    }

    /// The values that a parameter of an operation is tried with.
    pub(super) fn values(&self, operation: &str, name: &str) -> Option<Vec<String>> {
        let one = |value: &str| Some(vec![value.to_owned()]);
        match (operation, name) {
            ("showJob" | "listAttempts" | "listHistory", "id") => Some(self.jobs_from(&self.done)),
            ("editJob", "id") => Some(self.jobs_from(&self.waiting[1])),
            ("editJob" | "cancelJob" | "retryJob" | "releaseJob", "If-Match") => one("*"),
            ("cancelJob", "id") => Some(self.jobs_from(&self.waiting[0])),
            ("retryJob", "id") => Some(self.jobs_from(&self.failed)),
            ("releaseJob", "id") => Some(self.jobs_from(&self.held)),
            ("showKey" | "rotateKey", "id") => one(&self.key),
            ("revokeKey", "id") => one(&self.other_key),
            ("listKeys", "cursor") => one(&format!("k{}", self.key)),
            ("listJobs", "cursor") => one(&self.place),
            ("showBatch" | "listBatchItems" | "addBatchItems" | "sealBatch", "id") => one(&self.batches[0]),
            ("cancelBatch", "id") => one(&self.batches[1]),
            ("retryBatch", "id") => one(&self.batches[2]),
            ("listBatches", "cursor") => one(&self.batch_place),
            ("listBatchItems" | "addBatchItems", "from") => one("1"),
            ("listJobs", "batch") => one(&self.batches[0]),
            ("listChanges", "kind") => one("key"),
            ("listChanges", "id") => one(&self.key),
            ("listChanges", "by") => one(&format!("key {}", self.key)),
            ("listChanges", "since") => one("2020-01-01T00:00:00Z"),
            ("listChanges", "until") => one("2099-01-01T00:00:00Z"),
            ("listChanges", "cursor") => one(&self.place.replacen('j', "c", 1)),
            ("showAction" | "confirmAction", "id") => one(&self.actions[0]),
            ("abortAction", "id") => one(&self.actions[1]),
            ("listActions", "cursor") => one(&self.action_place),
            ("enqueueJob" | "createBatch" | "createAction", "Idempotency-Key") => one(&self.idempotency_key),
            ("enqueueJob", "traceparent") => one("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("enqueueJob", "dry_run") => Some(["true", "false"].map(str::to_owned).into()),
            ("setPin", "force") => one("true"),
            (_, "owner") => one(&self.owner),
            (_, "tag") => one(&self.tag),
            (_, "tool") => one(&self.tool),
            ("listJobs", "toolkit") => one("github"),
            ("listJobs", "version") => one("20251027_00"),
            ("listJobs", "state") => one("held"),
            ("listJobs", "queue") => one("default"),
            ("listJobs", "since") => one("2020-01-01T00:00:00Z"),
            ("listJobs", "until") => one("2099-01-01T00:00:00Z"),
            ("listJobs", "error_kind") => one("unknown_tool"),
            ("listJobs", "held_reason") => one("unknown_outcome"),
            ("listJobs", "outcome_unknown") => one("true"),
            ("listJobs", "effect") => one("once"),
            ("setPin" | "removePin", "toolkit") => one(&self.toolkit),
            ("showRejected" | "showRejectedBody" | "requeueRejected", "id") => one(&self.message),
            ("showRejectedBody", "corrected") => one("false"),
            ("listRejected", "cursor") => one(&place('r', &self.message)),
            ("listRejected", "reason") => one("no_id"),
            ("listRejected", "job") => one(&self.message),
            ("showTool", "slug") => one("GITHUB_GET_REPO"),
            ("showTool", "version") => one("20251027_00"),
            ("listEvents", "job") => Some(self.jobs_from(&self.done)),
            ("listEvents", "batch") => Some(self.batches.to_vec()),
            ("listEvents", "after" | "Last-Event-ID") => one(&self.event_place),
            ("listCallbacks", "cursor") => one(&format!("o{}", self.owner)),
            ("listDeliveries", "cursor") => one(&self.delivery_place),
            ("listDeliveries", "state") => one("failed"),
            ("listAccounts", "toolkit") => one("github"),
            ("listRejected", "since") => one("2020-01-01T00:00:00Z"),
            ("listRejected", "until") => one("2099-01-01T00:00:00Z"),
            ("listRejected", "queue") => one("default"),
            // Queues are nobody's.
            ("pauseQueue" | "resumeQueue", "name") => one("bulk"),
            (_, "fields") => one("arguments,text,result"),
            (_, "limit") => one("500"),
            (_, "wait") => one("1"),
            (_, "Prefer") => one("wait=1"),
            _ => None,
        }
    }

    /// The bodies that an operation is tried with.
    pub(super) fn bodies(&self, operation: &str) -> Option<Vec<Value>> {
        let owner = self.owner.strip_prefix("user:").unwrap();
        Some(match operation {
            "enqueueJob" => vec![job(owner, "GITHUB_GET_REPO", &json!({}))],
            "cancelJob" | "revokeKey" | "sealBatch" | "cancelBatch" | "abortAction" => vec![json!({})],
            "createBatch" => {
                let items = json!([job(owner, "GITHUB_GET_REPO", &json!({}))]);
                vec![json!({"user_id": owner, "items": items}), json!({"items": items})]
            }
            "addBatchItems" => vec![job(owner, "GITHUB_GET_REPO", &json!({}))],
            "retryBatch" | "confirmAction" => vec![json!({"force": true})],
            "createAction" => vec![json!({"action": "prune", "filter": {"owner": self.owner}})],
            "editJob" => {
                vec![json!({"priority": 9, "queue": "bulk", "run_at": null, "expires_at": tomorrow()})]
            }
            "setPin" => vec![json!({"version": "20250101_01"})],
            "requeueRejected" => vec![json!({"without_reply": true})],
            "pauseQueue" => vec![json!({"reason": "because"})],
            "resumeQueue" => vec![json!({})],
            "retryJob" => vec![json!({"force": true, "now": true})],
            "releaseJob" => ["retry", "succeeded", "failed"].map(|how| json!({"how": how})).to_vec(),
            "createToken" => vec![
                json!({"job_id": self.done}),
                json!({"batch_id": self.batches[0]}),
                json!({"user_id": owner}),
            ],
            "setCallback" => vec![json!({"url": format!("https://{MARK}.example/other")})],
            "callbackSecret" => vec![json!({"replace": true, "overlap_secs": 0}), json!({})],
            "recoverCallbacks" => {
                let since = "2020-01-01T00:00:00Z";
                vec![
                    json!({"since": since, "delivered": true}),
                    json!({"since": since, "cursor": self.delivery_place}),
                ]
            }
            "createKey" => vec![json!({"user_id": owner, "scopes": ["manage"]})],
            "rotateKey" => vec![json!({"overlap_secs": 1_000})],
            _ => return None,
        })
    }

    /// The query without which an operation is about whoever asks, or about nothing.
    pub(super) fn named_by(&self, operation: &str) -> Option<String> {
        match operation {
            "setPin" => Some(format!("?force=true&owner={}", self.owner)),
            "addBatchItems" => Some("?from=1".to_owned()),
            "setCallback" | "removeCallback" | "callbackSecret" | "recoverCallbacks" => {
                Some(format!("?owner={}", self.owner))
            }
            _ => None,
        }
    }
}

pub(super) fn place(list: char, id: &str) -> String {
    format!("{list}{}.{id}", Timestamp::now().as_microsecond())
}
