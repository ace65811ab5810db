//! `diffuser-api convert`: what it writes is read again, and makes the picture of the numbers
//! that were in the input. Inputs, and pictures of them by diffusers: `tests/data/files`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::ggml::GgmlType;
use diffuser_api::checkpoint::gguf::GgufHeader;
use diffuser_api::model::{
    Component, ConversionRequest, FileChoices, FileSource, ModelConfig, OutputFormat, Written,
    convert, inspect,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoints::offline_hub;
use crate::support::golden::assert_same_picture;
use crate::weight_files::{config_of, data, edited, goldens, recorded};

const MARK: &str = "__index_timestep_zero__";
const PLAIN: &str = "comfy/diffusion_models/a.safetensors";

fn request(input: &Path, output: &Path, format: OutputFormat) -> ConversionRequest {
    ConversionRequest {
        input: input.to_owned(),
        output: output.to_owned(),
        format,
        component: None,
        variant: None,
        base: None,
        replaces: false,
    }
}

fn written(request: &ConversionRequest) -> Result<Written, String> {
    let made = convert(request, &offline_hub(), &mut |progress| {
        assert!(progress.bytes <= progress.total);
        assert!(request.replaces || !request.output.exists(), "it has its name too early");
    });
    let one_line = |error| diffuser_api::causes::one_line(&error);
    made.map(|(_, written)| written).map_err(one_line)
}

/// The file that `input` of the folder of files becomes; it is told what it is of, if it must be.
fn made(input: &str, folder: &TempDir, component: Component, format: OutputFormat) -> PathBuf {
    let name = format!("{component}-{format}.{}", format.ending());
    let output = folder.path().join(name);
    let told = ConversionRequest {
        component: Some(component),
        base: Some(data().join("base").display().to_string()),
        ..request(&data().join(input), &output, format)
    };
    written(&told).unwrap_or_else(|fault| panic!("{input} as {format}: {fault}"));
    output
}

/// The model of `layout` with every component of its own written as `format`.
fn converted(
    recorded: &Value,
    layout: &str,
    format: OutputFormat,
    folder: &TempDir,
) -> ModelConfig {
    let parts = &recorded["layouts"][layout];
    let part = |name: &str| parts[name].as_str();
    let whole = part("folder").or(part("file"));
    let component = |name: &str, component| {
        let input = whole.or(part(name))?;
        // Those that are shared by most layouts are converted once, for 'plain'.
        let is_shared = input.starts_with("plain/") && layout != "plain";
        let file = match is_shared {
            true => data().join(input),
            false => made(input, folder, component, format),
        };
        Some(FileSource::from(file))
    };
    let config = config_of(recorded, layout);
    ModelConfig {
        files: FileChoices {
            transformer: component("transformer", Component::Transformer),
            text_encoder: component("text_encoder", Component::TextEncoder),
            mmproj: None,
            vae: component("vae", Component::Vae),
            base: config.files.base.clone(),
        },
        ..config
    }
}

#[tokio::test]
async fn every_kind_of_input_in_32_bits_makes_the_picture_of_its_numbers() {
    let (recorded, goldens) = (recorded(), goldens());
    let layouts = recorded["layouts"].as_object().unwrap();
    assert!(layouts.len() >= 29, "{}", layouts.len());
    for layout in layouts.keys() {
        let folder = tempfile::tempdir().unwrap();
        let config = converted(&recorded, layout, OutputFormat::F32, &folder);

        let ours = edited(&recorded, &config).await;

        // One level, as of the input itself: 32 bits hold every number of every kind.
        assert_same_picture(layout, &ours, &goldens[layout]);
    }
}

#[tokio::test]
async fn what_is_in_16_bits_stays_as_it_is() {
    let (recorded, goldens) = (recorded(), goldens());
    let folder = tempfile::tempdir().unwrap();

    let config = converted(&recorded, "plain", OutputFormat::Bf16, &folder);

    assert_same_picture("plain", &edited(&recorded, &config).await, &goldens["plain"]);
    let read = |path: &Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let files = &config.files;
    let inputs = [
        (PLAIN, &files.transformer),
        ("plain/text_encoder.safetensors", &files.text_encoder),
        ("plain/vae.safetensors", &files.vae),
    ];
    for (input, output) in inputs {
        let Some(FileSource::Path(output)) = output else { panic!("{input} was not written") };
        assert_equal(&read(&data().join(input)), &read(output));
    }
}

/// Asserts that the tensors are the same.
fn assert_equal(expected: &HashMap<String, Tensor>, made: &HashMap<String, Tensor>) {
    let names = |tensors: &HashMap<String, Tensor>| {
        let mut names: Vec<String> = tensors.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(made), names(expected));
    let flat = |tensor: &Tensor| -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    for (name, expected) in expected {
        assert_eq!(made[name].dims(), expected.dims(), "{name}");
        assert_eq!(flat(&made[name]), flat(expected), "{name}");
    }
}

/// Decibels between the peak of 255 levels and the noise.
fn psnr(ours: &[u8], theirs: &Tensor) -> f64 {
    let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let squares: f64 = ours.iter().zip(&theirs).map(square).sum();
    10.0 * (255.0 * 255.0 * theirs.len() as f64 / squares.max(1e-9)).log10()
}

#[tokio::test]
async fn fewer_bits_make_a_picture_as_near_as_they_can() {
    let (recorded, goldens) = (recorded(), goldens());
    // What is seen, less 3 dB. Rounding leaves of each weight an error of 2^-12 (f16, of numbers
    // too small for it alone), 2^-9 (bf16), half a level of 127 (q8_0), 2^-4 (fp8), or half a
    // level of 15 (q4_k; rows of 64 elements fall back to q8_0): the root of the mean squared
    // error is 0.5 % of the weights' own in q8_0, 2.7 % in fp8 and 7 % in q4_k. Guidance and two
    // steps enlarge that.
    let bounds = [
        ("plain", OutputFormat::F16, 70.0),
        ("gguf/Q6_K", OutputFormat::Bf16, 47.0),
        ("int8/convrot", OutputFormat::Bf16, 50.0),
        ("fp8/mixed_metadata", OutputFormat::Bf16, 42.0),
        ("plain", OutputFormat::Q8_0, 37.0),
        ("plain", OutputFormat::Q4K, 30.0),
        ("plain", OutputFormat::Fp8, 30.0),
    ];
    let mut faults = Vec::new();
    for (layout, format, least) in bounds {
        let folder = tempfile::tempdir().unwrap();
        let file = recorded["layouts"][layout]["transformer"].as_str().unwrap();
        let mut config = config_of(&recorded, layout);
        config.files.transformer = Some(made(file, &folder, Component::Transformer, format).into());

        let found = psnr(&edited(&recorded, &config).await, &goldens[layout]);

        println!("{layout} as {format}: {found:.1} dB");
        if found < least {
            faults.push(format!("{layout} as {format}: {found:.1} dB, {least} expected"));
        }
    }
    assert!(faults.is_empty(), "{faults:?}");
}

#[tokio::test]
async fn a_text_encoder_in_8_bits_is_scaled_where_it_is_read() {
    let (recorded, goldens) = (recorded(), goldens());
    let folder = tempfile::tempdir().unwrap();
    let mut config = config_of(&recorded, "llama");
    config.files.mmproj = None;
    let encoder =
        made("llama/text_encoder.gguf", &folder, Component::TextEncoder, OutputFormat::Fp8);
    config.files.text_encoder = Some(encoder.into());

    let found = psnr(&edited(&recorded, &config).await, &goldens["llama"]);

    println!("llama as fp8: {found:.1} dB");
    // As of the transformer in fp8.
    assert!(found > 30.0, "{found:.1} dB");
}

#[test]
fn q8_0_is_to_the_bit_what_the_gguf_package_writes() {
    let folder = tempfile::tempdir().unwrap();
    let ours = made(PLAIN, &folder, Component::Transformer, OutputFormat::Q8_0);
    let (ours, theirs) =
        (std::fs::read(ours).unwrap(), std::fs::read(data().join("gguf/Q8_0.gguf")).unwrap());

    let (read, expected) = (GgufHeader::read(&ours).unwrap(), GgufHeader::read(&theirs).unwrap());

    assert_eq!(read.metadata, expected.metadata);
    let tensors: BTreeMap<_, _> =
        read.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    assert_eq!(tensors.len(), expected.tensors.len() + 1);
    assert_eq!(tensors[MARK].shape, [1]);
    for expected in &expected.tensors {
        let made = tensors[expected.name.as_str()];
        assert_eq!((&made.shape, made.kind), (&expected.shape, expected.kind), "{made:?}");
        let bytes = &ours[made.range.clone()];
        assert_eq!(bytes, &theirs[expected.range.clone()], "{}", made.name);
    }
}

#[test]
fn q4_k_falls_back_where_rows_do_not_divide() {
    let folder = tempfile::tempdir().unwrap();
    let file = made(PLAIN, &folder, Component::Transformer, OutputFormat::Q4K);

    let bytes = std::fs::read(file).unwrap();
    let header = GgufHeader::read(&bytes).unwrap();

    assert_eq!(header.integer("general.file_type"), Some(14));
    for tensor in header.tensors {
        let is_in_block = tensor.name.starts_with("transformer_blocks.");
        let expected = match tensor.shape[..] {
            [_] => GgmlType::F32,
            _ if !is_in_block => GgmlType::Bf16,
            [_, width] if width % 256 == 0 => GgmlType::Q4K,
            _ => GgmlType::Q8_0,
        };
        assert_eq!(tensor.kind, expected, "{}", tensor.name);
    }
}

#[test]
fn fp8_says_of_each_matrix_that_it_is_scaled_and_by_what() {
    let folder = tempfile::tempdir().unwrap();
    let bytes =
        std::fs::read(made(PLAIN, &folder, Component::Transformer, OutputFormat::Fp8)).unwrap();

    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, said) = SafeTensors::read_metadata(&bytes).unwrap();

    let said = said.metadata().as_ref().unwrap();
    let note: Value = serde_json::from_str(&said["_quantization_metadata"]).unwrap();
    let layers = note["layers"].as_object().unwrap();
    assert_eq!((&said["format"][..], layers.len()), ("pt", 14));
    assert_eq!(file.tensor(MARK).unwrap().shape(), [0]);
    for (name, tensor) in file.iter() {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let is_matrix = tensor.shape().len() == 2 && name.starts_with("transformer_blocks.");
        assert_eq!(layers.contains_key(layer), is_matrix, "{name}");
        let expected = match is_matrix {
            true => Dtype::F8_E4M3,
            false if name.ends_with(".weight_scale") => Dtype::F32,
            false => Dtype::BF16,
        };
        assert_eq!(tensor.dtype(), expected, "{name}");
        if is_matrix {
            assert_eq!(layers[layer]["format"], "float8_e4m3fn");
            let scale = file.tensor(&format!("{layer}.weight_scale")).unwrap();
            assert_eq!(scale.shape(), [] as [usize; 0]);
            // The largest number is the format's largest.
            assert!(tensor.data().iter().any(|code| code & 0x7f == 0x7e), "{name}");
        }
    }
}

