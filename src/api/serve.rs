//! The listener, until it is told to stop.

use std::future::Future;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use super::{ApiConfig, router};
use crate::service::ImageService;

/// Serves on `listener` until `shutdown` completes; then takes no more
/// connections, shuts `service` down (the running picture is finished, waiting
/// requests are refused), answers what is in flight, and returns.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    service: ImageService,
    config: ApiConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = router(service.clone(), &config);
    // Small answers go out at once instead of waiting for the client's next word.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let stop = async move {
        shutdown.await;
        service.shut_down();
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}
