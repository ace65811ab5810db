//! From the start to the end: what the server answers before it has models, whom it tells
//! that it stops, and what systemd hears.

use std::time::Duration;

use diffuser_api::api::{Access, ApiConfig, ApiKeys, ServerParts, Site, StartPhase};
use diffuser_api::config::{Config, Sources};
use diffuser_api::jobs::EmbeddedStore;
use diffuser_api::model::ModelConfig;
use diffuser_api::pictures::PictureStore;
use diffuser_api::requests::{ModelService, QualityOverrides};
use diffuser_api::service::{Budget, ServiceConfig, start};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::scripted_model::Behaviour;
use crate::support::server::{
    Setup, TestServer, edit_form, error_of, json_of, pooled, within_patience,
};

/// Steps of a request that says nothing about them.
const STEPS: usize = 4;

/// A site without models, served on an address of its own.
struct Starting {
    base_url: String,
    opening: Option<diffuser_api::api::Opening>,
    config: ApiConfig,
}

impl Starting {
    async fn with_patience(patience: Duration) -> Self {
        let config =
            ApiConfig { loading_wait: patience, ..Config::load(&Sources::default()).unwrap().api };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let (site, opening) = Site::new(&config);
        let served = config.clone();
        tokio::spawn(async move { site.serve(listener, &served, std::future::pending()).await });
        Self { base_url, opening: Some(opening), config }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        within_patience(reqwest::get(format!("{}{path}", self.base_url))).await.unwrap()
    }

    /// From now on there is a model.
    async fn open(&mut self) {
        let config = ServiceConfig { queue_capacity: 4, budget: Budget::default(), metrics: true };
        let models = vec![pooled(&ModelConfig::of("tiny-random".to_owned()))];
        let starting = tokio::task::spawn_blocking(move || start(models, config, || {}));
        let (services, _worker) = starting.await.unwrap().unwrap();
        let model = |images| ModelService {
            images,
            aliases: Vec::new(),
            quality: QualityOverrides::default(),
            loras: None,
            health_digest: None,
        };
        let models = services.into_iter().map(model).collect();
        let store = PictureStore::open(&self.config.picture_store).unwrap();
        let access = Access::new(&self.config);
        let jobs = std::sync::Arc::new(EmbeddedStore::open(&self.config.jobs).unwrap());
        let parts = ServerParts { models, store, jobs, fleet: None, batches: None, access };
        self.opening.take().unwrap().open(parts, &self.config);
    }
}

#[tokio::test]
async fn while_models_are_loaded_the_server_lives_and_is_not_ready_and_refuses_the_rest() {
    let server = Starting::with_patience(Duration::from_millis(50)).await;

    let health = json_of(server.get("/health").await).await;
    assert_eq!(health["status"], "starting");
    for (phase, reason) in [
        (StartPhase::LookingForFiles, "looking_for_files"),
        (StartPhase::LoadingModels, "loading_models"),
        (StartPhase::WarmingUp, "warming_up"),
    ] {
        server.opening.as_ref().unwrap().reach(phase);
        let ready = server.get("/ready").await;
        assert_eq!(ready.status(), 503);
        let expected = json!({"status": "not_ready", "reason": reason});
        assert_eq!(ready.json::<Value>().await.unwrap(), expected);
    }
    for path in ["/v1/models", "/", "/nowhere"] {
        let refused = server.get(path).await;
        assert_eq!(refused.headers()["retry-after"], "5", "{path}");
        assert_eq!(error_of(refused, 503, None).await["code"], "model_loading", "{path}");
    }
}

#[tokio::test]
async fn while_models_are_loaded_browsers_get_the_page_which_waits_for_them() {
    let server = Starting::with_patience(Duration::from_millis(50)).await;

    for path in ["/", "/playground"] {
        let url = format!("{}{path}", server.base_url);
        let request = reqwest::Client::new().get(url).header("accept", "text/html");
        let page = within_patience(request.send()).await.unwrap();
        assert_eq!(page.status(), 200, "{path}");
        assert!(page.text().await.unwrap().contains("<title>Playground</title>"), "{path}");
    }
}

#[tokio::test]
async fn a_request_that_comes_while_models_are_loaded_waits_a_moment_for_them() {
    let mut server = Starting::with_patience(Duration::from_secs(20)).await;
    let url = format!("{}/v1/models", server.base_url);
    let early = tokio::spawn(async move { reqwest::get(url).await.unwrap() });
    // It has come before there are models.
    tokio::time::sleep(Duration::from_millis(100)).await;

    server.open().await;

    let models = json_of(within_patience(early).await.unwrap()).await;
    assert_eq!(models["data"][0]["id"], "tiny-random");
    assert_eq!(json_of(server.get("/ready").await).await, json!({"status": "ready"}));
    assert_eq!(json_of(server.get("/health").await).await["status"], "healthy");
}

