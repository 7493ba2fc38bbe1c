//! What policies and arguments do with the queues of lanes. AMQP does not tell, so the management API is asked.

use std::{fmt, time::Duration};

use reqwest::{Client, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use url::Url;

use super::wire;
use crate::{
    failure::chain,
    http_client::client_builder,
    job::QueueName,
    queue::{BROKER_TIMEOUT, PolicyRisk, PolicyRiskKind, QueueError, QueueErrorKind},
};

/// The longest answer that is read. That about one queue has a few kilobytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Fewer members do not outlive the loss of one.
const MIN_MEMBERS: usize = 3;

/// The delivery limit of quorum queues since RabbitMQ 4 that have none of their own.
const DEFAULT_DELIVERY_LIMIT: u64 = 20;

/// No delivery limit below this is a safe one: a worker that restarts gives back what it has.
const SAFE_DELIVERY_LIMIT: u64 = 1_000_000;

/// A client of the management API, for one virtual host.
pub(super) struct Management {
    client: Client,
    root: Url,
    user: String,
    password: SecretString,
    vhost: String,
}

/// What is to know about the broker as a whole, as far as it tells.
#[derive(Debug, Clone, Copy, Default)]
struct Cluster {
    nodes: Option<usize>,
    major_version: Option<u64>,
    /// Whether there is a queue for dead letters.
    has_dead_queue: bool,
}

impl Management {
    /// Sets the client up; nothing is sent. The error quotes neither the URL nor its password.
    pub(super) fn new(url: &SecretString, vhost: &str) -> Result<Self, QueueError> {
        let unusable = || QueueError::new(QueueErrorKind::Access, "amqp.management_url is unusable");
        let mut root = Url::parse(url.expose_secret()).map_err(|_| unusable())?;
        let decoded = |text: &str| {
            // Form encoding decodes `%40` as URLs do; a plus sign would become a blank.
            let pair = format!("v={}", text.replace('+', "%2B"));
            url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned())
        };
        let user =
            decoded(root.username()).filter(|user| !user.is_empty()).unwrap_or_else(|| "guest".to_owned());
        let password = root.password().and_then(decoded).unwrap_or_else(|| "guest".to_owned());
        root.set_username("").and_then(|()| root.set_password(None)).map_err(|()| unusable())?;
        let client = client_builder(root.scheme() == "https")
            .no_proxy()
            .connect_timeout(BROKER_TIMEOUT / 2)
            .timeout(BROKER_TIMEOUT)
            .pool_idle_timeout(Duration::ZERO)
            .build()
            .map_err(|error| unusable().with_source(error))?;
        Ok(Self { client, root, user, password: password.into(), vhost: vhost.to_owned() })
    }

    /// The risks of these lanes. A queue that does not exist has none.
    pub(super) async fn risks(&self, lanes: &[&str]) -> Result<Vec<PolicyRisk>, QueueError> {
        let mut queues = Vec::new();
        for lane in lanes {
            let name = wire::queue_name(lane);
            if let Some(queue) = self.get(&["api", "queues", &self.vhost, &name]).await? {
                queues.push((name, queue));
            }
        }
        if queues.is_empty() {
            let sentence = "the management API of RabbitMQ at amqp.management_url knows none of errand's queues: check that \
                it is the one of this broker, and the path in the URL";
            return Err(QueueError::new(QueueErrorKind::Topology, sentence));
        }
        let dead = wire::queue_name(QueueName::DEAD);
        let has_dead_queue = queues.iter().any(|(name, _)| *name == dead);
        let cluster = Cluster { has_dead_queue, ..self.cluster().await? };
        Ok(queues.iter().flat_map(|(name, queue)| risks_of(name, queue, cluster)).collect())
    }

    async fn cluster(&self) -> Result<Cluster, QueueError> {
        let overview = self.get(&["api", "overview"]).await?.unwrap_or_default();
        let version = overview["rabbitmq_version"].as_str().and_then(|version| version.split('.').next());
        // A user without the tag `monitoring` is not told about nodes.
        let nodes = self.get(&["api", "nodes"]).await.ok().flatten();
        Ok(Cluster {
            nodes: nodes.and_then(|nodes| Some(nodes.as_array()?.len())),
            major_version: version.and_then(|major| major.parse().ok()),
            has_dead_queue: false,
        })
    }

    /// What is asked, with its host.
    fn name(&self) -> String {
        let (host, port) = (self.root.host_str(), self.root.port_or_known_default());
        let (host, port) = (host.unwrap_or_default(), port.unwrap_or_default());
        format!("the management API of RabbitMQ at {host}:{port} (amqp.management_url)")
    }

    /// `None` if there is no such thing.
    async fn get(&self, path: &[&str]) -> Result<Option<Value>, QueueError> {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let request = self.client.get(url).basic_auth(&self.user, Some(self.password.expose_secret()));
        let unreachable = |error: reqwest::Error| {
            let sentence = format!("{} does not answer", self.name());
            QueueError::new(QueueErrorKind::Unavailable, sentence).with_source(error.without_url())
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let refused = |kind, what: &str| Err(QueueError::new(kind, format!("{} {what}", self.name())));
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return refused(
                    QueueErrorKind::Access,
                    "refuses the user: check the password, its tag `management`, and its permissions on the virtual host",
                );
            }
            status => return refused(QueueErrorKind::Unavailable, &format!("answers {status}")),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return refused(QueueErrorKind::Unavailable, "answers more than errand reads");
            }
            body.extend_from_slice(&chunk);
        }
        match serde_json::from_slice(&body) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let what = format!("answers what is no JSON: {}", chain(&error));
                refused(QueueErrorKind::Unavailable, &what)
            }
        }
    }
}

