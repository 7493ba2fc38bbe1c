//! The decision which toolkit version a job runs. Pure: it is made with the descriptions that are known, and says
//! which one is missing.

use std::sync::Arc;

use super::error::ResolveError;
use crate::{
    job::{Effect, JobSpec, Owner, PinnedBy},
    string_enum::string_enum,
    tool::{
        ApiError, ToolError, ToolInfo,
        pin::{self, BASE_VERSION, PinSources, VersionError, Wanted},
    },
};

/// Most guesses at the toolkit of a tool that is in neither the newest nor the base version.
const MAX_GUESSES: usize = 3;

string_enum! {
    /// What to do with jobs whose version is not pinned, or is `latest`.
    UnpinnedPolicy {
        /// Refuse them, with an error that names the ways to pin.
        Refuse = "refuse",
        /// Take the newest version once and freeze it as a literal.
        Freeze = "freeze",
    }
}

#[derive(Debug, Clone)]
pub enum Known {
    Found(Arc<ToolInfo>),
    /// The API says that it does not exist there.
    Missing(Arc<ApiError>),
}

/// What a decision is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub tool: &'a str,
    pub version: Option<&'a str>,
    /// Whose pins count.
    pub owner: &'a Owner,
    /// The job's own `effect`, which wins over the tool's hints.
    pub effect: Option<Effect>,
}

impl<'a> From<&'a JobSpec> for Ask<'a> {
    fn from(spec: &'a JobSpec) -> Self {
        Self { tool: &spec.tool, version: spec.version.as_deref(), owner: &spec.owner, effect: spec.effect }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub toolkit: String,
    /// A literal version at which the tool exists.
    pub version: String,
    pub pinned_by: PinnedBy,
    pub effect: Effect,
    pub no_auth: bool,
    pub deprecated: bool,
    /// What its arguments are checked by, where they are.
    pub input_schema: Option<Arc<str>>,
}

pub(super) enum Undecided {
    /// The description at this version is needed first; no version is the newest.
    Needs {
        version: Option<String>,
        /// The decision stands; the description would only make its message better.
        only_for_hint: bool,
    },
    Refused(ResolveError),
}

impl From<ResolveError> for Undecided {
    fn from(error: ResolveError) -> Self {
        Self::Refused(error)
    }
}

/// What a decision is made from. `known` gives the description at a version, or the newest one.
pub(super) struct Decider<'a> {
    pub(super) ask: &'a Ask<'a>,
    pub(super) pins: &'a PinSources,
    pub(super) policy: UnpinnedPolicy,
    pub(super) known: &'a dyn Fn(Option<&str>) -> Option<Known>,
}

