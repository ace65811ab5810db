//! Colour profiles: what a file's numbers look like, in sRGB.
//!
//! As Pillow's `ImageCms.profileToProfile` to its own sRGB does by default: perceptual
//! intent, and the black of a profile of tables becomes black. The conversion is moxcms's,
//! in 16 bits, and the last step to 8 bits rounds.

#![expect(
    clippy::cast_possible_truncation,
    reason = "levels of at most 255, of numbers between 0 and 1"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use moxcms::{
    ColorProfile, DataColorSpace, InterpolationMethod, Layout, ProfileClass, ProfileText,
    RenderingIntent, Transform16BitExecutor, TransformOptions,
};

use super::error::{DecodeError, DroppedProfile, ProfileFault};
use super::raster::{ColourSpace, Raster, Samples};

/// The longest profile that is used. Those of printing presses have up to three mebibytes.
pub(super) const MAX_PROFILE_BYTES: usize = 8 << 20;

/// Pixels that are converted at a time.
const BATCH: usize = 1 << 14;

/// Steps of 16 bits in one of 8.
const LEVEL: u16 = 257;

/// How light the black of tables is in version 4 of profiles, with perceptual intent.
///
/// Source: ICC.1:2022, 6.3.3 (`Y` of the reference medium's black point).
const REFERENCE_BLACK: f32 = 0.003_473_1;
/// A profile whose black is lighter than this L* of 50 is of something else than ink.
///
/// Source: Little CMS 2.16, `cmssamp.c`, `BlackPointAsDarkerColor`.
const LIGHTEST_BLACK: f32 = 0.184_187;

/// Points of each channel, among which a conversion is held against doing nothing.
const PROBES: u16 = 16;

/// The colour spaces of profiles that pictures have. Inks are laid out like RGBA.
const SPACES: [(DataColorSpace, Layout, ColourSpace); 3] = [
    (DataColorSpace::Gray, Layout::Gray, ColourSpace::Grey),
    (DataColorSpace::Rgb, Layout::Rgb, ColourSpace::Rgb),
    (DataColorSpace::Cmyk, Layout::Rgba, ColourSpace::Cmyk),
];

/// `raster` in sRGB. One whose profile is sRGB itself, and one whose profile cannot be
/// used, is given back as it was.
///
/// # Errors
/// [`DecodeError::Damaged`] if the conversion fails half way.
pub(super) fn to_srgb(
    raster: Raster,
    icc: &[u8],
) -> Result<(Raster, Option<DroppedProfile>), DecodeError> {
    Ok(match open(icc, raster.space) {
        Ok(Some(conversion)) => (conversion.apply(raster)?, None),
        Ok(None) => (raster, None),
        Err(dropped) => (raster, Some(dropped)),
    })
}

/// The way from the profile's numbers to sRGB; `None` if there is nothing to be done.
pub(super) fn open(icc: &[u8], space: ColourSpace) -> Result<Option<Conversion>, DroppedProfile> {
    if icc.len() > MAX_PROFILE_BYTES {
        return Err(DroppedProfile { description: None, reason: ProfileFault::TooLarge });
    }
    // A profile may be hostile, too; then the picture still stands.
    let conversion = catch_unwind(AssertUnwindSafe(|| Conversion::new(icc, space)));
    let damaged = DroppedProfile { description: None, reason: ProfileFault::Damaged };
    conversion.unwrap_or(Err(damaged))
}

/// A way from the numbers of a profile to sRGB.
pub(super) struct Conversion {
    description: Option<String>,
    transform: Arc<Transform16BitExecutor>,
    /// Numbers of a pixel before it.
    channels: usize,
    /// Light of what becomes black, of 1.
    black: f32,
    /// For each number of 16 bits the level of 8.
    levels: Vec<u8>,
}

