//! A server with a scripted model on a real socket.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use diffuser_api::api::{Access, ApiConfig, ServerParts, serve};
use diffuser_api::config::{Config, Sources};
use diffuser_api::domain::ImageRequest;
use diffuser_api::jobs::EmbeddedStore;
use diffuser_api::jobs::batches::BatchStore;
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, LoraNames, ModelCard, ModelConfig, ModelFiles,
};
use diffuser_api::pictures::PictureStore;
use diffuser_api::requests::{ModelService, QualityOverrides};
use diffuser_api::service::{
    Budget, ImageService, PooledModel, ServiceConfig, ServiceStatus, WorkerHandle, start,
};
use diffuser_api::webhooks::WebhookConfig;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::checkpoints::offline_hub;
use super::files;
use super::scripted_model::{self, Behaviour, Event, ScriptedModel};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a [`TestServer`] is to be like.
pub(crate) struct Setup {
    pub(crate) card: ModelCard,
    pub(crate) script: Vec<Behaviour>,
    pub(crate) queue_capacity: usize,
    pub(crate) max_upload_bytes: usize,
    pub(crate) api_prefix: String,
    pub(crate) quality: QualityOverrides,
    pub(crate) lora_dir: Option<std::path::PathBuf>,
    pub(crate) health_digest: Option<String>,
    pub(crate) budget: Budget,
    pub(crate) metrics: bool,
    /// Where pictures are kept; what the settings say if absent.
    pub(crate) store: Option<PictureStore>,
    /// Where jobs are kept; what the settings say if absent.
    pub(crate) jobs: Option<Arc<EmbeddedStore>>,
    /// Whether files and batches have a place there.
    pub(crate) batches: bool,
    /// Who is told of jobs that have ended.
    pub(crate) webhooks: WebhookConfig,
    /// Changes what else there is to change.
    pub(crate) adjust: fn(&mut ApiConfig),
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            card: scripted_model::card(),
            script: Vec::new(),
            queue_capacity: 4,
            max_upload_bytes: 20 << 20,
            api_prefix: "/v1".to_owned(),
            quality: QualityOverrides::default(),
            lora_dir: None,
            health_digest: None,
            budget: Budget::default(),
            metrics: true,
            store: None,
            jobs: None,
            batches: true,
            webhooks: WebhookConfig::default(),
            adjust: |_| {},
        }
    }
}

pub(crate) struct TestServer {
    /// The way to the default model.
    pub(crate) service: ImageService,
    pub(crate) worker: Option<WorkerHandle>,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    /// The handle on the keys and limits, and the settings that they came from.
    pub(crate) access: (Access, ApiConfig),
    address: String,
    client: reqwest::Client,
    events: mpsc::UnboundedReceiver<Event>,
    release: std::sync::mpsc::Sender<()>,
}

/// A model that is loaded from the start and stays, but for what loads it.
pub(crate) fn unloadable(card: ModelCard) -> PooledModel {
    PooledModel {
        card,
        devices: vec![DeviceChoice::Cpu],
        preload: true,
        keep_alive: None,
        expected_bytes: 0,
        load: Box::new(|_| panic!("it is not to be loaded")),
    }
}

/// The checkpoint that `config` names.
pub(crate) fn pooled(config: &ModelConfig) -> PooledModel {
    pooled_files(ModelFiles::find(config, &offline_hub()).unwrap())
}

/// The model of `files`.
pub(crate) fn pooled_files(files: ModelFiles) -> PooledModel {
    let card = files.card().clone();
    PooledModel { load: Box::new(move |device| files.load_onto(device)), ..unloadable(card) }
}

impl Setup {
    pub(crate) fn script(behaviours: impl IntoIterator<Item = Behaviour>) -> Self {
        Self { script: behaviours.into_iter().collect(), ..Self::default() }
    }

    pub(crate) async fn start(mut self) -> TestServer {
        let (event_sender, events) = mpsc::unbounded_channel();
        let (release, releases) = std::sync::mpsc::channel();
        let model = ScriptedModel {
            card: self.card.clone(),
            loaded: scripted_model::loaded(),
            script: std::mem::take(&mut self.script).into(),
            events: event_sender,
            releases,
        };
        let load = Mutex::new(Some(model));
        let load = move |_| {
            let model = load.lock().unwrap().take().expect("it is loaded once");
            Ok(Box::new(model) as Box<dyn DiffusionModel>)
        };
        let model = PooledModel { load: Box::new(load), ..unloadable(self.card.clone()) };
        let server = self.start_with(vec![model]).await;
        TestServer { events, release, ..server }
    }

