//! Helpers that several areas of the tests share.

pub(crate) mod checkpoints;
pub(crate) mod fake_hub;
pub(crate) mod faulty_store;
pub(crate) mod files;
pub(crate) mod golden;
pub(crate) mod scripted_model;
pub(crate) mod server;
