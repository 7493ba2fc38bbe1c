//! Rules about jobs that need no look-up.

use std::collections::BTreeMap;

use super::{ErrorKind, JobError, JobSpec, OwnerKind, OwnerPolicy};

/// Rules about jobs that need no look-up.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Which owners may run jobs.
    pub owners: OwnerPolicy,
    /// Toolkits that belong to one kind of owner.
    pub owned_by: BTreeMap<String, OwnerKind>,
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
        if spec.owner.id().eq_ignore_ascii_case("default") && !self.owners.allow_default {
            return Err(JobError::new(
                ErrorKind::OwnerRefused,
                format!(
                    "the owner `default` is refused because it could expose other people's data; send the real `{}`",
                    spec.owner.kind().field()
                ),
            ));
        }
        if self.owners.refuse_email && looks_like_email(spec.owner.id()) {
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
    ///
    /// # Errors
    /// As [`Self::check`].
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
    fn a_job_with_text_and_arguments_is_refused() {
        let both = spec(serde_json::json!({"user_id": "u", "tool": "T", "text": "x", "arguments": {}}));
        assert_eq!(Rules::default().check(&both).unwrap_err().kind(), ErrorKind::InvalidJob);
    }

    #[test]
    fn the_default_owner_is_refused_unless_allowed() {
        let job = spec(serde_json::json!({"org_id": "Default", "tool": "T"}));
        let error = Rules::default().check(&job).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OwnerRefused);
        assert!(error.message().contains("org_id"));
        let lenient =
            Rules { owners: OwnerPolicy { allow_default: true, refuse_email: false }, ..Rules::default() };
        assert!(lenient.check(&job).is_ok());
    }

    #[test]
    fn e_mail_addresses_are_refused_only_by_the_setting() {
        let job = spec(serde_json::json!({"user_id": "ann@example.com", "tool": "T"}));
        assert!(Rules::default().check(&job).is_ok());
        let strict =
            Rules { owners: OwnerPolicy { allow_default: false, refuse_email: true }, ..Rules::default() };
        assert_eq!(strict.check(&job).unwrap_err().kind(), ErrorKind::OwnerRefused);
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
