//! The command line: what may be typed, and the help that explains it.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, KEYS};
use crate::domain::ImageSize;
use crate::hub::{Companions, FilePattern};
use crate::model::{
    Component, ConversionRequest, DeviceChoice, DtypeChoice, FileChoices, MemoryChoice,
    MemoryLimit, ModelConfig, OutputFormat,
};

mod bench;
mod keys;

pub use bench::BenchArgs;
pub use keys::{KeysArgs, KeysCommand, NewKeyArgs};

/// What the program was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "diffuser-api",
    version,
    about = "Serves Qwen-Image-Edit behind OpenAI's images API",
    after_help = "Try `diffuser-api`, then open http://127.0.0.1:8000. \
                  --help shows examples and every setting.",
    after_long_help = long_help(),
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// The command; `serve` if absent.
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: ServeArgs,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the model and answer requests (what happens without a command, too)
    Serve(ServeArgs),
    /// Download a model's files, and print where they are
    Pull(PullArgs),
    /// Print what a model will take of the memory there is, without loading it
    Plan(PlanArgs),
    /// Print what files of weights are, what they lack to run, and what they will take
    Inspect(InspectArgs),
    /// Write a model's weights in another format: safetensors in 32, 16 or 8 bits, or GGUF
    Convert(ConvertArgs),
    /// Make keys of clients, and hash them
    Keys(KeysArgs),
    /// Measure what a picture takes, with random weights: needs no checkpoint
    Bench(BenchArgs),
}

/// Flags of `serve`. Values are checked with the other settings, so that all
/// faults are told at once.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Configuration file in TOML; it must exist [env: DIFFUSER_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Embedded model's name, folder, file of weights, or repository such as
    /// Qwen/Qwen-Image-Edit, or one file of a repository as hf:OWNER/NAME/FILE, or the name of
    /// a section [models.NAME]; several times for several models
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,

    /// Where to compute: auto, cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Dtype: auto, float32, bfloat16, float16, fp8, fp8-weights, q8_0
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,

    /// Threads that compute on a CPU: auto, or a number
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    threads: Option<String>,

    /// Address or host name to listen on
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// Port to listen on; 0 takes any that is free
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    port: Option<String>,

    /// What this process does: all, gateway (HTTP without a model) or worker (a model
    /// without HTTP for clients)
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
}

/// Arguments of `pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Repository on the hub, such as Qwen/Qwen-Image-Edit
    pub model: String,

    /// Commit, tag or branch
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// Only files whose path or name matches, such as '*Q4_K_M*' (in quotes); several times for
    /// several. Of a transformer's text encoder, vision tower and VAE those come along that the
    /// repository has, none of more than 10 GB
    #[arg(long = "file", value_name = "PATTERN")]
    pub files: Vec<FilePattern>,

    /// Only what the patterns match
    #[arg(long, requires = "files")]
    pub no_companions: bool,
}

impl PullArgs {
    /// Whether files that go with those asked for are wanted.
    #[must_use]
    pub fn companions(&self) -> Companions {
        if self.no_companions { Companions::Leave } else { Companions::Fetch }
    }
}

/// Arguments of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Embedded model's name, folder, or repository that has been pulled
    pub model: String,

    /// Commit, tag or branch of a repository
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// Width and height of the pictures to plan for; without it: the model's own
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub size: Option<ImageSize>,

    /// Where to compute: auto, cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Dtype: auto, float32, bfloat16, float16, fp8, fp8-weights, q8_0
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub dtype: DtypeChoice,

    /// Which weights stay on the device: auto, resident, offload, stream
    #[arg(long, value_name = "MEMORY", default_value = "auto")]
    pub memory: MemoryChoice,

    /// How much of the device's memory it may take: auto, bytes, or a share such as 50%
    #[arg(long, value_name = "LIMIT", default_value = "auto")]
    pub memory_limit: MemoryLimit,

    /// Which published checkpoint its files are of, if they do not tell
    #[arg(long, value_name = "CHECKPOINT")]
    pub variant: Option<String>,

    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Files of weights (safetensors, GGUF), or folders with such
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<PathBuf>,

    /// Which published checkpoint they are of, if they do not tell
    #[arg(long, value_name = "CHECKPOINT")]
    pub variant: Option<String>,

    /// Folder or published checkpoint for all that is not in the files
    #[arg(long, value_name = "BASE")]
    pub base: Option<String>,

    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// A file of weights (safetensors, GGUF), or a folder with a model or with such files
    #[arg(value_name = "INPUT")]
    pub input: PathBuf,

    /// The file to write: *.gguf for q8_0 and q4_k, else *.safetensors
    #[arg(value_name = "OUTPUT")]
    pub output: PathBuf,

    /// Format: bf16, f16, f32, fp8 (matrices in 8-bit floats), q8_0 or q4_k (GGUF)
    #[arg(long, value_name = "FORMAT")]
    pub to: OutputFormat,

    /// What of the model to write: transformer, text_encoder, vae; without it: the transformer,
    /// or what alone is there
    #[arg(long, value_name = "COMPONENT")]
    pub component: Option<Component>,

    /// Which published checkpoint the files are of, if they do not tell
    #[arg(long, value_name = "CHECKPOINT")]
    pub variant: Option<String>,

    /// Folder or published checkpoint with the transformer's configuration
    #[arg(long, value_name = "BASE", conflicts_with = "variant")]
    pub base: Option<String>,

    /// Overwrite OUTPUT
    #[arg(long)]
    pub force: bool,
}

