//! Why a file did not become a picture, or not with all that it says.

use super::DecodeLimits;
use super::format::READ_FORMATS;
use crate::domain::ImageError;

/// Why bytes were not decoded. The texts are fit for clients.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file is larger than is allowed.
    #[error("the file has {bytes} bytes, at most {max_bytes} are allowed")]
    TooManyBytes {
        /// Bytes of the file.
        bytes: usize,
        /// What is allowed.
        max_bytes: usize,
    },
    /// The bytes begin like nothing that is known.
    #[error("the file is not a picture of a format that is read here ({READ_FORMATS})")]
    UnknownFormat,
    /// A picture of a format that is not read.
    #[error("the file is {what}, which is not read here: send it as JPEG or PNG")]
    ForeignPicture {
        /// The format, with its article.
        what: &'static str,
    },
    /// Something that is not a picture at all.
    #[error("the file is {what}, not a picture: {advice}")]
    NotAPicture {
        /// What it is, with its article.
        what: &'static str,
        /// What to look for.
        advice: &'static str,
    },
    /// A picture with other bytes before it.
    #[error(
        "a {format} picture begins only at byte {at} of the file, after {at} bytes of something \
         else: send the picture alone"
    )]
    Displaced {
        /// The picture's format.
        format: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// A format that is read, but not in this variety.
    #[error(
        "the file is a {format} picture of a kind that is not read here ({kind}): save it as an \
         ordinary 8-bit PNG or JPEG"
    )]
    UnsupportedKind {
        /// The format.
        format: &'static str,
        /// What is special about the file.
        kind: String,
    },
    /// The header tells of more pixels than are allowed.
    #[error(
        "the picture is {width}x{height} pixels; at most {} pixels in all and {} on a side are \
         allowed",
        limits.max_pixels,
        limits.max_side
    )]
    TooLarge {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// What is allowed.
        limits: DecodeLimits,
    },
    /// The decoder would have taken more memory than such a picture needs.
    #[error("the picture takes too much memory to decode")]
    TooMuchMemory,
    /// The picture would take the decoder hours.
    #[error("the picture is stored in {scans} or more scans, far more than any real one")]
    TooManyScans {
        /// How many were counted.
        scans: usize,
    },
    /// The file ends before the picture does.
    #[error("the file is truncated")]
    Truncated,
    /// The file breaks the rules of its format.
    #[error("the file is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The decoder panicked.
    #[error("the file is damaged beyond what the decoder understands")]
    DecoderPanicked,
    /// The decoder gave a picture without pixels.
    #[error("the file holds no pixels")]
    NoPixels(#[from] ImageError),
}

impl DecodeError {
    /// A file that breaks the rules of its format.
    pub(super) fn damaged(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Damaged(cause.into())
    }

    /// What went wrong while reading: a file that ends early is told from a broken one.
    pub(super) fn reading(cause: std::io::Error) -> Self {
        if cause.kind() == std::io::ErrorKind::UnexpectedEof {
            Self::Truncated
        } else {
            Self::damaged(cause)
        }
    }
}

/// A colour profile that was left out of account: the file's numbers were taken
/// for sRGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedProfile {
    /// What the profile calls itself.
    pub description: Option<String>,
    /// What is wrong with it.
    pub reason: ProfileFault,
}

/// What is wrong with a colour profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProfileFault {
    /// It is longer than any that is in use, or grows to such a length.
    #[error("it is too large")]
    TooLarge,
    /// It breaks the rules of its format.
    #[error("it is damaged")]
    Damaged,
    /// It is about other numbers than the file's.
    #[error("it is for {profile} colours, and the picture is {picture}")]
    OtherColours {
        /// The colour space of the profile.
        profile: &'static str,
        /// That of the picture.
        picture: &'static str,
    },
    /// It says how to get from one device to another, not what colours look like.
    #[error("it does not describe the colours of a picture")]
    OtherPurpose,
    /// The library for colour profiles does not know its kind.
    #[error("it is of a kind that is not supported")]
    Unsupported,
}
