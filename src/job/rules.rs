//! Rules about jobs that need no look-up.

use std::collections::BTreeMap;

use jiff::Timestamp;
use url::Host;

use super::{EnvelopeError, ErrorKind, JobError, JobSpec, OwnerKind, PublisherRules, ReplyRules};
use crate::bounds::MAX_AGE;

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
    /// Who may publish jobs of whom. It is asked by itself, too, and only about messages.
    pub publishers: PublisherRules,
    /// Whether callbacks are sent. It is asked where somebody can be told, because a job runs without them, too.
    pub sends_callbacks: bool,
}

/// Why a job may not run as it was asked for.
#[derive(Debug, Clone)]
pub struct Unfit {
    /// The field of the envelope that is to be changed; `None`: the whole of it.
    pub field: Option<&'static str>,
    /// The error that the job fails with; it says what to change.
    pub error: JobError,
}

impl Unfit {
    /// A field that is wrong for a reason of this kind.
    pub fn new(field: &'static str, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { field: Some(field), error: JobError::new(kind, message) }
    }
}

impl From<EnvelopeError> for Unfit {
    fn from(error: EnvelopeError) -> Self {
        Self { field: error.field, error: JobError::new(ErrorKind::InvalidJob, error.message) }
    }
}

impl From<Unfit> for JobError {
    fn from(unfit: Unfit) -> Self {
        unfit.error
    }
}

impl Rules {
    /// Checks a job by itself: what it says, when it is to run and who owns it.
    pub fn check(&self, spec: &JobSpec, now: Timestamp) -> Result<(), Unfit> {
        if spec.arguments.is_some() && spec.text.is_some() {
            return Err(Unfit::new(
                "text",
                ErrorKind::InvalidJob,
                "`arguments` and `text` exclude each other; send one of them",
            ));
        }
        if spec
            .run_at
            .is_some_and(|run_at| run_at.duration_since(now).unsigned_abs() > MAX_AGE && run_at > now)
        {
            let days = MAX_AGE.as_secs() / (24 * 3600);
            return Err(Unfit::new(
                "run_at",
                ErrorKind::InvalidJob,
                format!("`run_at` is further ahead than {days} days; enqueue the job later"),
            ));
        }
        if !self.allow_default && reads_as_default(spec.owner.id()) {
            return Err(Unfit::new(
                spec.owner.kind().field(),
                ErrorKind::OwnerRefused,
                format!(
                    "the owner `default` is refused because it could expose other people's data; send the real `{}`",
                    spec.owner.kind().field()
                ),
            ));
        }
        if self.refuse_email && looks_like_email(spec.owner.id()) {
            return Err(Unfit::new(
                spec.owner.kind().field(),
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

/// Whether an owner ID is `default` to a reader: in any case, between blanks, and in the other forms that Unicode has of
/// the letters, such as full-width ones, which is how the names of hosts are read.
fn reads_as_default(id: &str) -> bool {
    let id = id.trim();
    id.eq_ignore_ascii_case("default")
        || (!id.is_ascii() && Host::parse(id).is_ok_and(|host| host == Host::Domain("default".to_owned())))
}

/// Whether an owner ID has the shape of an e-mail address.
pub fn looks_like_email(id: &str) -> bool {
    id.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !id.contains(' '))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            let unfit = rules.check(&spec(job.clone()), Timestamp::UNIX_EPOCH).err();
            assert!(unfit.as_ref().is_none_or(|unfit| job.get(unfit.field.unwrap()).is_some()), "{job}");
            let error = unfit.map(JobError::from);
            assert_eq!(error.as_ref().map(JobError::kind), refused.map(|(kind, _)| kind), "{job}");
            assert!(error.is_none_or(|error| error.message().contains(refused.unwrap().1)), "{job}");
        }
    }

    #[test]
    fn no_form_of_the_owner_default_passes() {
        let name = |id: &str| spec(serde_json::json!({"user_id": id, "tool": "T"}));
        let rules = Rules::default();
        for id in [
            "default",
            "DEFAULT",
            "\u{ff44}\u{ff45}\u{ff46}\u{ff41}\u{ff55}\u{ff4c}\u{ff54}",
            "\u{24d3}efault",
            "\u{1d41d}efault",
        ] {
            let Unfit { error, .. } = rules.check(&name(id), Timestamp::UNIX_EPOCH).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OwnerRefused, "{id}");
        }
        for id in ["default-1", "defaults", "d\u{e9}fault", "\u{4f60}\u{597d}", "a/b:\u{e9}", "my default"] {
            assert!(rules.check(&name(id), Timestamp::UNIX_EPOCH).is_ok(), "{id}");
        }
    }

    #[test]
    fn a_job_waits_no_longer_for_its_time_than_it_may_last() {
        let at = |time: Timestamp| spec(serde_json::json!({"user_id": "u", "tool": "T", "run_at": time}));
        let now: Timestamp = "2026-05-04T06:30:00Z".parse().unwrap();
        let rules = Rules::default();
        for time in [now, now + MAX_AGE, Timestamp::UNIX_EPOCH] {
            assert!(rules.check(&at(time), now).is_ok(), "{time}");
        }
        for time in [now + MAX_AGE + Duration::from_secs(1), "9999-12-30T22:00:00Z".parse().unwrap()] {
            let Unfit { field, error } = rules.check(&at(time), now).unwrap_err();
            assert_eq!((field, error.kind()), (Some("run_at"), ErrorKind::InvalidJob));
            assert!(error.message().starts_with("`run_at`"), "{}", error.message());
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
