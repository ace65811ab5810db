//! `diffuser-api serve`: from settings to a server that answers, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use diffuser_api::allocator::give_memory_back;
use diffuser_api::api::{Access, Opening, Role, ServerParts, Site, StartPhase, announced_models};
use diffuser_api::cli::ServeArgs;
use diffuser_api::config::{
    Config, Environment, ListenConfig, ModelSettings, Sources, WarmupConfig,
};
use diffuser_api::domain::Picture;
use diffuser_api::hub::HubConfig;
use diffuser_api::imaging::codec::{self, DecodeLimits};
use diffuser_api::jobs::batches::BatchStore;
use diffuser_api::jobs::{
    DatabaseUrl, EmbeddedStore, Fleet, JobStore, JobStoreLocation, SharedStore,
};
use diffuser_api::metrics::Metrics;
use diffuser_api::model::{LoraNames, ModelFiles};
use diffuser_api::pictures::{PictureStore, StoreConfig, open_objects};
use diffuser_api::requests::ModelService;
use diffuser_api::service::{PooledModel, ReplicaState, WorkerHandle};
use diffuser_api::signals::Signals;
use diffuser_api::{service, supervisor, telemetry, threads};
use object_store::ObjectStore;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::info;

/// Threads that decode and encode end when they have had nothing to do for so long: what
/// they keep of freed memory goes back to the system with them.
const IDLE_THREADS_END_AFTER: Duration = Duration::from_secs(2);

/// Serves until it is told to stop.
pub(crate) fn serve(args: ServeArgs) -> Result<()> {
    let sources = Sources { environment: Environment::of_process(), flags: args.into() };
    let config = Config::load(&sources)?;
    threads::start(config.threads).context("cannot start the threads that compute")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREADS_END_AFTER)
        .on_thread_stop(give_memory_back)
        .build()
        .context("cannot start the runtime")?;
    let log = (config.log_filter.as_str(), config.log_format);
    let traces = telemetry::init_server(log, config.traces.as_ref(), runtime.handle())?;
    let result = prepare_and_run((config, sources), &runtime);
    traces.shut_down();
    // Whoever stops the program while it loads does not want to wait for that.
    runtime.shutdown_background();
    result
}

fn prepare_and_run((config, sources): (Config, Sources), runtime: &Runtime) -> Result<()> {
    let picture = warm_up_picture(&config.warmup, config.api.decode_limits())?;
    let store = PictureStore::open(&config.api.picture_store)?;
    let jobs = Jobs::open(&config)?;
    runtime.block_on(run((config, sources), picture, (store, jobs)))
}

async fn run(
    (config, sources): (Config, Sources),
    picture: Option<Picture>,
    (store, jobs): (PictureStore, Jobs),
) -> Result<()> {
    let listener = reserve(&config.listen).await?.listen(1024).context("cannot listen")?;
    let access = Access::new(&config.api);
    warn_if_open(&access, listener.local_addr()?);
    let address = reachable(listener.local_addr()?);
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let (site, opening) = Site::new(&config.api);
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(serve_site(site, listener, config.clone(), stopped));
    info!("starting; http://{address}/health answers");

    let started = tokio::select! {
        started = start(&config, picture, (jobs, &opening)) => Some(started?),
        never = supervisor::ask_for_time() => match never {},
        // Before it is told to it ends by a fault alone, such as a port that is taken.
        ended = &mut serving => return Ok(ended??),
        () = signals.stop(|| ()) => None,
    };
    let Some(Started { models, worker, jobs }) = started else {
        tokio::spawn(leave_at_once(signals));
        drop((opening, stop));
        return Ok(serving.await??);
    };
    let service = models[0].images.clone();
    let Reached { jobs, batches, fleet } = jobs;
    let followed = fleet.clone().filter(|_| config.api.role == Role::Gateway);
    let parts = ServerParts { models, store, jobs, batches, fleet, access: access.clone() };
    let opened = opening.open(parts, &config.api);
    tokio::spawn(async move {
        if let Some(fleet) = followed {
            opened.follow(fleet.as_ref()).await;
        }
    });
    supervisor::ready();
    tokio::spawn(supervisor::keep_watchdog());
    tell_where(&config, address);

    let device_failed = tokio::select! {
        () = signals.stop(|| reload(&access, &sources)) => false,
        () = service.until_device_fault() => true,
        ended = &mut serving => return Ok(ended??),
    };
    let stopping = Instant::now();
    supervisor::stopping();
    info!("finishing the running picture; a second signal leaves at once");
    tokio::spawn(leave_at_once(signals));
    drop(stop);
    serving.await??;
    finish(worker, config.api.peers.grace.saturating_sub(stopping.elapsed())).await?;
    if device_failed { Err(DeviceFault.into()) } else { Ok(()) }
}

