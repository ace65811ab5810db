//! One request for pictures, as a model understands it.

use super::{RequestLoras, Task};

/// A value that a request may not have, with the field that carried it.
///
/// `field` is the name that the field has everywhere in this project
/// (`num_inference_steps`, `size`, …); the API passes it on as OpenAI's `param`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ValidationError {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it: a whole sentence for the client.
    pub reason: String,
    /// The kind of fault.
    pub kind: FaultKind,
}

/// What is wrong with a value, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It is not there.
    Missing,
    /// It is a text where a number belongs, or the like.
    WrongType,
    /// It is none of those that may be.
    Invalid,
    /// An integer below the least.
    IntegerTooSmall,
    /// An integer above the most.
    IntegerTooLarge,
    /// A decimal number below the least.
    DecimalTooSmall,
    /// A decimal number above the most.
    DecimalTooLarge,
    /// A text with too few characters.
    TextTooShort,
    /// A text with too many.
    TextTooLong,
    /// A list with too many items.
    ListTooLong,
    /// The field has no place in this request.
    Unsupported,
}

impl ValidationError {
    /// A fault of `field` for `reason`.
    #[must_use]
    pub fn new(field: &'static str, kind: FaultKind, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into(), kind }
    }

    /// The same fault, of the field as the client knows it.
    #[must_use]
    pub fn about(mut self, field: &'static str) -> Self {
        self.reason = self.reason.replace(self.field, field);
        self.field = field;
        self
    }

    /// Refuses an integer outside `minimum..=maximum`.
    fn check_integer(
        field: &'static str,
        value: i64,
        minimum: i64,
        maximum: i64,
    ) -> Result<i64, Self> {
        if value < minimum {
            return Err(Self::new(
                field,
                FaultKind::IntegerTooSmall,
                format!("Invalid '{field}': expected a value >= {minimum}, got {value}."),
            ));
        }
        if value > maximum {
            return Err(Self::new(
                field,
                FaultKind::IntegerTooLarge,
                format!("Invalid '{field}': expected a value <= {maximum}, got {value}."),
            ));
        }
        Ok(value)
    }

    /// Refuses a number that is not finite or lies outside `minimum..=maximum`.
    pub(super) fn check_decimal(
        field: &'static str,
        value: f64,
        minimum: f64,
        maximum: f64,
    ) -> Result<f64, Self> {
        if !value.is_finite() {
            return Err(Self::new(
                field,
                FaultKind::WrongType,
                format!("Invalid '{field}': expected a finite number, got {value}."),
            ));
        }
        if value < minimum {
            return Err(Self::new(
                field,
                FaultKind::DecimalTooSmall,
                format!("Invalid '{field}': expected a value >= {minimum}, got {value}."),
            ));
        }
        if value > maximum {
            return Err(Self::new(
                field,
                FaultKind::DecimalTooLarge,
                format!("Invalid '{field}': expected a value <= {maximum}, got {value}."),
            ));
        }
        Ok(value)
    }
}

/// What the user asks for in words: 1 to 32,000 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Prompt(String);

impl Prompt {
    /// OpenAI's limit for GPT image models, in characters.
    pub const MAX_CHARACTERS: usize = 32_000;

    /// Accepts a text of 1 to 32,000 characters as the prompt.
    ///
    /// # Errors
    /// [`ValidationError`] on `prompt` if it is empty or too long.
    pub fn new(text: impl Into<String>) -> Result<Self, ValidationError> {
        let text = text.into();
        if text.is_empty() {
            return Err(ValidationError::new(
                "prompt",
                FaultKind::TextTooShort,
                "Invalid 'prompt': expected at least 1 character, got an empty text.",
            ));
        }
        Self::bounded("prompt", text)
    }

    /// Accepts a text of at most 32,000 characters as the negative prompt.
    /// The empty text is allowed: it is a negative prompt, too.
    ///
    /// # Errors
    /// [`ValidationError`] on `negative_prompt` if it is too long.
    pub fn negative(text: impl Into<String>) -> Result<Self, ValidationError> {
        Self::bounded("negative_prompt", text.into())
    }

