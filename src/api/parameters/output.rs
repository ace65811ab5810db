//! How the finished pictures come back: as which files, and by which way.

use super::super::accept::Accepted;
use super::super::error::ApiError;
use super::super::fields::Fields;
use crate::domain::ValidationError;
use crate::imaging::codec::OutputFormat;
use crate::model::{EditKind, ModelInfo};

/// Files and their way to the client.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Output {
    pub(in crate::api) format: OutputFormat,
    pub(in crate::api) delivery: Delivery,
}

/// The way of finished pictures to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Delivery {
    /// Base64 in a JSON object.
    Base64,
    /// Addresses in a JSON object.
    Url,
    /// The file itself, of one picture.
    File,
    /// Server-sent events, with up to so many unfinished pictures.
    Events { partial_images: usize },
}

/// How pictures come back whose request names no `response_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultResponseFormat {
    /// As OpenAI's models answer: `dall-e-2` and `dall-e-3` by `url`, all others by
    /// `b64_json`. Clients that still ask for the former read no base64.
    ByModelName,
    /// In the reply, whatever name the model is called by.
    Base64,
    /// By address, whatever name the model is called by.
    Url,
}

impl DefaultResponseFormat {
    /// The way back for a request that asks for the model by `name`, or by none.
    pub(super) fn for_model(self, name: Option<&str>) -> Delivery {
        match self {
            Self::ByModelName if name.is_some_and(|name| name.starts_with("dall-e-")) => {
                Delivery::Url
            }
            Self::ByModelName | Self::Base64 => Delivery::Base64,
            Self::Url => Delivery::Url,
        }
    }
}

impl Delivery {
    pub(in crate::api) fn is_streamed(self) -> bool {
        matches!(self, Self::Events { .. })
    }
}

impl Output {
    /// `unless_told`: the way back if the request names none. Who asks for the file
    /// itself gets it, whatever the `response_format`.
    pub(super) fn take(
        fields: &mut Fields,
        model: &ModelInfo,
        (accepted, unless_told): (Accepted, Delivery),
        warnings: &mut Vec<String>,
    ) -> Result<Self, ApiError> {
        let wanted = match accepted {
            Accepted::Json => OutputFormat::Png,
            Accepted::File(format) => format,
        };
        let format = take_format(fields, wanted, warnings)?;
        refuse_transparency(fields, model, format)?;
        let delivery = take_delivery(fields, unless_told, warnings)?;
        match (accepted, delivery) {
            (Accepted::Json, delivery) => Ok(Self { format, delivery }),
            (Accepted::File(_), Delivery::Events { .. }) => {
                Err(ApiError::NotOneFile { field: "stream", what: "events" })
            }
            (Accepted::File(_), _) => Ok(Self { format, delivery: Delivery::File }),
        }
    }

    /// Refuses to send `pictures` as one file.
    pub(in crate::api) fn check_count(
        self,
        field: &'static str,
        pictures: usize,
    ) -> Result<(), ApiError> {
        if self.delivery == Delivery::File && pictures > 1 {
            return Err(ApiError::NotOneFile { field, what: "several pictures" });
        }
        Ok(())
    }
}

/// Takes the format, or `wanted` where the request names none.
fn take_format(
    fields: &mut Fields,
    wanted: OutputFormat,
    warnings: &mut Vec<String>,
) -> Result<OutputFormat, ValidationError> {
    let name = fields.choice("output_format", &["png", "jpeg", "webp"])?;
    let compression = fields.integer("output_compression", 0, 100)?;
    let quality = compression.and_then(|quality| u8::try_from(quality).ok());
    let quality = quality.unwrap_or(100);
    match name.unwrap_or(wanted.name()) {
        "jpeg" => Ok(OutputFormat::Jpeg { quality }),
        "webp" => Ok(OutputFormat::Webp { quality }),
        _ => {
            if quality < 100 {
                warnings.push(
                    "'output_compression' acts on jpeg and webp only; png is written without loss."
                        .to_owned(),
                );
            }
            Ok(OutputFormat::Png)
        }
    }
}

/// Refuses a transparent background of a model that only makes opaque pictures,
/// or in files that cannot hold it.
fn refuse_transparency(
    fields: &mut Fields,
    model: &ModelInfo,
    format: OutputFormat,
) -> Result<(), ValidationError> {
    let background = fields.choice("background", &["auto", "opaque", "transparent"])?;
    let reason = match background {
        Some("transparent") if model.edit_kind != EditKind::Layers => {
            "'transparent' is not offered: this model makes opaque pictures"
        }
        Some("transparent") if matches!(format, OutputFormat::Jpeg { .. }) => {
            "'transparent' needs an 'output_format' of png or webp"
        }
        Some("opaque") if model.edit_kind == EditKind::Layers => {
            "'opaque' is not offered: this model makes transparent layers"
        }
        Some(_) | None => return Ok(()),
    };
    let message = format!("Invalid value for 'background': {reason}.");
    Err(ValidationError::new("background", "invalid_value", message))
}

fn take_delivery(
    fields: &mut Fields,
    unless_told: Delivery,
    warnings: &mut Vec<String>,
) -> Result<Delivery, ValidationError> {
    let response_format = fields.choice("response_format", &["b64_json", "url"])?;
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    let partial_images = fields.integer("partial_images", 0, 3)?.unwrap_or(0);
    let partial_images = usize::try_from(partial_images).unwrap_or(0);
    match (is_streamed, response_format) {
        (true, Some("url")) => {
            let message = "Invalid value for 'response_format': with 'stream' pictures come as \
                           base64 in the events; use 'b64_json'.";
            Err(ValidationError::new("response_format", "invalid_value", message))
        }
        (true, _) => Ok(Delivery::Events { partial_images }),
        (false, response_format) => {
            if partial_images > 0 {
                warnings.push("'partial_images' has no effect without 'stream'.".to_owned());
            }
            Ok(match response_format {
                Some("url") => Delivery::Url,
                Some(_) => Delivery::Base64,
                None => unless_told,
            })
        }
    }
}
