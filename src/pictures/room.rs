//! How much a store holds: so many bytes at most, and the oldest pictures make room.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::name::PictureName;

/// What is known of a store's pictures. What other servers put there, or a person takes
/// out, is seen when it is looked through.
#[derive(Debug)]
pub(super) struct Room {
    max_bytes: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By name, and so the first to end comes first.
    pictures: BTreeMap<PictureName, Entry>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    noted: Instant,
}

impl Held {
    fn add(&mut self, name: PictureName, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some(before) = self.pictures.insert(name, entry) {
            self.bytes -= before.bytes;
        }
    }

    fn remove(&mut self, name: &PictureName) {
        if let Some(entry) = self.pictures.remove(name) {
            self.bytes -= entry.bytes;
        }
    }
}

impl Room {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a picture, and says which ones have to go for it; `None` if it is
    /// larger than all may be.
    pub(super) fn take(&self, name: PictureName, bytes: u64) -> Option<Vec<PictureName>> {
        if bytes > self.max_bytes {
            return None;
        }
        let mut held = self.held();
        let mut leaving = Vec::new();
        while held.bytes + bytes > self.max_bytes {
            let Some(oldest) = held.pictures.keys().next().cloned() else { break };
            held.remove(&oldest);
            leaving.push(oldest);
        }
        held.add(name, Entry { bytes, noted: Instant::now() });
        Some(leaving)
    }

    /// The picture is not there after all.
    pub(super) fn give_back(&self, name: &PictureName) {
        self.held().remove(name);
    }

    /// Takes note of what was found when the store was looked through, from `began` on;
    /// what has come since then may not have been seen. Says which pictures have to go.
    pub(super) fn correct(
        &self,
        began: Instant,
        found: impl IntoIterator<Item = (PictureName, u64)>,
    ) -> Vec<PictureName> {
        let mut held = self.held();
        let mut corrected = Held::default();
        for (name, bytes) in found {
            corrected.add(name, Entry { bytes, noted: began });
        }
        for (name, entry) in held.pictures.iter().filter(|(_, entry)| entry.noted >= began) {
            corrected.add(name.clone(), *entry);
        }
        let mut leaving = Vec::new();
        while corrected.bytes > self.max_bytes {
            let Some(oldest) = corrected.pictures.keys().next().cloned() else { break };
            corrected.remove(&oldest);
            leaving.push(oldest);
        }
        *held = corrected;
        leaving
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(seconds: u64) -> PictureName {
        PictureName::new(Duration::from_secs(seconds), "png")
    }

    #[test]
    fn the_first_to_end_makes_room() {
        let room = Room::new(10);
        let (soon, late) = (name(60), name(9000));

        assert_eq!(room.take(late.clone(), 6), Some(vec![]));
        assert_eq!(room.take(soon.clone(), 4), Some(vec![]));

        assert_eq!(room.take(name(100), 4), Some(vec![soon]));
        assert_eq!(room.take(name(10_000), 10).unwrap().len(), 2);
        assert_eq!(room.take(name(1), 11), None);
    }

    #[test]
    fn room_that_is_given_back_can_be_taken_again() {
        let room = Room::new(10);
        let failed = name(60);
        room.take(failed.clone(), 10).unwrap();

        room.give_back(&failed);

        assert_eq!(room.take(name(60), 10), Some(vec![]));
    }

    #[test]
    fn a_look_at_the_store_corrects_what_is_known_but_for_what_came_meanwhile() {
        let room = Room::new(10);
        room.take(name(60), 5).unwrap();
        let began = Instant::now();
        let (fresh, of_another) = (name(9000), name(50));
        room.take(fresh.clone(), 3).unwrap();

        // The first picture was taken out by hand; another server has put one in.
        assert_eq!(room.correct(began, [(of_another.clone(), 4)]), []);

        assert_eq!(room.take(name(10_000), 4), Some(vec![of_another]));
        assert_eq!(room.correct(Instant::now(), [(name(1), 8), (fresh, 3)]).len(), 1);
    }
}
