//! The command line: what may be typed, and the help that explains it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, KEYS};

/// What the program was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "diffuser-api",
    version,
    about = "Serves Qwen-Image-Edit behind OpenAI's images API",
    after_help = "Try `diffuser-api`, then open http://127.0.0.1:8000/docs. \
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
    /// Download a model's files, and print the folder that they are in
    Pull(PullArgs),
}

/// Flags of `serve`. Values are checked with the other settings, so that all
/// faults are told at once.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Configuration file in TOML; it must exist [env: DIFFUSER_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Embedded model's name, folder, or repository such as Qwen/Qwen-Image-Edit
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Where to compute: auto, cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Number format: auto, float32, bfloat16, float16
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,

    /// Address or host name to listen on
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// Port to listen on; 0 takes any that is free
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    port: Option<String>,
}

/// Arguments of `pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Repository on the hub, such as Qwen/Qwen-Image-Edit
    pub model: String,

    /// Commit, tag or branch
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
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
            model: args.model,
            device: args.device,
            dtype: args.dtype,
            host: args.host,
            port: args.port,
        }
    }
}

/// Examples, where settings come from, and all their names.
fn long_help() -> String {
    let mut help = String::from(
        "\
Examples:
  diffuser-api                                  a tiny model with random weights, to try the API
  diffuser-api pull Qwen/Qwen-Image-Edit        download a real one
  diffuser-api --model Qwen/Qwen-Image-Edit --device cuda --dtype bfloat16
  diffuser-api --config config/qwen-image-edit-cuda.toml --port 9000
  DIFFUSER_MODEL_ID=./my-model diffuser-api     a folder with a model_index.json

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
Capabilities work without their DIFFUSER_, too; RUST_LOG is read for log.filter.

Downloads: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
SIGTERM or ctrl-c finishes the running picture and leaves; a second one leaves at once.";
    help
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn flags(arguments: &[&str]) -> Flags {
        let cli = Cli::try_parse_from([&["diffuser-api"], arguments].concat()).unwrap();
        match cli.into_command() {
            Command::Serve(args) => args.into(),
            Command::Pull(_) => panic!("{arguments:?} is not serve"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_bare_program_serves_with_the_same_flags() {
        let typed = [
            "--config", "a.toml", "--model", "m", "--device", "cpu", "--dtype", "f32", "--host",
            "::1", "--port", "80",
        ];

        let bare = flags(&typed);

        assert_eq!(bare, flags(&[&["serve"], typed.as_slice()].concat()));
        assert_eq!(bare.config, Some(PathBuf::from("a.toml")));
        assert_eq!(bare.port.as_deref(), Some("80"));
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
    fn help_names_every_setting_and_variable() {
        let help = Cli::command().render_long_help().to_string();

        for key in KEYS {
            assert!(help.contains(key.path), "{}", key.path);
            assert!(help.contains(key.variable), "{}", key.variable);
        }
        assert!(help.contains("DIFFUSER_CONFIG"));
    }
}
