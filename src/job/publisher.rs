//! For which owners the users of the broker, and the roles of the database, may publish jobs.

use std::{collections::BTreeMap, str::FromStr};

use super::{EnvelopeError, EnvelopeReason, JobSpec, Owner, OwnerError, OwnerKind};

/// Owners that a publisher may publish jobs for: one, all whose ID begins like this, or everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerPattern {
    Exactly(Owner),
    /// All of a kind whose IDs begin like this; all of that kind, where it is empty.
    Begins(OwnerKind, String),
    All,
}

impl OwnerPattern {
    pub fn fits(&self, owner: &Owner) -> bool {
        match self {
            Self::Exactly(exactly) => exactly == owner,
            Self::Begins(kind, beginning) => {
                owner.kind() == *kind && owner.id().starts_with(beginning.as_str())
            }
            Self::All => true,
        }
    }
}

impl FromStr for OwnerPattern {
    type Err = OwnerError;

    /// `user:ID`, `org:ID`, the same with a `*` at its end, or `*`. Anywhere else a `*` is a letter of the ID.
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        match text.strip_suffix('*') {
            Some("") => Ok(Self::All),
            Some(beginning) => {
                let (kind, beginning) = beginning.split_once(':').ok_or(OwnerError::Kind)?;
                let kind = kind.parse().map_err(|_| OwnerError::Kind)?;
                match Owner::known(kind, beginning) {
                    Ok(_) | Err(OwnerError::Empty) if beginning.trim() == beginning => {
                        Ok(Self::Begins(kind, beginning.to_owned()))
                    }
                    Ok(_) => Err(OwnerError::OuterBlank),
                    Err(error) => Err(error),
                }
            }
            None => {
                let owner: Owner = text.parse()?;
                Owner::new(owner.kind(), owner.id()).map(Self::Exactly)
            }
        }
    }
}

const NAMELESS: &str = "the message does not say who published it, and the setting `publishers` ties publishers to owners: \
    publish it with the AMQP property `user_id`, set to the user of the connection";

const UNLISTED: &str = "the publisher (the user in the AMQP property `user_id`, or the role of the database that called the SQL \
    function) is not in the setting `publishers`: publish as one that is, or add it there with the owners that it publishes jobs for";

const NOT_THEIRS: &str = "the setting `publishers` does not let the publisher (the user in the AMQP property `user_id`, or the role \
    of the database that called the SQL function) publish jobs of this owner: publish as one that may, or add the owner there";

/// Who may publish jobs of whom, by the users of the broker and the roles of the database. Without any, whoever may publish is
/// trusted.
#[derive(Debug, Clone, Default)]
pub struct PublisherRules(BTreeMap<String, Vec<OwnerPattern>>);

impl PublisherRules {
    pub fn new(publishers: BTreeMap<String, Vec<OwnerPattern>>) -> Self {
        Self(publishers)
    }

    /// Checks who published the message of a job. A job that the store knows is not asked about: its message may be errand's
    /// own.
    ///
    /// # Errors
    /// The publisher is not known or may not; the sentence says what to change, and names neither user nor owner.
    pub fn check(&self, spec: &JobSpec) -> Result<(), EnvelopeError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let refused = |what| Err(EnvelopeError::new(EnvelopeReason::PublisherRefused, what));
        let Some(publisher) = &spec.publisher else { return refused(NAMELESS) };
        let Some(owners) = self.0.get(publisher) else { return refused(UNLISTED) };
        if owners.iter().any(|pattern| pattern.fits(&spec.owner)) { Ok(()) } else { refused(NOT_THEIRS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Arrival, JobId, decode};

    fn spec(owner: &str, publisher: Option<&str>) -> JobSpec {
        let lane = "default".parse().unwrap();
        let (kind, id) = owner.split_once(':').unwrap();
        let body = serde_json::json!({format!("{kind}_id"): id, "tool": "T"}).to_string();
        let arrival = Arrival { publisher, fallback_id: Some(JobId::new()), ..Arrival::new(&lane) };
        decode(body.as_bytes(), &arrival).unwrap()
    }

    fn rules(publishers: &[(&str, &[&str])]) -> PublisherRules {
        let patterns = |owners: &[&str]| owners.iter().map(|owner| owner.parse().unwrap()).collect();
        PublisherRules(
            publishers.iter().map(|(name, owners)| ((*name).to_owned(), patterns(owners))).collect(),
        )
    }

    #[test]
    fn a_publisher_publishes_for_the_owners_that_are_named() {
        let rules = rules(&[
            ("shop", &["org:org-7", "user:eu-*"]),
            ("crm", &["org:*"]),
            ("errand-cli", &["*"]),
            ("nobody", &[]),
        ]);
        for (publisher, owner, may) in [
            ("shop", "org:org-7", true),
            ("shop", "org:org-77", false),
            ("shop", "user:org-7", false),
            ("shop", "user:eu-1", true),
            ("shop", "user:eu-", true),
            ("shop", "user:eu", false),
            ("shop", "user:EU-1", false),
            ("shop", "org:eu-1", false),
            ("crm", "org:anything", true),
            ("crm", "user:anything", false),
            ("errand-cli", "user:u", true),
            ("nobody", "user:u", false),
            ("Shop", "org:org-7", false),
        ] {
            assert_eq!(rules.check(&spec(owner, Some(publisher))).is_ok(), may, "{publisher} for {owner}");
        }
        let error = rules.check(&spec("org:org-7", None)).unwrap_err();
        assert_eq!(error.reason, EnvelopeReason::PublisherRefused);
        assert!(error.message.contains("`user_id`"), "{}", error.message);
    }

    #[test]
    fn without_a_table_everybody_may() {
        for publisher in [None, Some("anybody")] {
            assert!(PublisherRules::default().check(&spec("user:u", publisher)).is_ok());
        }
    }

    #[test]
    fn a_pattern_is_an_owner_or_the_beginning_of_one() {
        for wrong in [
            "",
            "shop",
            "user",
            "user:",
            "team:a",
            "us*",
            "user:a\u{200b}",
            "user: a",
            "user: *",
            "user:a\n*",
            " *",
        ] {
            assert!(wrong.parse::<OwnerPattern>().is_err(), "{wrong:?}");
        }
        let literal = Owner::new(OwnerKind::User, "a*b").unwrap();
        assert_eq!("user:a*b".parse(), Ok(OwnerPattern::Exactly(literal)));
        assert_eq!("user:*".parse(), Ok(OwnerPattern::Begins(OwnerKind::User, String::new())));
    }
}
