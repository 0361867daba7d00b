//! Enums that are one lower-case word each, where people read and write them.

/// Makes an enum of words: `ALL`, `WORDS`, `Display` and `FromStr`, whose error lists the words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $kind:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant),*];
            /// Their words, in the same order.
            pub const WORDS: &[&str] = &[$($word),*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($name::$variant => $word),* })
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::text::Refusal;
            fn from_str(word: &str) -> Result<$name, crate::text::Refusal> {
                match word {
                    $($word => Ok($name::$variant),)*
                    _ => Err(crate::text::unknown($kind, word, $name::WORDS)),
                }
            }
        }
    };
}
pub(super) use words;
