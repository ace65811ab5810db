//! What was computed from content that may come again, within a number of bytes.

use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::metrics;

/// What content was, in 32 bytes: alike only for content that is alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentKey {
    digest: [u8; 32],
    /// What was made of it.
    kind: &'static str,
}

impl ContentKey {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.digest
    }
}

/// Makes a [`ContentKey`]. Every part is told apart from its neighbours.
pub(super) struct ContentHash(Sha256, &'static str);

impl ContentHash {
    /// Of a `kind` of result, so that two kinds made from one content differ.
    pub(super) fn of(kind: &'static str) -> Self {
        Self(Sha256::new(), kind).bytes(kind.as_bytes())
    }

    /// The same with `bytes` added.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The same with `numbers` added.
    pub(super) fn numbers(self, numbers: impl IntoIterator<Item = u32>) -> Self {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        self.bytes(&bytes)
    }

    pub(super) fn finish(self) -> ContentKey {
        ContentKey { digest: self.0.finalize().into(), kind: self.1 }
    }
}

/// Results by the content that they were made from: those used last, as many as
/// fit into a number of bytes.
pub(super) struct ContentCache<V> {
    entries: LruCache<ContentKey, (V, usize)>,
    bytes: usize,
    max_bytes: usize,
}

impl<V: Clone> ContentCache<V> {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, max_bytes }
    }

    /// What was kept for `key`; it now counts as used last.
    pub(super) fn get(&mut self, key: &ContentKey) -> Option<V> {
        let found = self.entries.get(key).map(|(value, _)| value.clone());
        metrics::cache_used(key.kind, found.is_some());
        found
    }

    /// Keeps `value`, of `bytes`, for `key`; the least recently used make room.
    /// What is larger than the whole cache is not kept.
    pub(super) fn insert(&mut self, key: ContentKey, value: V, bytes: usize) {
        if bytes > self.max_bytes {
            return;
        }
        if let Some((_, replaced)) = self.entries.put(key, (value, bytes)) {
            self.bytes -= replaced;
        }
        self.bytes += bytes;
        self.make_room(0);
    }

    /// Forgets as much, the least recently used first, as `bytes` more would take the place
    /// of: to be called before these are made, where both would not fit the device.
    pub(super) fn make_room(&mut self, bytes: usize) {
        while self.bytes.saturating_add(bytes) > self.max_bytes {
            let Some((_, (_, freed))) = self.entries.pop_lru() else {
                return;
            };
            self.bytes -= freed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> ContentKey {
        ContentHash::of("test").numbers([number]).finish()
    }

    #[test]
    fn what_is_found_and_what_is_not_is_counted_by_its_kind() {
        let metrics = metrics::Metrics::new();
        let mut cache = ContentCache::new(10);
        cache.insert(key(1), "one", 4);

        metrics.on_this_thread(|| {
            for (number, found) in [(1, Some("one")), (2, None), (3, None)] {
                assert_eq!(cache.get(&key(number)), found);
            }
        });

        let text = metrics.render(&metrics::State::default()).unwrap();
        assert!(text.contains("diffuser_cache_hits_total{cache=\"test\"} 1\n"), "{text}");
        assert!(text.contains("diffuser_cache_misses_total{cache=\"test\"} 2\n"), "{text}");
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let mut cache = ContentCache::new(10);
        cache.insert(key(1), "one", 4);
        cache.insert(key(2), "two", 4);
        assert_eq!(cache.get(&key(1)), Some("one"));

        cache.insert(key(3), "three", 5);

        assert_eq!(cache.get(&key(2)), None);
        assert_eq!(cache.get(&key(1)), Some("one"));
        assert_eq!(cache.get(&key(3)), Some("three"));
    }

    #[test]
    fn room_can_be_made_for_what_is_not_there_yet() {
        let mut cache = ContentCache::new(10);
        cache.insert(key(1), "one", 4);
        cache.insert(key(2), "two", 4);

        cache.make_room(2);
        assert_eq!(cache.get(&key(1)), Some("one"));
        cache.make_room(3);
        assert_eq!((cache.get(&key(1)), cache.get(&key(2))), (Some("one"), None));
        cache.make_room(usize::MAX);
        assert_eq!(cache.get(&key(1)), None);
    }

    #[test]
    fn a_replaced_value_gives_its_bytes_back() {
        let mut cache = ContentCache::new(10);
        for _ in 0..5 {
            cache.insert(key(1), "one", 6);
        }
        cache.insert(key(2), "two", 4);

        assert_eq!(cache.get(&key(1)), Some("one"));
        assert_eq!(cache.get(&key(2)), Some("two"));
    }

    #[test]
    fn what_is_larger_than_the_cache_evicts_nothing() {
        let mut cache = ContentCache::new(10);
        cache.insert(key(1), "one", 10);
        cache.insert(key(2), "two", 11);

        assert_eq!(cache.get(&key(1)), Some("one"));
        assert_eq!(cache.get(&key(2)), None);
    }

    #[test]
    fn neighbouring_parts_of_content_do_not_run_together() {
        let parts = |a: &str, b: &str| {
            ContentHash::of("test").bytes(a.as_bytes()).bytes(b.as_bytes()).finish()
        };

        assert_ne!(parts("ab", "c"), parts("a", "bc"));
        assert_ne!(ContentHash::of("a").finish(), ContentHash::of("b").finish());
    }
}
