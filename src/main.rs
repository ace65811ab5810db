//! The program: from flags to a server that answers, and to its end.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use diffuser_api::allocator::{MiMalloc, give_memory_back, keep_freed_memory};
use diffuser_api::api::{Access, Opening, ServerParts, Site, StartPhase};
use diffuser_api::cli::{
    BenchArgs, Cli, Command, ConvertArgs, InspectArgs, KeysCommand, NewKeyArgs, PlanArgs, PullArgs,
    ServeArgs,
};
use diffuser_api::config::{
    Config, ConfigError, Environment, ListenConfig, ModelSettings, Sources, WarmupConfig, load_hub,
    load_threads,
};
use diffuser_api::domain::Picture;
use diffuser_api::hub::{HubConfig, Progress, RepositoryId, fetch_files, fetch_snapshot};
use diffuser_api::imaging::codec::{self, DecodeLimits};
use diffuser_api::jobs::EmbeddedStore;
use diffuser_api::keys::{KeyHash, Place, random_key};
use diffuser_api::model::{self, ModelFiles, benchmark};
use diffuser_api::pictures::PictureStore;
use diffuser_api::requests::ModelService;
use diffuser_api::service::{PooledModel, ReplicaState, WorkerHandle};
use diffuser_api::signals::Signals;
use diffuser_api::{
    bench, causes, device, nn, plan, pull, service, supervisor, telemetry, threads, tls,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::info;

/// Threads that decode and encode end when they have had nothing to do for so long: what
/// they keep of freed memory goes back to the system with them.
const IDLE_THREADS_END_AFTER: Duration = Duration::from_secs(2);

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    keep_freed_memory();
    tls::install_provider();
    let result = match Cli::parse().into_command() {
        Command::Serve(args) => serve(args),
        Command::Pull(args) => pull(&args),
        Command::Plan(args) => plan(&args),
        Command::Inspect(args) => inspect(&args),
        Command::Convert(args) => convert(args),
        Command::Keys(args) => keys(&args.command),
        Command::Bench(args) => measure(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::tell_end(&message_of(&error));
            match error.downcast_ref::<DeviceFault>() {
                Some(DeviceFault) => ExitCode::from(DEVICE_FAULT_STATUS),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn serve(args: ServeArgs) -> Result<()> {
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
    let jobs = EmbeddedStore::open(&config.api.jobs).context("cannot open the jobs")?;
    runtime.block_on(run((config, sources), picture, (store, jobs)))
}

async fn run(
    (config, sources): (Config, Sources),
    picture: Option<Picture>,
    (store, jobs): (PictureStore, EmbeddedStore),
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
        started = start(&config, picture, &opening) => Some(started?),
        never = supervisor::ask_for_time() => match never {},
        // Before it is told to it ends by a fault alone, such as a port that is taken.
        ended = &mut serving => return Ok(ended??),
        () = signals.stop(|| ()) => None,
    };
    let Some((models, worker)) = started else {
        tokio::spawn(leave_at_once(signals));
        drop((opening, stop));
        return Ok(serving.await??);
    };
    let service = models[0].images.clone();
    let parts = ServerParts { models, store, jobs: Arc::new(jobs), access: access.clone() };
    opening.open(parts, &config.api);
    supervisor::ready();
    tokio::spawn(supervisor::keep_watchdog());
    let page = if config.api.playground { "/" } else { "/docs" };
    info!("listening; open http://{address}{page}");
    let memory = indicatif::BinaryBytes(config.api.request_memory_bytes as u64);
    info!(%memory, "what requests may hold together");

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
struct DeviceFault;

/// The exit status that tells a supervisor so.
const DEVICE_FAULT_STATUS: u8 = 70;

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
async fn start(
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
            lora_dir: model.config.lora_dir.clone(),
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

fn pull(args: &PullArgs) -> Result<()> {
    let hub = load_hub(&Environment::of_process())?;
    telemetry::init("warn,diffuser_api=info")?;

    let repository = args.model.parse()?;
    if args.files.is_empty() {
        let progress = Progress::for_terminal();
        let folder = fetch_snapshot(&repository, args.revision.as_deref(), &hub, progress)?;
        print_now(&format!("{}\n", folder.display()));
        return Ok(());
    }
    pull_files(args, &repository, &hub)
}

/// Fetches single files; prints where they are, and what they lack to be served.
fn pull_files(args: &PullArgs, repository: &RepositoryId, hub: &HubConfig) -> Result<()> {
    let (revision, progress) = (args.revision.as_deref(), Progress::for_terminal());
    let fetched = fetch_files(repository, revision, &args.files, args.companions(), hub, progress)?;
    print_now(&pull::paths(&fetched));
    // What was asked for are the paths alone: this goes beside them.
    let _ = std::io::stderr().write_all(pull::missing(&fetched).as_bytes());
    Ok(())
}

/// Prints what a model that is at hand will take.
fn plan(args: &PlanArgs) -> Result<()> {
    let hub = HubConfig { offline: true, ..load_hub(&Environment::of_process())? };
    telemetry::init("warn")?;
    let planned = ModelFiles::find(&args.config(), &hub).and_then(|files| files.plan());
    let plan = planned.with_context(|| format!("cannot plan for the model '{}'", args.model))?;
    if args.json {
        print_now(&format!("{}\n", serde_json::to_string_pretty(&plan)?));
    } else {
        print_now(&plan::table(&plan));
    }
    Ok(())
}

/// Prints what files are; fails if one of them makes no model.
fn inspect(args: &InspectArgs) -> Result<()> {
    let hub = HubConfig { offline: true, ..load_hub(&Environment::of_process())? };
    telemetry::init("off")?;
    let reports: Vec<_> = args
        .paths
        .iter()
        .map(|path| diffuser_api::inspect::report(path, &args.config(path), &hub))
        .collect();
    if args.json {
        print_now(&format!("{}\n", serde_json::to_string_pretty(&reports)?));
    } else {
        reports.iter().for_each(|report| print_now(&diffuser_api::inspect::text(report)));
    }
    Ok(())
}

/// Writes a model's weights in another format, and prints what is in the file.
fn convert(args: ConvertArgs) -> Result<()> {
    let hub = HubConfig { offline: true, ..load_hub(&Environment::of_process())? };
    telemetry::init("warn,diffuser_api::model::files=info")?;
    let request = args.into();
    print_now(&diffuser_api::convert::run(&request, &hub)?);
    Ok(())
}

/// Makes a key, or hashes one.
fn keys(command: &KeysCommand) -> Result<()> {
    match command {
        KeysCommand::New(args) => new_key(args),
        KeysCommand::Hash => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("cannot read standard input")?;
            let key = line.trim();
            anyhow::ensure!(!key.is_empty(), "there is no key on standard input");
            print_now(&format!("{}\n", KeyHash::of(key)));
            Ok(())
        }
    }
}

/// Prints a new key once what is said of it is written, or with that.
fn new_key(args: &NewKeyArgs) -> Result<()> {
    let (new, key) = (args.key(), random_key().context("the system gives no random bytes")?);
    match &args.file {
        Some(file) => {
            new.append_to(file, &key)?;
            print_now(&format!("{key}\n"));
        }
        None => print_now(&format!("{key}\n\n{}", new.entry(&key, Place::Configuration))),
    }
    Ok(())
}

/// Prints as they come which of the device's steps, or of whole pictures, are those of
/// the CPU.
fn check(args: &BenchArgs) -> Result<()> {
    let mut rows = Rows { json: args.json.as_deref(), passed: true, checks: Vec::new() };
    let mut failed = Ok(());
    if args.kernels {
        telemetry::init("warn,diffuser_api::nn::check=info")?;
        print_now(bench::KERNEL_HEAD);
        let device = device::open(args.device)?;
        nn::check(&device, args.family, args.sizes, &mut |check| {
            let written = rows.add(&bench::kernel_row(&check), check.passed(), &check);
            failed = std::mem::replace(&mut failed, Ok(())).and(written);
        })?;
    } else {
        telemetry::init("warn")?;
        print_now(bench::PICTURE_HEAD);
        model::check_device(args.device, args.dtype, &mut |check| {
            let written = rows.add(&bench::picture_row(&check), check.passed(), &check);
            failed = std::mem::replace(&mut failed, Ok(())).and(written);
        })?;
    }
    failed?;
    anyhow::ensure!(!rows.checks.is_empty(), "there is nothing to check of that kind");
    anyhow::ensure!(rows.passed, "the device is wrong");
    Ok(())
}

/// Rows of checks: printed and written at once, for the next one may end the program.
struct Rows<'a> {
    json: Option<&'a Path>,
    passed: bool,
    checks: Vec<serde_json::Value>,
}

impl Rows<'_> {
    fn add(&mut self, row: &str, passed: bool, check: &impl serde::Serialize) -> Result<()> {
        print_now(row);
        self.passed &= passed;
        self.checks.push(serde_json::to_value(check)?);
        write_json(self.json, &self.checks)
    }
}

/// Prints what a picture takes, measured or by arithmetic.
fn measure(args: &BenchArgs) -> Result<()> {
    let wanted = load_threads(&Environment::of_process(), args.threads.as_deref())?;
    threads::start(wanted).context("cannot start the threads that compute")?;
    nn::fusion::disable(&args.without);
    if args.fast_sums {
        nn::Fp8Sums::Fast.choose();
    }
    if args.kernels || args.check {
        return check(args);
    }
    telemetry::init("warn")?;
    let json = args.json.as_deref();
    if args.ceiling {
        let ceiling = bench::ceiling(args.device, args.dtype)?;
        print_now(&bench::ceiling_table(&ceiling));
        return write_json(json, &ceiling);
    }
    let plan = args.plan()?;
    if args.estimate {
        let estimate = benchmark::estimate(&plan)?;
        let peak = bench::Peak { tflops: args.peak_tflops, bytes_s: args.bandwidth * 1e9 };
        print_now(&bench::estimate_table(&estimate, peak));
        return write_json(json, &estimate);
    }
    let report = bench::run(&plan)?;
    print_now(&bench::table(&report));
    write_json(json, &report)?;
    match (&args.trace, report.trace) {
        (Some(file), Some(trace)) => write(file, &trace.to_chrome().to_string()),
        _ => Ok(()),
    }
}

fn print_now(text: &str) {
    // Whoever has read enough of it, as `head` does, ends nothing by that.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes `value` into `file`, if there is one.
fn write_json(file: Option<&Path>, value: &impl serde::Serialize) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    write(file, &serde_json::to_string_pretty(value)?)
}

/// Replaces `file` at once: whoever ends this program in the middle has the one before.
fn write(file: &Path, text: &str) -> Result<()> {
    let part = file.with_extension("part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, file));
    written.with_context(|| format!("cannot write {}", file.display()))
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

/// The error with its causes in one line. Faulty settings have a line each.
fn message_of(error: &anyhow::Error) -> String {
    if let Some(faults) = error.downcast_ref::<ConfigError>() {
        return faults.to_string();
    }
    causes::one_line(error.as_ref())
}