impl Conversion {
    /// `None` if there is nothing to be done.
    fn new(icc: &[u8], space: ColourSpace) -> Result<Option<Self>, DroppedProfile> {
        let dropped = |description, reason| DroppedProfile { description, reason };
        let profile = ColorProfile::new_from_slice(icc)
            .map_err(|_broken| dropped(None, ProfileFault::Damaged))?;
        let description = profile.description.as_ref().and_then(name_of);
        let refuse = |reason| Err(dropped(description.clone(), reason));
        if matches!(
            profile.profile_class,
            ProfileClass::DeviceLink | ProfileClass::Abstract | ProfileClass::Named
        ) {
            return refuse(ProfileFault::OtherPurpose);
        }
        let known = SPACES.iter().find(|(space, _, _)| *space == profile.color_space);
        let Some(&(_, layout, profile_space)) = known else {
            return refuse(ProfileFault::OtherPurpose);
        };
        let options = TransformOptions {
            rendering_intent: RenderingIntent::Perceptual,
            allow_use_cicp_transfer: false,
            // As Little CMS does between the points of tables.
            interpolation_method: InterpolationMethod::Tetrahedral,
            ..TransformOptions::default()
        };
        let srgb = ColorProfile::new_srgb();
        let transform = profile.create_transform_16bit(layout, &srgb, Layout::Rgb, options);
        let Ok(transform) = transform else {
            return refuse(ProfileFault::Unsupported);
        };
        let channels = profile_space.channels();
        let levels = Vec::new();
        let mut conversion = Self { description, transform, channels, black: 0.0, levels };
        conversion.black = conversion.black_of(&profile, profile_space);
        conversion.levels = conversion.levels();
        let changes_nothing = conversion.changes_nothing(space);
        if profile_space != space {
            // Of grey numbers an RGB profile says nothing that sRGB does not.
            let harmless = changes_nothing && space == ColourSpace::Grey;
            let reason =
                ProfileFault::OtherColours { profile: profile_space.name(), picture: space.name() };
            let dropped = dropped(conversion.description, reason);
            return if harmless { Ok(None) } else { Err(dropped) };
        }
        Ok((!changes_nothing).then_some(conversion))
    }

    /// The light of the darkest colour, that Little CMS makes black.
    fn black_of(&self, profile: &ColorProfile, space: ColourSpace) -> f32 {
        let has_tables = profile.lut_a_to_b_perceptual.is_some()
            || profile.lut_a_to_b_colorimetric.is_some()
            || profile.lut_a_to_b_saturation.is_some();
        if !has_tables {
            return 0.0;
        }
        if profile.version() as u32 >= moxcms::ProfileVersion::V4_0 as u32
            && profile.version() != moxcms::ProfileVersion::Unknown
        {
            return REFERENCE_BLACK;
        }
        let darkest = match space {
            ColourSpace::Cmyk => [u16::MAX; 4],
            ColourSpace::Grey | ColourSpace::Rgb => [0; 4],
        };
        let mut seen = [0; 3];
        if self.transform.transform(&darkest[..self.channels], &mut seen).is_err() {
            return 0.0;
        }
        // The share of each primary in lightness, with the white of the connection space.
        let [red, green, blue] = seen.map(linear);
        (0.2225 * red + 0.7169 * green + 0.0606 * blue).min(LIGHTEST_BLACK)
    }

    /// Whether all of some colours, among them all greys, stay within one level of 8 bits:
    /// profiles of sRGB itself differ from each other by less.
    fn changes_nothing(&self, space: ColourSpace) -> bool {
        let step = u16::MAX / PROBES;
        let ramp = (0..=255).map(|level| level * LEVEL);
        let greys = ramp.flat_map(|grey| vec![grey; self.channels]);
        let cube = (0..(usize::from(PROBES) + 1).pow(3)).flat_map(|point| {
            let side = usize::from(PROBES) + 1;
            [point / side / side, point / side % side, point % side]
                .map(|at| u16::try_from(at).unwrap_or(0).saturating_mul(step))
        });
        let probes: Vec<u16> = match (self.channels, space) {
            (1, _) | (3, ColourSpace::Grey) => greys.collect(),
            (3, _) => greys.chain(cube).collect(),
            _ => return false,
        };
        let mut seen = vec![0; probes.len() / self.channels * 3];
        if self.transform.transform(&probes, &mut seen).is_err() {
            return false;
        }
        let same = |(probe, seen): (&[u16], &[u16])| {
            (0..3).all(|channel| {
                let before = probe[channel.min(self.channels - 1)];
                before.abs_diff(seen[channel]) <= LEVEL
            })
        };
        self.black == 0.0 && probes.chunks_exact(self.channels).zip(seen.chunks_exact(3)).all(same)
    }

