//! Finished pictures that clients fetch by address (`response_format=url`, `store`): in
//! memory, in a folder, or in a bucket of S3, Google Cloud Storage or Azure.
//!
//! A picture is there for a time; whoever knows its name can fetch it, and names cannot be
//! guessed. In folders and buckets pictures outlive the process, and several servers may
//! share them.

mod cleaning;
mod error;
mod location;
mod memory;
mod name;
mod objects;
mod open;
mod room;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::ObjectStore;

pub use error::{OpenError, StoreError};
pub use location::{CloudService, StoreLocation, UnknownLocation};
pub use name::media_type_of;

use memory::MemoryPictures;
use objects::ObjectPictures;

/// Where pictures are kept, how long and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where they are kept.
    pub location: StoreLocation,
    /// How a bucket is reached.
    pub options: StoreOptions,
    /// Whether addresses are those of a bucket, signed for the lifetime.
    pub signed_urls: bool,
    /// How long a picture can be fetched.
    pub lifetime: Duration,
    /// Bytes of all pictures together; of a bucket nobody counts them.
    pub max_bytes: usize,
    /// How long an answer of a folder or a bucket is waited for.
    pub timeout: Duration,
}

impl StoreConfig {
    /// How long an answer is waited for, if nothing else is said.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// Has pictures that would be in the memory of one process lie beside `files`, which
    /// several processes have.
    pub fn share(&mut self, files: &Self) {
        if self.location == StoreLocation::Memory {
            self.location = files.location.below("pictures");
            self.options = files.options.clone();
        }
    }

    /// The longest lifetime of addresses that a bucket signs: S3 and Google take no more.
    pub const LONGEST_SIGNED: Duration = Duration::from_secs(7 * 24 * 3600);
}

/// How a bucket is reached: names and values of the environment variables for it. Secrets
/// are among them, so that only the names are printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreOptions(pub Vec<(String, String)>);

impl fmt::Debug for StoreOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// The pictures.
#[derive(Debug)]
pub struct PictureStore(Kept);

#[derive(Debug)]
enum Kept {
    InMemory(MemoryPictures),
    AsObjects(Arc<ObjectPictures>),
}

/// Where a picture can be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// From this store, by name.
    Name(String),
    /// From its bucket, by an address that this has signed.
    Signed(String),
}

/// What is known of a stored picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Its length.
    pub bytes: u64,
    /// For how long it will still be there.
    pub left: Duration,
}

/// A stored picture, or a part of it, as it is read.
pub struct StoredFile {
    /// Of the whole.
    pub description: Description,
    /// What is read, piece by piece.
    pub pieces: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl PictureStore {
    /// Opens the store of the settings. Does not speak to a bucket yet.
    ///
    /// # Errors
    /// [`OpenError`] if a folder cannot be written, or the settings of a bucket do not do.
    pub fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let objects = match &config.location {
            StoreLocation::Memory => {
                let pictures = MemoryPictures::new(config.lifetime, config.max_bytes);
                return Ok(Self(Kept::InMemory(pictures)));
            }
            StoreLocation::Folder(path) => open::folder(path, config)?,
            StoreLocation::Bucket { service, name, .. } => open::bucket((*service, name), config)?,
        };
        Ok(Self(Kept::AsObjects(Arc::new(objects))))
    }

    /// A store over `store`, whatever that is, as if it were at the location of `config`.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, config: &StoreConfig) -> Self {
        Self(Kept::AsObjects(Arc::new(ObjectPictures::new(store, None, config))))
    }

    /// Has pictures deleted whose time is over, until the store is dropped; within a
    /// runtime. Those in memory need nobody for that.
    pub fn start_cleaning(&self) {
        if let Kept::AsObjects(pictures) = &self.0 {
            tokio::spawn(cleaning::clean_for_good(Arc::downgrade(pictures)));
        }
    }

    /// Keeps a file, whose name gets an `extension`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keep(&self, file: Bytes, extension: &str) -> Result<Address, StoreError> {
        match &self.0 {
            Kept::InMemory(pictures) => {
                let name = pictures.keep(file, extension).ok_or(StoreError::TooLarge)?;
                Ok(Address::Name(name))
            }
            Kept::AsObjects(pictures) => pictures.keep(file, extension).await,
        }
    }

    /// What is known of the picture called `name`; `None` if there is none, or its time is
    /// over.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn describe(&self, name: &str) -> Result<Option<Description>, StoreError> {
        match &self.0 {
            Kept::InMemory(pictures) => Ok(pictures.find(name).map(describe)),
            Kept::AsObjects(pictures) => pictures.describe(name).await,
        }
    }

    /// Reads the picture called `name`, or a part that lies within it; as
    /// [`Self::describe`].
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn read(
        &self,
        name: &str,
        part: Option<Range<u64>>,
    ) -> Result<Option<StoredFile>, StoreError> {
        match &self.0 {
            Kept::InMemory(pictures) => Ok(pictures.find(name).map(|found| read(found, part))),
            Kept::AsObjects(pictures) => {
                let found = pictures.read(name, part).await?;
                Ok(found.map(|(description, pieces)| StoredFile { description, pieces }))
            }
        }
    }
}

/// The folder or the bucket of the settings, for other objects than pictures; `None` if it is
/// in memory. Does not speak to a bucket yet.
///
/// # Errors
/// As [`PictureStore::open`].
pub fn open_objects(config: &StoreConfig) -> Result<Option<Arc<dyn ObjectStore>>, OpenError> {
    open::objects(config)
}

