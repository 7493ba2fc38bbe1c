//! Enums with one spelling per value, for the database, JSON, settings and metrics alike.

use std::fmt;

/// Declares an enum whose values are words: `ALL`, `as_str`, `Display`, `FromStr`, and the same words in JSON
/// and in its schema.
///
/// With `NAME or Other`, rows may hold words of a newer version: they are read as `Other`, which is written nowhere.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident $(or $other:ident)? { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[allow(unreachable_pub, reason = "some of these enums are for one module only")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
            $(
                /// A word that this version of errand does not know.
                #[serde(rename = "unrecognized")]
                $other,
            )?
        }

        $(impl $crate::string_enum::OpenWord for $name {
            const UNRECOGNIZED: Self = Self::$other;
        })?

        #[allow(unreachable_pub, reason = "some of these enums are for one module only")]
        impl $name {
            /// Every value that this version knows, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Every word, in the order of declaration.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The word used in the database, in JSON and in metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                    $(Self::$other => "unrecognized",)?
                }
            }
        }

        impl utoipa::ToSchema for $name {}

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let words = Self::WORDS.iter().copied()$(.chain([Self::$other.as_str()]))?;
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(words))
                    .into()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::string_enum::UnknownWord;

            fn from_str(text: &str) -> Result<Self, $crate::string_enum::UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or(
                    $crate::string_enum::UnknownWord { choices: Self::WORDS },
                )
            }
        }
    };
}
pub(crate) use string_enum;

/// A word to which newer versions of errand may add, and that rows of theirs may hold.
pub(crate) trait OpenWord {
    const UNRECOGNIZED: Self;
}

/// A text that is none of the words of an enum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWord {
    pub(crate) choices: &'static [&'static str],
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "use one of {}", self.choices.join(", "))
    }
}

impl std::error::Error for UnknownWord {}
