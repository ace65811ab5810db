//! Telling others, by HTTP, that something has happened: signed as Standard Webhooks says, tried
//! again for some hours, and never sent into a private network.
//!
//! A [`Courier`] makes one try; [`WebhookConfig::delay_after`] says when the next one is due.
//! What is told, and what is kept of it meanwhile, is no matter of this module.

mod address;
mod config;
mod courier;
mod secret;

pub use address::{UnsuitableUrl, WebhookUrl};
pub use config::WebhookConfig;
pub use courier::{Courier, Delivery, Message};
pub use secret::{UnsuitableSecret, WebhookSecret};