#[test]
fn a_model_in_folders_is_written_component_by_component_as_it_is() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/ckpt");
    for (name, is_marked) in [("qwen-image-edit", false), ("qwen-image-edit-2511", true)] {
        for component in Component::ALL {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("a.safetensors");
            let input = model.join(name);
            let request = ConversionRequest {
                component: Some(component),
                ..request(&input, &output, OutputFormat::F32)
            };

            written(&request).unwrap();

            let mut stored = HashMap::new();
            for entry in std::fs::read_dir(input.join(component.folder())).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|ending| ending == "safetensors") {
                    stored.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
                }
            }
            let mut made = candle_core::safetensors::load(&output, &Device::Cpu).unwrap();
            let mark = made.remove(MARK);
            assert_eq!(mark.is_some(), is_marked && component == Component::Transformer, "{name}");
            assert_equal(&stored, &made);
        }
    }
}

/// What the transformer `input` is marked as, if it is told `variant`.
fn marked(input: &str, variant: Option<&str>) -> Result<bool, String> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("converted.gguf");
    let variant = variant.map(str::to_owned);
    let told =
        ConversionRequest { variant, ..request(&data().join(input), &output, OutputFormat::Q8_0) };
    written(&told)?;
    let found = inspect(&output).unwrap();
    let is_marked = found.components[0].contains("Qwen-Image-Edit-2511");
    let bytes = std::fs::read(&output).unwrap();
    let header = GgufHeader::read(&bytes).unwrap();
    assert_eq!(header.tensors.iter().any(|tensor| tensor.name == MARK), is_marked);
    Ok(is_marked)
}