impl From<ConvertArgs> for ConversionRequest {
    fn from(args: ConvertArgs) -> Self {
        Self {
            input: args.input,
            output: args.output,
            format: args.to,
            component: args.component,
            variant: args.variant,
            base: args.base,
            replaces: args.force,
        }
    }
}

impl InspectArgs {
    /// The model that `path` would be.
    #[must_use]
    pub fn config(&self, path: &Path) -> ModelConfig {
        ModelConfig {
            variant: self.variant.clone(),
            files: FileChoices { base: self.base.clone(), ..FileChoices::default() },
            ..ModelConfig::of(path.to_string_lossy())
        }
    }
}

impl PlanArgs {
    /// What these arguments ask to plan for.
    #[must_use]
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            revision: self.revision.clone(),
            device: self.device,
            dtype: self.dtype,
            memory: self.memory,
            memory_limit: self.memory_limit,
            variant: self.variant.clone(),
            image_area: self.size.map(ImageSize::area),
            ..ModelConfig::of(self.model.clone())
        }
    }
}

fn parse_size(text: &str) -> Result<ImageSize, String> {
    let sides = text.split_once('x').and_then(|(width, height)| {
        Some((width.parse::<usize>().ok()?, height.parse::<usize>().ok()?))
    });
    let (width, height) = sides.ok_or("expected two numbers such as 1024x768")?;
    ImageSize::new(width, height).map_err(|error| error.to_string())
}

impl Cli {
    /// The command, with the flags of the bare program given to `serve`.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.serve))
    }
}

impl From<ServeArgs> for Flags {
    fn from(args: ServeArgs) -> Self {
        Self {
            config: args.config,
            models: args.models,
            device: args.device,
            dtype: args.dtype,
            threads: args.threads,
            host: args.host,
            port: args.port,
            role: args.role,
        }
    }
}

