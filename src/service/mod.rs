//! The queue, and the thread on which the model lives.

/// What the service can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// How many requests may wait while one is being served.
    pub queue_capacity: usize,
}
