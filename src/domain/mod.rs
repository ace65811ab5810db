//! The vocabulary of the project: what may be asked of a model, in values that
//! are valid by construction.
//!
//! Nothing here does I/O, knows HTTP, holds a tensor or derives serde. A value
//! of a type in this module has passed its checks: the layers below the edge
//! that made it do not check again.

mod image;
mod request;

pub use image::{GreyImage, ImageError, Picture, RgbImage};
pub use request::{
    GuidanceScale, ImageCount, ImageRequest, ImageSize, LayerCount, OutputSize, Prompt, Seed,
    Steps, Strength, Task, ValidationError,
};
