//! Pictures as objects: in a folder or a bucket, which others may share.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStore, PutOptions,
};

use super::error::StoreError;
use super::name::{PictureName, media_type_of};
use super::room::Room;
use super::{Address, Description, StoreConfig, StoreLocation};

/// The pictures of one folder or bucket.
#[derive(Debug)]
pub(super) struct ObjectPictures {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Signs addresses, where that is wished for.
    signer: Option<Arc<dyn Signer>>,
    /// What the names of all objects begin with.
    pub(super) prefix: Path,
    pub(super) lifetime: Duration,
    /// How much there may be, where that is ours to say.
    pub(super) room: Option<Room>,
    /// Whether objects have a media type of their own.
    has_attributes: bool,
    /// How long an answer is waited for.
    pub(super) timeout: Duration,
}

/// What is read of a picture, piece by piece.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, StoreError>>;

impl ObjectPictures {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        signer: Option<Arc<dyn Signer>>,
        config: &StoreConfig,
    ) -> Self {
        let prefix = match &config.location {
            StoreLocation::Memory | StoreLocation::Folder(_) => Path::default(),
            StoreLocation::Bucket { prefix, .. } => Path::from(prefix.as_str()),
        };
        let is_bucket = matches!(config.location, StoreLocation::Bucket { .. });
        Self {
            store,
            signer,
            prefix,
            lifetime: config.lifetime,
            room: (!is_bucket).then(|| Room::new(config.max_bytes as u64)),
            has_attributes: is_bucket,
            timeout: config.timeout,
        }
    }

    pub(super) fn path_of(&self, name: &PictureName) -> Path {
        self.prefix.clone().join(name.as_str())
    }

    /// What `operation` gives, unless that takes too long.
    pub(super) async fn in_time<T, E: Into<StoreError>>(
        &self,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StoreError> {
        let done = tokio::time::timeout(self.timeout, operation).await;
        done.map_err(|_| StoreError::NotInTime(self.timeout))?.map_err(Into::into)
    }

    /// Stores a file.
    pub(super) async fn keep(&self, file: Bytes, extension: &str) -> Result<Address, StoreError> {
        let name = PictureName::new(self.lifetime, extension);
        let Some(room) = &self.room else {
            self.put(&name, file).await?;
            return self.address_of(name).await;
        };
        let leaving = room.take(name.clone(), file.len() as u64).ok_or(StoreError::TooLarge)?;
        let storing = async {
            self.delete(leaving).await?;
            self.put(&name, file).await
        };
        if let Err(error) = storing.await {
            room.give_back(&name);
            return Err(error);
        }
        self.address_of(name).await
    }

    async fn put(&self, name: &PictureName, file: Bytes) -> Result<(), StoreError> {
        let mut attributes = Attributes::new();
        if self.has_attributes {
            attributes.insert(Attribute::ContentType, media_type_of(name.as_str()).into());
            let caching = format!("private, max-age={}, immutable", self.lifetime.as_secs());
            attributes.insert(Attribute::CacheControl, caching.into());
        }
        let options = PutOptions { attributes, ..PutOptions::default() };
        let path = self.path_of(name);
        self.in_time(self.store.put_opts(&path, file.into(), options)).await?;
        Ok(())
    }

    pub(super) async fn address_of(&self, name: PictureName) -> Result<Address, StoreError> {
        let Some(signer) = &self.signer else {
            return Ok(Address::Name(name.as_str().to_owned()));
        };
        let path = self.path_of(&name);
        let signing = signer.signed_url(Method::GET, &path, self.lifetime);
        Ok(Address::Signed(self.in_time(signing).await?.into()))
    }

    /// What is known of the picture called `name`, without reading it.
    pub(super) async fn describe(&self, name: &str) -> Result<Option<Description>, StoreError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        Ok(self.get(name, options).await?.map(|(description, _)| description))
    }

    /// The picture called `name`, or a part of it.
    pub(super) async fn read(
        &self,
        name: &str,
        part: Option<Range<u64>>,
    ) -> Result<Option<(Description, Pieces)>, StoreError> {
        let range = part.map(GetRange::Bounded);
        let options = GetOptions { range, ..GetOptions::default() };
        let found = self.get(name, options).await?;
        Ok(found.map(|(description, found)| (description, in_pieces(found, self.timeout))))
    }

    async fn get(
        &self,
        name: &str,
        options: GetOptions,
    ) -> Result<Option<(Description, GetResult)>, StoreError> {
        let named = PictureName::parse(name).and_then(|name| Some((name.time_left()?, name)));
        let Some((left, name)) = named else { return Ok(None) };
        let path = self.path_of(&name);
        let getting = async {
            match self.store.get_opts(&path, options).await {
                Ok(found) => Ok(Some(found)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let found = self.in_time(getting).await?;
        Ok(found.map(|found| (Description { bytes: found.meta.size, left }, found)))
    }

    /// Deletes pictures, of which some may be gone already: another server cleans, too.
    pub(super) async fn delete(&self, names: Vec<PictureName>) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let paths: Vec<_> = names.iter().map(|name| Ok(self.path_of(name))).collect();
        let mut deleted = self.store.delete_stream(stream::iter(paths).boxed());
        let mut outcome = Ok(());
        let next = async |deleted: &mut BoxStream<'_, _>| Ok::<_, StoreError>(deleted.next().await);
        while let Some(one) = self.in_time(next(&mut deleted)).await? {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => outcome = Err(error.into()),
            }
        }
        outcome
    }
}

/// The bytes as they come; the stream ends with an error if the store falls silent.
fn in_pieces(found: GetResult, timeout: Duration) -> Pieces {
    let next = move |pieces: Option<BoxStream<'static, object_store::Result<Bytes>>>| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(timeout, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Err(_) => Some((Err(StoreError::NotInTime(timeout)), None)),
        }
    };
    stream::unfold(Some(found.into_stream()), next).boxed()
}
