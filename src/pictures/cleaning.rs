//! Deleting what is over: now and then, so much at a time, in stores that outlive the
//! process. Pictures cannot be fetched after their time anyway; this is about their bytes.

use std::sync::Weak;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::error::StoreError;
use super::name::PictureName;
use super::objects::ObjectPictures;

/// Objects that are looked at in one round. Names sort by their time, and buckets list by
/// name: what is over comes first.
const MOST_LISTED: usize = 100_000;
/// Pictures that are deleted in one round.
const MOST_DELETED: usize = 1000;
/// The next round, where this one left some.
const SOON: Duration = Duration::from_secs(1);
/// How often a store is looked through, at most and at least.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cleaned {
    pub(super) deleted: usize,
    pub(super) is_more_left: bool,
}

/// What a look at the store found.
#[derive(Default)]
struct Found {
    over: Vec<PictureName>,
    /// With their bytes; only where these are counted.
    lasting: Vec<(PictureName, u64)>,
    is_all: bool,
}

/// Cleans until the store is dropped. Several servers that share a store do so at times of
/// their own.
pub(super) async fn clean_for_good(pictures: Weak<ObjectPictures>) {
    let mut pause = Duration::ZERO;
    loop {
        let Some(interval) = pictures.upgrade().map(|pictures| interval(pictures.lifetime)) else {
            return;
        };
        let pause_now = if pause.is_zero() { interval.mul_f64(rand::random()) } else { pause };
        tokio::time::sleep(pause_now).await;
        let Some(pictures) = pictures.upgrade() else { return };
        let cleaned = pictures.clean().await;
        pause = match cleaned {
            Ok(Cleaned { is_more_left: true, .. }) => SOON,
            Ok(_) => interval.mul_f64(0.5 + rand::random::<f64>()),
            Err(error) => {
                tracing::warn!(%error, "cannot clean the store of pictures");
                interval.mul_f64(0.5 + rand::random::<f64>())
            }
        };
    }
}

/// A tenth of the lifetime, within bounds.
fn interval(lifetime: Duration) -> Duration {
    (lifetime / 10).clamp(INTERVALS.0, INTERVALS.1)
}

impl ObjectPictures {
    /// One round: deletes what is over, and what is too much.
    pub(super) async fn clean(&self) -> Result<Cleaned, StoreError> {
        let began = Instant::now();
        let Found { mut over, lasting, is_all } = self.look_through().await?;
        if let Some(room) = self.room.as_ref().filter(|_| is_all) {
            over.append(&mut room.correct(began, lasting));
        }
        let is_more_left = !is_all || over.len() > MOST_DELETED;
        over.truncate(MOST_DELETED);
        let deleted = over.len();
        self.delete(over).await?;
        if deleted > 0 {
            tracing::debug!(deleted, "pictures whose time is over are deleted");
        }
        // Where nothing could be deleted, the rest is not ours.
        Ok(Cleaned { deleted, is_more_left: is_more_left && deleted > 0 })
    }

    async fn look_through(&self) -> Result<Found, StoreError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let mut listed = self.store.list(prefix).take(MOST_LISTED);
        let mut found = Found::default();
        let mut seen = 0;
        while found.over.len() <= MOST_DELETED {
            let next = async { listed.next().await.transpose() };
            let Some(object) = self.in_time(next).await? else {
                found.is_all = seen < MOST_LISTED;
                break;
            };
            seen += 1;
            let name = object.location.filename().and_then(PictureName::parse);
            let Some(name) = name.filter(|name| self.path_of(name) == object.location) else {
                continue;
            };
            if name.time_left().is_none() {
                found.over.push(name);
            } else if self.room.is_some() {
                found.lasting.push((name, object.size));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};

    use super::super::tests::config;
    use super::super::{StoreConfig, open};
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    async fn names(store: &InMemory) -> Vec<String> {
        let listed: Vec<_> = store.list(None).collect().await;
        listed.into_iter().map(|object| object.unwrap().location.to_string()).collect()
    }

    async fn put(store: &InMemory, path: &str) {
        store.put(&Path::from(path), "x".into()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_over_is_deleted_and_nothing_else() {
        let store = Arc::new(InMemory::new());
        let kept = [
            "a/1000000000-notes.png".to_owned(),
            format!("a/9999999999-{SECRET}.png"),
            format!("a/b/1000000000-{SECRET}.png"),
            format!("c/1000000000-{SECRET}.png"),
        ];
        for path in &kept {
            put(&store, path).await;
        }
        put(&store, &format!("a/1000000000-{SECRET}.png")).await;
        let pictures = ObjectPictures::new(store.clone(), None, &config("s3://b/a"));

        let cleaned = pictures.clean().await.unwrap();

        assert_eq!(cleaned, Cleaned { deleted: 1, is_more_left: false });
        assert_eq!(names(&store).await, kept);
    }

    #[tokio::test]
    async fn a_round_has_an_end() {
        let store = Arc::new(InMemory::new());
        for index in 0..1500 {
            put(&store, &format!("1000000000-{index:032x}.png")).await;
        }
        let pictures = ObjectPictures::new(store.clone(), None, &config("s3://bucket"));

        let rounds = [pictures.clean().await.unwrap(), pictures.clean().await.unwrap()];

        assert_eq!(rounds[0], Cleaned { deleted: 1000, is_more_left: true });
        assert_eq!(rounds[1], Cleaned { deleted: 500, is_more_left: false });
        assert!(names(&store).await.is_empty());
    }

    #[tokio::test]
    async fn two_servers_may_clean_at_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(format!("1000000000-{SECRET}.png")), "x").unwrap();
        let settings = config(&format!("file://{}", folder.path().display()));
        let [one, other] = [0; 2].map(|_| open::folder(folder.path(), &settings).unwrap());

        let found = one.look_through().await.unwrap();
        assert_eq!(other.clean().await.unwrap().deleted, 1);

        assert_eq!(found.over.len(), 1);
        assert_eq!(one.delete(found.over).await, Ok(()));
    }

    #[tokio::test]
    async fn what_another_server_has_put_there_counts() {
        let store = Arc::new(InMemory::new());
        let settings = StoreConfig { max_bytes: 4, ..config("file:///unused") };
        let servers = [0; 2].map(|_| ObjectPictures::new(store.clone(), None, &settings));
        for server in &servers {
            server.keep("abc".into(), "png").await.unwrap();
        }
        assert_eq!(names(&store).await.len(), 2);

        servers[0].clean().await.unwrap();

        assert_eq!(names(&store).await.len(), 1);
    }
}