    fn apply(&self, raster: Raster) -> Result<Raster, DecodeError> {
        let space = ColourSpace::Rgb;
        let colours = match raster.colours {
            Samples::Sixteen(samples) => {
                let mut seen = Vec::with_capacity(samples.len() / self.channels * 3);
                for samples in samples.chunks(BATCH * self.channels) {
                    self.convert(samples, &mut seen)?;
                }
                seen
            }
            Samples::Eight(samples) if self.channels >= 3 => self.converted_in_place(samples)?,
            Samples::Eight(samples) => {
                let mut seen = Vec::with_capacity(samples.len() / self.channels * 3);
                for samples in samples.chunks(BATCH * self.channels) {
                    self.convert(&widened(samples), &mut seen)?;
                }
                seen
            }
        };
        Ok(Raster { space, colours: Samples::Eight(colours), ..raster })
    }

    /// 8-bit RGB of pixels that have no fewer channels, where they are.
    fn converted_in_place(&self, mut samples: Vec<u8>) -> Result<Vec<u8>, DecodeError> {
        let (mut seen, mut end) = (Vec::new(), 0);
        for at in (0..samples.len()).step_by(BATCH * self.channels) {
            let batch = at..(at + BATCH * self.channels).min(samples.len());
            seen.clear();
            self.convert(&widened(&samples[batch]), &mut seen)?;
            samples[end..end + seen.len()].copy_from_slice(&seen);
            end += seen.len();
        }
        samples.truncate(end);
        samples.shrink_to_fit();
        Ok(samples)
    }

    /// Puts 8-bit RGB of some pixels behind `out`.
    ///
    /// # Errors
    /// [`DecodeError::Damaged`], which a conversion that has been tried out never is.
    pub(super) fn convert(&self, samples: &[u16], out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let mut seen = vec![0; samples.len() / self.channels * 3];
        let converted = self.transform.transform(samples, &mut seen);
        converted.map_err(|_error| DecodeError::damaged("its colour profile is damaged"))?;
        out.extend(seen.into_iter().map(|value| self.levels[usize::from(value)]));
        Ok(())
    }

    /// For each number of 16 bits the level of 8, with black where it belongs.
    fn levels(&self) -> Vec<u8> {
        let level = |value: u16| {
            if self.black == 0.0 {
                return ((u32::from(value) + u32::from(LEVEL) / 2) / u32::from(LEVEL)) as u8;
            }
            let light = ((linear(value) - self.black) / (1.0 - self.black)).max(0.0);
            (encoded(light) * 255.0).round() as u8
        };
        (0..=u16::MAX).map(level).collect()
    }
}

/// 8 bits as 16.
fn widened(samples: &[u8]) -> Vec<u16> {
    samples.iter().map(|sample| u16::from(*sample) * LEVEL).collect()
}

/// From sRGB's 16 bits to light, of 1.
fn linear(value: u16) -> f32 {
    let value = f32::from(value) / f32::from(u16::MAX);
    if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
}

/// From light to sRGB, both of 1.
fn encoded(light: f32) -> f32 {
    if light <= 0.003_130_8 { light * 12.92 } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 }
}

/// What a profile calls itself, short enough for a message.
fn name_of(text: &ProfileText) -> Option<String> {
    const MAX_LETTERS: usize = 60;
    let name = match text {
        ProfileText::PlainString(name) => name,
        ProfileText::Localizable(names) => &names.first()?.value,
        ProfileText::Description(name) => &name.ascii_string,
    };
    let shown: String = name.chars().filter(|letter| !letter.is_control()).collect();
    let shown: String = shown.trim().chars().take(MAX_LETTERS).collect();
    (!shown.is_empty()).then_some(shown)
}
