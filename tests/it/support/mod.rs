//! Helpers that several areas of the tests share.

pub(crate) mod golden;
