//! Rules about jobs that need no look-up.

use std::collections::BTreeMap;

use super::{ErrorKind, JobError, JobSpec, OwnerKind, ReplyRules};

#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Accept the owner `default`, which could expose other people's data. Only for development.
    pub allow_default: bool,
    /// Refuse e-mail addresses, which change hands, instead of warning.
    pub refuse_email: bool,
    /// Toolkits that belong to one kind of owner.
    pub owned_by: BTreeMap<String, OwnerKind>,
    /// Where results may be published. It is asked by itself, because such a message is not a job that fails.
    pub replies: ReplyRules,
}

impl Rules {
    /// Checks a job by itself: what it says and who owns it.
    ///
    /// # Errors
    /// The error that the job fails with; it says what to change.
    pub fn check(&self, spec: &JobSpec) -> Result<(), JobError> {
        if spec.arguments.is_some() && spec.text.is_some() {
            return Err(JobError::new(
                ErrorKind::InvalidJob,
                "`arguments` and `text` exclude each other; send one of them",
            ));
        }
        if spec.owner.id().eq_ignore_ascii_case("default") && !self.allow_default {
            return Err(JobError::new(
                ErrorKind::OwnerRefused,
                format!(
                    "the owner `default` is refused because it could expose other people's data; send the real `{}`",
                    spec.owner.kind().field()
                ),
            ));
        }
        if self.refuse_email && looks_like_email(spec.owner.id()) {
            return Err(JobError::new(
                ErrorKind::OwnerRefused,
                format!(
                    "`{}` is an e-mail address, which can change hands; send an ID that never changes",
                    spec.owner.kind().field()
                ),
            ));
        }
        Ok(())
    }

    /// Checks a job once its toolkit is known.
    pub fn check_toolkit(&self, spec: &JobSpec, toolkit: &str) -> Result<(), JobError> {
        match self.owned_by.get(toolkit) {
            Some(kind) if *kind != spec.owner.kind() => Err(JobError::new(
                ErrorKind::WrongOwnerKind,
                format!(
                    "the toolkit `{toolkit}` is connected by {}; send `{}` instead of `{}`",
                    match kind {
                        OwnerKind::Org => "organizations",
                        OwnerKind::User => "users",
                    },
                    kind.field(),
                    spec.owner.kind().field(),
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Whether an owner ID has the shape of an e-mail address.
pub fn looks_like_email(id: &str) -> bool {
    id.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !id.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, JobId, decode};

    fn spec(json: serde_json::Value) -> JobSpec {
        let queue = "default".parse().unwrap();
        let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
        decode(&serde_json::to_vec(&json).unwrap(), &arrival).unwrap()
    }

    #[test]
    fn contradictions_and_owners_that_are_not_allowed_are_refused() {
        use ErrorKind::{InvalidJob, OwnerRefused};
        let both = serde_json::json!({"user_id": "u", "tool": "T", "text": "x", "arguments": {}});
        let default = serde_json::json!({"org_id": "Default", "tool": "T"});
        let email = serde_json::json!({"user_id": "ann@example.com", "tool": "T"});
        for (job, allow_default, refuse_email, refused) in [
            (&both, false, false, Some((InvalidJob, "`text`"))),
            (&default, false, false, Some((OwnerRefused, "org_id"))),
            (&default, true, false, None),
            (&email, false, false, None),
            (&email, false, true, Some((OwnerRefused, "user_id"))),
        ] {
            let rules = Rules { allow_default, refuse_email, ..Rules::default() };
            let error = rules.check(&spec(job.clone())).err();
            assert_eq!(error.as_ref().map(JobError::kind), refused.map(|(kind, _)| kind), "{job}");
            assert!(error.is_none_or(|error| error.message().contains(refused.unwrap().1)), "{job}");
        }
    }

    #[test]
    fn the_wrong_kind_of_owner_is_told_the_right_field() {
        let rules = Rules { owned_by: [("slack".to_owned(), OwnerKind::Org)].into(), ..Rules::default() };
        let job = spec(serde_json::json!({"user_id": "u", "tool": "SLACK_SEND_MESSAGE"}));
        let error = rules.check_toolkit(&job, "slack").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongOwnerKind);
        assert!(error.message().contains("send `org_id` instead of `user_id`"), "{}", error.message());
        assert!(rules.check_toolkit(&job, "github").is_ok());
    }
}