#[test]
fn the_mark_of_2511_is_kept_or_made_and_never_guessed() {
    assert_eq!(marked(PLAIN, None), Ok(true));
    assert_eq!(marked("gguf/mixed-2511.gguf", None), Ok(true));
    assert_eq!(marked("gguf/Q8_0.gguf", Some("Qwen/Qwen-Image-Edit-2511")), Ok(true));
    assert_eq!(marked("gguf/Q8_0.gguf", Some("Qwen-Image-Edit-2509")), Ok(false));

    let unknown = marked("gguf/Q8_0.gguf", None).unwrap_err();
    assert!(unknown.starts_with("--variant: the files do not tell"), "{unknown}");
    let other = marked("gguf/Q8_0.gguf", Some("2510")).unwrap_err();
    assert!(other.starts_with("--variant: '2510' is no published"), "{other}");
    let contradicted = marked(PLAIN, Some("Qwen-Image-Edit-2509")).unwrap_err();
    assert!(contradicted.contains("has no zero_cond_t"), "{contradicted}");
}

/// Why `input` is not written as `format` into a file `output`.
fn fault(input: &Path, output: &str, component: Option<Component>, format: OutputFormat) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join(output);
    let request = ConversionRequest { component, ..request(input, &output, format) };
    let fault = written(&request).unwrap_err();
    assert!(names(folder.path()).is_empty(), "{fault}");
    fault
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let comfy = data().join("comfy");
    let vae = Some(Component::Vae);

    let said = fault(&comfy, "a.gguf", vae, OutputFormat::Q8_0);
    assert!(said.contains("q8_0 is GGUF") && said.contains("for the vae"), "{said}");
    let said = fault(&comfy, "a.gguf", Some(Component::TextEncoder), OutputFormat::Q4K);
    assert!(said.contains("for the text_encoder"), "{said}");
    let said = fault(&comfy, "a.safetensors", vae, OutputFormat::Fp8);
    assert!(said.contains("the vae has no matrices"), "{said}");
    let said = fault(&comfy, "a.safetensors", None, OutputFormat::Q8_0);
    assert!(said.contains("is called *.gguf"), "{said}");
    let said = fault(&comfy, "none/a.gguf", None, OutputFormat::Q8_0);
    assert!(said.contains("cannot write") && said.contains("none"), "{said}");
}