    fn bounded(field: &'static str, text: String) -> Result<Self, ValidationError> {
        let characters = text.chars().count();
        if characters > Self::MAX_CHARACTERS {
            let maximum = Self::MAX_CHARACTERS;
            return Err(ValidationError::new(
                field,
                FaultKind::TextTooLong,
                format!(
                    "Invalid '{field}': expected at most {maximum} characters, got {characters}."
                ),
            ));
        }
        Ok(Self(text))
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Prompt {
    /// Prints the length, never the text: prompts do not belong in logs.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Prompt({} characters)", self.0.chars().count())
    }
}

macro_rules! bounded_integer {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $field:literal, $minimum:literal..=$maximum:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name($inner);

        impl $name {
            /// The smallest value.
            pub const MIN: $inner = $minimum;
            /// The largest value.
            pub const MAX: $inner = $maximum;

            /// Accepts a value between `MIN` and `MAX`.
            ///
            /// # Errors
            #[doc = concat!("[`ValidationError`] on `", $field, "` outside these bounds.")]
            pub fn new(value: i64) -> Result<Self, ValidationError> {
                let value = ValidationError::check_integer($field, value, $minimum, $maximum)?;
                // In bounds by the check above, and the bounds are of the inner type.
                Ok(Self(<$inner>::try_from(value).unwrap_or(Self::MAX)))
            }

            /// The number itself.
            #[must_use]
            pub fn get(self) -> $inner {
                self.0
            }
        }
    };
}

macro_rules! bounded_decimal {
    ($(#[$doc:meta])* $name:ident, $field:literal, $minimum:literal..=$maximum:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $name(f64);

        impl $name {
            /// The smallest value.
            pub const MIN: f64 = $minimum;
            /// The largest value.
            pub const MAX: f64 = $maximum;

            /// Accepts a finite number in its range.
            ///
            /// # Errors
            #[doc = concat!("[`ValidationError`] on `", $field, "` outside the range, or if it is not finite.")]
            pub fn new(value: f64) -> Result<Self, ValidationError> {
                ValidationError::check_decimal($field, value, $minimum, $maximum).map(Self)
            }

            /// The number itself.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }
    };
}

bounded_integer! {
    /// How many denoising steps a picture takes: 1 to 150.
    Steps, usize, "num_inference_steps", 1..=150
}

bounded_integer! {
    /// How many pictures one request makes: 1 to 10.
    ImageCount, usize, "n", 1..=10
}

bounded_integer! {
    /// Into how many layers a picture is taken apart: 1 to 16.
    LayerCount, usize, "layers", 1..=16
}

bounded_decimal! {
    /// Strength of classifier-free guidance: 0 to 20.
    GuidanceScale, "true_cfg_scale", 0.0..=20.0
}

impl GuidanceScale {
    /// Whether it guides at all, which takes a second pass a step: above 1 it does.
    #[must_use]
    pub fn acts(self) -> bool {
        self.0 > 1.0
    }
}

bounded_decimal! {
    /// How far a picture is taken away from its source: 0 (not at all) to 1 (anew).
    Strength, "strength", 0.0..=1.0
}

bounded_decimal! {
    /// How far a schedule's noise levels are moved towards noise, for pictures of every
    /// size: 0.01 to 100. 1 leaves them evenly spaced; above 1 more of the steps are made
    /// where there is much noise. (Networks that were distilled to few steps were trained
    /// with one, often 3.)
    ScheduleShift, "schedule_shift", 0.01..=100.0
}

bounded_decimal! {
    /// How much the first block of a transformer may change from a step to the next for the
    /// other blocks to be skipped, relative to what it changed before: 0 (they are never
    /// skipped) to 1 (as often as is allowed at all).
    CacheThreshold, "cache_threshold", 0.0..=1.0
}

impl CacheThreshold {
    /// What cache-dit recommends with one block compared.
    pub const USUAL: Self = Self(0.12);
}

/// The number that a picture's noise grows from. Picture `i` of a request uses
/// `seed + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// Any 64-bit number is a seed; torch's CPU generator uses its low 32 bits.
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The seed of picture `index` (0-based) of the request.
    #[must_use]
    pub fn of_image(self, index: usize) -> Self {
        Self(self.0.wrapping_add(index as u64))
    }
}

/// Width and height in pixels, each 1 to 16,384.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    width: usize,
    height: usize,
}

