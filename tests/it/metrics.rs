//! `/metrics`: what stands there after a known sequence of requests.

use std::collections::BTreeMap;

use diffuser_api::api::{ApiConfig, ApiKeys, MetricsAddress};
use diffuser_api::domain::{TaskKind, TaskKinds};
use diffuser_api::model::{DeviceChoice, LoadError, ModelConfig};
use diffuser_api::service::PooledModel;
use serde_json::{Value, json};

use crate::support::files;
use crate::support::scripted_model::{self, Behaviour, Event};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, json_of, pooled, prompt_form, unloadable,
    within_patience,
};

/// Steps of a request that says nothing about them.
const STEPS: usize = 4;

/// The model of these tests, as a label.
const MODEL: &str = "model=\"test/scripted-edit\"";

/// What `/metrics` said: series with their labels, and values.
#[derive(Debug)]
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    async fn of(server: &TestServer) -> Self {
        let response = within_patience(server.get("/metrics").send()).await.unwrap();
        assert_eq!(response.status(), 200);
        Self::parse(&response.text().await.unwrap())
    }

    /// Scrapes until `is_there`.
    async fn until(server: &TestServer, is_there: impl Fn(&Self) -> bool) -> Self {
        within_patience(async {
            loop {
                let scrape = Self::of(server).await;
                if is_there(&scrape) {
                    return scrape;
                }
            }
        })
        .await
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
        Self(pairs.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect())
    }

    /// The value of a series; 0 if it is not there.
    fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// Of a series that has the model's name as its first label.
    fn of_model(&self, name: &str, further: &str) -> f64 {
        self.value(&format!("{name}{{{MODEL}{further}}}"))
    }

    /// The requests that were answered with `status` at the edits.
    fn edits(&self, status: u16) -> f64 {
        let labels = "method=\"POST\",route=\"/v1/images/edits\"";
        self.value(&format!("diffuser_http_requests_total{{{labels},status=\"{status}\"}}"))
    }

    fn errors(&self, code: &str) -> f64 {
        self.value(&format!("diffuser_errors_total{{code=\"{code}\"}}"))
    }

    /// How many of `name`, without the buckets of histograms.
    fn series_of(&self, name: &str) -> Vec<&str> {
        let of_name = |series: &&str| series.split('{').next() == Some(name);
        self.0.keys().map(String::as_str).filter(of_name).collect()
    }
}

#[tokio::test]
async fn requests_are_counted_by_how_they_ended_and_pictures_by_what_was_asked() {
    use Behaviour::{EndlessStep, Fail, FindUnsuitable, Panic, Tint};
    let mut server = Setup::script([Tint, Fail, FindUnsuitable, Panic, EndlessStep]).start().await;
    json_of(server.edit(edit_form().text("size", "128x64").text("n", "2")).await).await;
    error_of(server.edit(edit_form()).await, 500, None).await;
    error_of(server.edit(edit_form()).await, 400, Some("prompt")).await;
    error_of(server.edit(edit_form()).await, 500, None).await;
    error_of(server.edit(edit_form().text("model", "gpt-4o")).await, 404, Some("model")).await;
    error_of(server.edit(edit_form().text("n", "0")).await, 400, Some("n")).await;
    let leaving = server.edit_in_background(edit_form());
    for _ in 0..5 {
        server.next_request().await;
    }
    leaving.abort();
    assert!(matches!(server.next_event().await, Event::Cancelled));
    server.until(|status| !status.busy).await;

    let scrape = Scrape::until(&server, |scrape| scrape.edits(499) > 0.0).await;

    let requests = [200, 400, 404, 500, 499, 429].map(|status| scrape.edits(status));
    assert_eq!(requests, [1.0, 2.0, 1.0, 2.0, 1.0, 0.0], "{scrape:?}");
    for (code, count) in [
        ("internal", 2.0),
        ("invalid_value", 1.0),
        ("integer_below_min_value", 1.0),
        ("model_not_found", 1.0),
        ("cancelled", 0.0),
    ] {
        assert_eq!(scrape.errors(code), count, "{code}: {scrape:?}");
    }
    for (operation, images, pixels) in
        [("edit", 2.0, 2.0 * 128.0 * 64.0), ("generation", 0.0, 0.0), ("inpainting", 0.0, 0.0)]
    {
        let operation = format!(",operation=\"{operation}\"");
        assert_eq!(scrape.of_model("diffuser_images_total", &operation), images, "{operation}");
        assert_eq!(scrape.of_model("diffuser_pixels_total", &operation), pixels, "{operation}");
    }
    assert_eq!(scrape.of_model("diffuser_cancellations_total", ""), 1.0);
}

