//! Who decides, as commands are told.

use super::{exit, setup::Setup, value};
use crate::store::{Decider, check_decider};

#[derive(Debug, clap::Args)]
pub(super) struct Who {
    /// Record NAME as who decided so, in the audit log and the history of jobs. Without it: the user of the operating system.
    #[arg(long, value_name = "NAME", value_parser = value::decider)]
    by: Option<String>,
}

impl Who {
    pub(super) fn decider(&self, setup: &Setup) -> Decider {
        let user = || setup.loaded.user.clone().filter(|user| check_decider(user).is_ok());
        Decider::at_command_line(self.by.clone().or_else(user).unwrap_or_else(number))
    }

    /// An error where somebody is named: of a server, the key says who decides.
    pub(super) fn is_the_key(&self) -> anyhow::Result<()> {
        match self.by {
            None => Ok(()),
            Some(_) => Err(exit::usage("leave out --by: at a server, the access key says who decides")),
        }
    }
}

/// Who decided, where nobody says and the environment names no user, as in many containers and services.
fn number() -> String {
    format!("uid {}", rustix::process::getuid().as_raw())
}
