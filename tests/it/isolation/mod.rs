//! No tenant sees, changes or learns of what is another's, by any operation of the API that its description names.
//!
//! The walk takes each operation, with the IDs of what is a tenant's in every place where the operation takes one, and asks
//! with every kind of key that may not. An operation or a parameter of which the walk does not know what it takes is an
//! error, so that none is forgotten.

mod audit;
mod ids;
mod items;
mod kinds;
mod request_keys;
mod rows;
mod secrets;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use errand::job::BatchId;
use errand_sandbox::Running;
use errand_testbed::factory::{Envelope as _, job, read, send};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::{ids::Ids, rows::Rows};
use crate::{
    api::Api,
    harness::{Harness, PATIENCE, Process, in_memory, run, sandbox},
    store_contract::owner_lock::made_role,
    support::wait::until,
};

type Env = Vec<(String, String)>;

/// Whose things the others try to reach. Everything they have has this word in it.
const OWNER: &str = "user:user-7";
const MARK: &str = "zebra";

/// Their call is lost, so that nobody knows its outcome.
const FAULT: &str =
    "[[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nafter_effect = false\nfirst = 100\n";

/// What is recorded is read.
const EVENTS: (&str, &str) = ("ERRAND__EVENTS__RECORD", "all");

/// A URL may be set. Nothing is sent there, because the workers know nothing of it.
const CALLBACKS: (&str, &str) = ("ERRAND__CALLBACKS__ENABLED", "true");

const SCOPES: [&str; 3] = ["enqueue", "read", "manage"];

/// One operation of the description.
struct Operation {
    id: String,
    method: Method,
    path: String,
    /// Where each parameter is, and its name.
    parameters: Vec<(String, String)>,
    has_body: bool,
    scopes: Vec<String>,
}

