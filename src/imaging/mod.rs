//! Pictures as files ([`codec`]), at other sizes ([`dimensions`], [`resample`], [`reduce`]), in
//! parts ([`region`]), and with a text inside ([`provenance`]).

pub mod codec;
pub mod dimensions;
pub mod provenance;
pub mod reduce;
pub mod region;
pub mod resample;