fn describe((file, left): (Bytes, Duration)) -> Description {
    Description { bytes: file.len() as u64, left }
}

fn read((file, left): (Bytes, Duration), part: Option<Range<u64>>) -> StoredFile {
    let description = describe((file.clone(), left));
    let end = |end: u64| usize::try_from(end).unwrap_or(usize::MAX).min(file.len());
    let piece = part.map_or_else(
        || file.clone(),
        |part| {
            let (from, to) = (end(part.start), end(part.end));
            file.slice(from..to.max(from))
        },
    );
    StoredFile { description, pieces: stream::iter([Ok(piece)]).boxed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of a store at `location`.
    pub(super) fn config(location: &str) -> StoreConfig {
        StoreConfig {
            location: location.parse().unwrap(),
            options: StoreOptions::default(),
            signed_urls: false,
            lifetime: Duration::from_secs(60),
            max_bytes: 1000,
            timeout: Duration::from_secs(60),
        }
    }

    async fn content(store: &PictureStore, name: &str) -> Option<Vec<u8>> {
        Some(all_of(store.read(name, None).await.unwrap()?).await)
    }

    async fn all_of(file: StoredFile) -> Vec<u8> {
        let pieces: Vec<_> = file.pieces.map(Result::unwrap).collect().await;
        pieces.concat()
    }

    async fn keep(store: &PictureStore, file: &'static str) -> String {
        match store.keep(file.into(), "png").await.unwrap() {
            Address::Name(name) => name,
            Address::Signed(url) => panic!("{url}"),
        }
    }

    #[tokio::test]
    async fn a_folder_keeps_pictures_beyond_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("made/for it");
        let location = format!("file://{}", place.display());
        let name = keep(&PictureStore::open(&config(&location)).unwrap(), "abc").await;

        let again = PictureStore::open(&config(&location)).unwrap();

        assert_eq!(content(&again, &name).await.unwrap(), b"abc");
        assert_eq!(again.describe(&name).await.unwrap().unwrap().bytes, 3);
        let part = again.read(&name, Some(1..3)).await.unwrap().unwrap();
        assert_eq!(part.description.bytes, 3);
        assert_eq!(all_of(part).await, b"bc");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_is_left_in_a_folder_counts_and_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let location = format!("file://{}", folder.path().display());
        let settings = StoreConfig { max_bytes: 5, ..config(&location) };
        let first = keep(&PictureStore::open(&settings).unwrap(), "abc").await;

        let store = PictureStore::open(&settings).unwrap();
        let second = keep(&store, "def").await;

        assert_eq!(content(&store, &first).await, None);
        assert_eq!(content(&store, &second).await.unwrap(), b"def");
        assert_eq!(store.keep("abcdef".into(), "png").await, Err(StoreError::TooLarge));
    }

    #[tokio::test]
    async fn what_was_half_written_is_removed_when_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let half = |until: u64| format!("{until:010}-{}.png#1", "0".repeat(32));
        for name in [half(1_000_000_000), half(9_999_999_999), "mine#1".to_owned()] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }

        PictureStore::open(&config(&format!("file://{}", folder.path().display()))).unwrap();

        let left = [half(9_999_999_999), "mine#1".to_owned()];
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, left);
    }

    #[tokio::test]
    async fn after_its_time_a_picture_is_gone_though_its_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let location = format!("file://{}", folder.path().display());
        let settings = StoreConfig { lifetime: Duration::ZERO, ..config(&location) };
        let store = PictureStore::open(&settings).unwrap();

        let name = keep(&store, "abc").await;

        assert!(folder.path().join(&name).exists());
        assert_eq!(content(&store, &name).await, None);
        assert_eq!(store.describe(&name).await, Ok(None));
    }

    #[tokio::test]
    async fn a_name_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret.png"), "x").unwrap();
        std::fs::create_dir(folder.path().join("pictures")).unwrap();
        std::fs::write(folder.path().join("pictures/other.png"), "x").unwrap();
        let location = format!("file://{}/pictures", folder.path().display());
        let store = PictureStore::open(&config(&location)).unwrap();

        for name in ["../secret.png", "other.png", "%2e%2e/secret.png", "", ".", "/etc/passwd"] {
            assert_eq!(content(&store, name).await, None, "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let location = format!("file://{}/file/below", folder.path().display());

        let error = PictureStore::open(&config(&location)).unwrap_err();

        let message = error.to_string();
        assert!(message.contains("/file/below") && message.contains("pictures.store"), "{message}");
    }

    #[tokio::test]
    async fn a_bucket_signs_addresses_without_being_asked() {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let keys = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hidden"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_BUCKET", "another"),
            ("AWS_PROFILE", "unknown here"),
        ];
        let options = StoreOptions(keys.map(|(name, value)| option(name, value)).into());
        assert!(!format!("{options:?}").contains("hidden"));
        let settings = StoreConfig { options, signed_urls: true, ..config("s3://mine/below") };

        let opened = open::bucket((CloudService::S3, "mine"), &settings).unwrap();
        let address = opened.address_of(name::PictureName::new(settings.lifetime, "png")).await;

        let Ok(Address::Signed(url)) = address else { panic!("{address:?}") };
        assert!(url.starts_with("http://127.0.0.1:9/mine/below/"), "{url}");
        assert!(url.contains("X-Amz-Expires=60&") && url.contains("X-Amz-Signature="), "{url}");
    }

    #[test]
    fn an_account_that_is_missing_is_told_at_the_start() {
        let error = PictureStore::open(&config("az://container/below")).unwrap_err();

        assert!(error.to_string().contains("az://container/below"), "{error}");
    }
}
