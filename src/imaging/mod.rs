//! Pictures as files ([`codec`]) and at other sizes ([`resample`]).

pub mod codec;
pub mod resample;
