//! Pictures as files ([`codec`]), at other sizes ([`resample`]), and in parts
//! ([`region`]).

pub mod codec;
pub mod region;
pub mod resample;
