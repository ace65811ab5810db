//! A checkpoint of the published widths under `model.memory_limit`: what is planned holds for
//! what is taken, and the picture is the same whatever stays.
//!
//! Two layers of each kind, in sparse files. The process may have no more than the limit
//! (`ulimit -d`), so a plan that is wrong fails. tools/full-size/limits.py does the same with
//! as many layers as one likes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::support::server::until_ready;

/// Layers of each kind that are left of the published model.
const LAYERS: u64 = 2;
/// Rows of a matrix that hold numbers; the others are holes, which read as zeros.
const ROWS: usize = 16;
/// Numbers up to which a tensor is filled whole.
const SMALL: usize = 200_000;
/// Pixels of the picture.
const AREA: &str = "4096";
const MIB: u64 = 1 << 20;

fn data() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"))
}

fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Whether a tensor is in one of the first layers, or in none.
fn is_left(name: &str) -> bool {
    let number = |prefix: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<u64>().ok();
    let layers = ["transformer_blocks.", "model.layers.", "visual.blocks."];
    layers.into_iter().filter_map(number).all(|layer| layer < LAYERS)
}

/// `count` numbers between -`scale` and `scale` in bfloat16, the same each time.
fn numbers(count: usize, scale: f32) -> Vec<u8> {
    let at = |index: usize| {
        let spread = (index.wrapping_mul(2_654_435_761) >> 8) % 2001;
        (spread as f32 / 1000.0 - 1.0) * scale
    };
    (0..count).flat_map(|index| half::bf16::from_f32(at(index)).to_le_bytes()).collect()
}

/// The first bytes of a tensor.
fn beginning(name: &str, shape: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let width = shape[shape.len() - 1];
    if shape.len() > 1 && count >= SMALL {
        return numbers(count.min(ROWS * width), (width as f32).sqrt().recip());
    }
    if (name.contains("norm") || name.ends_with("gamma")) && !name.ends_with("bias") {
        return [0x80, 0x3f].repeat(count); // 1 in bfloat16
    }
    numbers(count, 0.02)
}

