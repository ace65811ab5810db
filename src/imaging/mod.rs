//! Pictures as files ([`codec`]), at other sizes ([`resample`]), and with a text
//! inside ([`provenance`]).

pub mod codec;
pub mod provenance;
pub mod resample;
