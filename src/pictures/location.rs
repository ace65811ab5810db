//! Where pictures are kept, as it stands in the settings.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// Where pictures are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// In this process.
    Memory,
    /// In a folder, by its absolute path.
    Folder(PathBuf),
    /// In a bucket, below a prefix, which may be empty.
    Bucket {
        /// Whose bucket.
        service: CloudService,
        /// Its name; Azure calls it a container.
        name: String,
        /// What the names of our objects begin with, without slashes at its ends.
        prefix: String,
    },
}

/// Who keeps buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudService {
    /// Amazon's S3, and what speaks as it does.
    S3,
    /// Google's Cloud Storage.
    GoogleCloudStorage,
    /// Azure's Blob Storage.
    AzureBlobStorage,
}

impl CloudService {
    const ALL: [Self; 3] = [Self::S3, Self::GoogleCloudStorage, Self::AzureBlobStorage];

    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::GoogleCloudStorage => "gs",
            Self::AzureBlobStorage => "az",
        }
    }

    /// How the environment variables begin that say how it is reached.
    #[must_use]
    pub fn variable_prefix(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::GoogleCloudStorage => "GOOGLE_",
            Self::AzureBlobStorage => "AZURE_",
        }
    }
}

/// A text that is no location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", StoreLocation::EXPECTED)]
pub struct UnknownLocation;

impl StoreLocation {
    /// The ways to write one.
    pub const EXPECTED: &str = "memory, file:///PATH with an absolute path, s3://BUCKET/PREFIX, \
                                gs://BUCKET/PREFIX or az://CONTAINER/PREFIX";

    /// Whether it gives out addresses that it has signed.
    #[must_use]
    pub fn signs(&self) -> bool {
        matches!(self, Self::Bucket { .. })
    }
}

impl FromStr for StoreLocation {
    type Err = UnknownLocation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("memory") {
            return Ok(Self::Memory);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UnknownLocation)?;
        if scheme == "file" {
            return folder(rest);
        }
        let services = CloudService::ALL.into_iter();
        let service = services.into_iter().find(|service| service.scheme() == scheme);
        bucket(service.ok_or(UnknownLocation)?, rest)
    }
}

/// A folder, as addresses write it.
fn folder(text: &str) -> Result<StoreLocation, UnknownLocation> {
    let path = percent_decode_str(text).decode_utf8().map_err(|_| UnknownLocation)?;
    let path = PathBuf::from(path.as_ref());
    if path.is_absolute() { Ok(StoreLocation::Folder(path)) } else { Err(UnknownLocation) }
}

/// A bucket, and what follows it.
fn bucket(service: CloudService, text: &str) -> Result<StoreLocation, UnknownLocation> {
    let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
    let prefix = prefix.trim_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_part = |part: &str| {
        !["", ".", ".."].contains(&part) && part.bytes().all(|byte| is_plain(byte) || byte == b'=')
    };
    let is_prefix = prefix.is_empty() || prefix.split('/').all(is_part);
    if name.is_empty() || !name.bytes().all(is_plain) || !is_prefix {
        return Err(UnknownLocation);
    }
    let (name, prefix) = (name.to_owned(), prefix.to_owned());
    Ok(StoreLocation::Bucket { service, name, prefix })
}

impl StoreLocation {
    /// The ways to write one that several processes reach.
    pub const EXPECTED_SHARED: &str = "file:///PATH, s3://, gs:// or az://BUCKET/PREFIX";

    /// What is called `part` within it; memory has no parts.
    #[must_use]
    pub fn below(&self, part: &str) -> Self {
        match self {
            Self::Memory => Self::Memory,
            Self::Folder(path) => Self::Folder(path.join(part)),
            Self::Bucket { service, name, prefix } => {
                let prefix = format!("{prefix}/{part}").trim_matches('/').to_owned();
                Self::Bucket { service: *service, name: name.clone(), prefix }
            }
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => formatter.write_str("memory"),
            Self::Folder(path) => write!(formatter, "file://{}", path.display()),
            Self::Bucket { service, name, prefix } => {
                write!(formatter, "{}://{name}/{prefix}", service.scheme())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_they_are_written() {
        let bucket = |service, name: &str, prefix: &str| StoreLocation::Bucket {
            service,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
        };
        for (text, expected) in [
            ("memory", StoreLocation::Memory),
            ("Memory", StoreLocation::Memory),
            ("file:///srv/pictures", StoreLocation::Folder("/srv/pictures".into())),
            ("file:///srv/my%20pictures/", StoreLocation::Folder("/srv/my pictures/".into())),
            ("s3://b-1.x", bucket(CloudService::S3, "b-1.x", "")),
            ("s3://b/", bucket(CloudService::S3, "b", "")),
            ("s3://b/a/c/", bucket(CloudService::S3, "b", "a/c")),
            ("gs://b_2/a", bucket(CloudService::GoogleCloudStorage, "b_2", "a")),
            ("az://c/a", bucket(CloudService::AzureBlobStorage, "c", "a")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "disk",
            "file://",
            "file://relative/path",
            "file:/one-slash",
            "/srv/pictures",
            "s3://",
            "s3:///prefix",
            "s3://key:secret@bucket/x",
            "s3://b/../x",
            "s3://b/a//c",
            "s3://b/a?x=1",
            "S3://b",
            "ftp://b/a",
        ] {
            assert_eq!(text.parse::<StoreLocation>(), Err(UnknownLocation), "{text}");
        }
    }
}