impl Decider<'_> {
    pub(super) fn decide(&self) -> Result<Resolved, Undecided> {
        // The job's own word comes first, and where it is a version, no pin has to be known.
        let asks_latest = match pin::wanted(self.ask.version) {
            Ok(Wanted::Exact(version)) => return self.at_own_version(version),
            Ok(Wanted::Latest) if self.policy == UnpinnedPolicy::Refuse => {
                return Err(ResolveError::Unpinned { toolkit: None, latest: Some(PinnedBy::Job) }.into());
            }
            Ok(Wanted::Latest) => true,
            Ok(Wanted::Nothing) => false,
            Err(VersionError) => {
                let version = self.ask.version.unwrap_or_default().to_owned();
                return Err(ResolveError::BadVersion { version, by: PinnedBy::Job, toolkit: None }.into());
            }
        };
        let Some(probe) = self.any_description()? else { return Err(self.unknown_tool(None, None)) };
        let (version, by) = self.pinned_version(&probe, asks_latest)?;
        match self.find(Some(&version))? {
            // A tool that moved to another toolkit is not what the pin was meant for.
            Some(info) if info.toolkit == probe.toolkit => Ok(self.resolved(&info, &version, by)),
            _ => Err(self.unknown_tool(Some((&version, by)), Some(probe))),
        }
    }

    fn at_own_version(&self, version: &str) -> Result<Resolved, Undecided> {
        if let Some(info) = self.find(Some(version))? {
            return Ok(self.resolved(&info, version, PinnedBy::Job));
        }
        let elsewhere = self.find(None).map_err(|undecided| match undecided {
            Undecided::Needs { version, .. } => Undecided::Needs { version, only_for_hint: true },
            refused @ Undecided::Refused(_) => refused,
        })?;
        Err(self.unknown_tool(Some((version, PinnedBy::Job)), elsewhere))
    }

    /// A description of the tool at any version, for its toolkit.
    fn any_description(&self) -> Result<Option<Arc<ToolInfo>>, Undecided> {
        if let Some(newest) = self.find(None)? {
            return Ok(Some(newest));
        }
        // Renamed away in the meantime, perhaps.
        if let Some(base) = self.find(Some(BASE_VERSION))? {
            return Ok(Some(base));
        }
        // Or it came after the base version and was renamed away before the newest: then only the
        // versions in between have it, and the pinned one is the one that matters.
        for toolkit in self.pins.candidates(self.ask.owner, self.ask.tool).into_iter().take(MAX_GUESSES) {
            let decision = self.pins.decide(self.ask.version, self.ask.owner, &toolkit);
            if let pin::Decision::Pinned { version, .. } = decision
                && let Some(info) = self.find(Some(&version))?
                && info.toolkit == toolkit
            {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    /// The version that is pinned for the toolkit of a description, or that is chosen for want of a pin.
    fn pinned_version(
        &self,
        probe: &ToolInfo,
        asks_latest: bool,
    ) -> Result<(String, PinnedBy), ResolveError> {
        let decision = if asks_latest {
            pin::Decision::Latest { by: PinnedBy::Job }
        } else {
            self.pins.decide(None, self.ask.owner, &probe.toolkit)
        };
        let toolkit = || Some(probe.toolkit.clone());
        let latest = match decision {
            pin::Decision::Pinned { version, by } => return Ok((version, by)),
            pin::Decision::Malformed { version, by } => {
                return Err(ResolveError::BadVersion { version, by, toolkit: toolkit() });
            }
            pin::Decision::Latest { by } => Some(by),
            pin::Decision::Unpinned => None,
        };
        match self.policy {
            UnpinnedPolicy::Refuse => Err(ResolveError::Unpinned { toolkit: toolkit(), latest }),
            UnpinnedPolicy::Freeze => {
                let all = probe.available_versions.iter().map(String::as_str).chain([probe.version.as_str()]);
                let newest = pin::newest(all).ok_or_else(|| {
                    let cause = "it names no version of the toolkit that could be frozen".into();
                    ToolError::Unavailable(cause)
                })?;
                Ok((newest.to_owned(), PinnedBy::Latest))
            }
        }
    }

    fn find(&self, version: Option<&str>) -> Result<Option<Arc<ToolInfo>>, Undecided> {
        match (self.known)(version) {
            Some(Known::Found(info)) => Ok(Some(info)),
            Some(Known::Missing(_)) => Ok(None),
            None => {
                let version = version.map(str::to_owned);
                Err(Undecided::Needs { version, only_for_hint: false })
            }
        }
    }

    fn resolved(&self, info: &ToolInfo, version: &str, pinned_by: PinnedBy) -> Resolved {
        Resolved {
            toolkit: info.toolkit.clone(),
            version: version.to_owned(),
            pinned_by,
            effect: self.ask.effect.unwrap_or_else(|| info.effect()),
            no_auth: info.no_auth,
            deprecated: info.deprecated,
            input_schema: info.input_schema.clone(),
        }
    }

    fn unknown_tool(&self, pinned: Option<(&str, PinnedBy)>, elsewhere: Option<Arc<ToolInfo>>) -> Undecided {
        let pinned = pinned.map(|(version, by)| (version.to_owned(), by));
        ResolveError::UnknownTool { tool: self.ask.tool.to_owned(), pinned, elsewhere }.into()
    }
}
