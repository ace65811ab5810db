//! PEFT's configuration of a LoRA: how strongly each module is changed, and which are.
//!
//! It stands in `adapter_config.json` beside the file (PEFT), or in the file's own
//! header (diffusers from 0.34 on, `lora_adapter_metadata`).
//!
//! Source: PEFT 0.21, `LoraConfig`, `get_pattern_key`, `check_target_module_exists`.

use fancy_regex::Regex;
use serde_json::{Map, Value};

/// What PEFT takes for `r` and `lora_alpha` that are not given.
const DEFAULT_ALPHA: f64 = 8.0;

/// Values that change what a LoRA does in ways that are not implemented.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

/// Ways to begin that leave the model's own weights as they are; others change them.
const HARMLESS_BEGINNINGS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// PEFT's configuration.
pub(super) struct AdapterConfig {
    /// Where it stands, for messages.
    origin: &'static str,
    alpha: f64,
    alphas: Vec<(Regex, f64)>,
    rank: Option<f64>,
    ranks: Vec<(Regex, f64)>,
    /// Divide by the rank's root instead of the rank.
    by_root: bool,
    targets: Modules,
    excluded: Modules,
    layers: Option<Layers>,
}

/// Some modules, by their dotted names.
enum Modules {
    /// Those that a rule is not about.
    Unsaid,
    /// Whose whole name matches.
    Matching(Regex),
    /// Whose name, or the end of it, is one of these.
    Named(Vec<String>),
}

/// `layers_to_transform`.
struct Layers {
    numbers: Vec<u64>,
    /// Each captures a layer's number, as the first of its groups.
    patterns: Vec<Regex>,
}

impl AdapterConfig {
    /// Reads the object `values`, which stands in `origin`.
    ///
    /// # Errors
    /// What is malformed in it, or not supported, by its key.
    pub(super) fn parse(values: &Map<String, Value>, origin: &'static str) -> Result<Self, String> {
        refuse_unsupported(values)?;
        let targets = Modules::parse(values, "target_modules")?;
        let layers = match &targets {
            Modules::Named(_) => Layers::parse(values)?,
            Modules::Unsaid | Modules::Matching(_) => None,
        };
        Ok(Self {
            origin,
            alpha: number(values, "lora_alpha")?.unwrap_or(DEFAULT_ALPHA),
            alphas: patterns(values, "alpha_pattern")?,
            rank: number(values, "r")?,
            ranks: patterns(values, "rank_pattern")?,
            by_root: is_set(values.get("use_rslora")),
            excluded: Modules::parse(values, "exclude_modules")?,
            targets,
            layers,
        })
    }

    /// The factor of up · down for the module of this dotted name and `rank`.
    ///
    /// # Errors
    /// If the configuration says another rank, or a pattern takes too long.
    pub(super) fn scaling(&self, module: &str, rank: usize) -> Result<f64, String> {
        let expected = find(&self.ranks, module)?.or(self.rank);
        let rank = rank as f64;
        if let Some(expected) = expected.filter(|expected| (expected - rank).abs() > 0.0) {
            let origin = self.origin;
            return Err(format!("{module} has rank {rank}, {origin} says {expected}"));
        }
        let alpha = find(&self.alphas, module)?.unwrap_or(self.alpha);
        Ok(alpha / if self.by_root { rank.sqrt() } else { rank })
    }

    /// Whether the module of this dotted name is changed at all.
    ///
    /// # Errors
    /// If a pattern takes too long.
    pub(super) fn changes(&self, module: &str) -> Result<bool, String> {
        if self.excluded.include(module)?.unwrap_or(false) {
            return Ok(false);
        }
        let is_target = self.targets.include(module)?.unwrap_or(true);
        match &self.layers {
            // A module that is named in full is one in whatever layer.
            Some(layers) if is_target && !self.targets.name_in_full(module) => {
                layers.include(module)
            }
            _ => Ok(is_target),
        }
    }
}

impl Modules {
    fn parse(values: &Map<String, Value>, key: &str) -> Result<Self, String> {
        match values.get(key) {
            // "all-linear" is written out before PEFT saves it.
            Some(Value::String(text)) if !text.is_empty() && text != "all-linear" => {
                Ok(Self::Matching(regex(key, &format!("^(?:{text})$"))?))
            }
            Some(Value::Array(names)) if !names.is_empty() => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                let names: Option<Vec<String>> = names.collect();
                names.map(Self::Named).ok_or_else(|| format!("{key} is no list of names"))
            }
            None | Some(Value::Null | Value::String(_) | Value::Array(_)) => Ok(Self::Unsaid),
            Some(other) => Err(format!("{key} = {other} is neither a text nor a list")),
        }
    }

    fn name_in_full(&self, module: &str) -> bool {
        matches!(self, Self::Named(names) if names.iter().any(|name| name == module))
    }

    /// `None` if nothing is said of any module.
    fn include(&self, module: &str) -> Result<Option<bool>, String> {
        match self {
            Self::Unsaid => Ok(None),
            Self::Matching(pattern) => matches(pattern, module).map(Some),
            Self::Named(names) => {
                let is_end = |name: &String| {
                    module
                        .strip_suffix(name.as_str())
                        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
                };
                Ok(Some(names.iter().any(is_end)))
            }
        }
    }
}

