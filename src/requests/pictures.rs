//! The input pictures of a request: found among its fields, then decoded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tracing::{Instrument, Span};

use super::context::RequestContext;
use super::data_url::{self, is_data_url};
use super::endpoint::Endpoint;
use super::error::RequestError;
use super::fields::{Fields, RawValue, wrong_type};
use super::masks::{self, MaskConvention};
use crate::domain::{FaultKind, GreyImage, Picture, ValidationError};
use crate::imaging::codec::{self, DecodeError, DecodeLimits, DroppedProfile};
use crate::metrics::Stage;
use crate::model::ModelCard;
use crate::service::{ImageService, MemoryShare};
use crate::telemetry::spans;

/// OpenAI's limit on input pictures.
const MAX_PICTURES: usize = 16;

/// The pictures of a request, not decoded yet.
#[derive(Debug)]
pub(super) struct Inputs {
    images: Vec<RawPicture>,
    mask: Option<RawPicture>,
}

/// The pictures of a request.
#[derive(Debug)]
pub(super) struct DecodedInputs {
    pub(super) images: Vec<Picture>,
    /// Of the size of the first of them; bright where it is to be made anew.
    pub(super) mask: Option<GreyImage>,
    /// How the mask was understood.
    pub(super) mask_convention: Option<MaskConvention>,
    /// What the client should know of how they were read: sentences.
    pub(super) warnings: Vec<String>,
}

/// A picture that was not decoded yet, with the field that it came in.
#[derive(Debug)]
struct RawPicture {
    field: &'static str,
    /// Its place among the request's pictures, from 1.
    number: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A file's bytes.
    File(Bytes),
    /// A `data:` URL; its beginning has been looked at.
    DataUrl(Bytes),
}

impl Inputs {
    /// Takes the pictures, and the mask of an edit, out of `fields`.
    ///
    /// # Errors
    /// [`ValidationError`] if there is none, too many, or something else in their place.
    pub(super) fn take(
        fields: &mut Fields,
        endpoint: Endpoint,
        model: &ModelCard,
    ) -> Result<Self, ValidationError> {
        match endpoint {
            Endpoint::Generations => Ok(Self { images: Vec::new(), mask: None }),
            Endpoint::Variations => Ok(Self { images: take_images(fields, 1)?, mask: None }),
            Endpoint::Edits => {
                let mask = take_mask(fields)?;
                let max_images = if mask.is_some() { 1 } else { model.max_input_images };
                Ok(Self { images: take_images(fields, max_images)?, mask })
            }
        }
    }

    pub(super) fn has_mask(&self) -> bool {
        self.mask.is_some()
    }

    /// Bytes that they hold.
    pub(super) fn held_bytes(&self) -> usize {
        let mask = self.mask.as_ref().map_or(0, RawPicture::held_bytes);
        self.images.iter().map(RawPicture::held_bytes).sum::<usize>() + mask
    }

    /// Decodes them away from the async runtime, one after the other, each when there is
    /// memory for it. Further pictures come first: they are reduced before the next one
    /// takes its room.
    ///
    /// # Errors
    /// [`RequestError`] naming the picture that is none, is too large, or does not fit the
    /// others; for want of memory.
    pub(super) async fn decode(
        self,
        with: (&RequestContext, &ImageService),
        memory: MemoryShare,
    ) -> Result<(DecodedInputs, MemoryShare), RequestError> {
        let has_any = !self.images.is_empty();
        let stage = if has_any { spans::stage(Stage::Decode.name()) } else { Span::none() };
        self.decode_all(with, memory).instrument(stage).await
    }

    async fn decode_all(
        mut self,
        (context, images): (&RequestContext, &ImageService),
        memory: MemoryShare,
    ) -> Result<(DecodedInputs, MemoryShare), RequestError> {
        let (warnings, took) = (Vec::new(), Duration::ZERO);
        let pixels_left = context.settings.max_request_pixels;
        let service = images;
        let mut decoding =
            Decoding { context, images, memory, held: 0, pixels_left, warnings, took };
        let has_mask = self.mask.is_some();
        let mut images = Vec::new();
        while let Some(picture) = self.images.pop() {
            let keeps_size = has_mask || self.images.is_empty();
            images.push(decoding.decode(picture, keeps_size, self.held_bytes()).await?);
        }
        images.reverse();
        decoding.warnings.reverse();
        let (mut mask, mut mask_convention) = (None, None);
        if let (Some(picture), Some(image)) = (self.mask.take(), images.first()) {
            let size = (image.width(), image.height());
            let picture = decoding.decode(picture, true, 0).await?;
            check_mask_size(&picture, size)?;
            let read = decoding.read_mask(picture).await?;
            (mask, mask_convention) = (Some(read.bright), Some(read.convention));
            decoding.warnings.extend(read.doubt);
        }
        let Decoding { memory, warnings, took, .. } = decoding;
        if !images.is_empty() {
            service.metrics().stage_took(&service.card().id, Stage::Decode, took);
        }
        Ok((DecodedInputs { images, mask, mask_convention, warnings }, memory))
    }
}

