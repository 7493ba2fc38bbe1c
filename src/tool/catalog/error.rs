//! Why it cannot be decided which tool at which version a job runs, and what can be done about it.

use std::sync::Arc;

use crate::{
    job::{ErrorKind, JobError, NotReady, PinnedBy, Stop},
    tool::{ToolError, ToolInfo, pin},
};

#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The job or a pin asks for something that is not a version.
    #[error("`{version}` is not a toolkit version")]
    BadVersion {
        version: String,
        by: PinnedBy,
        /// The toolkit, where it is known.
        toolkit: Option<String>,
    },
    /// No version is pinned, or the pin says `latest`, and the policy refuses that.
    #[error("no toolkit version is pinned")]
    Unpinned {
        /// The toolkit, where it is known.
        toolkit: Option<String>,
        /// Who says `latest`, if anybody.
        latest: Option<PinnedBy>,
    },
    #[error("the tool does not exist at the pinned version")]
    UnknownTool {
        tool: String,
        /// The version and who asks for it; `None` when the tool was found nowhere.
        pinned: Option<(String, PinnedBy)>,
        /// A description at another version, if one was found.
        elsewhere: Option<Arc<ToolInfo>>,
    },
    #[error(transparent)]
    Api(#[from] ToolError),
}

impl ResolveError {
    pub fn not_ready(&self) -> NotReady {
        let fail = |kind, message| Stop::Fail { error: JobError::new(kind, message) }.into();
        match self {
            Self::BadVersion { version, by: PinnedBy::Job, .. } => fail(
                ErrorKind::InvalidJob,
                format!(
                    "`version` is `{version}`, which is not a toolkit version; write `YYYYMMDD_NN`, for \
                     example `20251027_00`, or leave it out to use the pin"
                ),
            ),
            Self::BadVersion { version, by, toolkit } => fail(
                ErrorKind::Unpinned,
                format!(
                    "{} pins `{version}`, which is not a toolkit version; write `YYYYMMDD_NN`",
                    source(*by, toolkit.as_deref())
                ),
            ),
            Self::Unpinned { toolkit, latest } => {
                fail(ErrorKind::Unpinned, unpinned(toolkit.as_deref(), *latest))
            }
            Self::UnknownTool { tool, pinned, elsewhere } => {
                fail(ErrorKind::UnknownTool, unknown_tool(tool, pinned.as_ref(), elsewhere.as_deref()))
            }
            Self::Api(error) => error.not_ready("describe the tool"),
        }
    }
}

/// Names a source of pins in a sentence.
fn source(by: PinnedBy, toolkit: Option<&str>) -> String {
    match by {
        PinnedBy::Job => "the job's `version`".into(),
        PinnedBy::Owner => "the owner's pin (`errand pins`)".into(),
        PinnedBy::Global => "the global pin (`errand pins`)".into(),
        PinnedBy::Config => "`toolkit_versions` in the configuration".into(),
        PinnedBy::Env => format!("`{}`", pin::env_name(toolkit.unwrap_or("<toolkit>"))),
        PinnedBy::Latest => "the newest version".into(),
        PinnedBy::Unrecognized => "a pin that another version of errand knows".into(),
    }
}

fn unpinned(toolkit: Option<&str>, latest: Option<PinnedBy>) -> String {
    let what = toolkit.map_or_else(|| "the tool's toolkit".into(), |slug| format!("the toolkit `{slug}`"));
    let why = match latest {
        Some(by) => format!("{} says `latest`, which changes without notice", source(by, toolkit)),
        None => format!("{what} is not pinned to a version"),
    };
    format!(
        "{why}; pin {what} with the job's `version`, `errand pins set`, `toolkit_versions` in the \
         configuration or `{}`",
        pin::env_name(toolkit.unwrap_or("<toolkit>"))
    )
}

fn unknown_tool(tool: &str, pinned: Option<&(String, PinnedBy)>, elsewhere: Option<&ToolInfo>) -> String {
    match (pinned, elsewhere) {
        (Some((version, by)), Some(info)) => {
            let toolkit = &info.toolkit;
            let newest = match pin::newest(info.available_versions.iter().map(String::as_str)) {
                Some(newest) if newest != info.version => {
                    format!(" (the newest of `{toolkit}` is `{newest}`)")
                }
                _ => String::new(),
            };
            format!(
                "the tool `{tool}` does not exist at version `{version}` of the toolkit `{toolkit}`, which comes \
                 from {}, but it does at `{}`{newest}; pin a version that has it, or use the slug it has there",
                source(*by, Some(toolkit)),
                info.version
            )
        }
        (Some((version, by)), None) => format!(
            "the tool `{tool}` does not exist at version `{version}`, which comes from {}, nor at the newest \
             version of any toolkit; correct the slug (they are in upper case) or the version",
            source(*by, None)
        ),
        (None, _) => format!(
            "the tool API knows no tool `{tool}`, neither at the newest nor at the base version of any toolkit; \
             correct the slug (they are in upper case), or give the `version` that has it"
        ),
    }
}
