//! The listener and its connections, until it is told to stop.
//!
//! hyper is driven by hand and not by `axum::serve`, which gives it no clock: each
//! connection is a task that [`peer`](super::peer) watches. There are so many at a time;
//! one more takes the place of whichever has been idle for longest.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::guarded_body::GuardedBody;
use super::peer::{Activity, Connection, PeerAddress, PeerLimits, TimedStream, UnderWay};
use super::{ApiConfig, ServerParts, Site};

/// How often a peer of HTTP/2 is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// What is waited for when the system has no descriptors left for a connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Serves what there is in `parts` on `listener` until `shutdown` completes, and what there is
/// to be done after that: as [`Site::serve`].
///
/// # Errors
/// If the listener fails, or that of the metrics cannot be had.
pub async fn serve(
    listener: TcpListener,
    parts: ServerParts,
    config: ApiConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (site, opening) = Site::new(&config);
    opening.open(parts, &config);
    serve_site(listener, site, &config, shutdown).await
}

/// As [`Site::serve`].
pub(super) async fn serve_site(
    listener: TcpListener,
    site: Site,
    config: &ApiConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Ends with this function.
    let mut background = JoinSet::new();
    background.spawn(keep_up(site.clone()));
    let metrics_port = MetricsPort::open(&site, config).await?;
    let connections = accept_until(&listener, &site, config.peers, shutdown).await?;
    let deadline = Instant::now() + config.peers.grace;
    site.shut_down();
    drain(listener, site.clone(), connections, deadline).await?;
    site.finish_jobs(deadline.max(Instant::now() + LAST_ANSWERS)).await;
    // Last, so that how the rest ends can be seen.
    if let Some(port) = metrics_port {
        port.close().await;
    }
    Ok(())
}

/// Serves `site` until `shutdown` completes; what is open then is still served.
async fn accept_until(
    listener: &TcpListener,
    site: &Site,
    limits: PeerLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Connections> {
    let mut connections = Connections::new(limits, Keeping::Open);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(connections),
            opened = connections.open_next(listener, site) => opened?,
        }
    }
}

/// Ends `connections` as their requests are answered, and has peers that come meanwhile told
/// that the server stops: a balancer that asks whether it is ready gets an answer.
async fn drain(
    listener: TcpListener,
    site: Site,
    mut connections: Connections,
    deadline: Instant,
) -> io::Result<()> {
    let mut late = Connections::new(connections.limits, Keeping::OneRequest);
    late.arrived = connections.arrived.take();
    let closing = connections.close(deadline);
    tokio::pin!(closing);
    loop {
        tokio::select! {
            () = &mut closing => break,
            opened = late.open_next(&listener, &site) => opened?,
        }
    }
    drop(listener);
    late.close(deadline.max(Instant::now() + LAST_ANSWERS)).await;
    Ok(())
}

/// The port of the metrics, with connections of its own: many clients of the other one do
/// not keep Prometheus out.
struct MetricsPort {
    /// Dropped, it ends the serving.
    open: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl MetricsPort {
    /// `None` if there is to be none.
    async fn open(site: &Site, config: &ApiConfig) -> io::Result<Option<Self>> {
        let Some(listener) = config.metrics.listen().await? else { return Ok(None) };
        let (site, limits) = (site.of_metrics(), config.peers);
        let (open, closed) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let closed = async {
                let _ = closed.await;
            };
            match accept_until(&listener, &site, limits, closed).await {
                Ok(connections) => connections.close(Instant::now() + LAST_ANSWERS).await,
                Err(error) => tracing::error!(%error, "the port of the metrics failed"),
            }
        });
        Ok(Some(Self { open, serving }))
    }

    async fn close(self) {
        drop(self.open);
        // What it fails with is in the log.
        let _ = self.serving.await;
    }
}

/// How long times are kept one by one.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps what is counted small while nobody asks for it.
async fn keep_up(site: Site) {
    let Some(metrics) = site.metrics().await else { return };
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    while metrics.is_on() {
        interval.tick().await;
        metrics.upkeep();
    }
}