impl Layers {
    fn parse(values: &Map<String, Value>) -> Result<Option<Self>, String> {
        const KEY: &str = "layers_to_transform";
        let numbers = match values.get(KEY) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(numbers)) if numbers.is_empty() => return Ok(None),
            Some(Value::Array(numbers)) => numbers.iter().map(Value::as_u64).collect(),
            Some(number) => number.as_u64().map(|number| vec![number]),
        };
        let numbers = numbers.ok_or_else(|| format!("{KEY} holds what is no layer's number"))?;
        let patterns: Vec<&Value> = match values.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(patterns)) => patterns.iter().collect(),
            Some(pattern) => vec![pattern],
        };
        let patterns =
            patterns.into_iter().filter_map(Value::as_str).filter(|text| !text.is_empty());
        let patterns: Vec<String> =
            patterns.map(|text| format!(r"^(?:|.*?\.)(?:{text})\.(\d+)\.")).collect();
        let any = || vec![r"^.*?\.[^.]*\.(\d+)\.".to_owned()];
        let patterns = if patterns.is_empty() { any() } else { patterns };
        let patterns = patterns.iter().map(|text| regex("layers_pattern", text));
        Ok(Some(Self { numbers, patterns: patterns.collect::<Result<_, _>>()? }))
    }

    fn include(&self, module: &str) -> Result<bool, String> {
        for pattern in &self.patterns {
            let found = pattern.captures(module).map_err(|error| error.to_string())?;
            if let Some(number) = found.as_ref().and_then(|found| found.iter().flatten().last()) {
                let number = number.as_str().parse::<u64>();
                return Ok(number.is_ok_and(|number| self.numbers.contains(&number)));
            }
        }
        Ok(false)
    }
}

fn refuse_unsupported(values: &Map<String, Value>) -> Result<(), String> {
    if let Some(kind) = values.get("peft_type").and_then(Value::as_str)
        && !kind.eq_ignore_ascii_case("LORA")
    {
        return Err(format!("is of peft_type {kind}; only LORA is supported"));
    }
    if let Some(key) = UNSUPPORTED.iter().find(|key| is_set(values.get(**key))) {
        return Err(format!("has {key} = {}, which is not supported", short(&values[*key])));
    }
    let bias = values.get("bias").and_then(Value::as_str).unwrap_or("none");
    if bias != "none" {
        return Err(format!("has bias = {bias}: biases are not changed here, only none"));
    }
    let beginning = values.get("init_lora_weights").and_then(Value::as_str);
    if let Some(beginning) = beginning.filter(|name| !HARMLESS_BEGINNINGS.contains(name)) {
        return Err(format!(
            "has init_lora_weights = {beginning}, which changes the model's own weights: convert \
             it to a plain LoRA"
        ));
    }
    Ok(())
}

/// Whether Python takes `value` for true.
fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(truth)) => *truth,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

fn number(values: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match values.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => as_number(key, value).map(Some),
    }
}

fn as_number(key: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{key} = {} is no number", short(value)))
}

/// An object of elements by patterns, in their order: the first that matches counts.
fn patterns(values: &Map<String, Value>, key: &str) -> Result<Vec<(Regex, f64)>, String> {
    let entries = match values.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(format!("{key} = {} is no object", short(other))),
    };
    let entry = |(text, value): (&String, &Value)| {
        let pattern = regex(key, &format!(r"^(?:.*\.)?(?:{text})$"))?;
        Ok((pattern, as_number(key, value)?))
    };
    entries.iter().map(entry).collect()
}

fn regex(key: &str, text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("{key}: '{text}' is no regular expression: {error}"))
}

fn matches(pattern: &Regex, module: &str) -> Result<bool, String> {
    pattern.is_match(module).map_err(|error| format!("'{pattern}' on {module}: {error}"))
}

