//! What apps are answered, and where answers may be published. A publisher that may only send jobs must not have errand
//! deliver what it likes into the queues of others.

use uuid::Uuid;

use super::{Arrival, EnvelopeError, EnvelopeReason, JobSpec, envelope::is_unfit};
use crate::string_enum::string_enum;

string_enum! {
    /// What a reply tells: `reply` in its body, and its AMQP property `type`.
    ReplyKind {
        /// The job has ended.
        Final = "final",
        /// The job waits for a person or a connection; another reply follows when it is final.
        Held = "held",
        /// The message is no job.
        Rejected = "rejected",
        /// The message repeats a job that is known.
        Duplicate = "duplicate",
    }
}

/// Who waits for the answer to one message, and what they know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Names the answer: who asks the same again while it is pending shares it, and a write that is sent again owes it once.
    pub id: Uuid,
    pub reply_to: String,
    pub correlation_id: Option<String>,
    /// The AMQP `message_id`, as it was sent.
    pub message_id: Option<String>,
    /// The AMQP user who published the message, as the broker has checked it.
    pub publisher: Option<String>,
    /// The broker has delivered the message before, so that it may have been answered.
    pub redelivered: bool,
}

/// The namespace of IDs of answers, which are derived from what they answer.
const ANSWER_NAMESPACE: Uuid = Uuid::from_u128(0x91b3_7d52_4f0c_5a7e_b1d8_6572_7261_6e64);

/// How the names of errand's own queues begin. No reply goes there, whatever is allowed.
pub const RESERVED_PREFIX: &str = "errand.";

/// Stands for the user who published the message.
const USER: &str = "{user}";

const REFUSED: &str = "`reply_to` names a queue that the setting `replies.allowed` does not allow: use direct reply-to, an \
    exclusive queue that the broker names (`amq.gen-...`), or a queue whose name begins with the AMQP user and a dot, with \
    the user in the AMQP property `user_id`; or add the beginning of its name to the setting";

/// The beginnings of the names of reply queues that apps may name; by default none.
#[derive(Debug, Clone, Default)]
pub struct ReplyRules {
    allowed: Vec<String>,
}

impl ReplyRules {
    /// Allows names that begin like this. `{user}` stands for the AMQP user of the publisher, as the broker has checked it;
    /// where it is not known, such a beginning fits nothing. An empty one fits nothing either.
    pub fn new(allowed: Vec<String>) -> Self {
        Self { allowed }
    }

    /// Checks where the result of a job is to be published, if anywhere.
    ///
    /// # Errors
    /// The reply queue is not allowed; the sentence names the setting.
    pub fn check(&self, spec: &JobSpec) -> Result<(), EnvelopeError> {
        match &spec.reply_to {
            Some(queue) if !self.allows(queue, spec.publisher.as_deref()) => {
                Err(EnvelopeError::new(EnvelopeReason::ReplyRefused, REFUSED))
            }
            _ => Ok(()),
        }
    }

    /// Whether this publisher may have answers in this queue.
    pub fn allows(&self, queue: &str, publisher: Option<&str>) -> bool {
        let begins = |allowed: &String| match (allowed.contains(USER), publisher) {
            (true, Some(user)) => queue.starts_with(&allowed.replace(USER, user)),
            (true, None) => false,
            (false, _) => !allowed.is_empty() && queue.starts_with(allowed.as_str()),
        };
        !queue.starts_with(RESERVED_PREFIX) && self.allowed.iter().any(begins)
    }

    /// Who waits for the answer to a message, also to one that is no job, if they may have one. It is of this kind, and
    /// `about` the job or the rejected message with this ID. What an envelope could not carry, such as a correlation ID with
    /// control characters, is left out.
    pub fn asked(
        &self,
        arrival: &Arrival<'_>,
        kind: ReplyKind,
        about: Uuid,
        redelivered: bool,
    ) -> Option<Asked> {
        let text = |text: Option<&str>| text.filter(|text| !is_unfit(text)).map(str::to_owned);
        let reply_to = text(arrival.reply_to).filter(|queue| !queue.trim().is_empty())?;
        let publisher = text(arrival.publisher);
        let (correlation_id, message_id) = (text(arrival.correlation_id), text(arrival.message_id));
        let id = answer_id(kind, about, [Some(&reply_to), correlation_id.as_ref(), message_id.as_ref()]);
        self.allows(&reply_to, publisher.as_deref()).then_some(Asked {
            id,
            reply_to,
            correlation_id,
            message_id,
            publisher,
            redelivered,
        })
    }
}

