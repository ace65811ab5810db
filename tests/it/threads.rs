//! The threads that compute on a CPU: as many as the setting says, or as the process may use.

use std::process::{Command, Output};

use serde_json::Value;

/// The smallest of measurements, with these arguments and variables.
fn bench(arguments: &[&str], variables: &[(&str, &str)]) -> (Output, Option<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .args(["bench", "--model", "tiny-random", "--size", "64x64", "--steps", "1"])
        .args(["--repeats", "1", "--skip-ceiling", "--device", "cpu", "--json"])
        .arg(&json)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let report = std::fs::read(json).ok();
    let report = report.map(|text| serde_json::from_slice::<Value>(&text).unwrap());
    (output, report.and_then(|report| report["threads"].as_u64()))
}

#[test]
fn a_flag_beats_our_variable_which_beats_that_of_the_pool() {
    let rayon = ("RAYON_NUM_THREADS", "3");
    let ours = ("DIFFUSER_THREADS", "2");
    let usable = std::thread::available_parallelism().unwrap().get() as u64;
    for (arguments, variables, expected) in [
        (["--threads", "5"].as_slice(), [rayon, ours].as_slice(), 5),
        (&[], &[rayon, ours], 2),
        (&[], &[rayon], 3),
        (&[], &[("RAYON_NUM_THREADS", "0")], usable),
        (&["--threads", "auto"], &[rayon], usable),
        (&[], &[], usable),
    ] {
        let (output, threads) = bench(arguments, variables);

        assert_eq!(threads, Some(expected), "{arguments:?} {variables:?}: {output:?}");
    }
}

#[test]
fn what_is_no_number_of_threads_is_refused_with_its_origin() {
    let origin = "environment variable RAYON_NUM_THREADS";
    for (arguments, variables, origin) in [
        (["--threads", "many"].as_slice(), [].as_slice(), "flag --threads"),
        (&["--threads", "1025"], &[], "flag --threads"),
        (&[], &[("RAYON_NUM_THREADS", "-1")], origin),
        (&[], &[("RAYON_NUM_THREADS", "1.5")], origin),
    ] {
        let (output, _) = bench(arguments, variables);

        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(told.contains("model.threads: expected auto, or a whole number"), "{told}");
        assert!(told.contains(origin), "{told}");
    }
}

/// What the system says of the server's threads.
#[cfg(target_os = "linux")]
mod of_the_server {
    use std::net::TcpListener;
    use std::process::{Child, Stdio};

    use super::*;
    use crate::support::server::until_ready;

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn named(process: u32, beginning: &str) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with(beginning))).count()
    }

    #[tokio::test]
    async fn the_server_and_the_tensor_library_have_as_many_threads_as_the_setting_says() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["--model", "tiny-random", "--device", "cpu", "--threads", "5"])
            .args(["--port", &port.to_string()])
            .env_clear()
            // Another number, which must not be what the library takes.
            .env("CANDLE_NUM_THREADS", "3")
            .env("DIFFUSER_ENABLE_WARMUP", "true")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = child.id();
        let _ended = Ended(child);
        until_ready(&format!("http://127.0.0.1:{port}")).await;

        assert_eq!(named(process, "compute-"), 5);
        // The thread that waits for them is the fifth.
        assert_eq!(named(process, "candle-bp-"), 4);
    }
}