fn find(patterns: &[(Regex, f64)], module: &str) -> Result<Option<f64>, String> {
    for (pattern, number) in patterns {
        if matches(pattern, module)? {
            return Ok(Some(*number));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(values: &Value) -> Result<AdapterConfig, String> {
        AdapterConfig::parse(values.as_object().unwrap(), "adapter_config.json")
    }

    fn scaling(values: &Value, module: &str, rank: usize) -> f64 {
        parse(values).unwrap().scaling(module, rank).unwrap()
    }

    #[test]
    fn the_first_pattern_that_matches_to_the_end_of_a_dotted_name_decides() {
        // As get_pattern_key: re.match(r"(.*\.)?(KEY)$", name).
        let values = json!({"r": 4, "lora_alpha": 4, "alpha_pattern": {
            "^img_in": 8, "to_q": 16, r"transformer_blocks\.[01]\.attn\.to_(k|v)": 32,
            "attn.to_out.0": 64, "to_k": 128,
        }});
        for (module, factor) in [
            ("img_in", 2.0),
            ("deep.img_in", 1.0),
            ("transformer_blocks.0.attn.to_q", 4.0),
            ("transformer_blocks.0.attn.add_to_q", 1.0),
            ("transformer_blocks.1.attn.to_v", 8.0),
            ("transformer_blocks.1.attn.to_k", 8.0),
            ("transformer_blocks.2.attn.to_k", 32.0),
            ("transformer_blocks.2.attn.to_v", 1.0),
            ("transformer_blocks.7.attn.to_out.0", 16.0),
            ("transformer_blocks.7.attn.to_out.0.more", 1.0),
        ] {
            assert_eq!(scaling(&values, module, 4), factor, "{module}");
        }
    }

    #[test]
    fn ranks_roots_and_defaults_are_pefts() {
        let values = json!({"r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 16}});
        assert_eq!(scaling(&values, "a.to_q", 16), 0.125);
        assert_eq!(scaling(&values, "a.to_k", 4), 0.5);
        let fault = parse(&values).unwrap().scaling("a.to_q", 4).unwrap_err();
        assert!(fault.contains("a.to_q") && fault.contains("16"), "{fault}");
        let rooted = json!({"r": 16, "lora_alpha": 8, "use_rslora": true});
        assert_eq!(scaling(&rooted, "x", 16), 2.0);
        assert_eq!(scaling(&json!({"r": 16}), "x", 16), 0.5);
    }

    #[test]
    fn modules_that_are_no_targets_are_not_changed() {
        let changes =
            |values: &Value, module: &str| parse(values).unwrap().changes(module).unwrap();
        let named = json!({"target_modules": ["to_q", "blocks.0.to_k"]});
        assert!(changes(&named, "to_q") && changes(&named, "blocks.1.to_q"));
        assert!(!changes(&named, "add_to_q") && !changes(&named, "blocks.1.to_k"));
        let matching = json!({"target_modules": r".*\.to_(q|k)"});
        assert!(changes(&matching, "a.to_k") && !changes(&matching, "to_k"));
        let excluded = json!({"target_modules": ["to_q"], "exclude_modules": ["blocks.1.to_q"]});
        assert!(changes(&excluded, "blocks.0.to_q") && !changes(&excluded, "blocks.1.to_q"));
        let layers = json!({"target_modules": ["to_q"], "layers_to_transform": [0, 12],
                            "layers_pattern": "blocks"});
        assert!(changes(&layers, "blocks.12.to_q") && changes(&layers, "x.blocks.0.a.to_q"));
        assert!(!changes(&layers, "blocks.1.to_q") && !changes(&layers, "others.0.to_q"));
        assert!(changes(&layers, "to_q"), "named in full");
        let one = json!({"target_modules": ["to_q"], "layers_to_transform": 1});
        assert!(changes(&one, "model.layers.1.to_q") && !changes(&one, "model.layers.0.to_q"));
        assert!(changes(&json!({}), "anything"));
    }

    #[test]
    fn what_is_not_supported_or_malformed_is_refused_by_its_key() {
        for (key, value) in [
            ("peft_type", json!("LOKR")),
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["proj_out"])),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("alpha_pattern", json!({"to_(q": 4})),
            ("alpha_pattern", json!({"to_q": "4"})),
            ("rank_pattern", json!([4])),
            ("lora_alpha", json!("16")),
            ("r", json!([1])),
            ("target_modules", json!(3)),
            ("layers_to_transform", json!("first")),
        ] {
            let mut values = json!({"target_modules": ["to_q"]});
            values[key] = value.clone();

            let fault = parse(&values).err().unwrap();

            assert!(fault.contains(key), "{key} = {value}: {fault}");
        }
        let published = json!({
            "peft_type": "LORA", "auto_mapping": null, "base_model_name_or_path": null,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": "gaussian", "modules_to_save": [], "use_dora": false,
            "trainable_token_indices": null, "loftq_config": {}, "layers_to_transform": null,
        });
        assert!(parse(&published).is_ok());
    }
}
