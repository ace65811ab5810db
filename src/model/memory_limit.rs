//! How much of a device's memory a model may take.

use std::str::FromStr;

use crate::domain::UnknownChoice;

/// What is left to others where nothing is said, at least.
const LEFT_BYTES: usize = 1 << 30;
/// Likewise, as a share of what is free.
const LEFT_SHARE: usize = 10;

/// How much of a device's memory a model may take, weights and pictures together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum MemoryLimit {
    /// What is free, but for the larger of a tenth and 1 GiB.
    #[default]
    Free,
    /// So many bytes, or what is free if that is less.
    Bytes(usize),
    /// So many hundredths of what is free, 1 to 100.
    Percent(u8),
}

impl MemoryLimit {
    /// The ways to write one.
    pub const CHOICES: &str = "auto, a number of bytes, or a share of what is free such as 50%";

    /// The bytes that a model may take where `free` are.
    #[must_use]
    pub fn of(self, free: usize) -> usize {
        match self {
            Self::Free => free.saturating_sub((free / LEFT_SHARE).max(LEFT_BYTES)),
            Self::Bytes(bytes) => bytes.min(free),
            Self::Percent(percent) => free / 100 * usize::from(percent),
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = UnknownChoice { expected: Self::CHOICES };
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Free);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim_end().parse().map_err(|_| unknown.clone())?;
            return (1..=100).contains(&percent).then_some(Self::Percent(percent)).ok_or(unknown);
        }
        match text.parse() {
            Ok(bytes) if bytes > 0 => Ok(Self::Bytes(bytes)),
            Ok(_) | Err(_) => Err(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    #[test]
    fn without_a_limit_a_tenth_or_a_gibibyte_is_left_to_others() {
        assert_eq!(MemoryLimit::Free.of(4 * GIB), 3 * GIB);
        assert_eq!(MemoryLimit::Free.of(100 * GIB), 90 * GIB);
        assert_eq!(MemoryLimit::Free.of(GIB / 2), 0);
    }

    #[test]
    fn a_limit_is_bytes_or_a_share_and_never_more_than_there_is() {
        for (text, limit, of_8_gib) in [
            ("auto", MemoryLimit::Free, 7 * GIB),
            ("6442450944", MemoryLimit::Bytes(6 * GIB), 6 * GIB),
            ("99000000000", MemoryLimit::Bytes(99_000_000_000), 8 * GIB),
            ("100%", MemoryLimit::Percent(100), 8 * GIB / 100 * 100),
            ("50 %", MemoryLimit::Percent(50), 8 * GIB / 100 * 50),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
            assert_eq!(limit.of(8 * GIB), of_8_gib, "{text}");
        }
        for text in ["", "0", "-1", "0%", "101%", "x", "1.5", "%"] {
            assert!(text.parse::<MemoryLimit>().is_err(), "{text:?}");
        }
    }
}
