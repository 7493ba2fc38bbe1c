//! What customers' data of a job is told only where it is asked for.

use std::str::FromStr;

use crate::string_enum::string_enum;

string_enum! {
    /// A key of a job that may be large, and is customers' data.
    Field {
        /// What the tool is called with.
        Arguments = "arguments",
        /// The same, where it is a text.
        Text = "text",
        /// The tool's output.
        Result = "result",
    }
}

/// Which of these keys are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    arguments: bool,
    text: bool,
    result: bool,
}

impl Fields {
    pub const NONE: Self = Self { arguments: false, text: false, result: false };

    /// What the job was enqueued with.
    pub const INPUT: Self = Self { arguments: true, text: true, result: false };

    pub fn has(self, field: Field) -> bool {
        match field {
            Field::Arguments => self.arguments,
            Field::Text => self.text,
            Field::Result => self.result,
        }
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    #[must_use]
    fn with(self, field: Field) -> Self {
        match field {
            Field::Arguments => Self { arguments: true, ..self },
            Field::Text => Self { text: true, ..self },
            Field::Result => Self { result: true, ..self },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("name some of {}, with commas between them", Field::WORDS.join(", "))]
pub struct NoFields;

impl FromStr for Fields {
    type Err = NoFields;

    fn from_str(text: &str) -> Result<Self, NoFields> {
        text.split(',').try_fold(Self::NONE, |fields, word| {
            word.trim().parse::<Field>().map(|field| fields.with(field)).map_err(|_| NoFields)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_are_listed_and_nothing_else_is() {
        assert_eq!("arguments,text".parse(), Ok(Fields::INPUT));
        assert!("result".parse::<Fields>().is_ok_and(|fields| fields.has(Field::Result)));
        for wrong in ["", "arguments,", "Arguments", "history"] {
            assert_eq!(wrong.parse::<Fields>(), Err(NoFields), "{wrong}");
        }
    }
}