fn tell_where(config: &Config, address: SocketAddr) {
    match config.api.role {
        Role::All | Role::Gateway => {
            let page = if config.api.playground { "/" } else { "/docs" };
            info!("listening; open http://{address}{page}");
        }
        Role::Worker => info!("working; http://{address}/ready answers"),
    }
    let memory = indicatif::BinaryBytes(config.api.request_memory_bytes as u64);
    info!(%memory, "what requests may hold together");
}

/// Where jobs are: open already, or to be opened within the runtime.
enum Jobs {
    Own(EmbeddedStore),
    Shared(DatabaseUrl, Arc<dyn ObjectStore>),
}

impl Jobs {
    fn open(config: &Config) -> Result<Self> {
        let JobStoreLocation::Postgres(url) = &config.api.jobs.location else {
            let own = EmbeddedStore::open(&config.api.jobs).context("cannot open the jobs")?;
            return Ok(Self::Own(own));
        };
        let within = |files: &StoreConfig| StoreConfig {
            location: files.location.below("jobs"),
            ..files.clone()
        };
        let objects = config.job_files.as_ref().map(within);
        let objects = objects.as_ref().map(open_objects).transpose().context("jobs.files")?;
        let objects = objects.flatten().context("jobs.files is not set")?;
        Ok(Self::Shared(url.clone(), objects))
    }

    async fn reach(self, config: &Config) -> Result<Reached> {
        match self {
            Self::Own(own) => {
                let own = Arc::new(own);
                let batches: Arc<dyn BatchStore> = Arc::<EmbeddedStore>::clone(&own);
                Ok(Reached { jobs: own, batches: Some(batches), fleet: None })
            }
            Self::Shared(url, objects) => {
                let shared = SharedStore::open(&url, objects, &config.api.jobs).await;
                let shared = Arc::new(shared.context("cannot open the jobs")?);
                let jobs: Arc<dyn JobStore> = Arc::<SharedStore>::clone(&shared);
                let batches: Arc<dyn BatchStore> = Arc::<SharedStore>::clone(&shared);
                // Whoever takes requests in sees to batches, too.
                let batches = (config.api.role != Role::Worker).then_some(batches);
                Ok(Reached { jobs, batches, fleet: Some(shared) })
            }
        }
    }
}

/// The jobs, and the same as what there is besides: batches, or other processes that share
/// them.
struct Reached {
    jobs: Arc<dyn JobStore>,
    batches: Option<Arc<dyn BatchStore>>,
    fleet: Option<Arc<dyn Fleet>>,
}

/// What the API is made of, once it is there.
struct Started {
    models: Vec<ModelService>,
    worker: WorkerHandle,
    jobs: Reached,
}

/// Reaches the jobs, and loads the models, or hears of them.
async fn start(
    config: &Config,
    picture: Option<Picture>,
    (jobs, opening): (Jobs, &Opening),
) -> Result<Started> {
    let jobs = jobs.reach(config).await?;
    let (models, worker) = match &jobs.fleet {
        Some(fleet) if config.api.role == Role::Gateway => {
            opening.reach(StartPhase::WaitingForWorkers);
            let metrics = if config.service.metrics { Metrics::new() } else { Metrics::off() };
            (announced_models(fleet.as_ref(), &metrics).await, WorkerHandle::default())
        }
        _ => load(config, picture, opening).await?,
    };
    Ok(Started { models, worker, jobs })
}

/// Serves until `stopped` completes.
async fn serve_site(
    site: Site,
    listener: TcpListener,
    mut config: Config,
    stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    if !config.service.metrics {
        // Nothing is counted: nobody is told.
        config.api.metrics.port = None;
    }
    let stopped = async {
        let _ = stopped.await;
    };
    site.serve(listener, &config.api, stopped).await
}

/// A device computes nothing more for this process; a new one may find it well.
#[derive(Debug, thiserror::Error)]
#[error("a device has failed: the program has to be started anew")]
pub(crate) struct DeviceFault;

/// The exit status that tells a supervisor so.
pub(crate) const DEVICE_FAULT_STATUS: u8 = 70;

/// The address as a click finds it: where every interface listens, this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// Waits for the threads of the models, for what is `left` of the grace.
async fn finish(worker: WorkerHandle, left: Duration) -> Result<()> {
    let joining = tokio::task::spawn_blocking(|| worker.join());
    match tokio::time::timeout(left.max(LAST_STEP), joining).await {
        Ok(joined) => joined?,
        Err(_) => tracing::warn!("the grace is over: the running picture is left unfinished"),
    }
    info!("leaving");
    Ok(())
}

