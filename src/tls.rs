//! Who does the arithmetic of TLS: ring, which needs no cmake to build.
//!
//! `reqwest` is built without a choice of its own, and panics where a client is made before
//! one was installed.

/// Installs ring for the whole process. What was installed before stays.
pub fn install_provider() {
    let provider = rustls::crypto::ring::default_provider();
    if provider.install_default().is_err() {
        tracing::trace!("TLS has its provider already");
    }
}