#[tokio::test]
async fn a_stopping_server_tells_those_who_come_late_as_long_as_a_picture_is_made() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    assert_eq!(server.get("/ready").send().await.unwrap().status(), 200);

    server.stop.take().unwrap().send(()).unwrap();
    server.until(|status| !status.accepting).await;

    // Each on a connection of its own.
    let ready = reqwest::get(format!("http://{}/ready", server.address())).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.json::<Value>().await.unwrap()["reason"], "shutting_down");
    let late = reqwest::Client::new().post(format!("http://{}/v1/images/edits", server.address()));
    let late = within_patience(late.multipart(edit_form()).send()).await.unwrap();
    assert!(late.headers().contains_key("retry-after"));
    assert_eq!(error_of(late, 503, None).await["code"], "shutting_down");
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    within_patience(&mut server.serving).await.unwrap().unwrap();
    assert!(server.get("/ready").send().await.is_err(), "nobody listens any more");
}

/// A server whose administrator has the key `root`.
async fn administrated(health_digest: Option<&str>) -> TestServer {
    let adjust = |config: &mut ApiConfig| config.admin_keys = ApiKeys::new(vec!["root".to_owned()]);
    let health_digest = health_digest.map(str::to_owned);
    Setup { adjust, health_digest, ..Setup::default() }.start().await
}

async fn deep(server: &TestServer) -> (u16, Value) {
    let answer = server.get("/health/deep").bearer_auth("root").send();
    let answer = within_patience(answer).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn the_deep_check_makes_a_picture_for_administrators_and_only_once_a_minute() {
    let mut server = administrated(None).await;

    let stranger = server.get("/health/deep").send().await.unwrap();
    error_of(stranger, 403, None).await;
    assert!(server.is_model_untouched());
    let (status, first) = deep(&server).await;
    let request = server.next_request().await;
    let (_, again) = deep(&server).await;

    assert_eq!((status, &first["status"]), (200, &json!("healthy")), "{first}");
    assert_eq!((request.seed.get(), request.steps.get()), (0, 2));
    assert_eq!(first["expected_from"], "first_check");
    assert_eq!(first["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(first["sha256"], again["sha256"]);
    assert!(server.is_model_untouched(), "the last one is told");
}

#[tokio::test]
async fn a_picture_that_is_not_the_one_of_the_settings_is_told() {
    let right = deep(&administrated(None).await).await.1["sha256"].as_str().unwrap().to_owned();
    let wrong = "0".repeat(64);

    let (status, health) = deep(&administrated(Some(&right)).await).await;
    assert_eq!((status, &health["expected_from"]), (200, &json!("settings")), "{health}");
    let (status, health) = deep(&administrated(Some(&wrong)).await).await;
    assert_eq!((status, &health["status"]), (503, &json!("wrong_picture")), "{health}");
    assert_eq!((&health["expected"], &health["sha256"]), (&json!(wrong), &json!(right)));
}

#[cfg(unix)]
mod process {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixDatagram;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use crate::support::server::until_ready;

    /// A program that ends with its test, however that ends.
    struct Program(Child);

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// What systemd has been told next.
    fn told(socket: &UnixDatagram) -> String {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).expect("systemd should have been told");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    }

    fn signal(server: &Child, name: &str) {
        let sent = Command::new("kill").args([name, &server.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_ends_nothing() {
        let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["--model", "tiny-random", "--port", &port.to_string()])
            .stdout(full())
            .stderr(full())
            .spawn();
        let mut server = Program(server.unwrap());

        until_ready(&format!("http://127.0.0.1:{port}")).await;

        signal(&server.0, "-TERM");
        assert_eq!(server.0.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn a_port_of_the_metrics_that_is_taken_ends_the_program_and_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();

        let output = Command::new("timeout")
            .args([
                "60",
                env!("CARGO_BIN_EXE_diffuser-api"),
                "--model",
                "tiny-random",
                "--port",
                "0",
            ])
            .env("DIFFUSER_METRICS_PORT", &port)
            .output()
            .unwrap();

        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(&format!("metrics on 127.0.0.1 port {port}")), "{log}");
    }

    #[test]
    fn systemd_hears_when_the_server_is_ready_and_when_it_stops_and_a_hang_up_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["--model", "tiny-random", "--port", "0"])
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::piped())
            .spawn();
        let mut server = Program(server.unwrap());
        let log = BufReader::new(server.0.stderr.take().unwrap()).lines();

        let mut message = told(&socket);
        while message.starts_with("EXTEND_TIMEOUT_USEC") {
            message = told(&socket);
        }
        assert_eq!(message, "READY=1");
        signal(&server.0, "-HUP");
        let reloading = told(&socket);
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(told(&socket), "READY=1");
        signal(&server.0, "-TERM");
        assert_eq!(told(&socket), "STOPPING=1");

        assert_eq!(server.0.wait().unwrap().code(), Some(0));
        let log: Vec<String> = log.map_while(Result::ok).collect();
        let place = |text: &str| log.iter().position(|line| line.contains(text)).expect(text);
        assert!(place("/health answers") < place("listening; open http://"), "{log:#?}");
        assert!(place("listening; open") < place("leaving"), "{log:#?}");
    }
}
