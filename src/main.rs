//! The program: from flags to what they ask for.

mod serving;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use diffuser_api::allocator::{MiMalloc, keep_freed_memory};
use diffuser_api::cli::{
    BenchArgs, Cli, Command, ConvertArgs, InspectArgs, KeysCommand, NewKeyArgs, PlanArgs, PullArgs,
};
use diffuser_api::config::{ConfigError, Environment, load_hub, load_threads};
use diffuser_api::hub::{HubConfig, Progress, RepositoryId, fetch_files, fetch_snapshot};
use diffuser_api::keys::{KeyHash, Place, random_key};
use diffuser_api::model::{self, ModelFiles, benchmark};
use diffuser_api::{bench, causes, device, nn, plan, pull, telemetry, threads, tls};
use serving::{DEVICE_FAULT_STATUS, DeviceFault, serve};

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

/// The error with its causes in one line. Faulty settings have a line each.
fn message_of(error: &anyhow::Error) -> String {
    if let Some(faults) = error.downcast_ref::<ConfigError>() {
        return faults.to_string();
    }
    causes::one_line(error.as_ref())
}
