//! How fast a checkpoint's files are read: a network or an old disk may make minutes of what
//! else takes seconds, and should be told rather than looked at.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

/// Files of fewer bytes are read before anybody wonders.
const LEAST_FILE_BYTES: u64 = 1 << 30;
/// Places of the largest file that are read.
const PLACES: u64 = 4;
/// Bytes that are read at each.
const BYTES_AT_A_PLACE: usize = 16 << 20;
/// A slow disk is not waited for longer than this.
const LONGEST: Duration = Duration::from_secs(2);
/// What is read more slowly is told, in bytes a second.
const SLOW: f64 = 250e6;

/// How fast files are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadSpeed {
    /// Bytes a second, seen at a few places: of what the system has in memory more than of
    /// what is read from a disk.
    pub bytes_per_second: f64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl ReadSpeed {
    /// That of `files`, if they are so large that it matters and can be read.
    #[must_use]
    pub fn of(files: &[impl AsRef<Path>]) -> Option<Self> {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let largest = files.iter().max_by_key(|path| size(path.as_ref()))?.as_ref();
        if size(largest) < LEAST_FILE_BYTES {
            return None;
        }
        let bytes = files.iter().map(|path| size(path.as_ref())).sum();
        let bytes_per_second = read_at_places(largest, size(largest)).ok()?;
        Some(Self { bytes_per_second, bytes })
    }

    /// Minutes that reading all files takes, if that is slow.
    #[must_use]
    pub fn slow_minutes(&self) -> Option<f64> {
        let minutes = self.bytes as f64 / self.bytes_per_second / 60.0;
        (self.bytes_per_second < SLOW).then_some(minutes)
    }
}

fn read_at_places(path: &Path, size: u64) -> std::io::Result<f64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BYTES_AT_A_PLACE];
    let started = Instant::now();
    let mut read = 0;
    for place in 0..PLACES {
        // In the middle of each share: the beginning may have been read for the header.
        file.seek(SeekFrom::Start(size / PLACES * place + size / PLACES / 2))?;
        file.read_exact(&mut buffer)?;
        read += buffer.len();
        if started.elapsed() > LONGEST {
            break;
        }
    }
    Ok(read as f64 / started.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_slow_is_told_with_the_time_that_all_takes() {
        let speed = |bytes_per_second| ReadSpeed { bytes_per_second, bytes: 60_000_000_000 };
        assert_eq!(speed(2e9).slow_minutes(), None);
        assert_eq!(speed(1e8).slow_minutes(), Some(10.0));
    }

    #[test]
    fn small_files_are_not_timed_and_large_ones_are() {
        let folder = tempfile::tempdir().unwrap();
        let (small, large) = (folder.path().join("small"), folder.path().join("large"));
        std::fs::write(&small, [0; 100]).unwrap();
        // A hole takes no room.
        File::create(&large).unwrap().set_len(LEAST_FILE_BYTES).unwrap();

        assert_eq!(ReadSpeed::of(&[&small]), None);
        let none: [&Path; 0] = [];
        assert_eq!(ReadSpeed::of(&none), None);
        let speed = ReadSpeed::of(&[&small, &large]).unwrap();
        assert_eq!(speed.bytes, LEAST_FILE_BYTES + 100);
        assert!(speed.bytes_per_second > 0.0);
    }
}