/// The way from files to pictures, and what it holds.
struct Decoding<'a> {
    context: &'a RequestContext,
    images: &'a ImageService,
    memory: MemoryShare,
    /// Bytes of the pictures so far.
    held: usize,
    /// What further pictures may have.
    pixels_left: usize,
    warnings: Vec<String>,
    /// How long it was worked on, without what was waited for.
    took: Duration,
}

impl Decoding<'_> {
    /// `behind` are the bytes of the files that are still to come.
    async fn decode(
        &mut self,
        picture: RawPicture,
        keeps_size: bool,
        behind: usize,
    ) -> Result<Picture, RequestError> {
        let limits = PixelLimits {
            file: self.context.settings.decode_limits,
            left: self.pixels_left,
            all: self.context.settings.max_request_pixels,
        };
        let held = self.held + behind;
        self.memory.grow_to(held + picture.held_bytes() + picture.needed_to_open()).await?;
        let opened = self.off_the_runtime(move || picture.open(limits)).await?;
        let needed = opened.needed;
        // A URL's text is gone by now, and its bytes are there.
        self.memory.grow_to(held + opened.bytes.len() + needed).await?;
        let images = self.images.clone();
        // Never closed. It goes along: the work goes on if the client leaves.
        let place = Arc::clone(&self.context.decoders).acquire_owned().await.ok();
        let (decoded, pixels, warning) = self
            .off_the_runtime(move || {
                let _place = place;
                let (decoded, warning) = opened.decode(limits)?;
                let pixels = decoded.width() * decoded.height();
                let decoded = if keeps_size { decoded } else { images.reduced(decoded) };
                Ok((decoded, pixels, warning))
            })
            .await?;
        self.pixels_left = self.pixels_left.saturating_sub(pixels);
        self.warnings.extend(warning);
        self.held += decoded.bytes();
        self.memory.shrink_to(self.held + behind);
        Ok(decoded)
    }

    async fn read_mask(&mut self, picture: Picture) -> Result<masks::ReadMask, RequestError> {
        self.memory.grow_to(self.held + picture.bytes()).await?;
        self.off_the_runtime(move || Ok(masks::read(&picture)?)).await
    }

    /// Does `work` on a thread for work that blocks. The share goes along: the work goes on
    /// if the client leaves.
    async fn off_the_runtime<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let nothing = self.context.memory.share();
        let memory = std::mem::replace(&mut self.memory, nothing);
        let done = tokio::task::spawn_blocking(spans::carried(move || {
            let started = Instant::now();
            let result = work();
            (result, memory, started.elapsed())
        }));
        let (result, memory, took) = done.await?;
        self.memory = memory;
        self.took += took;
        result
    }
}

fn check_mask_size(mask: &Picture, image: (usize, usize)) -> Result<(), ValidationError> {
    let mask = (mask.width(), mask.height());
    if mask == image {
        return Ok(());
    }
    let ((mask_width, mask_height), (width, height)) = (mask, image);
    let message = format!(
        "Invalid 'mask': it is {mask_width}x{mask_height} pixels, the picture is {width}x{height}. \
         They must have the same size."
    );
    Err(ValidationError::new("mask", FaultKind::Invalid, message))
}

/// Takes the mask: a file of a form, or an object with a data URL.
fn take_mask(fields: &mut Fields) -> Result<Option<RawPicture>, ValidationError> {
    let mut given = fields.take_all(&["mask"]);
    let content = match (given.pop(), given.is_empty()) {
        (None, _) => return Ok(None),
        (Some(_), false) => {
            let message = "Invalid 'mask': expected one mask, got several.";
            return Err(ValidationError::new("mask", FaultKind::Invalid, message));
        }
        (Some(RawValue::File(bytes)), true) => Content::File(bytes),
        (Some(RawValue::Json(reference)), true) => {
            Content::DataUrl(referenced_url("mask", reference)?.into())
        }
        (Some(RawValue::Text(text)), true) => Content::DataUrl(text_url("mask", text)?),
        (Some(value @ RawValue::Oversized), true) => {
            return Err(wrong_type("mask", "an object with an 'image_url'", value.describe()));
        }
    };
    Ok(Some(RawPicture { field: "mask", number: 1, content }))
}