impl ImageSize {
    /// The longest side that can be asked for.
    pub const MAX_SIDE: usize = 16_384;

    /// Accepts two sides between 1 and 16,384 pixels.
    ///
    /// # Errors
    /// [`ValidationError`] on `size` outside these bounds.
    pub fn new(width: usize, height: usize) -> Result<Self, ValidationError> {
        let maximum = Self::MAX_SIDE;
        if !(1..=maximum).contains(&width) || !(1..=maximum).contains(&height) {
            return Err(ValidationError::new(
                "size",
                FaultKind::Invalid,
                format!(
                    "Invalid 'size': sides must be 1 to {maximum} pixels, got {width}x{height}."
                ),
            ));
        }
        Ok(Self { width, height })
    }

    /// Reads OpenAI's `WIDTHxHEIGHT`: digits, a lower-case x, digits.
    ///
    /// # Errors
    /// [`ValidationError`] on `size` for any other text, or outside the bounds.
    pub fn parse(text: &str) -> Result<Self, ValidationError> {
        let digits = |part: &str| {
            let only_digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            only_digits.then(|| part.parse::<usize>().unwrap_or(usize::MAX))
        };
        let sides = text.split_once('x').and_then(|(w, h)| Some((digits(w)?, digits(h)?)));
        match sides {
            Some((width, height)) => Self::new(width, height),
            None => Err(ValidationError::new(
                "size",
                FaultKind::Invalid,
                format!(
                    "Invalid value for 'size': '{}'. Supported values are 'auto' and \
                     'WIDTHxHEIGHT' in pixels, such as '1024x1024'.",
                    text.chars().take(40).collect::<String>()
                ),
            )),
        }
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(self) -> usize {
        self.height
    }

    /// Width times height.
    #[must_use]
    pub fn area(self) -> usize {
        self.width * self.height
    }
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}

/// How large the finished picture shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputSize {
    /// What the reference pipeline makes when it is given no size.
    Reference,
    /// This size, floored to the model's grid as the reference pipeline does.
    Exact(ImageSize),
    /// The size of the first input picture, which lies on the model's grid and
    /// whose pixels the autoencoder sees as they are, not scaled to its area:
    /// so the finished picture lies over the input pixel by pixel.
    AsInput,
}

/// One request for pictures. Every field has passed its checks.
///
/// Models take requests whose size is planned, an [`OutputSize`]. A client's wish is a
/// `Size` of another type until the service has planned it.
#[derive(Debug, Clone)]
pub struct ImageRequest<Size = OutputSize> {
    /// What is to be done.
    pub task: Task,
    /// The words.
    pub prompt: Prompt,
    /// What to steer away from; without one there is no guidance.
    pub negative_prompt: Option<Prompt>,
    /// How many pictures.
    pub count: ImageCount,
    /// How large they shall be.
    pub size: Size,
    /// How many denoising steps.
    pub steps: Steps,
    /// Strength of classifier-free guidance, whatever the model's users call it.
    pub guidance: GuidanceScale,
    /// Where the noise comes from.
    pub seed: Seed,
    /// What changes the model for this request; without any it is as it was loaded.
    pub loras: RequestLoras,
    /// Replaces the checkpoint's own shift of the noise levels.
    pub schedule_shift: Option<ScheduleShift>,
    /// From which likeness on steps reuse what an earlier one computed; without it none does.
    pub cache_threshold: Option<CacheThreshold>,
}

