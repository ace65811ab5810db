//! From the settings to a store.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::error::OpenError;
use super::location::CloudService;
use super::name::{self, PictureName};
use super::objects::ObjectPictures;
use super::{StoreConfig, StoreLocation, StoreOptions};
use crate::tls;

/// For the connection to a service.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pieces of an answer. There is none for the whole of it: it is as slow as
/// the client that it is for.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Nobody writes a file for so long.
const LONGEST_WRITE: Duration = Duration::from_secs(24 * 3600);

/// A few tries, within the time that one operation has.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
    }
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
}

/// A folder, which is made if it is missing; what is left there counts.
pub(super) fn folder(path: &Path, config: &StoreConfig) -> Result<ObjectPictures, OpenError> {
    let failed = |source| OpenError::Folder { path: path.to_owned(), source };
    make_writable(path).map_err(failed)?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| failed(error.into()))?;
    let pictures = ObjectPictures::new(Arc::new(store.with_fsync(true)), None, config);
    if let Some(room) = &pictures.room {
        let began = Instant::now();
        // What is too much is deleted when the folder is cleaned.
        room.correct(began, left_in(path).map_err(failed)?);
    }
    Ok(pictures)
}

/// Makes the folder, and sees whether files can be written there.
fn make_writable(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let probe = path.join(format!(".{}", name::secret()));
    let written = std::fs::write(&probe, [0]);
    let removed = std::fs::remove_file(&probe);
    written.and(removed)
}

/// The pictures in a folder, with their bytes. What was being written when a server was
/// killed is removed once its time is over.
fn left_in(path: &Path) -> io::Result<Vec<(PictureName, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if let Some(name) = PictureName::parse(&file) {
            found.push((name, entry.metadata().map_or(0, |metadata| metadata.len())));
        } else if let Some((name, _part)) = file.split_once('#')
            && PictureName::parse(name).is_some_and(|name| name.time_left().is_none())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "cannot remove what was half written");
        }
    }
    Ok(found)
}

/// Removes what processes were writing when they were killed, which no store lists: other
/// processes may be writing, too, but not for so long.
fn remove_half_written(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(found) = entry.metadata() else { continue };
        let is_half = entry.file_name().to_string_lossy().contains('#');
        let age = found.modified().ok().and_then(|written| written.elapsed().ok());
        if found.is_dir() {
            remove_half_written(&entry.path());
        } else if is_half
            && age.is_some_and(|age| age > LONGEST_WRITE)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "cannot remove what was half written");
        }
    }
}

/// A store, and the same as what signs its addresses.
type Signing = (Arc<dyn ObjectStore>, Arc<dyn Signer>);

fn both<S: ObjectStore + Signer>(store: S) -> Signing {
    let store = Arc::new(store);
    (Arc::clone(&store) as _, store)
}

/// The objects of a folder or a bucket, whatever they are; below the bucket's prefix.
pub(super) fn objects(config: &StoreConfig) -> Result<Option<Arc<dyn ObjectStore>>, OpenError> {
    Ok(match &config.location {
        StoreLocation::Memory => None,
        StoreLocation::Folder(path) => {
            let failed = |source| OpenError::Folder { path: path.clone(), source };
            make_writable(path).map_err(failed)?;
            let store =
                LocalFileSystem::new_with_prefix(path).map_err(|error| failed(error.into()))?;
            let folder = path.clone();
            // A folder of many files takes its time.
            std::thread::spawn(move || remove_half_written(&folder));
            Some(Arc::new(store.with_fsync(true)))
        }
        StoreLocation::Bucket { service, name, prefix } => {
            let (store, _) = signing((*service, name), config)?;
            Some(Arc::new(PrefixStore::new(store, prefix.as_str())))
        }
    })
}

/// A bucket. Nothing is asked of its service yet, which may come later than this server.
pub(super) fn bucket(
    (service, name): (CloudService, &str),
    config: &StoreConfig,
) -> Result<ObjectPictures, OpenError> {
    let (store, signer) = signing((service, name), config)?;
    let signer = config.signed_urls.then_some(signer);
    Ok(ObjectPictures::new(store, signer, config))
}

fn signing(
    (service, name): (CloudService, &str),
    config: &StoreConfig,
) -> Result<Signing, OpenError> {
    tls::install_provider();
    let opened = match service {
        CloudService::S3 => s3(name, &config.options),
        CloudService::GoogleCloudStorage => google_cloud_storage(name, &config.options),
        CloudService::AzureBlobStorage => azure_blob_storage(name, &config.options),
    };
    let location = config.location.to_string();
    opened.map_err(|source| OpenError::Bucket { location, source })
}

/// The options that a service knows, each with its key.
fn known<K: std::str::FromStr>(options: &StoreOptions) -> impl Iterator<Item = (K, &str)> {
    let pairs = options.0.iter();
    pairs
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
}

fn s3(bucket: &str, options: &StoreOptions) -> object_store::Result<Signing> {
    let builder =
        AmazonS3Builder::new().with_client_options(client_options()).with_retry(retries());
    let builder =
        known(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    Ok(both(builder.with_bucket_name(bucket).build()?))
}

fn google_cloud_storage(bucket: &str, options: &StoreOptions) -> object_store::Result<Signing> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_client_options(client_options())
        .with_retry(retries());
    let builder =
        known(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    Ok(both(builder.with_bucket_name(bucket).build()?))
}

fn azure_blob_storage(container: &str, options: &StoreOptions) -> object_store::Result<Signing> {
    let builder =
        MicrosoftAzureBuilder::new().with_client_options(client_options()).with_retry(retries());
    let builder =
        known(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    Ok(both(builder.with_container_name(container).build()?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_was_half_written_long_ago_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("abc")).unwrap();
        let [old, young, whole] =
            ["abc/old.file#1", "abc/young.file#2", "abc/whole.file"].map(|name| {
                let path = folder.path().join(name);
                File::create(&path).unwrap();
                path
            });
        let long_ago = SystemTime::now() - LONGEST_WRITE - Duration::from_secs(60);
        for path in [&old, &whole] {
            File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }

        remove_half_written(folder.path());

        assert!(!old.exists() && young.exists() && whole.exists());
    }
}
