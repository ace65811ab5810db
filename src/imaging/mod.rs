//! Pictures as files ([`codec`]), at other sizes (`dimensions`, [`resample`], `reduce`), in
//! parts ([`region`]), and with a text inside ([`provenance`]).

pub mod codec;
pub(crate) mod dimensions;
pub mod provenance;
pub(crate) mod reduce;
pub mod region;
pub mod resample;
