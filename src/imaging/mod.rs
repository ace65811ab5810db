//! Pictures as files and at other sizes.

pub mod codec;
