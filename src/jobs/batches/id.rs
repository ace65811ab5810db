//! Names of files and batches, which sort by the time of their making, as those of jobs do.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::jobs::id;

/// A text that names nothing of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such name")]
pub struct NoId;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, greater than all that this process made before.
            #[must_use]
            pub fn new() -> Self {
                Self(id::next())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = NoId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = text.strip_prefix($prefix).ok_or(NoId)?;
                let id = Uuid::try_parse(digits).map(Self).map_err(|_| NoId)?;
                // One way to write it.
                if id.to_string() == text { Ok(id) } else { Err(NoId) }
            }
        }
    };
}

name! {
    /// The name of a file. Later ones are greater.
    FileId, "file-"
}

name! {
    /// The name of a batch. Later ones are greater.
    BatchId, "batch_"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are_of_and_are_written_in_one_way() {
        let (file, batch) = (FileId::new().to_string(), BatchId::new().to_string());

        assert!(file.parse::<FileId>().is_ok() && batch.parse::<BatchId>().is_ok());
        for wrong in [batch.as_str(), "file-", "", &file.to_uppercase(), &file[5..]] {
            assert_eq!(wrong.parse::<FileId>(), Err(NoId), "{wrong}");
        }
        assert_eq!(file.parse::<BatchId>(), Err(NoId));
    }
}
