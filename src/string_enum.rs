//! Enums with one spelling per value, for the database, JSON, settings and metrics alike.

use std::fmt;

/// Declares an enum whose values are words: `ALL`, `as_str`, `Display`, `FromStr`, and the same words in JSON.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[allow(unreachable_pub, reason = "some of these enums are for one module only")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
        }

        #[allow(unreachable_pub, reason = "some of these enums are for one module only")]
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Every word, in the order of declaration.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The word used in the database, in JSON and in metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
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
                    $crate::string_enum::UnknownWord { what: stringify!($name), choices: Self::WORDS },
                )
            }
        }
    };
}
pub(crate) use string_enum;

/// A text that is none of the words of an enum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWord {
    pub(crate) what: &'static str,
    pub(crate) choices: &'static [&'static str],
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a known {}: use one of {}", self.what, self.choices.join(", "))
    }
}

impl std::error::Error for UnknownWord {}
