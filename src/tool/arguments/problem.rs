//! What is wrong with arguments, in words that name the place and the rule and never the value.

use jsonschema::{
    ValidationError,
    error::{TypeKind, ValidationErrorKind},
};
use serde::Serialize;
use serde_json::Value;

use crate::{bounds::MAX_SHORT_TEXT_BYTES, job::JobError};

/// Most problems that are told of one job's arguments.
pub(super) const MAX_PROBLEMS: usize = 10;

/// Most characters of what a schema says about a value.
const MAX_RULE_CHARS: usize = 200;

/// One thing that keeps arguments from fitting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArgumentProblem {
    /// A JSON pointer into the arguments; empty for all of them.
    pub pointer: String,
    /// What the schema says about that place, such as "is required".
    pub message: String,
    /// The word of the schema that does not hold, such as `required`.
    #[serde(skip)]
    pub rule: &'static str,
}

impl ArgumentProblem {
    fn new(pointer: String, rule: &'static str, message: impl Into<String>) -> Self {
        Self { pointer: clipped(pointer, MAX_SHORT_TEXT_BYTES), rule, message: message.into() }
    }

    /// What a job fails with that has these problems.
    pub fn error(problems: &[Self], tool: &str, version: &str) -> JobError {
        let mut text = format!(
            "the arguments do not fit what `{tool}` takes at version `{version}`, so nothing was sent; correct them: "
        );
        for (n, problem) in problems.iter().enumerate() {
            let place = if problem.pointer.is_empty() { "they" } else { &problem.pointer };
            text.push_str(if n == 0 { "" } else { "; " });
            text.push_str(&format!("{place} {}", problem.message));
        }
        JobError::new(crate::job::ErrorKind::InvalidArguments, text)
    }
}

pub(super) fn problems<'a>(errors: impl Iterator<Item = ValidationError<'a>>) -> Vec<ArgumentProblem> {
    let mut found = Vec::new();
    for error in errors {
        tell(&error, &mut found);
        if found.len() >= MAX_PROBLEMS {
            break;
        }
    }
    found.truncate(MAX_PROBLEMS);
    found
}

fn tell(error: &ValidationError<'_>, found: &mut Vec<ArgumentProblem>) {
    use ValidationErrorKind as Kind;
    let at = error.instance_path().as_str();
    let mut push = |rule, message: String| {
        found.push(ArgumentProblem::new(at.to_owned(), rule, message));
    };
    match error.kind() {
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            found.push(ArgumentProblem::new(below(at, name), "required", "is required"));
        }
        Kind::AdditionalProperties { unexpected } => {
            for name in unexpected.iter().take(MAX_PROBLEMS) {
                let message = "is not known to the tool";
                found.push(ArgumentProblem::new(below(at, name), "additionalProperties", message));
            }
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => match meant(context, at) {
            Some(errors) => errors.iter().take(MAX_PROBLEMS).for_each(|error| tell(error, found)),
            None => push("anyOf", "fits none of the forms that the tool takes".into()),
        },
        Kind::OneOfMultipleValid { .. } => {
            push("oneOf", "fits several forms that exclude each other".into());
        }
        Kind::Type { kind } => push("type", format!("must be {}", types(kind))),
        Kind::Enum { options } => push("enum", format!("must be one of {}", rule(options))),
        Kind::Constant { expected_value } => push("const", format!("must be {}", rule(expected_value))),
        Kind::Maximum { limit } => push("maximum", format!("must be at most {}", rule(limit))),
        Kind::Minimum { limit } => push("minimum", format!("must be at least {}", rule(limit))),
        Kind::ExclusiveMaximum { limit } => {
            push("exclusiveMaximum", format!("must be less than {}", rule(limit)))
        }
        Kind::ExclusiveMinimum { limit } => {
            push("exclusiveMinimum", format!("must be more than {}", rule(limit)))
        }
        Kind::MaxLength { limit } => push("maxLength", format!("must have at most {limit} characters")),
        Kind::MinLength { limit } => push("minLength", format!("must have at least {limit} characters")),
        Kind::MaxItems { limit } => push("maxItems", format!("must have at most {limit} items")),
        Kind::MinItems { limit } => push("minItems", format!("must have at least {limit} items")),
        Kind::MaxProperties { limit } => push("maxProperties", format!("must have at most {limit} members")),
        Kind::MinProperties { limit } => push("minProperties", format!("must have at least {limit} members")),
        Kind::MultipleOf { multiple_of } => {
            push("multipleOf", format!("must be a multiple of {multiple_of}"))
        }
        Kind::Pattern { pattern } => {
            push("pattern", format!("must match {}", rule(&Value::String(pattern.clone()))));
        }
        Kind::AdditionalItems { limit } => {
            push("additionalItems", format!("must have at most {limit} items"))
        }
        Kind::UniqueItems => push("uniqueItems", "must not have an item twice".into()),
        Kind::PropertyNames { .. } => {
            push("propertyNames", "has a member whose name the tool does not take".into())
        }
        Kind::Contains => push("contains", "lacks an item that the tool asks for".into()),
        Kind::FalseSchema => push("false", "must be left out".into()),
        Kind::Not { .. } => push("not", "has a form that the tool does not take".into()),
        // Nothing that the schemas have which are checked by; to be sure, it is no reason to refuse a job.
        _ => {}
    }
}

/// The errors of the one form that was meant, where the others are of another type.
fn meant<'e>(
    context: &'e [Vec<ValidationError<'static>>],
    at: &str,
) -> Option<&'e [ValidationError<'static>]> {
    let of_another_type = |errors: &&Vec<ValidationError<'static>>| {
        errors.iter().any(|error| {
            matches!(error.kind(), ValidationErrorKind::Type { .. }) && error.instance_path().as_str() == at
        })
    };
    let is_null_only = |errors: &&Vec<ValidationError<'static>>| match errors.as_slice() {
        [error] => {
            matches!(error.kind(), ValidationErrorKind::Type { kind: TypeKind::Single(kind) } if kind.to_string() == "null")
        }
        _ => false,
    };
    let single = |mut left: Vec<&'e Vec<ValidationError<'static>>>| match (left.pop(), left.is_empty()) {
        (Some(only), true) => Some(only.as_slice()),
        _ => None,
    };
    single(context.iter().filter(|errors| !of_another_type(errors)).collect())
        .or_else(|| single(context.iter().filter(|errors| !is_null_only(errors)).collect()))
}

/// The pointer of a member.
fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(kind) => format!("of type {kind}"),
        TypeKind::Multiple(kinds) => {
            let names: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
            format!("of type {}", names.join(" or "))
        }
    }
}

/// What the schema says, as JSON and not too long. It is the tool's description and nobody's data.
fn rule(value: &Value) -> String {
    clipped(value.to_string(), MAX_RULE_CHARS)
}

fn clipped(text: String, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