/// The same for the same answer to whoever knows it by the same `names`, none of which has a NUL.
fn answer_id(kind: ReplyKind, about: Uuid, names: [Option<&String>; 3]) -> Uuid {
    let mut name = about.as_bytes().to_vec();
    name.extend_from_slice(kind.as_str().as_bytes());
    for part in names {
        // One that is absent differs from an empty one.
        name.extend_from_slice(if part.is_some() { b"\0=" } else { b"\0" });
        name.extend_from_slice(part.map_or("", String::as_str).as_bytes());
    }
    Uuid::new_v5(&ANSWER_NAMESPACE, &name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, JobId, decode};

    #[test]
    fn an_answer_has_the_same_id_for_whoever_asks_the_same() {
        let rules = ReplyRules::new(vec!["amq.gen-".to_owned()]);
        let lane = "default".parse().unwrap();
        let (about, other) = (Uuid::now_v7(), Uuid::now_v7());
        let first = Arrival {
            message_id: Some("m"),
            reply_to: Some("amq.gen-1"),
            correlation_id: Some("c"),
            ..Arrival::new(&lane)
        };
        let id = |arrival: &Arrival<'_>, kind, about, redelivered| {
            rules.asked(arrival, kind, about, redelivered).unwrap().id
        };
        let expected = id(&first, ReplyKind::Duplicate, about, false);
        assert_eq!(id(&first, ReplyKind::Duplicate, about, true), expected);
        let mut ids = vec![
            expected,
            id(&first, ReplyKind::Rejected, about, false),
            id(&first, ReplyKind::Duplicate, other, false),
        ];
        for arrival in [
            Arrival { reply_to: Some("amq.gen-2"), ..first },
            Arrival { correlation_id: Some("d"), ..first },
            Arrival { correlation_id: Some(""), ..first },
            Arrival { correlation_id: None, ..first },
            Arrival { message_id: None, ..first },
            Arrival { correlation_id: Some("cm"), message_id: Some(""), ..first },
        ] {
            ids.push(id(&arrival, ReplyKind::Duplicate, about, false));
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "everything that can be told apart counts");
    }

    fn spec(reply_to: Option<&str>, publisher: Option<&str>) -> JobSpec {
        let queue = "default".parse().unwrap();
        let arrival =
            Arrival { reply_to, publisher, fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
        decode(br#"{"user_id": "u", "tool": "T"}"#, &arrival).unwrap()
    }

    #[test]
    fn what_no_envelope_could_carry_is_left_out_of_an_answer() {
        let rules = ReplyRules::new(vec!["amq.gen-".to_owned()]);
        let lane = "default".parse().unwrap();
        let arrival = Arrival {
            message_id: Some("order 17"),
            reply_to: Some("amq.gen-1"),
            correlation_id: Some("a\0b"),
            ..Arrival::new(&lane)
        };
        let asked = rules.asked(&arrival, ReplyKind::Rejected, Uuid::nil(), true).unwrap();
        assert_eq!((asked.message_id.as_deref(), asked.correlation_id), (Some("order 17"), None));
        assert!(asked.redelivered);
        let arrival = Arrival { reply_to: Some("amq.gen-\n"), ..arrival };
        assert_eq!(
            rules.asked(&arrival, ReplyKind::Rejected, Uuid::nil(), false),
            None,
            "no queue can be named so"
        );
    }

    #[test]
    fn a_reply_goes_only_where_the_publisher_may_have_one() {
        let rules = ["amq.rabbitmq.reply-to.", "amq.gen-", "{user}.", "shared-{user}", "", "err"];
        let rules = ReplyRules::new(rules.map(str::to_owned).to_vec());
        for (queue, publisher, allowed) in [
            (None, None, true),
            (Some("amq.rabbitmq.reply-to.g1h2AA"), None, true),
            (Some("amq.gen-Xa2"), Some("shop"), true),
            (Some("shop.replies"), Some("shop"), true),
            (Some("shop.replies"), Some("other"), false),
            (Some("shop.replies"), None, false),
            (Some("shop"), Some("shop"), false),
            (Some("shared-shop-1"), Some("shop"), true),
            (Some("{user}.replies"), None, false),
            (Some("error-queue"), None, true),
            // errand's own queues, also for a user of that name.
            (Some("errand.default"), None, false),
            (Some("errand.dead"), Some("errand"), false),
            // Counts as absent.
            (Some(""), Some("shop"), true),
            (Some("victim.replies"), Some("shop"), false),
        ] {
            let verdict = rules.check(&spec(queue, publisher));
            assert_eq!(verdict.is_ok(), allowed, "{queue:?} of {publisher:?}");
            let reason = verdict.err().map(|error| error.reason);
            assert!(reason.is_none_or(|reason| reason == EnvelopeReason::ReplyRefused));
            // A message that is no job is answered by the same rule.
            let lane = "default".parse().unwrap();
            let arrival = Arrival { reply_to: queue, publisher, ..Arrival::new(&lane) };
            let asked = rules.asked(&arrival, ReplyKind::Rejected, Uuid::nil(), false);
            assert_eq!(asked.is_some(), allowed && queue.is_some_and(|queue| !queue.is_empty()), "{queue:?}");
        }
        assert!(
            ReplyRules::default().check(&spec(Some("amq.gen-1"), None)).is_err(),
            "nothing is allowed by itself"
        );
    }
}
