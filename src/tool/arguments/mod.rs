//! Whether the arguments of a job fit the input schema of its tool, at the version that it runs.
//!
//! The schema comes from outside, so `schema` makes a small one of it first, without references and with a bound on what it
//! can cost to follow it; what cannot be bounded is not followed, and the arguments then count as unchecked. Nothing is ever
//! fetched. The arguments themselves are only looked at: what is sent is the text that the app wrote.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use self::schema::{Prepared, Unusable};
use crate::{job::JobSpec, string_enum::string_enum};

mod problem;
mod schema;

pub use problem::ArgumentProblem;
pub use schema::MAX_SCHEMA_BYTES;

/// Most compiled schemas that are remembered.
const MAX_COMPILED: usize = 1_024;

/// Most bytes of one compiled regular expression, and of the states that it may remember while it runs.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// The most that one check may cost: parts of the schema times parts of the arguments. Arguments for which it could be more
/// are not checked. It is a small part of a second at the very worst.
const MAX_STEPS: usize = 4_000_000;

string_enum! {
    /// What is done about arguments that do not fit the input schema of their tool.
    ArgumentCheck {
        /// They are not looked at.
        Off = "off",
        /// The call is made all the same; a metric and a line in the log tell of it.
        Warn = "warn",
        /// The job fails, and nothing is sent.
        Refuse = "refuse",
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// Nobody can say: there is no schema, or it is beyond the bounds, or the job brings no arguments but a text.
    Unchecked,
    /// At least one problem; of many the first ones.
    Unfit(Vec<ArgumentProblem>),
}

/// Checks arguments, and remembers the compiled schema of each tool and version.
pub struct Arguments {
    compiled: quick_cache::sync::Cache<(Arc<str>, Arc<str>), Arc<Compiled>>,
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arguments").field("compiled", &self.compiled.len()).finish()
    }
}

enum Compiled {
    /// Whatever comes fits.
    Open,
    Checks {
        validator: Box<Validator>,
        parts: usize,
    },
    Unusable,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { compiled: quick_cache::sync::Cache::new(MAX_COMPILED) }
    }
}

impl Arguments {
    /// Checks a job's arguments by the `schema` of its tool at a version. Never waits. Absent arguments are checked as an
    /// empty object, because that is what is sent.
    pub fn check(&self, spec: &JobSpec, version: &str, schema: Option<&str>) -> Verdict {
        let (Some(schema), None) = (schema, &spec.text) else { return Verdict::Unchecked };
        let key = (Arc::from(spec.tool.as_str()), Arc::from(version));
        let compiled = self.compiled.get_or_insert_with(&key, || {
            let compiled = compile(schema);
            if let Err(why) = &compiled {
                let (tool, why) = (spec.tool.as_str(), why.0);
                tracing::warn!(
                    tool,
                    version,
                    why,
                    "the tool's input schema cannot be used, so that arguments are not checked by it"
                );
            }
            Ok::<_, std::convert::Infallible>(Arc::new(compiled.unwrap_or(Compiled::Unusable)))
        });
        let Ok(compiled) = compiled;
        match &*compiled {
            Compiled::Open => Verdict::Fits,
            Compiled::Unusable => Verdict::Unchecked,
            Compiled::Checks { validator, parts } => {
                let arguments = spec.arguments.as_deref().map_or("{}", |raw| raw.get());
                // A bug in the checking of somebody else's schema must not be the end of the lane.
                catch_unwind(AssertUnwindSafe(|| validate(validator, *parts, arguments)))
                    .unwrap_or(Verdict::Unchecked)
            }
        }
    }
}

fn validate(validator: &Validator, parts: usize, arguments: &str) -> Verdict {
    // Every part of a JSON text but the first comes after one of these.
    let values = arguments.bytes().filter(|byte| matches!(byte, b',' | b'{' | b'[')).count();
    if parts.saturating_mul(values) > MAX_STEPS {
        return Verdict::Unchecked;
    }
    // A number may be too large for any type of ours, and for the tool's it may not be.
    let Ok(arguments) = serde_json::from_str::<Value>(arguments) else { return Verdict::Unchecked };
    if validator.is_valid(&arguments) {
        return Verdict::Fits;
    }
    match problem::problems(validator.iter_errors(&arguments)) {
        problems if problems.is_empty() => Verdict::Unchecked,
        problems => Verdict::Unfit(problems),
    }
}

fn compile(schema: &str) -> Result<Compiled, Unusable> {
    let Prepared { schema, parts } = schema::prepare(schema)?;
    if schema == Value::Bool(true) || schema.as_object().is_some_and(serde_json::Map::is_empty) {
        return Ok(Compiled::Open);
    }
    // These expressions take time in proportion to the text, whatever they are.
    let patterns = PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
    // Nothing is fetched: `schema` leaves no reference, and the library is built without its ways to follow one.
    let build = || {
        jsonschema::options()
            .with_draft(Draft::Draft7)
            .with_pattern_options(patterns)
            .should_validate_formats(false)
            .build(&schema)
    };
    match catch_unwind(AssertUnwindSafe(build)) {
        Ok(Ok(validator)) => Ok(Compiled::Checks { validator: Box::new(validator), parts }),
        Ok(Err(_)) => {
            Err(Unusable("it is not a valid schema of Draft 7, or has an expression that is not regular"))
        }
        Err(_) => Err(Unusable("it cannot be compiled")),
    }
}

#[cfg(test)]
mod tests;
