//! Who decides, as commands are told.

use super::{context::Context, value};
use crate::store::check_decider;

#[derive(Debug, clap::Args)]
pub(super) struct Who {
    /// Record NAME in the jobs' history as who decided so. Without it: the user of the operating system.
    #[arg(long, value_name = "NAME", value_parser = value::decider)]
    by: Option<String>,
}

impl Who {
    pub(super) fn name(self, context: &Context) -> String {
        let user = || context.loaded.user.clone().filter(|user| check_decider(user).is_ok());
        self.by.or_else(user).unwrap_or_else(|| NOBODY_KNOWN.to_owned())
    }
}

/// Who decided, where nobody says and the environment names no user.
const NOBODY_KNOWN: &str = "unknown";
