//! Configuration: one annotated `default.toml` holds every setting, its default and its meaning; a
//! file and the environment overlay it. Only this module reads the environment.

mod contexts;
mod error;
mod load;
mod mask;
mod names;
mod relations;
mod rule;
mod secrets;
mod sections;
mod show;
mod values;

pub use contexts::{ContextError, Contexts, LOCAL, NamedServer, Target, check_context_name, target};
pub use error::{AllMissing, ConfigErrors, Missing, Mistake, Origin};
pub use load::{DEFAULTS, Loaded, Sources, load, load_text};
pub use mask::{mask_url, place};
pub use sections::*;
