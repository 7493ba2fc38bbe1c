//! Jobs as apps write them: envelopes in JSON, for the tools and owners of the sandbox's default world.

use serde_json::{Value, json};
use uuid::Uuid;

/// An ID that no job has yet.
#[must_use]
pub fn id() -> String {
    Uuid::now_v7().to_string()
}

/// A job with an ID of its own. An owner whose ID begins with `org` is an organization.
#[must_use]
pub fn job(owner: &str, tool: &str, arguments: &Value) -> Value {
    let field = if owner.starts_with("org") { "org_id" } else { "user_id" };
    json!({"id": id(), field: owner, "tool": tool, "arguments": arguments})
}

/// A call whose arguments name its job, so that [`second_api`](crate::second_api) notices when it is mistaken for
/// another.
#[must_use]
pub fn self_naming(owner: &str, tool: &str) -> Value {
    let job = job(owner, tool, &Value::Null);
    let arguments = json!({"job": job.id()});
    job.with("arguments", arguments)
}

/// A call that only reads, so that repeating it is safe.
#[must_use]
pub fn read(owner: &str) -> Value {
    job(owner, "GITHUB_GET_REPO", &json!({"owner": "o", "repo": "r"}))
}

/// A call that counts: an e-mail.
#[must_use]
pub fn send(owner: &str) -> Value {
    let arguments = json!({"recipient_email": "ann@example.com", "subject": "s", "body": "b"});
    job(owner, "GMAIL_SEND_EMAIL", &arguments)
}

/// Another call that counts: an issue.
#[must_use]
pub fn create(owner: &str) -> Value {
    job(owner, "LINEAR_CREATE_ISSUE", &json!({"team_id": "t", "title": "x"}))
}

/// A call that counts, of an organization: a chat message.
#[must_use]
pub fn post(owner: &str) -> Value {
    job(owner, "SLACK_SEND_MESSAGE", &json!({"channel": "c", "text": "t"}))
}

/// A call that may be repeated although it changes something.
#[must_use]
pub fn update(owner: &str) -> Value {
    job(owner, "LINEAR_UPDATE_ISSUE", &json!({"issue_id": "I-1", "state": "done"}))
}

/// A call that needs no account.
#[must_use]
pub fn browse(owner: &str) -> Value {
    job(owner, "HACKERNEWS_GET_USER", &json!({"username": "pg"}))
}

/// Jobs of one kind, spread over the twenty users who have connected everything.
#[must_use]
pub fn spread(jobs: usize, kind: fn(&str) -> Value) -> Vec<Value> {
    (0..jobs).map(|n| kind(&format!("user-{}", n % 20 + 1))).collect()
}

/// An envelope that is still being written.
pub trait Envelope: Sized {
    /// With another value of a field, or with another field.
    #[must_use]
    fn with(self, field: &str, value: impl Into<Value>) -> Self;

    /// With this ID.
    #[must_use]
    fn named(self, id: &str) -> Self {
        self.with("id", id)
    }

    /// Without an ID.
    #[must_use]
    fn nameless(self) -> Self;

    /// The ID.
    ///
    /// # Panics
    /// There is none.
    fn id(&self) -> &str;
}

impl Envelope for Value {
    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self[field] = value.into();
        self
    }

    fn nameless(mut self) -> Self {
        if let Some(fields) = self.as_object_mut() {
            fields.remove("id");
        }
        self
    }

    fn id(&self) -> &str {
        self["id"].as_str().expect("the envelope has an ID")
    }
}
