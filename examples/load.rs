//! Many clients at once on a running server, and what it was like for them.
//!
//! ```text
//! diffuser-api --model demo --model tiny-random &
//! cargo run --release --example load -- http://127.0.0.1:8000 --clients 30 --seconds 180 --pid $!
//! ```
//!
//! Clients ask in turn for pictures of all models, some stream, some leave before the end,
//! some come with a deadline. Meanwhile `/health` is asked twenty times a second, and with
//! `--pid` the memory of the process is read (Linux). The program fails if there was a 5xx
//! other than a deadline's, or if `/health` was slow.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, StatusCode};
use serde_json::Value;

/// The slowest that one in a hundred answers of `/health` may be.
const HEALTH_P99_MS: f64 = 50.0;

#[derive(Parser)]
struct Arguments {
    /// Where the server is
    origin: String,
    /// How many clients ask at a time
    #[arg(long, default_value_t = 30)]
    clients: usize,
    /// For how long
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// The server's process, to look at its memory
    #[arg(long)]
    pid: Option<u32>,
    /// A key of the server
    #[arg(long, default_value = "")]
    key: String,
}

/// What became of the requests.
#[derive(Default)]
struct Tally {
    made: AtomicUsize,
    busy: AtomicUsize,
    late: AtomicUsize,
    left: AtomicUsize,
    /// Refusals that are the client's own fault: there should be none.
    refused: AtomicUsize,
    failed: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arc::new(Arguments::parse());
    let http = Client::new();
    let models = models(&http, &arguments).await?;
    println!("{} clients on {} for {} s", arguments.clients, models.join(", "), arguments.seconds);
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let tally = Arc::new(Tally::default());
    let picture = Arc::new(picture()?);

    let mut clients = tokio::task::JoinSet::new();
    for number in 0..arguments.clients {
        let (arguments, models) = (Arc::clone(&arguments), models.clone());
        let (tally, picture) = (Arc::clone(&tally), Arc::clone(&picture));
        clients.spawn(async move {
            let http = Client::new();
            let mut turn = number;
            while Instant::now() < until {
                let model = &models[turn % models.len()];
                ask(&http, &arguments, (model, turn), (&tally, &picture)).await;
                turn += 1;
            }
        });
    }
    let (health, memory) = watch(&http, &arguments, until).await?;
    while clients.join_next().await.is_some() {}
    report(&tally, health, &memory)
}

/// The ids of the server's models.
async fn models(http: &Client, arguments: &Arguments) -> Result<Vec<String>> {
    let root = http.get(&arguments.origin).send().await.context("no server there")?;
    let root: Value = root.json().await?;
    let ids = root["models"].as_array().context("it is no Diffuser API")?;
    Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
}

/// A small picture with something on it.
fn picture() -> Result<Vec<u8>> {
    let pixels = image::RgbImage::from_fn(96, 64, |x, y| {
        let level = |value: u32| u8::try_from(value % 256).unwrap_or(0);
        image::Rgb([level(2 * x), level(3 * y), 128])
    });
    let mut file = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut file, image::ImageFormat::Png)?;
    Ok(file.into_inner())
}

/// One request, of the kind that is this turn's.
async fn ask(
    http: &Client,
    arguments: &Arguments,
    (model, turn): (&str, usize),
    (tally, picture): (&Tally, &[u8]),
) {
    let file = Part::bytes(picture.to_owned()).file_name("input.png");
    let form = Form::new()
        .text("model", model.to_owned())
        .text("prompt", "make it red")
        .text("num_inference_steps", (1 + turn % 3).to_string())
        .part("image", file);
    let form = if turn.is_multiple_of(5) { form.text("stream", "true") } else { form };
    let mut request = http.post(format!("{}/v1/images/edits", arguments.origin)).multipart(form);
    if !arguments.key.is_empty() {
        request = request.bearer_auth(&arguments.key);
    }
    if turn % 11 == 3 {
        request = request.header("x-request-timeout-ms", "300");
    }
    let asking = async { request.send().await?.error_for_status()?.bytes().await };
    if turn % 7 == 2 {
        // Whoever has lost patience.
        if tokio::time::timeout(Duration::from_millis(150), asking).await.is_err() {
            return count(&tally.left);
        }
        return count(&tally.made);
    }
    match asking.await {
        Ok(_) => count(&tally.made),
        Err(error) => match error.status() {
            Some(StatusCode::TOO_MANY_REQUESTS) => {
                count(&tally.busy);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Some(StatusCode::GATEWAY_TIMEOUT) => count(&tally.late),
            Some(status) if status.is_client_error() => count(&tally.refused),
            Some(_) | None => {
                eprintln!("{model}: {error}");
                count(&tally.failed);
            }
        },
    }
}

/// Asks for `/health` until then: its answers' milliseconds, and the process's MiB by and by.
async fn watch(
    http: &Client,
    arguments: &Arguments,
    until: Instant,
) -> Result<(Vec<f64>, Vec<u64>)> {
    let (mut health, mut memory) = (Vec::new(), Vec::new());
    while Instant::now() < until {
        let started = Instant::now();
        let answer = http.get(format!("{}/health", arguments.origin)).send().await?;
        anyhow::ensure!(answer.status() == 200, "/health answered {}", answer.status());
        health.push(started.elapsed().as_secs_f64() * 1000.0);
        if health.len() % 200 == 100 {
            memory.extend(arguments.pid.and_then(resident_mib));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((health, memory))
}

/// What a process has in memory.
fn resident_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

fn report(tally: &Tally, mut health: Vec<f64>, memory: &[u64]) -> Result<()> {
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "made {}, busy (429) {}, late (504) {}, left {}, refused (4xx) {}, failed {}",
        of(&tally.made),
        of(&tally.busy),
        of(&tally.late),
        of(&tally.left),
        of(&tally.refused),
        of(&tally.failed)
    );
    health.sort_by(f64::total_cmp);
    let share = |percent: usize| health.get((health.len() * percent / 100).min(health.len() - 1));
    let p99 = share(99).copied().unwrap_or(0.0);
    let (p50, most) = (share(50).copied().unwrap_or(0.0), health.last().copied().unwrap_or(0.0));
    println!(
        "/health: {} answers, p50 {p50:.1} ms, p99 {p99:.1} ms, most {most:.1} ms",
        health.len()
    );
    if !memory.is_empty() {
        println!("memory, MiB each 10 s: {memory:?}");
    }
    anyhow::ensure!(of(&tally.failed) + of(&tally.refused) == 0, "requests failed");
    anyhow::ensure!(p99 < HEALTH_P99_MS, "/health was slow");
    Ok(())
}
