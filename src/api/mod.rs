//! HTTP and OpenAI's words; the only layer that knows either.

/// What the HTTP side can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    /// Name of the service, shown at `/` and in the logs.
    pub app_name: String,
    /// Version of the service, shown at `/`.
    pub app_version: String,
    /// Path prefix of OpenAI's endpoints, such as `/v1`; empty for none.
    pub api_prefix: String,
    /// The largest request body, in bytes.
    pub max_upload_bytes: usize,
    /// The largest input picture, in pixels.
    pub max_image_pixels: usize,
}