impl Operation {
    fn all(document: &Value) -> Vec<Self> {
        let mut all = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let id = text(&operation["operationId"]);
                let said = operation["security"][0].as_object();
                let said = said.unwrap_or_else(|| panic!("{id} does not say whether it needs a key"));
                let scopes: Vec<_> = said.values().flat_map(|scopes| scopes.as_array().unwrap()).collect();
                assert_eq!(scopes.is_empty(), !path.starts_with("/v1/"), "{id} needs {scopes:?}");
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                all.push(Self {
                    method: method.to_uppercase().parse().unwrap(),
                    path: path.clone(),
                    parameters: parameters.map(|one| (text(&one["in"]), text(&one["name"]))).collect(),
                    has_body: operation.get("requestBody").is_some(),
                    scopes: scopes.into_iter().map(text).collect(),
                    id,
                });
            }
        }
        all
    }

    /// Requests with IDs of one tenant: the first is one with which the tenant succeeds, where the operation is for tenants.
    fn requests(&self, ids: &Ids) -> Vec<Asked> {
        let values = |name: &str| {
            ids.values(&self.id, name).unwrap_or_else(|| {
                panic!("{}: say in tests/it/isolation/ids.rs what `{name}` takes", self.id)
            })
        };
        let bodies = match (self.has_body, ids.bodies(&self.id)) {
            (true, None) => panic!("{}: say in tests/it/isolation/ids.rs what its body takes", self.id),
            (true, Some(bodies)) => bodies.into_iter().map(Some).collect(),
            (false, _) => vec![None],
        };
        let mut paths = vec![self.path.clone()];
        let in_place = |place: &'static str| {
            self.parameters.iter().filter(move |(of, _)| of == place).map(|(_, name)| name)
        };
        for name in in_place("path") {
            let filled = |path: &String| {
                values(name)
                    .into_iter()
                    .map(|value| path.replace(&format!("{{{name}}}"), &value))
                    .collect::<Vec<_>>()
            };
            paths = paths.iter().flat_map(filled).collect();
        }
        let mut requests = Vec::new();
        let own = ids.named_by(&self.id).unwrap_or_default();
        for (place, path) in paths.iter().enumerate() {
            for (nth, body) in bodies.iter().enumerate() {
                let plain = Asked { path: format!("{path}{own}"), body: body.clone(), header: None };
                requests.push(plain.clone());
                if (place, nth) != (0, 0) {
                    continue;
                }
                let joint = if own.is_empty() { '?' } else { '&' };
                for name in in_place("query").filter(|name| !own.contains(&format!("{name}="))) {
                    requests.extend(values(name).into_iter().map(|value| {
                        let value: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
                        Asked { path: format!("{path}{own}{joint}{name}={value}"), ..plain.clone() }
                    }));
                }
                for name in in_place("header") {
                    let with = |value| Asked { header: Some((name.clone(), value)), ..plain.clone() };
                    requests.extend(values(name).into_iter().map(with));
                }
            }
        }
        requests
    }

    /// Whether it names one thing, which is there for some and not for others.
    fn is_about_one(&self) -> bool {
        self.parameters.iter().any(|(place, _)| place == "path")
    }

    /// Whether this is how somebody is answered who may do that, but not with what is another tenant's.
    fn is_refused_to_others(&self, asked: &Asked, told: &Told) -> bool {
        // A list is one of their own things, and no error.
        let is_own = self.method == Method::GET && !self.is_about_one();
        let may_be_told = is_own || ids::EVERYBODYS.contains(&&*self.id);
        let is_named = self.is_about_one() && !ids::OPERATORS.contains(&&*self.id);
        let has_owner = |body: &Value| body.get("user_id").is_some();
        let refusals: &[u16] = if is_named && !asked.path.contains("owner=") {
            // What has an ID is not there for them. That another owner is not theirs, they know by themselves.
            &[404]
        } else if self.id == "createBatch" && !asked.body.as_ref().is_some_and(has_owner) {
            // The batch is their own, and its items are not.
            &[422]
        } else if self.id == "listEvents" && (asked.header.is_some() || asked.path.contains("after=")) {
            // What is told to another is nothing to them.
            &[400]
        } else {
            &[403, 404]
        };
        refusals.contains(&told.status) || may_be_told && told.status == 200
    }
}

#[derive(Debug, Clone)]
struct Asked {
    path: String,
    body: Option<Value>,
    header: Option<(String, String)>,
}

/// An answer, with every ID of the request replaced, so that what is left does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

/// A database with an API and two tenants, of whom one has everything that a tenant can have.
struct World {
    env: Env,
    api: Api,
    rows: Rows,
    document: Vec<Operation>,
    /// Secrets of the operator.
    operator: String,
    /// Of the other tenants: a user, and an organization of the same name as the first tenant.
    others: Vec<String>,
    ids: Ids,
}

impl World {
    /// Of a database that is migrated; `worker` runs jobs in it as long as it lives.
    async fn new(env: &Env, rows: Rows, worker: impl AsyncFnOnce() -> Process) -> Self {
        let mut env = env.clone();
        env.extend([EVENTS, CALLBACKS].map(|(name, value)| (name.to_owned(), value.to_owned())));
        let env = &env;
        let api = Api::start(env).await;
        let all = "enqueue,read,manage";
        let operator = made(env, &["--operator", "--scope", all]).1;
        let user = made(env, &["--user", "user-8", "--scope", all]).1;
        let org = made(env, &["--org", "user-7", "--scope", all]).1;
        let document: Value = api.get("/openapi.json").await.1;
        let (document, ids) = (Operation::all(&document), Ids::unknown());
        let mut world =
            Self { env: env.clone(), api, rows, document, operator, others: vec![user, org], ids };
        for owner in ["user_id", "org_id"] {
            let id = if owner == "user_id" { "user-8" } else { "user-7" };
            let later =
                json!({owner: id, "tool": "GITHUB_GET_REPO", "arguments": {}, "run_at": ids::tomorrow()});
            assert_eq!(
                world.ask(&Method::POST, &later.clone().into(), Some(&world.operator)).await.status,
                201
            );
        }
        let before = world.lists().await;
        world.ids = Ids::made(&world, worker).await;
        assert_eq!(before, world.lists().await, "lists are as if the other tenant did not exist");
        world
    }