/// Takes the pictures: `image` and `image[]` of a form, in any order and number,
/// `images` of a JSON object, and `url` and `url[]`, which other servers have.
fn take_images(
    fields: &mut Fields,
    max_pictures: usize,
) -> Result<Vec<RawPicture>, ValidationError> {
    let mut field = "image";
    let mut contents = Vec::new();
    for value in fields.take_all(&["image", "image[]"]) {
        match value {
            RawValue::File(bytes) => contents.push(Content::File(bytes)),
            RawValue::Text(_) => return Err(wrong_type("image", "a file", "a text")),
            RawValue::Json(_) | RawValue::Oversized => {
                let expected = "no such field in JSON, but 'images': [{\"image_url\": \"data:…\"}]";
                return Err(wrong_type("image", expected, value.describe()));
            }
        }
    }
    for value in fields.take_all(&["url", "url[]"]) {
        let RawValue::Text(text) = value else {
            return Err(wrong_type("url", "a data URL", value.describe()));
        };
        contents.push(Content::DataUrl(text_url("url", text)?));
    }
    for value in fields.take_all(&["images"]) {
        let RawValue::Json(Value::Array(references)) = value else {
            return Err(wrong_type("images", "a JSON array", value.describe()));
        };
        field = "images";
        for reference in references {
            contents.push(Content::DataUrl(referenced_url("images", reference)?.into()));
        }
    }
    let max_pictures = max_pictures.min(MAX_PICTURES);
    if contents.is_empty() {
        let message = format!("Missing required parameter: '{field}'.");
        return Err(ValidationError::new(field, FaultKind::Missing, message));
    }
    if contents.len() > max_pictures {
        let count = contents.len();
        let message = format!(
            "Invalid '{field}': at most {max_pictures} input pictures are taken here, got {count}."
        );
        return Err(ValidationError::new(field, FaultKind::ListTooLong, message));
    }
    let numbered = contents.into_iter().zip(1..);
    let pictures = numbered.map(|(content, number)| RawPicture { field, number, content });
    Ok(pictures.collect())
}

/// Bytes of a text in which a URL's scheme must stand.
const LOOKED_AT: usize = 256;

/// The data URL in a field of a form.
fn text_url(field: &'static str, text: Bytes) -> Result<Bytes, ValidationError> {
    let beginning = String::from_utf8_lossy(&text[..text.len().min(LOOKED_AT)]);
    if is_data_url(&beginning) {
        return Ok(text);
    }
    let message = format!(
        "Invalid '{field}': expected a file or a data URL; addresses and paths are not fetched."
    );
    Err(ValidationError::new(field, FaultKind::Invalid, message))
}

/// The data URL of an item of `images`. Files of OpenAI's Files API and
/// addresses are not fetched: this server opens no connections for clients.
fn referenced_url(field: &'static str, reference: Value) -> Result<String, ValidationError> {
    let refuse = |message: &str| {
        let message = format!("Invalid '{field}': {message}.");
        Err(ValidationError::new(field, FaultKind::Invalid, message))
    };
    let Value::Object(mut reference) = reference else {
        return Err(wrong_type(field, "an object with an 'image_url'", "something else"));
    };
    let is_given = |value: &Value| !value.is_null();
    if reference.get("file_id").is_some_and(is_given) {
        return refuse("'file_id' is not offered; send the picture as a data URL in 'image_url'");
    }
    match reference.remove("image_url") {
        Some(Value::String(url)) if is_data_url(&url) => Ok(url),
        Some(Value::String(_)) => refuse(
            "only data URLs ('data:image/png;base64,…') are offered in 'image_url'; addresses and \
             paths are not fetched",
        ),
        Some(_) => refuse("'image_url' must be a string"),
        None => refuse("each item needs an 'image_url'"),
    }
}

impl RawPicture {
    fn held_bytes(&self) -> usize {
        match &self.content {
            Content::File(bytes) | Content::DataUrl(bytes) => bytes.len(),
        }
    }

