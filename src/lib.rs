//! Diffuser API: Qwen-Image-Edit, and the diffusion models around it, behind
//! OpenAI's images API.
//!
//! The layers, from the outside in; each names only those below it:
//!
//! - [`cli`] is what may be typed;
//! - [`mod@bench`] measures what a picture takes, [`mod@plan`] prints what a model will,
//!   [`inspect`] what files are, [`convert`] writes them in other formats, [`keys`] makes keys;
//! - [`config`] gathers settings from defaults, file, environment and flags;
//! - [`api`] speaks HTTP and OpenAI's words, and is the only layer that does;
//! - [`requests`] says what a request means, apart from HTTP;
//! - [`service`] owns the queue and the thread on which the model lives;
//! - [`pictures`] keeps finished ones for those who fetch them by address;
//! - [`jobs`] keeps requests whose pictures are fetched later, beyond the end of the process;
//! - [`model`] holds the models, behind [`model::DiffusionModel`];
//! - [`nn`], [`checkpoint`], [`device`], [`imaging`], [`hub`] serve the models:
//!   layers, weights and their configuration, devices, pictures, downloads;
//! - [`domain`] is the vocabulary of them all;
//! - [`mod@metrics`] is what is counted and timed, for Prometheus;
//! - [`webhooks`] tell others that something has happened;
//! - `interruption` breaks off work that nobody waits for; [`causes`] are what errors tell the log;
//! - [`signals`] and [`supervisor`] are what the system tells the program, and the other way round;
//! - [`telemetry`] sets up traces, and the logs, which `terminal` keeps above bars, [`threads`] the threads that compute
//!   on a CPU, [`allocator`] how long freed memory is kept, and [`tls`] who does the arithmetic of TLS.

pub mod allocator;
pub mod api;
pub mod bench;
pub mod causes;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod convert;
pub mod device;
pub mod domain;
pub mod hub;
pub mod imaging;
pub mod inspect;
pub(crate) mod interruption;
pub mod jobs;
pub mod keys;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod pictures;
pub mod plan;
pub mod pull;
pub mod requests;
pub mod service;
pub mod signals;
pub mod supervisor;
pub mod telemetry;
pub(crate) mod terminal;
pub mod threads;
pub mod tls;
pub mod webhooks;