#[tokio::test]
async fn times_are_told_of_each_job_step_and_stage() {
    let mut server = Setup::script([Behaviour::Tint, Behaviour::Fail]).start().await;
    json_of(server.edit(edit_form().text("n", "2")).await).await;
    error_of(server.edit(edit_form()).await, 500, None).await;
    server.next_request().await;

    let scrape = Scrape::of(&server).await;

    let count = |name: &str, further: &str| {
        let name = format!("diffuser_{name}_seconds");
        let [total, infinite] = [
            scrape.of_model(&format!("{name}_count"), further),
            scrape.of_model(&format!("{name}_bucket"), &format!("{further},le=\"+Inf\"")),
        ];
        assert_eq!(total, infinite, "{name}: {scrape:?}");
        total
    };
    assert_eq!(count("queue_wait", ""), 2.0);
    assert_eq!(count("step_duration", ""), 2.0 * STEPS as f64, "four steps of each of two");
    assert_eq!(count("model_load", ""), 1.0);
    for (stage, of_requests) in
        [("decode", 2.0), ("denoising", 1.0), ("encode", 1.0), ("encoding_prompts", 0.0)]
    {
        let stage = format!(",stage=\"{stage}\"");
        assert_eq!(count("stage_duration", &stage), of_requests, "{stage}");
    }
    let route = "{route=\"/v1/images/edits\"}";
    let durations = format!("diffuser_http_request_duration_seconds_count{route}");
    assert_eq!(scrape.value(&durations), 2.0);
}

#[tokio::test]
async fn lines_are_seen_as_they_stand_and_routers_find_them_from_the_start() {
    let setup = Setup { queue_capacity: 1, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let seen = |scrape: &Scrape| {
        let of_routers = |name: &str| {
            let series = format!("vllm:num_requests_{name}{{model_name=\"test/scripted-edit\"}}");
            *scrape.0.get(&series).unwrap_or_else(|| panic!("{series}: {scrape:?}"))
        };
        let ours = ["queue_depth", "running_requests"]
            .map(|name| scrape.of_model(&format!("diffuser_{name}"), ""));
        assert_eq!(ours, [of_routers("waiting"), of_routers("running")]);
        ours
    };
    assert_eq!(seen(&Scrape::of(&server).await), [0.0, 0.0]);

    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form());
    server.until(|status| status.waiting == 1).await;
    error_of(server.edit(edit_form()).await, 429, None).await;
    let busy = Scrape::of(&server).await;

    assert_eq!(seen(&busy), [1.0, 1.0]);
    assert_eq!((busy.edits(429), busy.errors("server_busy")), (1.0, 1.0));
    let held = busy.value("diffuser_request_memory_bytes{kind=\"held\"}");
    assert!(held > 0.0 && held < busy.value("diffuser_request_memory_bytes{kind=\"limit\"}"));
    waiting.abort();
    server.until(|status| status.waiting == 0).await;
    let left = Scrape::of(&server).await;
    assert_eq!(seen(&left), [0.0, 1.0]);
    assert_eq!(left.of_model("diffuser_cancellations_total", ""), 1.0);
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    server.until(|status| !status.busy).await;
    assert_eq!(seen(&Scrape::of(&server).await), [0.0, 0.0]);
}

