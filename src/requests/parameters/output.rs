//! How the finished pictures come back: as which files, and by which way.

use std::str::FromStr;

use super::super::error::RequestError;
use super::super::fields::Fields;
use super::super::table;
use crate::domain::{FaultKind, UnknownChoice, ValidationError};
use crate::imaging::codec::OutputFormat;
use crate::model::{EditKind, ModelCard};

/// What a client accepts as a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// A JSON object, or events: what OpenAI's clients read, and what anybody gets who
    /// says nothing.
    Json,
    /// The picture as a file, of this format where the request names none.
    File(OutputFormat),
}

/// Files and their way to the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: OutputFormat,
    pub(crate) delivery: Delivery,
    /// Whether the pictures are kept, too, where the reply has them.
    pub(crate) store: bool,
    /// Unfinished pictures to show meanwhile: in the reply's events, or in the job's.
    pub(crate) previews: usize,
}

/// The way of finished pictures to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Base64 in a JSON object.
    Base64,
    /// Addresses in a JSON object.
    Url,
    /// The file itself, of one picture.
    File,
    /// Server-sent events.
    Events,
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

impl FromStr for DefaultResponseFormat {
    type Err = UnknownChoice;

    /// Reads OpenAI's names, or `auto`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::ByModelName),
            "b64_json" => Ok(Self::Base64),
            "url" => Ok(Self::Url),
            _ => Err(UnknownChoice { expected: Self::CHOICES }),
        }
    }
}

impl DefaultResponseFormat {
    /// The ways to write one.
    pub const CHOICES: &str = "auto, b64_json or url";

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
    pub(crate) fn is_streamed(self) -> bool {
        matches!(self, Self::Events)
    }
}

impl Output {
    /// `is_followed`: whether unfinished pictures are
    /// seen by other means than a stream. `unless_told`: the way back
    /// if the request names none. Who asks for the file itself gets it, whatever the
    /// `response_format`.
    pub(super) fn take(
        fields: &mut Fields,
        model: &ModelCard,
        ((accepted, is_followed), unless_told): ((Accepted, bool), Delivery),
        warnings: &mut Vec<String>,
    ) -> Result<Self, RequestError> {
        let wanted = match accepted {
            Accepted::Json => OutputFormat::Png,
            Accepted::File(format) => format,
        };
        let format = take_format(fields, wanted, warnings)?;
        refuse_transparency(fields, model, format)?;
        let delivery = take_delivery(fields, unless_told)?;
        let previews = take_previews(fields, is_followed || delivery.is_streamed(), warnings)?;
        let store = fields.boolean(&table::STORE)?.unwrap_or(false);
        match (accepted, delivery) {
            (Accepted::Json, delivery) => Ok(Self { format, delivery, store, previews }),
            (Accepted::File(_), Delivery::Events) => {
                Err(RequestError::NotOneFile { field: "stream", what: "events" })
            }
            (Accepted::File(_), _) => {
                Ok(Self { format, delivery: Delivery::File, store, previews })
            }
        }
    }

    /// Refuses to send `pictures` as one file.
    pub(crate) fn check_count(
        self,
        field: &'static str,
        pictures: usize,
    ) -> Result<(), RequestError> {
        if self.delivery == Delivery::File && pictures > 1 {
            return Err(RequestError::NotOneFile { field, what: "several pictures" });
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
    let name = fields.choice(&table::OUTPUT_FORMAT)?;
    let compression = fields.integer(&table::OUTPUT_COMPRESSION)?;
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
    model: &ModelCard,
    format: OutputFormat,
) -> Result<(), ValidationError> {
    let background = fields.word(table::BACKGROUND.name, table::BACKGROUND.kind.0.words)?;
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
    Err(ValidationError::new("background", FaultKind::Invalid, message))
}

fn take_delivery(fields: &mut Fields, unless_told: Delivery) -> Result<Delivery, ValidationError> {
    let response_format = fields.choice(&table::RESPONSE_FORMAT)?;
    let is_streamed = fields.boolean(&table::STREAM)?.unwrap_or(false);
    match (is_streamed, response_format) {
        (true, Some("url")) => {
            let message = "Invalid value for 'response_format': with 'stream' pictures come as \
                           base64 in the events; use 'b64_json'.";
            Err(ValidationError::new("response_format", FaultKind::Invalid, message))
        }
        (true, _) => Ok(Delivery::Events),
        (false, Some("url")) => Ok(Delivery::Url),
        (false, Some(_)) => Ok(Delivery::Base64),
        (false, None) => Ok(unless_told),
    }
}

/// How many unfinished pictures to show, where there are events that have them.
fn take_previews(
    fields: &mut Fields,
    has_events: bool,
    warnings: &mut Vec<String>,
) -> Result<usize, ValidationError> {
    let wanted = fields.integer(&table::PARTIAL_IMAGES)?.unwrap_or(0);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if wanted > 0 && !has_events {
        let warning = "'partial_images' has no effect without 'stream' or 'background'.";
        warnings.push(warning.to_owned());
        return Ok(0);
    }
    Ok(wanted)
}
