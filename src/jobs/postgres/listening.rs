//! What other processes tell: that a job, a batch or a model has changed, or that there is
//! work.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::postgres::PgListener;

use super::{BATCHES, CHANGES, Inner, MODELS, WORK};

/// Until a database that is away is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Hears what others tell, until the store is dropped. After a time of silence everybody looks
/// again: what was told meanwhile is lost.
pub(super) async fn listen(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let pool = inner.pool.clone();
        drop(inner);
        if let Err(error) = hear(&pool, &store).await {
            tracing::debug!(%error, "nothing is heard of other processes");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(pool: &sqlx::PgPool, store: &Weak<Inner>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([CHANGES, WORK, MODELS, BATCHES]).await?;
    loop {
        if let Some(inner) = store.upgrade() {
            inner.watchers.tell_all();
            inner.models_changed.notify_waiters();
            inner.batches_changed.notify_one();
        }
        while let Some(notification) = listener.try_recv().await? {
            let Some(inner) = store.upgrade() else { return Ok(()) };
            told(&inner, notification.channel(), notification.payload());
        }
    }
}

fn told(inner: &Arc<Inner>, channel: &str, payload: &str) {
    match channel {
        CHANGES => {
            if let Ok(id) = payload.parse() {
                inner.watchers.tell(id);
            }
        }
        WORK => inner.watchers.work_came(),
        BATCHES => inner.batches_changed.notify_one(),
        _ => inner.models_changed.notify_waiters(),
    }
}