#[tokio::test]
async fn loras_of_requests_that_run_and_wait_are_named_and_then_no_more() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["light", "style"] {
        std::fs::write(folder.path().join(format!("{name}.safetensors")), "").unwrap();
    }
    let lora_dir = Some(folder.path().to_owned());
    let setup = Setup { lora_dir, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let with_loras = |names: Value| {
        let picture = data_url(&files::png(64, 48));
        let body = json!({"prompt": "x", "images": [{"image_url": picture}], "loras": names});
        let request = server.post("/v1/images/edits").json(&body);
        tokio::spawn(async move { request.send().await.unwrap() })
    };
    let running = with_loras(json!([{"name": "style"}, {"name": "light"}]));
    server.until(|status| status.busy).await;
    let waiting = with_loras(json!([{"name": "light"}]));
    server.until(|status| status.waiting == 1).await;
    let unknown = with_loras(json!([{"name": "made-up"}]));
    error_of(unknown.await.unwrap(), 400, Some("loras")).await;

    let busy = Scrape::of(&server).await;

    let series = |running: &str, waiting: &str| {
        format!(
            "vllm:lora_requests_info{{running_lora_adapters=\"{running}\",\
             waiting_lora_adapters=\"{waiting}\",max_lora=\"8\"}}"
        )
    };
    assert!(busy.value(&series("light,style", "light")) > 1.6e9, "the time: {busy:?}");
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    json_of(waiting.await.unwrap()).await;
    server.until(|status| !status.busy).await;
    let idle = Scrape::of(&server).await;
    assert_eq!(idle.series_of("vllm:lora_requests_info"), [series("", "")]);
    server.next_request().await;
}

#[tokio::test]
async fn a_stream_counts_when_it_has_ended_with_what_it_was_in_the_end() {
    let script = [Behaviour::StepOnRelease, Behaviour::Fail, Behaviour::EndlessStep];
    let mut server = Setup::script(script).start().await;
    let stream = || edit_form().text("stream", "true");
    let response = server.edit(stream()).await;
    server.next_request().await;
    assert_eq!(Scrape::of(&server).await.edits(200), 0.0);

    server.release(STEPS);
    response.text().await.unwrap();
    let made = Scrape::until(&server, |scrape| scrape.edits(200) == 1.0).await;
    assert_eq!(made.of_model("diffuser_images_total", ",operation=\"edit\""), 1.0);
    assert_eq!(made.of_model("diffuser_stage_duration_seconds_count", ",stage=\"encode\""), 1.0);

    server.edit(stream()).await.text().await.unwrap();
    let failed = Scrape::until(&server, |scrape| scrape.edits(200) == 2.0).await;
    assert_eq!(failed.errors("internal"), 1.0);

    let left = server.edit(stream()).await;
    server.next_request().await;
    server.next_request().await;
    drop(left);
    let left = Scrape::until(&server, |scrape| scrape.edits(499) == 1.0).await;
    assert_eq!(left.edits(200), 2.0);
    assert_eq!(left.of_model("diffuser_cancellations_total", ""), 1.0);
}