    /// Bytes that [`Self::open`] takes besides: a URL is unquoted, then decoded.
    fn needed_to_open(&self) -> usize {
        match &self.content {
            Content::File(_) => 0,
            Content::DataUrl(url) => 2 * url.len(),
        }
    }

    /// The file, and what decoding it takes by its header.
    fn open(self, limits: PixelLimits) -> Result<OpenPicture, RequestError> {
        let Self { field, number, content } = self;
        let bytes = match content {
            Content::File(bytes) => bytes,
            Content::DataUrl(url) => str::from_utf8(&url)
                .map_err(|_not_utf8| "the data URL is no UTF-8 text")
                .and_then(data_url::decode)
                .map(Bytes::from)
                .map_err(|reason| refused(field, number, reason))?,
        };
        let needed = codec::bytes_to_decode(&bytes, limits.of_one());
        let needed = needed.map_err(|error| limits.refused(field, number, error))?;
        Ok(OpenPicture { field, number, bytes, needed })
    }
}

/// A file that is about to be decoded.
struct OpenPicture {
    field: &'static str,
    number: usize,
    bytes: Bytes,
    /// Bytes of memory.
    needed: usize,
}

impl OpenPicture {
    /// What is to be seen of it, and a warning about what is not.
    fn decode(self, limits: PixelLimits) -> Result<(Picture, Option<String>), RequestError> {
        let Self { field, number, bytes, .. } = self;
        let decoded = codec::decode(&bytes, limits.of_one());
        let decoded = decoded.map_err(|error| limits.refused(field, number, error))?;
        let dropped = decoded.dropped_profile;
        Ok((decoded.picture, dropped.map(|dropped| of_profile(&dropped, field, number))))
    }
}

/// What a picture may be like, by itself and beside those before it.
#[derive(Debug, Clone, Copy)]
struct PixelLimits {
    file: DecodeLimits,
    /// Pixels that those before it have left over.
    left: usize,
    /// Pixels of all pictures of a request together.
    all: usize,
}

impl PixelLimits {
    fn of_one(self) -> DecodeLimits {
        DecodeLimits { max_pixels: self.file.max_pixels.min(self.left), ..self.file }
    }

    /// Says which of the limits a picture is over.
    fn refused(self, field: &'static str, number: usize, error: DecodeError) -> RequestError {
        let DecodeError::TooLarge { width, height, .. } = error else {
            return refused(field, number, error);
        };
        let area = u64::from(width) * u64::from(height);
        let is_by_itself = area > self.file.max_pixels as u64
            || u64::from(width.max(height)) > self.file.max_side as u64;
        if is_by_itself {
            let limits = self.file;
            return refused(field, number, DecodeError::TooLarge { width, height, limits });
        }
        let message = format!(
            "Invalid '{field}': the pictures of a request may have {} pixels together, and with \
             picture {number} ({width}x{height}) they have more.",
            self.all
        );
        ValidationError::new(field, FaultKind::Invalid, message).into()
    }
}

fn refused(field: &'static str, number: usize, reason: impl std::fmt::Display) -> RequestError {
    let message = match field {
        "mask" => format!("Invalid image file for the mask: {reason}."),
        _ => format!("Invalid image file for image {number}: {reason}."),
    };
    RequestError::BadPicture { field, message }
}

/// The warning about a colour profile.
fn of_profile(dropped: &DroppedProfile, field: &str, number: usize) -> String {
    let name = dropped.description.as_ref().map(|name| format!(" \"{name}\""));
    let (name, reason) = (name.unwrap_or_default(), dropped.reason);
    format!(
        "The colour profile{name} of picture {number} in '{field}' was dropped: {reason}. The \
         picture's numbers were taken for sRGB."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_urls_are_references() {
        for wrong in [
            serde_json::json!({"image_url": "http://127.0.0.1/x.png"}),
            serde_json::json!({"image_url": "file:///etc/passwd"}),
            serde_json::json!({"image_url": "/etc/passwd"}),
            serde_json::json!({"image_url": {"url": "data:,"}}),
            serde_json::json!({"file_id": "file-1"}),
            serde_json::json!({"file_id": "file-1", "image_url": "data:,"}),
            serde_json::json!({}),
            serde_json::json!("data:,"),
            serde_json::json!(7),
        ] {
            assert_eq!(
                referenced_url("images", wrong.clone()).unwrap_err().field,
                "images",
                "{wrong}"
            );
        }
    }
}
