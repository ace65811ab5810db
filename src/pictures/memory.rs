//! Pictures in memory, for a time and up to a number of bytes; the oldest make room for new
//! ones. They end with the process.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::name;

/// The pictures, oldest first.
#[derive(Debug)]
pub(super) struct MemoryPictures {
    lifetime: Duration,
    max_bytes: usize,
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    name: String,
    file: Bytes,
    until: Instant,
}

impl MemoryPictures {
    pub(super) fn new(lifetime: Duration, max_bytes: usize) -> Self {
        Self { lifetime, max_bytes, kept: Mutex::default() }
    }

    /// Keeps a file, and gives it a name with `extension`; `None` if it is larger
    /// than the whole store.
    pub(super) fn keep(&self, file: Bytes, extension: &str) -> Option<String> {
        if file.len() > self.max_bytes {
            return None;
        }
        let name = format!("{}.{extension}", name::secret());
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|picture| picture.until > now);
        let mut bytes: usize = kept.iter().map(|picture| picture.file.len()).sum();
        while bytes + file.len() > self.max_bytes {
            let Some(oldest) = kept.pop_front() else { break };
            bytes -= oldest.file.len();
        }
        kept.push_back(Kept { name: name.clone(), file, until: now + self.lifetime });
        Some(name)
    }

    /// The file called `name`, and for how long it will still be there.
    pub(super) fn find(&self, name: &str) -> Option<(Bytes, Duration)> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|picture| picture.until > now);
        let picture = kept.iter().find(|picture| picture.name == name)?;
        Some((picture.file.clone(), picture.until - now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(lifetime: Duration) -> MemoryPictures {
        MemoryPictures::new(lifetime, 10)
    }

    #[test]
    fn the_oldest_make_room_and_what_is_too_large_is_not_kept() {
        let store = store(Duration::from_secs(60));
        let keep = |length: usize| store.keep(vec![1; length].into(), "png");

        let first = keep(6).unwrap();
        let second = keep(4).unwrap();
        assert!(store.find(&first).is_some());
        let third = keep(5).unwrap();

        assert!(store.find(&first).is_none());
        assert_eq!(store.find(&second).unwrap().0.len(), 4);
        assert_eq!(store.find(&third).unwrap().0.len(), 5);
        assert_eq!(keep(11), None);
        assert!(store.find(&third).is_some());
    }

    #[test]
    fn a_picture_is_gone_after_its_time_and_names_are_not_guessable() {
        let store = store(Duration::ZERO);

        let names = [0; 2].map(|_| store.keep(Bytes::from_static(b"x"), "webp").unwrap());

        assert_ne!(names[0], names[1]);
        assert_eq!(names[0].len(), "0123456789abcdef0123456789abcdef.webp".len());
        assert!(names.iter().all(|name| store.find(name).is_none()));
    }
}
