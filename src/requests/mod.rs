//! What a request for pictures means, apart from HTTP: fields, however they came, and the
//! endpoint that they were sent to.
//!
//! `prepare()` is the way: `Fields` → checked parameters (`parameters`) → decoded pictures
//! (`pictures`, `masks`) → `Prepared`, which the service can be given. `schema` describes
//! for the OpenAPI page what is read here; a `Recipe` brings what was made back into fields,
//! `stored` a request that was put aside.

mod announcement;
mod context;
mod data_url;
mod endpoint;
mod error;
mod fields;
mod masks;
mod models;
mod names;
mod parameters;
mod pictures;
mod prepare;
mod quality;
mod recipe;
mod route;
pub(crate) mod schema;
mod stored;
mod table;

pub use announcement::{Announcement, UnreadableAnnouncement};
pub use models::ModelService;
pub use parameters::DefaultResponseFormat;
pub use quality::{QualityOverride, QualityOverrides};

pub(crate) use context::{Asked, RequestContext, RequestSettings};
pub(crate) use endpoint::Endpoint;
pub(crate) use error::RequestError;
pub(crate) use fields::{Fields, RawValue, quote};
pub(crate) use masks::MaskConvention;
pub(crate) use models::{Models, ServedModel};
pub(crate) use parameters::{Accepted, Delivery, Output};
pub(crate) use prepare::{Prepared, prepare};
pub(crate) use quality::{Preset, Quality, QualityTable};
pub(crate) use recipe::Recipe;
pub(crate) use stored::{StoredOutside, StoredRequest, Writing};