/// Examples, where settings come from, and all their names.
fn long_help() -> String {
    let mut help = String::from(
        "\
Examples:
  diffuser-api                                  the small embedded model, to try the API
  diffuser-api pull Qwen/Qwen-Image-Edit        download a real one
  diffuser-api --model Qwen/Qwen-Image-Edit --device cuda --dtype bfloat16
  diffuser-api pull unsloth/Qwen-Image-Edit-2511-GGUF --file '*Q4_K_M*'
  diffuser-api --config config/qwen-image-edit-cuda.toml --port 9000
  diffuser-api plan Qwen/Qwen-Image-Edit        what it will take of this machine
  diffuser-api inspect model-Q4_K_M.gguf        what a file is, and what it lacks to run
  diffuser-api convert MODEL out.gguf --to q4_k the same weights in another format
  diffuser-api keys new ann --file keys.toml    a key for a client; see keys.file
  DIFFUSER_MODEL_ID=./my-model diffuser-api     a folder with a model_index.json, or files

Settings come from, each overriding those before it: built-in defaults, the
configuration file, the environment, flags. config/default.toml explains each.

Settings in the file, and in the environment:
",
    );
    let width = KEYS.iter().map(|key| key.path.len()).max().unwrap_or(0);
    for key in KEYS {
        help += &format!("  {:width$}  {}\n", key.path, key.variable);
        help += &format!("  {:width$}    {}\n", "", key.help);
    }
    help += "\
Capabilities work without their DIFFUSER_, too; RUST_LOG is read for log.filter,
RAYON_NUM_THREADS for model.threads.

Downloads: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
SIGTERM or ctrl-c finishes the running picture and leaves; a second one leaves at once.";
    help
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Scope;
    use crate::model::benchmark::Part;
    use clap::CommandFactory;

    fn flags(arguments: &[&str]) -> Flags {
        let cli = Cli::try_parse_from([&["diffuser-api"], arguments].concat()).unwrap();
        match cli.into_command() {
            Command::Serve(args) => args.into(),
            Command::Pull(_)
            | Command::Plan(_)
            | Command::Inspect(_)
            | Command::Convert(_)
            | Command::Keys(_)
            | Command::Bench(_) => panic!("{arguments:?} is not serve"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_bare_program_serves_with_the_same_flags() {
        let typed = [
            "--config",
            "a.toml",
            "--model",
            "m",
            "--device",
            "cpu",
            "--dtype",
            "f32",
            "--threads",
            "3",
            "--host",
            "::1",
            "--port",
            "80",
        ];

        let bare = flags(&typed);

        assert_eq!(bare, flags(&[&["serve"], typed.as_slice()].concat()));
        assert_eq!(bare.config, Some(PathBuf::from("a.toml")));
        assert_eq!(bare.port.as_deref(), Some("80"));
        assert_eq!(bare.threads.as_deref(), Some("3"));
        assert_eq!(flags(&[]), Flags::default());
    }

    #[test]
    fn flags_before_a_command_are_refused_not_dropped() {
        assert!(Cli::try_parse_from(["diffuser-api", "--port", "1", "serve"]).is_err());
    }

    #[test]
    fn a_faulty_value_is_left_to_the_settings_check() {
        assert_eq!(flags(&["--port", "-1"]).port.as_deref(), Some("-1"));
    }

    #[test]
    fn pull_takes_a_model_and_perhaps_a_revision() {
        let typed = ["diffuser-api", "pull", "Qwen/Qwen-Image-Edit", "--revision", "v1"];
        let command = Cli::try_parse_from(typed).unwrap().into_command();

        let Command::Pull(args) = command else {
            panic!("not pull");
        };
        assert_eq!(args.model, "Qwen/Qwen-Image-Edit");
        assert_eq!(args.revision.as_deref(), Some("v1"));
        assert!(Cli::try_parse_from(["diffuser-api", "pull"]).is_err());
    }

    #[test]
    fn a_new_key_is_for_pictures_unless_scopes_are_named() {
        let parse = |arguments: &[&str]| {
            let typed = [&["diffuser-api", "keys", "new"], arguments].concat();
            Cli::try_parse_from(typed).map(Cli::into_command)
        };
        let key = |arguments: &[&str]| match parse(arguments) {
            Ok(Command::Keys(KeysArgs { command: KeysCommand::New(args) })) => args.key(),
            other => panic!("not a new key: {other:?}"),
        };

        assert_eq!(key(&["ann"]).scopes, [Scope::Images]);
        let scoped = ["ann", "--scope", "admin", "--scope", "metrics", "--models", "a,b-*"];
        assert_eq!(key(&scoped).scopes, [Scope::Admin, Scope::Metrics]);
        assert_eq!(key(&scoped).models, ["a", "b-*"]);
        for wrong in [
            &["ann", "--scope", "all"][..],
            &["two words"],
            &["ann", "--expires", "soon"],
            &["ann", "--pictures-per-day", "0"],
            &[],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn convert_takes_a_format_and_refuses_what_is_none() {
        let parse = |arguments: &[&str]| {
            let typed = [&["diffuser-api", "convert", "in", "out.gguf"], arguments].concat();
            Cli::try_parse_from(typed).map(Cli::into_command)
        };

        let Ok(Command::Convert(args)) = parse(&["--to", "Q4_K", "--component", "vae"]) else {
            panic!("not convert");
        };
        let request = ConversionRequest::from(args);
        assert_eq!((request.format, request.component), (OutputFormat::Q4K, Some(Component::Vae)));
        assert_eq!((request.output, request.replaces), (PathBuf::from("out.gguf"), false));
        let refused = parse(&["--to", "q5_k"]).unwrap_err().to_string();
        assert!(refused.contains("bf16, f16, f32, fp8, q8_0, q4_k"), "{refused}");
        assert!(parse(&[]).is_err());
        assert!(parse(&["--to", "f16", "--variant", "a", "--base", "b"]).is_err());
    }

    #[test]
    fn bench_takes_a_shape_and_refuses_what_is_none() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["diffuser-api", "bench"], arguments].concat())
                .map(Cli::into_command)
        };

        let Ok(Command::Bench(args)) = parse(&["--size", "512x768", "--steps", "3"]) else {
            panic!("not bench");
        };
        let plan = args.plan().unwrap();
        assert_eq!((plan.size.width(), plan.size.height()), (512, 768));
        assert_eq!((plan.steps.get(), plan.references, plan.repeats), (3, None, 2));
        assert_eq!((plan.parts, plan.words), (Part::ALL.to_vec(), None));
        let Ok(Command::Bench(args)) =
            parse(&["--stages", "vae-decoder,transformer", "--words", "41"])
        else {
            panic!("not bench");
        };
        let plan = args.plan().unwrap();
        assert_eq!((plan.parts.len(), plan.parts[0], plan.words), (2, Part::VaeDecoder, Some(41)));
        assert!(parse(&["--stages", "steps"]).is_err());
        for faulty in [["--size", "512"], ["--steps", "0"], ["--guidance", "-1"], ["--dtype", "x"]]
        {
            assert!(parse(&faulty).is_err(), "{faulty:?}");
        }
    }

    #[test]
    fn help_names_every_setting_and_variable() {
        let help = Cli::command().render_long_help().to_string();

        for key in KEYS {
            assert!(help.contains(key.path), "{}", key.path);
            assert!(help.contains(key.variable), "{}", key.variable);
        }
        assert!(help.contains("DIFFUSER_CONFIG"));
    }
}
