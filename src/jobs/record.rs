//! What is known of a job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::JobId;

/// What is known of a job, without its request and its result.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its name.
    pub id: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// What it was sent to.
    pub endpoint: String,
    /// The model that makes its pictures.
    pub model: String,
    /// How far it is.
    pub state: JobState,
    /// When it was accepted, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its model began, at the last try.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// When it is forgotten; known once it has ended.
    pub expires_ms: Option<u64>,
    /// How often its model has begun, but for those times that were called off in good order.
    pub tries: u32,
    /// How often somebody took it up, or put it back.
    pub claims: u64,
    /// Queued jobs that were accepted before it.
    pub ahead: u64,
    /// Whether others go first, for nobody waits for it.
    pub is_patient: bool,
    /// How far the model is, while it runs.
    pub progress: Option<JobProgress>,
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// What the client should know: sentences.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub failure: Option<JobFailure>,
    /// Whether a client waits for its reply, without which it is of no use.
    pub is_attached: bool,
    /// Parts of its reply that are there already, if that is a stream.
    pub parts: u64,
    /// How long its request is; 0 once it has ended.
    pub request_bytes: u64,
    /// How long its result is.
    pub result_bytes: u64,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It waits.
    Queued,
    /// Its model is at work.
    Running,
    /// There is a result.
    Succeeded,
    /// There will be none.
    Failed,
    /// Its owner called it off.
    Cancelled,
}

impl JobState {
    /// All, in the order of a job's life.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Whose a job is: a hash, from which no key and no address can be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner(String);

impl Owner {
    /// The owner that `identity`, of some `kind`, stands for; the same after a restart.
    #[must_use]
    pub fn of(kind: &str, identity: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(kind).chain_update([0]).chain_update(identity);
        Self(hex(&digest.finalize()[..16]))
    }

    pub(super) fn stored(text: String) -> Self {
        Self(text)
    }

    /// As it is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How far a job's model is. Lives as long as the process that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// The picture that is being made, from 1.
    pub picture: usize,
    /// How many there will be.
    pub pictures: usize,
    /// Steps of this picture that are done.
    pub step: usize,
    /// Steps that it takes; 0 until the model has told.
    pub total: usize,
    /// Milliseconds that are left, as far as can be told.
    pub left_ms: Option<u64>,
}

/// Why a job failed, as its client reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFailure {
    /// For people.
    pub message: String,
    /// The class of the error.
    pub kind: String,
    /// The field at fault, if one is.
    pub param: Option<String>,
    /// The error for programs, if it has a name.
    pub code: Option<String>,
    /// The status that the reply would have had.
    pub status: u16,
}

impl JobFailure {
    /// A failure that is the server's.
    pub(super) fn of_server(code: &str, message: String) -> Self {
        let (kind, code) = ("server_error".to_owned(), Some(code.to_owned()));
        Self { message, kind, param: None, code, status: 500 }
    }
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobResult {
    /// What kind of file it is.
    pub media_type: String,
    /// What else is said of it: names with values.
    pub notes: Vec<(String, String)>,
    /// The file.
    pub body: Bytes,
}

/// Event numbers of one claim.
const NUMBERS_OF_A_CLAIM: u64 = 1_000_000;

impl JobRecord {
    /// The number of the event that tells of this state. It only grows, over restarts, too:
    /// it is made of what is stored and of how far the model is.
    #[must_use]
    pub fn event_number(&self) -> u64 {
        let within = match self.state {
            JobState::Queued => 1,
            JobState::Running => {
                let done = self.progress.map_or(0, |at| {
                    let earlier = at.picture.saturating_sub(1) * at.total;
                    (earlier + at.step) as u64
                });
                (2 + done).min(NUMBERS_OF_A_CLAIM - 2)
            }
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => NUMBERS_OF_A_CLAIM - 1,
        };
        self.claims * NUMBERS_OF_A_CLAIM + within
    }
}

pub(super) fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