/// Without the password.
impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("vhost", &self.vhost).finish_non_exhaustive()
    }
}

/// What the management API says about a queue.
#[derive(Clone, Copy)]
struct Described<'a>(&'a Value);

impl<'a> Described<'a> {
    /// The value of the argument with which it was declared, and that of its policy.
    fn both(self, key: &str) -> [&'a Value; 2] {
        let Self(queue) = self;
        [&queue["arguments"][format!("x-{key}")], &queue["effective_policy_definition"][key]]
    }

    /// Where both say something, the lower number counts.
    fn number(self, key: &str) -> Option<u64> {
        self.both(key).into_iter().filter_map(Value::as_u64).min()
    }

    fn word(self, key: &str) -> Option<&'a str> {
        self.both(key).into_iter().find_map(Value::as_str)
    }

    fn is_set(self, key: &str) -> bool {
        self.both(key).into_iter().any(|value| !value.is_null())
    }

    /// Whether publishers are told when there is no room. On quorum queues the policy wins, and on others the argument;
    /// so both must be right. Quorum queues do not know `reject-publish-dlx` and drop their oldest messages instead.
    fn refuses_when_full(self) -> bool {
        let refuses = |value: &Value| match value.as_str() {
            Some("reject-publish") => true,
            Some("reject-publish-dlx") => !self.is_quorum(),
            _ => false,
        };
        self.is_set("overflow")
            && self.both("overflow").into_iter().all(|value| value.is_null() || refuses(value))
    }

    fn is_quorum(self) -> bool {
        self.0["type"] == "quorum"
    }

    /// Whether a quorum queue keeps a dead letter until the other queue has it. Without `reject-publish` RabbitMQ takes
    /// the strategy for `at-most-once` and says so in its own log only.
    fn dead_letters_at_least_once(self) -> bool {
        self.word("dead-letter-strategy") == Some("at-least-once") && self.refuses_when_full()
    }

    /// How confirmed messages leave the queue without a consumer.
    fn leaks(self, cluster: Cluster) -> Vec<(PolicyRiskKind, String)> {
        let mut leaks = Vec::new();
        if let Some(millis) = self.number("message-ttl") {
            leaks.push((
                PolicyRiskKind::TimeToLive,
                format!("drops messages that wait longer than {millis} ms"),
            ));
        }
        let bound = self.number("max-length").or_else(|| self.number("max-length-bytes"));
        if let Some(limit) = bound.filter(|_| !self.refuses_when_full()) {
            let what = format!("drops its oldest messages beyond {limit} (messages or bytes)");
            leaks.push((PolicyRiskKind::MaxLength, what));
        }
        // A negative limit means none.
        let is_default =
            !self.is_set("delivery-limit") && cluster.major_version.is_some_and(|major| major >= 4);
        let limit = self.number("delivery-limit").or(is_default.then_some(DEFAULT_DELIVERY_LIMIT));
        if let Some(limit) = limit.filter(|limit| self.is_quorum() && *limit < SAFE_DELIVERY_LIMIT) {
            leaks.push((PolicyRiskKind::DeliveryLimit, format!("drops messages after {limit} deliveries")));
        }
        leaks
    }
}