#[tokio::test]
async fn whatever_clients_send_there_are_no_more_series() {
    let server = TestServer::start().await;
    let round = |number: usize| {
        let server = &server;
        async move {
            for path in [
                format!("/no/such/{number}"),
                format!("/v1/models/made-up-{number}"),
                format!("/v1/images/files/{number}.png"),
                format!("/docs/{number}"),
                format!("/openai/deployments/made-up-{number}/images/edits"),
                format!("/v1/images/edits/%22%7D%0A{number}"),
            ] {
                for method in ["GET", "POST", "PROPFIND", &format!("X-{number}")] {
                    server.request(method, &path).send().await.unwrap();
                }
            }
            for model in [format!("gpt-{number}"), format!("a\"}}{number}"), format!("ü\\{number}")]
            {
                server.edit(edit_form().text("model", model)).await;
            }
            let lora = format!("[{{\"name\": \"made-up-{number}\"}}]");
            server.edit(edit_form().text("loras", lora)).await;
            server.edit(prompt_form().text("quality", format!("q{number}"))).await;
        }
    };
    // The first has its own series: that of /metrics is among them.
    round(0).await;
    Scrape::of(&server).await;
    let before = Scrape::of(&server).await;

    round(1).await;
    round(2).await;

    let after = Scrape::of(&server).await;
    let names = |scrape: &Scrape| scrape.0.keys().cloned().collect::<Vec<_>>();
    let series = |scrape: &Scrape| {
        names(scrape).into_iter().filter(|name| !name.starts_with("process_")).collect::<Vec<_>>()
    };
    assert_eq!(series(&before), series(&after));
    let of_none = after.series_of("diffuser_http_requests_total");
    assert!(of_none.iter().any(|series| series.contains("method=\"other\",route=\"(none)\"")));
    for series in names(&after) {
        assert!(!series.contains("made-up") && !series.contains("PROPFIND"), "{series}");
        assert!(!series.contains("make it red"), "{series}");
    }
}

#[tokio::test]
async fn models_are_seen_to_come_and_go_and_to_fail() {
    let mut first = unloadable(scripted_model::card());
    first.load = Box::new(|device| pooled(&ModelConfig::of("tiny-random")).load.as_ref()(device));
    let mut card = scripted_model::card();
    card.id = "test/broken".to_owned();
    card.tasks = TaskKinds::of(&[TaskKind::TextToImage]);
    let broken = PooledModel {
        preload: false,
        load: Box::new(|_| Err(LoadError::Tokenizer("it is none".to_owned()))),
        devices: vec![DeviceChoice::Cpu],
        ..unloadable(card)
    };
    let adjust = |config: &mut ApiConfig| config.admin_keys = ApiKeys::new(vec!["root".to_owned()]);
    let server = Setup { adjust, ..Setup::default() }.start_with(vec![first, broken]).await;
    let seen = |scrape: &Scrape| {
        let loaded = scrape.of_model("diffuser_model_loaded", ",device=\"cpu\"");
        let unloads = scrape.of_model("diffuser_model_unloads_total", "");
        let weights = "diffuser_device_memory_bytes{device=\"cpu\",kind=\"weights\"}";
        (loaded, unloads, scrape.value(weights) > 0.0)
    };
    assert_eq!(seen(&Scrape::of(&server).await), (1.0, 0.0, true));

    let admin = |path: &str| server.post(path).bearer_auth("root").send();
    json_of(admin("/v1/models/test/scripted-edit/unload").await.unwrap()).await;
    assert_eq!(admin("/v1/models/test/broken/load").await.unwrap().status(), 503);

    let scrape = Scrape::of(&server).await;
    assert_eq!(seen(&scrape), (0.0, 1.0, false));
    assert_eq!(scrape.of_model("diffuser_model_loads_total", ",outcome=\"loaded\""), 1.0);
    let failed = "diffuser_model_loads_total{model=\"test/broken\",outcome=\"failed\"}";
    assert_eq!(scrape.value(failed), 1.0);
    let broken = "diffuser_model_loaded{model=\"test/broken\",device=\"cpu\"}";
    assert_eq!(scrape.0.get(broken), Some(&0.0));
    for kind in ["free", "total"] {
        let series = format!("diffuser_device_memory_bytes{{device=\"cpu\",kind=\"{kind}\"}}");
        assert!(scrape.value(&series) > 0.0, "{kind}");
    }
    assert_eq!(scrape.errors("model_not_loaded"), 1.0);
}