    /// In a SQLite file, with the folder and the tool API that it needs.
    async fn in_sqlite() -> (TempDir, Running, Self) {
        let (folder, sandbox) = (in_memory("errand-isolation-"), sandbox(FAULT).await);
        let data = folder.path().to_str().unwrap().to_owned();
        let file = folder.path().join("errand.db");
        let env: Env = [
            ("DATABASE_URL", format!("sqlite://{}", file.display())),
            ("COMPOSIO_BASE_URL", sandbox.base_url()),
            ("COMPOSIO_API_KEY", "ak_test_good".into()),
            ("ERRAND__VERIFY__ENABLED", "false".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        assert!(run(&["migrate"], &env).status.success());
        let args =
            ["dev", "--real", "--data", &data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
        let own = env.iter().filter(|(name, _)| name != "DATABASE_URL").cloned().collect::<Env>();
        let world = Self::new(&env, Rows::of_sqlite(&file).await, async || Process::start(&args, &own)).await;
        (folder, sandbox, world)
    }

    /// What the others are told where nothing is named.
    async fn lists(&self) -> Vec<Told> {
        let mut told = Vec::new();
        for operation in &self.document {
            if operation.method != Method::GET || operation.is_about_one() || operation.scopes.is_empty() {
                continue;
            }
            for secret in &self.others {
                let asked = Asked { path: operation.path.clone(), body: None, header: None };
                told.push(self.ask(&Method::GET, &asked, Some(secret)).await);
            }
        }
        told
    }

    async fn ask(&self, method: &Method, asked: &Asked, secret: Option<&str>) -> Told {
        let mut request = self.api.request(method.clone(), &asked.path);
        if let Some(secret) = secret {
            request = request.bearer_auth(secret);
        }
        if let Some((name, value)) = &asked.header {
            request = request.header(name, value);
        }
        if let Some(body) = &asked.body {
            if asked.path.contains("/items") {
                request = request.header("content-type", "application/x-ndjson");
            }
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let headers = answer.headers().iter().filter(|(name, _)| *name != "date");
        let mut headers: BTreeMap<_, _> =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let mut body = answer.text().await.unwrap();
        // The time that a list goes back depends on when it is asked for.
        if let Some((list, _)) = body.split_once(",\"window\":{") {
            body = format!("{list}}}");
            headers.remove("content-length");
        }
        // Where events go on moves with those of all, so that it is another text each time.
        if asked.path.starts_with("/v1/events")
            && let Some((list, _)) = body.split_once(",\"next\":")
        {
            body = format!("{list}}}");
        }
        Told { status, headers, body }
    }

    /// Asks for what is `of` a tenant, who must not be told of in the answer.
    async fn ask_about(&self, method: &Method, asked: &Asked, of: &Ids, secret: Option<&str>) -> Told {
        let mut told = self.ask(method, asked, secret).await;
        let said = format!("{asked:?}");
        for id in of.all().filter(|id| said.contains(id.as_str())) {
            told.body = told.body.replace(&id, "ID");
        }
        let all = format!("{told:?}").to_lowercase();
        for theirs in self.ids.all() {
            assert!(!all.contains(theirs.as_str()), "{method} {asked:?} tells of {theirs}: {told:?}");
        }
        assert!(!all.contains(MARK), "{method} {asked:?} tells of {MARK}: {told:?}");
        told
    }

    /// Asks for the tenant's things as somebody who may not.
    async fn refuses(
        &self,
        operation: &Operation,
        secret: Option<&str>,
        expected: impl Fn(&Asked, &Told) -> bool,
    ) {
        let unknown = Ids::unknown();
        let pairs = operation.requests(&self.ids).into_iter().zip(operation.requests(&unknown));
        for (theirs, nobodys) in pairs {
            let Operation { id, method, .. } = operation;
            let told = self.ask_about(method, &theirs, &self.ids, secret).await;
            assert!(expected(&theirs, &told), "{id}: {method} {theirs:?} is answered by {told:?}");
            let other = self.ask_about(method, &nobodys, &unknown, secret).await;
            assert_eq!(told, other, "{id}: {theirs:?} is told from {nobodys:?}");
        }
    }

    /// A secret of the tenant for these scopes.
    fn owner(&self, scopes: &str) -> (String, String) {
        made(&self.env, &["--user", "user-7", "--scope", scopes])
    }

    async fn walk(&self) {
        let before = self.rows.all().await;
        let unchanged =
            async |what: &str| assert_eq!(self.rows.all().await, before, "{what} changed something");
        for operation in self.document.iter().filter(|operation| !operation.scopes.is_empty()) {
            let name = &operation.id;
            for secret in &self.others {
                let refused = |asked: &Asked, told: &Told| operation.is_refused_to_others(asked, told);
                self.refuses(operation, Some(secret), refused).await;
                unchanged(&format!("{name} of another tenant")).await;
            }
            self.refuses(operation, None, |_, told| told.status == 401).await;
            self.refuses(operation, Some(&self.ids.revoked), |_, told| told.status == 401).await;
            unchanged(&format!("{name} without a valid key")).await;
        }
        self.walk_with_tokens().await;
        unchanged("a token").await;
        self.walk_without_scopes().await;
        // Guesses are slowed down after some.
        let mut altered = self.ids.secret.clone();
        let last = altered.pop();
        altered.push(if last == Some('0') { '1' } else { '0' });
        for operation in self.document.iter().filter(|operation| !operation.scopes.is_empty()) {
            let refused = |told: &Told| told.status == 401 || told.status == 429;
            self.refuses_the_first(operation, &altered, refused).await;
        }
    }

    async fn refuses_the_first(&self, operation: &Operation, secret: &str, expected: impl Fn(&Told) -> bool) {
        let asked = &operation.requests(&self.ids)[0];
        let told = self.ask(&operation.method, asked, Some(secret)).await;
        assert!(expected(&told), "{}: {asked:?} is answered by {told:?}", operation.id);
    }

    /// Each scope that an operation names is needed, and no other is. That ends with what the operation is for.
    async fn walk_without_scopes(&self) {
        let mut keys = BTreeMap::new();
        for wanted in 1..8 {
            let scopes = SCOPES.iter().enumerate().filter(|(place, _)| wanted & (1 << place) != 0);
            let scopes: Vec<&str> = scopes.map(|(_, scope)| *scope).collect();
            let operator = made(&self.env, &["--operator", "--scope", &scopes.join(",")]).1;
            keys.insert(scopes.join(","), (self.owner(&scopes.join(",")).1, operator));
        }
        let before = self.rows.all().await;
        let needing = |operation: &Operation, but: &str| {
            let scopes = SCOPES.iter().filter(|scope| **scope != but);
            scopes
                .filter(|scope| !but.is_empty() || operation.scopes.iter().any(|needed| needed == *scope))
                .copied()
                .collect::<Vec<_>>()
        };
        for operation in self.document.iter().filter(|operation| !operation.scopes.is_empty()) {
            for scope in &operation.scopes {
                let (owner, operator) = &keys[&needing(operation, scope).join(",")];
                for secret in [owner, operator] {
                    self.refuses(operation, Some(secret), |_, told| told.status == 403).await;
                }
            }
            assert_eq!(self.rows.all().await, before, "{} without its scope changed something", operation.id);
        }
        for operation in self.document.iter().filter(|operation| !operation.scopes.is_empty()) {
            let (owner, operator) = &keys[&needing(operation, "").join(",")];
            let secret = if ids::OPERATORS.contains(&&*operation.id) { operator } else { owner };
            let asked = &operation.requests(&self.ids)[0];
            let told = self.ask(&operation.method, asked, Some(secret)).await;
            assert!((200..300).contains(&told.status), "{}: {asked:?} is answered by {told:?}", operation.id);
            if secret == operator {
                self.refuses_the_first(operation, owner, |told| told.status == 403 || told.status == 404)
                    .await;
            }
        }
    }

    /// A new job with an ID or a key that a foreign job has.
    async fn names_that_are_taken(&self) {
        let theirs: BTreeSet<_> = self.rows.of(&self.ids).await;
        let user = &self.others[0];
        let own = job("user-8", "GITHUB_GET_REPO", &json!({}));
        let enqueue = async |job: Value| self.ask(&Method::POST, &job.into(), Some(user)).await;
        assert_eq!(enqueue(own.clone()).await.status, 201);
        let conflict = enqueue(own.clone().with("priority", 5)).await;
        assert_eq!(conflict.status, 422);
        for id in self.ids.jobs() {
            assert_eq!(
                enqueue(read("user-8").with("id", id.as_str())).await,
                conflict,
                "as of one's own job"
            );
        }
        // Whoever guesses the key of a batch could work out the IDs of its items, and is not told whether it is there.
        let derived = async |batch: &str| {
            let item = batch.parse::<BatchId>().unwrap().item(0).to_string();
            enqueue(read("user-8").with("id", item.as_str())).await
        };
        let refused = derived(&self.ids.batches[0]).await;
        assert_eq!((refused.status, &refused), (422, &derived(&BatchId::new().to_string()).await));
        let key = self.ids.idempotency_key.as_str();
        let keyed = enqueue(read("user-8").with("idempotency_key", key)).await;
        assert_eq!(keyed.status, 201, "the key of another owner is another key: {keyed:?}");
        let after = self.rows.of(&self.ids).await;
        let changed: Vec<_> = theirs.symmetric_difference(&after).collect();
        assert!(changed.is_empty(), "{changed:#?}");
    }
}

impl From<Value> for Asked {
    fn from(job: Value) -> Self {
        Self { path: "/v1/jobs".to_owned(), body: Some(job), header: None }
    }
}

/// The ID and the secret of a key that the command line makes.
fn made(env: &[(String, String)], args: &[&str]) -> (String, String) {
    let output = run(&[&["keys", "create", "--json"], args].concat(), env);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |name: &str| key[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_tells_or_changes_what_is_anothers_with_postgresql() {
    let harness = Harness::new("isolation", FAULT).await;
    assert!(harness.errand(&["migrate"]).status.success());
    let rows = Rows::of_postgres(&harness.database).await;
    let world = World::new(&harness.env(), rows, async || harness.worker(&[EVENTS]).await).await;
    world.walk().await;
    world.names_that_are_taken().await;
}

/// With the second lock between owners the same holds, and owners reach as much.
#[tokio::test(flavor = "multi_thread")]
async fn no_operation_tells_or_changes_what_is_anothers_behind_the_second_lock() {
    let harness = Harness::new("locked", FAULT).await;
    let role = made_role(&harness.database).await;
    let setting = ("ERRAND__STORE__TENANT_ROLE", role.as_str());
    let mut env = harness.env();
    env.push((setting.0.to_owned(), setting.1.to_owned()));
    assert!(run(&["migrate"], &env).status.success());
    let rows = Rows::of_postgres(&harness.database).await;
    let world = World::new(&env, rows, async || harness.worker(&[setting, EVENTS]).await).await;
    world.walk().await;
    world.names_that_are_taken().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_tells_or_changes_what_is_anothers_with_sqlite() {
    let (_folder, _sandbox, world) = World::in_sqlite().await;
    world.walk().await;
    world.names_that_are_taken().await;
}
