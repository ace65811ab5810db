//! What a process does among those that share jobs.

use std::str::FromStr;

/// What a process does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// All there is to do.
    #[default]
    All,
    /// It takes requests in and answers them; workers make the pictures.
    Gateway,
    /// It makes the pictures of jobs, and answers nobody but whoever watches over it.
    Worker,
}

impl Role {
    /// The ways to write one.
    pub const CHOICES: &str = "all, gateway or worker";
}

/// A text that names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", Role::CHOICES)]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "gateway" => Ok(Self::Gateway),
            "worker" => Ok(Self::Worker),
            _ => Err(UnknownRole),
        }
    }
}
