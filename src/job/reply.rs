//! Where results may be published. A publisher that may only send jobs must not have errand deliver what it likes into
//! the queues of others.

use super::{EnvelopeError, EnvelopeReason, JobSpec};

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
        let Some(queue) = &spec.reply_to else { return Ok(()) };
        let begins = |allowed: &String| match (allowed.contains(USER), &spec.publisher) {
            (true, Some(user)) => queue.starts_with(&allowed.replace(USER, user)),
            (true, None) => false,
            (false, _) => !allowed.is_empty() && queue.starts_with(allowed.as_str()),
        };
        if !queue.starts_with(RESERVED_PREFIX) && self.allowed.iter().any(begins) {
            return Ok(());
        }
        Err(EnvelopeError::new(EnvelopeReason::ReplyRefused, REFUSED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, JobId, decode};

    fn spec(reply_to: Option<&str>, publisher: Option<&str>) -> JobSpec {
        let queue = "default".parse().unwrap();
        let arrival =
            Arrival { reply_to, publisher, fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
        decode(br#"{"user_id": "u", "tool": "T"}"#, &arrival).unwrap()
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
        }
        assert!(
            ReplyRules::default().check(&spec(Some("amq.gen-1"), None)).is_err(),
            "nothing is allowed by itself"
        );
    }
}
