//! What mirrors a state: read when somebody asks, and written into the answer only.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use ::metrics::{gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::names;
use super::process::Process;

/// How the server stands.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The program's version.
    pub version: String,
    /// All models.
    pub models: Vec<ModelState>,
    /// The devices that are in use.
    pub devices: Vec<DeviceState>,
    /// What requests hold.
    pub request_memory: RequestMemoryState,
    /// LoRAs of requests.
    pub loras: LoraState,
    /// The jobs of each model.
    pub jobs: Vec<JobsState>,
}

/// Jobs of a model that have not ended.
#[derive(Debug, Clone, Default)]
pub struct JobsState {
    /// The model's name.
    pub model: String,
    /// Those that wait.
    pub waiting: u64,
    /// Those that run.
    pub running: u64,
    /// How long the oldest of the waiting ones has waited, in seconds.
    pub oldest_s: f64,
    /// How much work the waiting ones are, in seconds.
    pub work_s: f64,
}

/// A model and its line.
#[derive(Debug, Clone, Default)]
pub struct ModelState {
    /// Its name.
    pub name: String,
    /// Requests that wait for it.
    pub waiting: usize,
    /// Requests that it works on.
    pub running: usize,
    /// Where it is, or would be.
    pub replicas: Vec<ReplicaPresence>,
}

/// A model on one of its devices.
#[derive(Debug, Clone)]
pub struct ReplicaPresence {
    /// The device.
    pub device: String,
    /// Whether it is there.
    pub is_loaded: bool,
}

/// The memory of a device.
#[derive(Debug, Clone, Default)]
pub struct DeviceState {
    /// The device.
    pub name: String,
    /// Bytes that nobody has, if that can be told.
    pub free_bytes: Option<usize>,
    /// Bytes that there are, likewise.
    pub total_bytes: Option<usize>,
    /// Bytes of the weights of loaded models.
    pub weight_bytes: usize,
}

/// The budget of all requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestMemoryState {
    /// Bytes that are held.
    pub held_bytes: usize,
    /// Bytes that may be.
    pub limit_bytes: usize,
}

/// The LoRAs that requests name.
#[derive(Debug, Clone, Default)]
pub struct LoraState {
    /// Of requests that run.
    pub running: BTreeSet<String>,
    /// Of requests that wait.
    pub waiting: BTreeSet<String>,
    /// How many act at a time, at most.
    pub most: usize,
}

/// `state` as text. A recorder of its own keeps what is no longer so out of later answers.
pub(super) fn render(state: &State) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        names::describe();
        gauge!(names::BUILD_INFO, "version" => state.version.clone()).set(1.0);
        state.models.iter().for_each(set_model);
        state.devices.iter().for_each(set_device);
        set_request_memory(state.request_memory);
        set_loras(&state.loras);
        state.jobs.iter().for_each(set_jobs);
        set_process();
    });
    recorder.handle().render()
}

fn set_model(model: &ModelState) {
    let name = || model.name.clone();
    gauge!(names::QUEUE_DEPTH, "model" => name()).set(model.waiting as f64);
    gauge!(names::RUNNING, "model" => name()).set(model.running as f64);
    gauge!(names::VLLM_WAITING, "model_name" => name()).set(model.waiting as f64);
    gauge!(names::VLLM_RUNNING, "model_name" => name()).set(model.running as f64);
    for ReplicaPresence { device, is_loaded } in &model.replicas {
        gauge!(names::MODEL_LOADED, "model" => name(), "device" => device.clone())
            .set(if *is_loaded { 1.0 } else { 0.0 });
    }
}

fn set_jobs(jobs: &JobsState) {
    let model = || jobs.model.clone();
    gauge!(names::JOBS_WAITING, "model" => model()).set(jobs.waiting as f64);
    gauge!(names::JOBS_RUNNING, "model" => model()).set(jobs.running as f64);
    gauge!(names::JOBS_OLDEST, "model" => model()).set(jobs.oldest_s);
    gauge!(names::JOBS_WORK, "model" => model()).set(jobs.work_s);
}

fn set_device(device: &DeviceState) {
    let kinds = [
        ("free", device.free_bytes),
        ("total", device.total_bytes),
        ("weights", Some(device.weight_bytes)),
    ];
    for (kind, bytes) in kinds {
        if let Some(bytes) = bytes {
            gauge!(names::DEVICE_MEMORY, "device" => device.name.clone(), "kind" => kind)
                .set(bytes as f64);
        }
    }
}

fn set_request_memory(memory: RequestMemoryState) {
    for (kind, bytes) in [("held", memory.held_bytes), ("limit", memory.limit_bytes)] {
        gauge!(names::REQUEST_MEMORY, "kind" => kind).set(bytes as f64);
    }
}

/// As vLLM writes it: names between commas, and the time as the value, of which routers take
/// the latest.
fn set_loras(loras: &LoraState) {
    let listed =
        |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    gauge!(
        names::VLLM_LORAS,
        "running_lora_adapters" => listed(&loras.running),
        "waiting_lora_adapters" => listed(&loras.waiting),
        "max_lora" => loras.most.to_string()
    )
    .set(now.map_or(0.0, |now| now.as_secs_f64()));
}

fn set_process() {
    let Some(process) = Process::own() else { return };
    gauge!(names::START_TIME).set(process.started_s as f64);
    gauge!(names::RESIDENT_MEMORY).set(process.resident_bytes as f64);
    for (name, count) in
        [(names::OPEN_FILES, process.open_files), (names::MAX_FILES, process.max_files)]
    {
        if let Some(count) = count {
            gauge!(name).set(count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_routers_keep_their_colons_and_lists_their_commas() {
        let model = ModelState { name: "a/b".to_owned(), waiting: 2, ..ModelState::default() };
        let running = BTreeSet::from(["style".to_owned(), "light \"8\"".to_owned()]);
        let loras = LoraState { running, waiting: BTreeSet::new(), most: 8 };

        let text = render(&State { models: vec![model], loras, ..State::default() });

        let line = |start: &str| text.lines().any(|line| line.starts_with(start));
        assert!(line("vllm:num_requests_waiting{model_name=\"a/b\"} 2"), "{text}");
        assert!(line("vllm:num_requests_running{model_name=\"a/b\"} 0"), "{text}");
        let loras = "vllm:lora_requests_info{running_lora_adapters=\"light \\\"8\\\",style\",\
                     waiting_lora_adapters=\"\",max_lora=\"8\"} ";
        assert!(line(loras), "{text}");
        assert!(line("# TYPE vllm:lora_requests_info gauge"), "{text}");
    }

    #[test]
    fn what_cannot_be_told_is_left_out() {
        let device = DeviceState { name: "metal".to_owned(), ..DeviceState::default() };

        let text = render(&State { devices: vec![device], ..State::default() });

        assert!(text.contains("{device=\"metal\",kind=\"weights\"} 0"), "{text}");
        assert!(!text.contains("kind=\"free\""), "{text}");
    }
}
