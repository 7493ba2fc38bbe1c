//! What is decided once for a job and never changes after that.

use super::{Effect, Owner};
use crate::string_enum::string_enum;

/// The toolkit version, the account and the effect of a job, decided before its first call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// From the tool's description, never from the slug's prefix.
    pub toolkit: String,
    pub version: String,
    pub pinned_by: PinnedBy,
    /// The connected account, unless the tool needs none.
    pub account: Option<String>,
    pub effect: Effect,
}

/// A toolkit version that was pinned at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// `None` pins for everybody.
    pub owner: Option<Owner>,
    /// Lower-case toolkit slug.
    pub toolkit: String,
    pub version: String,
}

string_enum! {
    /// Where a toolkit version came from, in order of precedence.
    PinnedBy or Unrecognized {
        Job = "job",
        Owner = "owner",
        Global = "global",
        /// `toolkit_versions` in the configuration.
        Config = "config",
        /// `COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>`.
        Env = "env",
        /// The newest version, looked up once (policy `freeze`).
        Latest = "latest",
    }
}
