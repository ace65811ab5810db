//! The vocabulary of the project: what may be asked of a model, in values that
//! are valid by construction.
//!
//! Nothing here does I/O, knows HTTP, holds a tensor or derives serde. A value
//! of a type in this module has passed its checks: the layers below the edge
//! that made it do not check again.

mod choice;
mod image;
mod lora;
mod request;
mod task;

pub use choice::UnknownChoice;
pub use image::{GreyImage, ImageError, Picture, RgbImage};
pub use lora::{RequestLora, RequestLoras};
pub use request::{
    CacheThreshold, FaultKind, GuidanceScale, ImageCount, ImageRequest, ImageSize, LayerCount,
    OutputSize, Prompt, ScheduleShift, Seed, Steps, Strength, ValidationError,
};
pub use task::{Task, TaskKind, TaskKinds};