    /// A server of `models`, the default one first.
    pub(crate) async fn start_with(self, models: Vec<PooledModel>) -> TestServer {
        let (_, events) = mpsc::unbounded_channel();
        let (release, _) = std::sync::mpsc::channel();
        let config = ServiceConfig {
            queue_capacity: self.queue_capacity,
            budget: self.budget,
            metrics: self.metrics,
        };
        let (services, worker) = start(models, config, || {}).unwrap();
        let with_settings = |images: &ImageService| ModelService {
            images: images.clone(),
            aliases: Vec::new(),
            quality: self.quality.clone(),
            loras: self.lora_dir.clone().map(LoraNames::Folder),
            health_digest: self.health_digest.clone(),
        };
        let models = services.iter().map(with_settings).collect();
        let mut api_config = ApiConfig {
            app_name: "Test Service".to_owned(),
            app_version: "1.2.3".to_owned(),
            api_prefix: self.api_prefix,
            max_upload_bytes: self.max_upload_bytes,
            max_image_bytes: 8 << 20,
            max_image_pixels: 4_000_000,
            webhooks: self.webhooks,
            ..Config::load(&Sources::default()).unwrap().api
        };
        (self.adjust)(&mut api_config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let store =
            self.store.unwrap_or_else(|| PictureStore::open(&api_config.picture_store).unwrap());
        let access = Access::new(&api_config);
        let jobs =
            self.jobs.unwrap_or_else(|| Arc::new(EmbeddedStore::open(&api_config.jobs).unwrap()));
        let batches: Arc<dyn BatchStore> = Arc::<EmbeddedStore>::clone(&jobs);
        let batches = self.batches.then_some(batches);
        let parts =
            ServerParts { models, store, jobs, fleet: None, batches, access: access.clone() };
        let serving = tokio::spawn(serve(listener, parts, api_config.clone(), shutdown));
        TestServer {
            service: services[0].clone(),
            worker: Some(worker),
            serving,
            stop: Some(stop),
            access: (access, api_config),
            address,
            client: reqwest::Client::new(),
            events,
            release,
        }
    }
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// A connection on which a test says, byte by byte, what it wants to.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.address))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address))
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().unwrap();
        let url = format!("http://{}{path}", self.address);
        self.client.request(method, url)
    }

    /// Sends a form to the edits.
    pub(crate) async fn edit(&self, form: Form) -> Response {
        let request = self.post("/v1/images/edits").multipart(form);
        within_patience(request.send()).await.unwrap()
    }

    /// Sends a JSON object to the edits.
    pub(crate) async fn edit_json(&self, body: &Value) -> Response {
        let request = self.post("/v1/images/edits").json(body);
        within_patience(request.send()).await.unwrap()
    }

    /// Sends a form to the edits, in a task of its own.
    pub(crate) fn edit_in_background(&self, form: Form) -> JoinHandle<Response> {
        let request = self.post("/v1/images/edits").multipart(form);
        tokio::spawn(async move { request.send().await.unwrap() })
    }

    /// The same of a server that may cut the connection.
    pub(crate) fn edit_in_background_or_cut(
        &self,
        form: Form,
    ) -> JoinHandle<reqwest::Result<Response>> {
        let request = self.post("/v1/images/edits").multipart(form);
        tokio::spawn(request.send())
    }

    /// What the model tells next.
    pub(crate) async fn next_event(&mut self) -> Event {
        within_patience(self.events.recv()).await.unwrap()
    }

    /// The next request that reaches the model.
    pub(crate) async fn next_request(&mut self) -> ImageRequest {
        loop {
            if let Event::Started(request) = self.next_event().await {
                return *request;
            }
        }
    }

    /// Whether anything reached the model that no test has seen yet.
    pub(crate) fn is_model_untouched(&mut self) -> bool {
        self.events.try_recv().is_err()
    }

    /// Lets a gated model make `steps` steps.
    pub(crate) fn release(&self, steps: usize) {
        (0..steps).for_each(|_| self.release.send(()).unwrap());
    }

    /// Waits until the service is in a state.
    pub(crate) async fn until(&self, is_reached: impl Fn(ServiceStatus) -> bool) {
        within_patience(async {
            while !is_reached(self.service.status()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// What `future` gives; fails the test if that takes too long.
pub(crate) async fn within_patience<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the server should have got there")
}

/// A client for programs that a test starts.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::new()
}

/// Waits until a program at `origin` has loaded its models.
pub(crate) async fn until_ready(origin: &str) {
    let is_ready = async || {
        let answer = reqwest::get(format!("{origin}/ready")).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    };
    within_patience(async {
        while !is_ready().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// A file part, named and typed as the Python client does with plain bytes.
pub(crate) fn file_part(bytes: Vec<u8>) -> Part {
    let part = Part::bytes(bytes).file_name("upload");
    part.mime_str("application/octet-stream").unwrap()
}

/// A form with a prompt and a 64x48 picture.
pub(crate) fn edit_form() -> Form {
    prompt_form().part("image", file_part(files::png(64, 48)))
}

/// A form with a prompt only.
pub(crate) fn prompt_form() -> Form {
    Form::new().text("prompt", "make it red")
}

/// A PNG as a data URL.
pub(crate) fn data_url(bytes: &[u8]) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("data:image/png;base64,{base64}")
}

/// The JSON of a 200; fails the test with the body of anything else.
pub(crate) async fn json_of(response: Response) -> Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The file of picture `index` of a reply.
pub(crate) fn image_bytes(reply: &Value, index: usize) -> Vec<u8> {
    let base64 = reply["data"][index]["b64_json"].as_str().unwrap();
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
}

/// The error object of a refusal, held against the envelope's rules.
pub(crate) async fn error_of(response: Response, status: u16, param: Option<&str>) -> Value {
    let request_id = response.headers().get("x-request-id");
    assert!(request_id.is_some(), "no x-request-id");
    assert_eq!(response.headers()["content-type"], "application/json");
    let actual = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(actual, status, "{body}");
    let error = body["error"].as_object().unwrap();
    let keys: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{body}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(error["param"].as_str(), param, "{body}");
    body["error"].clone()
}