/// The next connection. What a single peer, or a moment without descriptors, does to the
/// listener does not end it.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, PeerAddress)> {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Small answers go out at once instead of waiting for the client's next word.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return Ok((stream, PeerAddress(address.ip())));
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Whether a connection failed, and not the listener.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    [ConnectionAborted, ConnectionRefused, ConnectionReset].contains(&error.kind())
}

/// What is left, at least, for answers to those who came while the server was stopping.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// For how long a connection is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// As long as its peer sends requests.
    Open,
    /// For one request.
    OneRequest,
}

/// How often it is looked whether one of all connections has come to rest.
const ROOM_LOOK: Duration = Duration::from_millis(100);

/// The connections that are open.
struct Connections {
    keeping: Keeping,
    limits: PeerLimits,
    tasks: JoinSet<()>,
    open: Vec<Arc<Activity>>,
    /// One that waits for room.
    arrived: Option<(TcpStream, PeerAddress)>,
}

impl Connections {
    fn new(limits: PeerLimits, keeping: Keeping) -> Self {
        Self { keeping, limits, tasks: JoinSet::new(), open: Vec::new(), arrived: None }
    }

    /// Serves the next peer, once there is room for it. Dropped in between, it goes on from
    /// there when it is called again.
    async fn open_next(&mut self, listener: &TcpListener, site: &Site) -> io::Result<()> {
        if self.arrived.is_none() {
            self.arrived = Some(accept(listener).await?);
        }
        self.make_room().await;
        if let Some(peer) = self.arrived.take() {
            self.open(peer, site.clone());
        }
        Ok(())
    }

    fn open(&mut self, peer: (TcpStream, PeerAddress), site: Site) {
        let activity = Activity::new();
        self.open.push(Arc::clone(&activity));
        self.tasks.spawn(serve_peer(peer, activity, (self.limits, self.keeping), site));
    }

    /// Waits until there are fewer connections than there may be, and sends away the one
    /// that has been idle for longest.
    async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        if self.open.len() > 2 * (self.tasks.len() + 16) {
            self.forget_ended();
        }
        while self.tasks.len() >= self.limits.max_connections {
            self.forget_ended();
            let idle = self.open.iter().filter_map(|peer| Some((peer.idle_since()?, peer)));
            if let Some((_, longest)) = idle.min_by_key(|(since, _)| *since) {
                longest.close();
            }
            // One may come to rest meanwhile that does not end by itself.
            let _ = tokio::time::timeout(ROOM_LOOK, self.tasks.join_next()).await;
        }
    }

    /// Those that have ended are known here alone.
    fn forget_ended(&mut self) {
        self.open.retain(|activity| Arc::strong_count(activity) > 1);
    }

    /// Lets requests that are under way be answered, until `deadline`, and ends all.
    async fn close(mut self, deadline: Instant) {
        self.open.iter().for_each(|activity| activity.close());
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "the grace is over: connections are cut");
        }
        self.tasks.shutdown().await;
    }
}

async fn serve_peer(
    (stream, address): (TcpStream, PeerAddress),
    activity: Arc<Activity>,
    (limits, keeping): (PeerLimits, Keeping),
    site: Site,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    let answering = Arc::clone(&activity);
    let (by, mut succeeding) = Connection::new(Arc::clone(&activity));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(address);
        request.extensions_mut().insert(by.clone());
        let request_under_way = UnderWay::on(&answering);
        if keeping == Keeping::OneRequest {
            answering.close();
        }
        let site = site.clone();
        async move {
            let response = site.answer(Request::map(request, Body::new)).await;
            let answer = response.map(|body| GuardedBody { body, _guard: request_under_way });
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = TokioIo::new(TimedStream::new(stream, Arc::clone(&activity), limits));
    let mut connection = Box::pin(builder.serve_connection_with_upgrades(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = activity.closing() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended early");
    }
    if let Ok(successor) = succeeding.try_recv() {
        successor.await;
    }
}
