//! What is wrong with the settings: all of it, at once.

use std::fmt;

/// Faulty settings: every one that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The faults, in the order of the configuration file.
    pub faults: Vec<Fault>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    /// A headline, then one fault a line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.as_slice() {
            [only] => write!(formatter, "faulty setting: {only}"),
            faults => {
                write!(formatter, "{} faulty settings:", faults.len())?;
                faults.iter().try_for_each(|fault| write!(formatter, "\n  {fault}"))
            }
        }
    }
}

/// One faulty setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name in the file, or the name of what is no setting.
    pub key: String,
    /// Its value, cut short; `None` where the value is not at fault.
    pub value: Option<String>,
    /// What is expected instead.
    pub expected: String,
    /// Where the value came from.
    pub origin: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.expected)?;
        if let Some(value) = &self.value {
            write!(formatter, ", got {value}")?;
        }
        write!(formatter, " ({})", self.origin)
    }
}