/// What can lose messages of a queue.
fn risks_of(name: &str, queue: &Value, cluster: Cluster) -> Vec<PolicyRisk> {
    let described = Described(queue);
    let mut risks = Vec::new();
    let mut risk = |kind, what: String| risks.push(PolicyRisk { kind, queue: name.to_owned(), what });

    let leaks = described.leaks(cluster);
    let exchange = described.word("dead-letter-exchange");
    if exchange.is_some()
        && described.is_quorum()
        && !leaks.is_empty()
        && !described.dead_letters_at_least_once()
    {
        let what =
            "dead-letters at most once, so that messages can be lost on the way: at least once takes both \
                    `dead-letter-strategy: at-least-once` and `overflow: reject-publish`"
                .to_owned();
        risk(PolicyRiskKind::DeadLetterStrategy, what);
    }
    let dead = wire::queue_name(QueueName::DEAD);
    let to_dead = exchange == Some("") && described.word("dead-letter-routing-key") == Some(&*dead);
    if to_dead && !cluster.has_dead_queue {
        let what =
            format!("dead-letters to `{dead}`, which does not exist: a worker declares it when it starts");
        risk(PolicyRiskKind::DeadLetterStrategy, what);
    }
    // Whatever goes elsewhere is looked at by nobody that errand knows of, or dropped where no queue is bound.
    let is_caught = to_dead && cluster.has_dead_queue && name != dead;
    for (kind, what) in leaks.into_iter().filter(|_| !is_caught) {
        let elsewhere =
            if exchange.is_some() { ", or dead-letters them to where errand does not look" } else { "" };
        risk(kind, format!("{what}{elsewhere}"));
    }
    if let Some(millis) = described.number("expires") {
        let what = format!("is deleted with its messages when unused for {millis} ms");
        risk(PolicyRiskKind::Expires, what);
    }
    let members = queue["members"].as_array().map(Vec::len).filter(|_| described.is_quorum());
    if let (Some(members), Some(nodes)) = (members, cluster.nodes)
        && members < MIN_MEMBERS
        && nodes >= MIN_MEMBERS
    {
        let what = format!(
            "has {members} members in a cluster of {nodes} nodes, and may not outlive the loss of one"
        );
        risk(PolicyRiskKind::FewMembers, what);
    }
    risks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(queue: &Value, nodes: usize, major_version: u64) -> Vec<&'static str> {
        let has_dead_queue = queue["type"] == "quorum";
        let cluster = Cluster { nodes: Some(nodes), major_version: Some(major_version), has_dead_queue };
        risks_of("errand.default", queue, cluster).iter().map(|risk| risk.kind.as_str()).collect()
    }

    #[test]
    fn what_drops_confirmed_messages_is_a_risk_and_what_refuses_them_is_none() {
        let dead = json!({"dead-letter-exchange": "", "dead-letter-routing-key": "errand.dead",
            "dead-letter-strategy": "at-least-once", "overflow": "reject-publish"});
        let merged = |more: Value| {
            let mut policy = dead.clone();
            policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            policy
        };
        let declared = json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000});
        for (policy, risks) in [
            (json!([]), vec![]),
            (json!({"message-ttl": 3000}), vec!["ttl"]),
            (json!({"max-length": 20}), vec!["max_length"]),
            (json!({"max-length-bytes": 20, "overflow": "drop-head"}), vec!["max_length"]),
            (json!({"max-length": 20, "overflow": "reject-publish"}), vec![]),
            (json!({"max-length": 20, "overflow": "reject-publish-dlx"}), vec!["max_length"]),
            (json!({"delivery-limit": 3}), vec!["delivery_limit"]),
            (json!({"expires": 1000}), vec!["expires"]),
            (dead.clone(), vec![]),
            (merged(json!({"message-ttl": 3000, "delivery-limit": 3, "max-length": 20})), vec![]),
            (merged(json!({"message-ttl": 3000, "expires": 1})), vec!["expires"]),
            (merged(json!({"message-ttl": 3000, "overflow": null})), vec!["dead_letter_strategy"]),
            (merged(json!({"message-ttl": 3000, "overflow": "drop-head"})), vec!["dead_letter_strategy"]),
            (
                merged(json!({"message-ttl": 3000, "overflow": "reject-publish-dlx"})),
                vec!["dead_letter_strategy"],
            ),
            (json!({"message-ttl": 3000, "dead-letter-exchange": "x"}), vec!["dead_letter_strategy", "ttl"]),
        ] {
            let queue = json!({"type": "quorum", "arguments": declared, "effective_policy_definition": policy,
                "members": ["a", "b", "c"]});
            assert_eq!(kinds(&queue, 3, 4), risks, "{policy}");
        }
        let foreign = json!({"type": "quorum", "arguments": {}, "members": ["a"]});
        assert_eq!(kinds(&foreign, 1, 3), Vec::<&str>::new());
        assert_eq!(kinds(&foreign, 1, 4), ["delivery_limit"], "the default of RabbitMQ 4");
        assert_eq!(kinds(&foreign, 3, 3), ["few_members"]);
        let classic =
            json!({"type": "classic", "arguments": {"x-message-ttl": 5, "x-dead-letter-exchange": ""}});
        assert_eq!(kinds(&classic, 3, 4), ["ttl"], "the default exchange has no queue of its old key");
        let nowhere = json!({"type": "classic", "effective_policy_definition": dead});
        assert_eq!(kinds(&nowhere, 3, 4), ["dead_letter_strategy"], "there is no queue for dead letters");
    }

    #[test]
    fn an_unusable_url_and_the_password_of_a_good_one_are_never_shown() {
        let new = |url: &str| Management::new(&url.to_owned().into(), "/");
        drop(rustls::crypto::ring::default_provider().install_default());
        let error = new("http://u:hunter2@:99999").unwrap_err();
        assert!(!format!("{} {error:?}", chain(&error)).contains("hunter2"));
        let management = new("http://a%40b:hunter%2F2+@mq:15672").unwrap();
        assert_eq!((management.user.as_str(), management.password.expose_secret()), ("a@b", "hunter/2+"));
        assert!(!format!("{management:?}").contains("hunter"));
    }
}
