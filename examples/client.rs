//! A client of a running server.
//!
//! ```text
//! cargo run --example client -- health
//! cargo run --example client -- info
//! cargo run --example client -- edit --image photo.png --prompt "make the sky pink" --seed 42
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a client shows what the server answered"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Parser, Subcommand};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response};
use serde_json::Value;

/// Asks a running Diffuser API server.
#[derive(Parser)]
struct Cli {
    /// Address of the server
    #[arg(long, global = true, default_value = "http://localhost:8000")]
    api_url: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask whether the server is well
    Health,
    /// Ask what the server and its model can do
    Info,
    /// Have a picture edited, and save the result
    Edit(EditArgs),
}

#[derive(Args)]
struct EditArgs {
    /// The picture to edit; give it several times for several pictures
    #[arg(long, required = true)]
    image: Vec<PathBuf>,
    /// What to do with it
    #[arg(long)]
    prompt: String,
    /// Where to save the result
    #[arg(long, default_value = "output_edited.png")]
    output: PathBuf,
    /// Denoising steps; the server's choice if absent
    #[arg(long)]
    steps: Option<u32>,
    /// Strength of true classifier-free guidance; the server's choice if absent
    #[arg(long)]
    cfg: Option<f64>,
    /// The number that the noise grows from; the same one makes the same picture
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let server =
        Server { client: Client::new(), address: cli.api_url.trim_end_matches('/').to_owned() };
    match cli.command {
        Command::Health => show(&server.get("/health").await?),
        Command::Info => show(&server.get("/").await?),
        Command::Edit(args) => edit(&server, &args).await,
    }
}

fn show(answer: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

async fn edit(server: &Server, args: &EditArgs) -> Result<()> {
    let mut form = Form::new().text("prompt", args.prompt.clone());
    for path in &args.image {
        form = form.part("image[]", picture_part(path)?);
    }
    let numbers = [
        ("num_inference_steps", args.steps.map(|steps| steps.to_string())),
        ("true_cfg_scale", args.cfg.map(|scale| scale.to_string())),
        ("seed", args.seed.map(|seed| seed.to_string())),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            form = form.text(name, number);
        }
    }

    let started = std::time::Instant::now();
    let answer = server.post("/v1/images/edits", form).await?;

    let picture = answer["data"][0]["b64_json"].as_str();
    let picture = picture.context("the answer holds no picture")?;
    std::fs::write(&args.output, STANDARD.decode(picture)?)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    println!("saved {} after {seconds:.1} s", args.output.display());
    Ok(())
}

fn picture_part(path: &Path) -> Result<Part> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Part::bytes(content).file_name(name.into_owned()))
}

/// The server, as this client sees it.
struct Server {
    client: Client,
    address: String,
}

impl Server {
    async fn get(&self, path: &str) -> Result<Value> {
        let request = self.client.get(format!("{}{path}", self.address));
        answer_of(request.send().await?).await
    }

    async fn post(&self, path: &str, form: Form) -> Result<Value> {
        let request = self.client.post(format!("{}{path}", self.address));
        answer_of(request.multipart(form).send().await?).await
    }
}

/// The JSON of a good answer, or the message of a bad one.
async fn answer_of(response: Response) -> Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    let answer: Value =
        serde_json::from_str(&text).with_context(|| format!("{status}, and no JSON: {text}"))?;
    if !status.is_success() {
        let message = answer["error"]["message"].as_str().unwrap_or(&text);
        bail!("{status}: {message}");
    }
    Ok(answer)
}