impl ImageRequest {
    /// One picture of the model's own size; otherwise as [`Self::of_size`].
    #[must_use]
    pub fn new(task: Task, prompt: Prompt) -> Self {
        Self::of_size(task, prompt, OutputSize::Reference)
    }
}

impl<Size> ImageRequest<Size> {
    /// One picture in 50 steps without guidance, from seed 0, every step computed.
    #[must_use]
    pub fn of_size(task: Task, prompt: Prompt, size: Size) -> Self {
        Self {
            task,
            prompt,
            negative_prompt: None,
            count: ImageCount(1),
            size,
            steps: Steps(50),
            guidance: GuidanceScale(1.0),
            seed: Seed(0),
            loras: RequestLoras::default(),
            schedule_shift: None,
            cache_threshold: None,
        }
    }

    /// The task and the size, and what makes the same request of others in their place.
    pub fn into_parts<Planned>(
        self,
    ) -> (Task, Size, impl FnOnce(Task, Planned) -> ImageRequest<Planned>) {
        let (own_task, own_size) = (self.task, self.size);
        let with = move |task, size| ImageRequest {
            task,
            size,
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            count: self.count,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            loras: self.loras,
            schedule_shift: self.schedule_shift,
            cache_threshold: self.cache_threshold,
        };
        (own_task, own_size, with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_digits_x_digits_and_nothing_else() {
        let size = ImageSize::parse("640x480").unwrap();
        assert_eq!((size.width(), size.height()), (640, 480));
        assert_eq!(size.to_string(), "640x480");

        for wrong in [
            "",
            "x",
            "640",
            "640x",
            "x480",
            "640X480",
            "640 x 480",
            "-1x5",
            "+1x5",
            "0x5",
            "1e3x5",
            "99999999999999999999x1",
            "640x480x2",
        ] {
            let error = ImageSize::parse(wrong).unwrap_err();
            assert_eq!((error.field, error.kind), ("size", FaultKind::Invalid), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_out_of_range_name_their_field() {
        assert_eq!(Steps::new(0).unwrap_err().field, "num_inference_steps");
        assert_eq!(Steps::new(151).unwrap_err().kind, FaultKind::IntegerTooLarge);
        assert_eq!(ImageCount::new(11).unwrap_err().field, "n");
        assert_eq!(GuidanceScale::new(f64::NAN).unwrap_err().field, "true_cfg_scale");
        assert_eq!(GuidanceScale::new(20.5).unwrap_err().kind, FaultKind::DecimalTooLarge);
        let acts = |scale| GuidanceScale::new(scale).unwrap().acts();
        assert!(!acts(0.5) && !acts(1.0) && acts(1.1));
        assert_eq!(Steps::new(150).unwrap().get(), 150);
        assert_eq!(ScheduleShift::new(0.0).unwrap_err().field, "schedule_shift");
        assert_eq!(ScheduleShift::new(3.0).unwrap().get(), 3.0);
        let error = CacheThreshold::new(1.5).unwrap_err();
        assert_eq!((error.field, error.kind), ("cache_threshold", FaultKind::DecimalTooLarge));
        assert_eq!(CacheThreshold::new(-0.1).unwrap_err().kind, FaultKind::DecimalTooSmall);
    }

    #[test]
    fn prompts_are_counted_in_characters_and_never_printed() {
        assert_eq!(Prompt::new("").unwrap_err().field, "prompt");
        assert!(Prompt::new("é".repeat(32_000)).is_ok());
        assert_eq!(Prompt::new("a".repeat(32_001)).unwrap_err().kind, FaultKind::TextTooLong);
        assert_eq!(Prompt::negative("").unwrap().as_str(), "");
        assert_eq!(format!("{:?}", Prompt::new("secret").unwrap()), "Prompt(6 characters)");
    }

    #[test]
    fn picture_i_has_seed_plus_i() {
        assert_eq!(Seed::new(7).of_image(2), Seed::new(9));
        assert_eq!(Seed::new(u64::MAX).of_image(1), Seed::new(0));
    }
}