fn write_weights(path: &Path, tensors: &Map<String, Value>) {
    let shape_of = |shape: &Value| serde_json::from_value::<Vec<usize>>(shape.clone()).unwrap();
    let left = tensors.iter().filter(|(name, _)| is_left(name));
    let tensors: Vec<_> = left.map(|(name, shape)| (name, shape_of(shape))).collect();
    let mut header = Map::new();
    let mut end = 0;
    let mut places = Vec::new();
    for (name, shape) in &tensors {
        let bytes = 2 * shape.iter().product::<usize>() as u64;
        let offsets = [end, end + bytes];
        header.insert(
            (*name).clone(),
            json!({ "dtype": "BF16", "shape": shape, "data_offsets": offsets }),
        );
        places.push(end);
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let start = 8 + header.len() as u64;
    file.set_len(start + end).unwrap();
    for ((name, shape), place) in tensors.iter().zip(places) {
        file.seek(SeekFrom::Start(start + place)).unwrap();
        file.write_all(&beginning(name, shape)).unwrap();
    }
}

/// What the component's `config.json` says: the published widths, the miniature's tokens.
fn configuration(component: &str, miniature: &Value, manifest: &Value) -> Value {
    let own = miniature.as_object().unwrap().clone();
    if component == "transformer" {
        let mut config = own;
        config.extend(manifest["config"].as_object().unwrap().clone());
        config.insert("num_layers".to_owned(), LAYERS.into());
        return config.into();
    }
    let full = read_json(data().join(format!("manifest-full/{component}_config.json")));
    let mut config = full.as_object().unwrap().clone();
    config.extend(own.into_iter().filter(|(name, _)| name.ends_with("_token_id")));
    if component == "text_encoder" {
        let vision = &mut config["vision_config"];
        vision["depth"] = LAYERS.into();
        vision["fullatt_block_indexes"] = json!([1]);
        config.insert("num_hidden_layers".to_owned(), LAYERS.into());
        if let Some(text) = config.get_mut("text_config") {
            text["num_hidden_layers"] = LAYERS.into();
        }
    }
    config.into()
}

/// A checkpoint that is as wide as the published one, and has few layers.
fn write_checkpoint(folder: &Path) {
    let miniature = data().join("fixtures/ckpt/qwen-image-edit");
    let manifest = read_json(data().join("manifest-full/Qwen-Image-Edit.json"));
    std::fs::copy(miniature.join("model_index.json"), folder.join("model_index.json")).unwrap();
    for part in ["processor", "tokenizer", "scheduler"] {
        std::fs::create_dir(folder.join(part)).unwrap();
        crate::support::checkpoints::copy_folder(&miniature.join(part), &folder.join(part));
    }
    let files = ["model", "diffusion_pytorch_model", "diffusion_pytorch_model"];
    for (component, stem) in ["text_encoder", "transformer", "vae"].into_iter().zip(files) {
        let (from, to) = (miniature.join(component), folder.join(component));
        std::fs::create_dir(&to).unwrap();
        let small = read_json(from.join("config.json"));
        let config = configuration(component, &small, &manifest[component]);
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        let tensors = manifest[component]["tensors"].as_object().unwrap();
        write_weights(&to.join(format!("{stem}.safetensors")), tensors);
    }
}

struct Server {
    process: Child,
    origin: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// One that is ended by the system if it takes more than `limit` bytes.
    async fn start(checkpoint: &Path, limit: u64) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("sh")
            .args(["-c", "ulimit -d \"$1\"; exec \"$0\"", env!("CARGO_BIN_EXE_diffuser-api")])
            .arg((limit / 1024).to_string())
            .env("DIFFUSER_PORT", port.to_string())
            .env("DIFFUSER_MODEL_ID", checkpoint)
            .env("DIFFUSER_MEMORY_LIMIT", limit.to_string())
            .envs([("DIFFUSER_DEVICE", "cpu"), ("DIFFUSER_TORCH_DTYPE", "float32")])
            .envs([("DIFFUSER_IMAGE_AREA", AREA), ("HF_HUB_OFFLINE", "1")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, origin: format!("http://127.0.0.1:{port}") };
        until_ready(&server.origin).await;
        server
    }

    /// A picture in base64.
    async fn edit(&self) -> String {
        let picture = std::fs::read(data().join("fixtures/golden/inputs/edit_cfg.image0.png"));
        let picture = reqwest::multipart::Part::bytes(picture.unwrap()).file_name("a.png");
        let form = reqwest::multipart::Form::new().part("image", picture);
        let form = [
            ("prompt", "make it red"),
            ("seed", "1"),
            ("num_inference_steps", "1"),
            ("true_cfg_scale", "1"),
        ]
        .into_iter()
        .fold(form, |form, (name, value)| form.text(name, value));
        let request = reqwest::Client::new().post(format!("{}/v1/images/edits", self.origin));
        let reply = request.multipart(form).timeout(Duration::from_secs(300)).send().await.unwrap();
        let reply: Value = reply.json().await.unwrap();
        let picture = reply["data"][0]["b64_json"].as_str();
        picture.unwrap_or_else(|| panic!("{reply}")).to_owned()
    }

    /// Bytes that are its own, of no file, now.
    fn anonymous_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

fn planned(checkpoint: &Path, limit: u64) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .arg("plan")
        .arg(checkpoint)
        .args(["--json", "--device", "cpu", "--dtype", "float32", "--size", "64x64"])
        .args(["--memory-limit", &limit.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn what_is_planned_for_a_limit_is_kept_and_the_picture_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let mut seen = Vec::new();
    for limit in [3072 * MIB, 4096 * MIB, 6144 * MIB] {
        let plan = planned(folder.path(), limit);
        let stays = plan["components"].as_array().unwrap().iter();
        let stays: u64 = stays.map(|part| part["resident_bytes"].as_u64().unwrap()).sum();
        let server = Server::start(folder.path(), limit).await;

        let picture = server.edit().await;

        // That it was made at all says that no more than the limit was taken.
        assert!(plan["total_bytes"].as_u64().unwrap() <= limit, "{plan}");
        println!("{limit}: {stays} stay, {} are taken now", server.anonymous_bytes());
        seen.push((stays, server.anonymous_bytes(), picture));
    }
    for pair in seen.windows(2) {
        let [(stays, taken, picture), (more_stays, more_taken, same)] = pair else { panic!() };
        assert!(stays < more_stays && taken < more_taken, "{stays} {more_stays}");
        assert!(picture == same, "another picture");
    }
}