#[test]
fn what_is_no_input_is_told_as_such() {
    let said_of =
        |input: &Path, component| fault(input, "a.safetensors", component, OutputFormat::F32);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };

    let said = said_of(Path::new("no/such.gguf"), None);
    assert_eq!(said, "there is no file or folder no/such.gguf");
    let whole = std::fs::read(data().join("gguf/Q8_0.gguf")).unwrap();
    let said = said_of(&file("cut.gguf", &whole[..whole.len() / 2]), None);
    assert!(said.contains("cut.gguf: is a GGUF file that cannot be read"), "{said}");
    let said = said_of(&data().join("comfy/loras/d.safetensors"), None);
    assert!(said.contains("is a LoRA"), "{said}");
    let said = said_of(&data().join("plain/vae.safetensors"), Some(Component::Transformer));
    assert!(said.contains("has no transformer, but the vae"), "{said}");
    let said = said_of(&data().join("llama/mmproj.gguf"), None);
    assert!(said.contains("but its vision tower: give the language model's file"), "{said}");
    let said = said_of(&data().join("base/scheduler"), None);
    assert!(said.contains("has no transformer: it has no file of Qwen-Image"), "{said}");
    let said = said_of(&data().join("plain"), None);
    assert!(said.contains("--component"), "{said}");
    let said = said_of(&data().join("fp8"), None);
    assert!(said.contains("several to choose from"), "{said}");
    let said = said_of(&data().join("fp8/unknown.safetensors"), None);
    assert!(said.contains("nvfp4") || said.starts_with("--variant"), "{said}");
    let stable_diffusion =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stable_diffusion/sd");
    let said = said_of(&stable_diffusion, None);
    assert!(said.contains("is no pipeline of Qwen-Image"), "{said}");
}

#[test]
fn a_run_that_ends_early_leaves_the_file_of_before_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = candle_core::safetensors::load(data().join(PLAIN), &Device::Cpu).unwrap();
    let large = Tensor::full(1e5_f32, (64,), &Device::Cpu).unwrap();
    tensors.insert("transformer_blocks.0.attn.to_v.bias".to_owned(), large);
    let input = folder.path().join("large.safetensors");
    candle_core::safetensors::save(&tensors, &input).unwrap();
    let output = folder.path().join("out.safetensors");
    std::fs::write(&output, "before").unwrap();

    let refused = written(&request(&input, &output, OutputFormat::F16)).unwrap_err();
    assert!(refused.ends_with("out.safetensors is there already: --force overwrites it"));
    let again = ConversionRequest { replaces: true, ..request(&input, &output, OutputFormat::F16) };
    let early = written(&again).unwrap_err();
    assert!(early.contains("to_v.bias: has the number 100000, which F16 cannot hold"), "{early}");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "before");
    assert_eq!(names(folder.path()), ["large.safetensors", "out.safetensors"]);

    written(&ConversionRequest { format: OutputFormat::Bf16, ..again }).unwrap();
    assert!(std::fs::metadata(&output).unwrap().len() > 1000);
    assert_eq!(names(folder.path()), ["large.safetensors", "out.safetensors"]);
}

fn program(arguments: &[&str], input: &Path, output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diffuser-api"));
    command.arg("convert").arg(input).arg(output).args(arguments).output().unwrap()
}

#[test]
fn the_command_says_what_it_wrote_or_why_it_did_not() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("a.gguf");

    let done = program(&["--to", "q8_0"], &data().join(PLAIN), &output);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{said}");
    assert!(said.contains("a.gguf: the transformer, 45 tensors ("), "{said}");
    assert!(said.contains("14 Q8_0"), "{said}");

    let again = program(&["--to", "q8_0"], &data().join(PLAIN), &output);
    let said = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(said.contains("--force"), "{said}");
    assert!(program(&["--to", "q8_0", "--force"], &data().join(PLAIN), &output).status.success());
}