#[tokio::test]
async fn a_model_tells_of_its_stages_and_of_what_it_had_kept() {
    let config = ModelConfig { cache_bytes: 64 << 20, ..ModelConfig::of("tiny-random") };
    let server = Setup::default().start_with(vec![pooled(&config)]).await;
    for _ in 0..2 {
        let form = edit_form().text("num_inference_steps", "3").text("seed", "1");
        json_of(server.edit(form).await).await;
    }

    let scrape = Scrape::of(&server).await;

    let model = "model=\"tiny-random\"";
    for stage in
        ["decode", "encoding_prompts", "encoding_latents", "denoising", "decoding", "encode"]
    {
        let series = format!("diffuser_stage_duration_seconds_count{{{model},stage=\"{stage}\"}}");
        assert_eq!(scrape.value(&series), 2.0, "{stage}: {scrape:?}");
    }
    let steps = format!("diffuser_step_duration_seconds_count{{{model}}}");
    assert_eq!(scrape.value(&steps), 6.0);
    // Steps are what denoising is made of.
    let steps = scrape.value(&format!("diffuser_step_duration_seconds_sum{{{model}}}"));
    let stage = format!("diffuser_stage_duration_seconds_sum{{{model},stage=\"denoising\"}}");
    assert!(steps > 0.0 && steps <= scrape.value(&stage), "{scrape:?}");
    for cache in ["prompt", "most_likely_latents", "modulations"] {
        let count =
            |of: &str| scrape.value(&format!("diffuser_cache_{of}_total{{cache=\"{cache}\"}}"));
        assert!(count("hits") > 0.0 && count("hits") == count("misses"), "{cache}: {scrape:?}");
    }
}

#[tokio::test]
async fn the_program_tells_of_itself_and_needs_no_key_for_it() {
    let adjust = |config: &mut ApiConfig| config.api_keys = ApiKeys::new(vec!["one".to_owned()]);
    let server = Setup { adjust, ..Setup::default() }.start().await;

    let response = server.get("/metrics").send().await.unwrap();

    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(media_type, "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let scrape = Scrape::parse(&text);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(scrape.value(&format!("diffuser_build_info{{version=\"{version}\"}}")), 1.0);
    assert!(scrape.value("process_start_time_seconds") > 1.6e9);
    assert!(scrape.value("process_resident_memory_bytes") > 1e6);
    // Each name is told what it is, once, and belongs to one kind.
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(types.insert(name, kind).is_none(), "{name} is there twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
    assert_eq!(types["diffuser_queue_wait_seconds"], "histogram");
    assert_eq!(types["diffuser_images_total"], "counter");
    let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
    assert_eq!(document["paths"]["/metrics"]["get"]["security"], json!([]));
}

#[tokio::test]
async fn switched_off_there_is_nothing() {
    let server = Setup { metrics: false, ..Setup::default() }.start().await;
    json_of(server.edit(edit_form()).await).await;

    error_of(server.get("/metrics").send().await.unwrap(), 404, None).await;

    assert_eq!(server.service.metrics().render(&server.service.observed()), None);
    let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
    assert_eq!(document["paths"]["/metrics"], Value::Null);
}

#[tokio::test]
async fn on_a_port_of_their_own_metrics_are_nowhere_else_and_outlast_the_drain() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    // A setting is a plain function: the port comes to it through a thread's own.
    std::thread_local! { static PORT: std::cell::Cell<u16> = const { std::cell::Cell::new(0) } }
    PORT.set(port);
    let adjust = |config: &mut ApiConfig| {
        config.metrics = MetricsAddress { host: "127.0.0.1".to_owned(), port: Some(PORT.get()) };
    };
    let setup = Setup { adjust, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;

    error_of(server.get("/metrics").send().await.unwrap(), 404, None).await;
    server.stop.take().unwrap().send(()).unwrap();
    server.until(|status| !status.accepting).await;
    let get = |path: &str| reqwest::get(format!("http://127.0.0.1:{port}{path}"));
    let draining = Scrape::parse(&get("/metrics").await.unwrap().text().await.unwrap());

    assert_eq!(draining.of_model("diffuser_running_requests", ""), 1.0);
    assert_eq!(get("/v1/models").await.unwrap().status(), 404);
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    within_patience(&mut server.serving).await.unwrap().unwrap();
    assert!(get("/metrics").await.is_err());
}
