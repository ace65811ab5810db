//! Pictures as files ([`codec`]), at other sizes ([`resample`]), in parts
//! ([`region`]), and with a text inside ([`provenance`]).

pub mod codec;
pub mod provenance;
pub mod region;
pub mod resample;