/// Reads keys and limits again, which can change while the server runs.
fn reload(access: &Access, sources: &Sources) {
    let (access, sources) = (access.clone(), sources.clone());
    tokio::task::spawn_blocking(move || {
        supervisor::reloading();
        access.reload(Config::load(&sources).map(|config| config.api));
        supervisor::ready();
    });
}

/// Warns of an address that others reach, where nobody is asked for a key.
fn warn_if_open(access: &Access, address: SocketAddr) {
    if access.is_open() && !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "anybody who reaches this address may have pictures made: there are no keys \
             (server.api_keys, keys.file)"
        );
    }
}

/// Ends the program with the next signal to stop.
async fn leave_at_once(mut signals: Signals) {
    signals.stop(|| ()).await;
    std::process::exit(130);
}

/// Finds the files of the models, loads on the threads that will own them those that are to
/// be there from the start, and warms these up.
async fn load(
    config: &Config,
    picture: Option<Picture>,
    opening: &Opening,
) -> Result<(Vec<ModelService>, WorkerHandle)> {
    let (settings, hub, service) = (config.models.clone(), config.hub.clone(), config.service);
    let finding = move || -> Result<_> {
        let models = settings.iter().map(|model| pooled(model, &hub));
        let models = models.collect::<Result<Vec<_>>>()?;
        refuse_equal_names(&models)?;
        Ok(models)
    };
    let models = tokio::task::spawn_blocking(finding).await??;
    opening.reach(StartPhase::LoadingModels);
    let loading = move || service::start(models, service, give_memory_back);
    let (services, worker) = tokio::task::spawn_blocking(loading).await??;
    opening.reach(StartPhase::WarmingUp);
    for images in services.iter().filter(|_| config.warmup.enabled) {
        let is_loaded = |replica: &ReplicaState| matches!(replica, ReplicaState::Loaded(_));
        if images.replicas().iter().any(is_loaded) {
            let seconds = images.warm_up(picture.clone()).await.context("warm-up failed")?;
            info!(model = images.card().id, seconds, "warmed up");
        }
    }
    let with_settings = services.into_iter().zip(&config.models).map(|(images, model)| {
        let (aliases, quality) = (model.aliases.clone(), model.quality.clone());
        ModelService {
            images,
            aliases,
            quality,
            loras: model.config.lora_dir.clone().map(LoraNames::Folder),
            health_digest: model.health_digest.clone(),
        }
    });
    Ok((with_settings.collect(), worker))
}

/// A model whose files are at hand.
fn pooled(settings: &ModelSettings, hub: &HubConfig) -> Result<PooledModel> {
    let config = &settings.config;
    info!(model = config.id, devices = ?settings.devices, dtype = ?config.dtype, "looking for files");
    let files = ModelFiles::find(config, hub)
        .with_context(|| format!("cannot load the model '{}'", config.id))?;
    Ok(PooledModel {
        card: files.card().clone(),
        devices: settings.devices.clone(),
        preload: settings.preload,
        keep_alive: settings.keep_alive,
        expected_bytes: files.weight_file_bytes(),
        load: Box::new(move |device| files.load_onto(device)),
    })
}

/// A name must lead to one model.
fn refuse_equal_names(models: &[PooledModel]) -> Result<()> {
    for (index, model) in models.iter().enumerate() {
        let id = &model.card.id;
        let is_twice = models[..index].iter().any(|other| other.card.id == *id);
        anyhow::ensure!(
            !is_twice,
            "two models are called '{id}': give one a section [models.NAME]"
        );
    }
    Ok(())
}

/// Reads the picture before the model is loaded: if it is faulty, that is told
/// in a moment and not in minutes.
fn warm_up_picture(config: &WarmupConfig, limits: DecodeLimits) -> Result<Option<Picture>> {
    let Some(path) = config.image_path.as_ref().filter(|_| config.enabled) else {
        return Ok(None);
    };
    let read = || -> Result<Picture> { Ok(codec::decode(&std::fs::read(path)?, limits)?.picture) };
    let picture = read().with_context(|| format!("warm-up picture {}", path.display()))?;
    Ok(Some(picture))
}

/// Takes the address: if another program has it, that is told before a model is loaded.
async fn reserve(listen: &ListenConfig) -> Result<TcpSocket> {
    let name = (listen.host.as_str(), listen.port);
    let cannot = || format!("cannot listen on {} port {}", listen.host, listen.port);
    let mut result = Err(std::io::Error::other("the name has no address"));
    for address in tokio::net::lookup_host(name).await.with_context(cannot)? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As every server does, so that a restart need not wait for old connections.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        result = socket.bind(address).map(|()| socket);
        if result.is_ok() {
            break;
        }
    }
    result.with_context(cannot)
}

/// What the thread of the model gets, at least, to end the step that it is at.
const LAST_STEP: Duration = Duration::from_secs(1);
