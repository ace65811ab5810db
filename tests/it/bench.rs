//! `diffuser-api bench` as a program: what goes where.

use std::process::Command;

#[test]
fn numbers_stay_alone_and_each_stage_is_named_on_standard_error_when_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let shape = ["--size", "64x64", "--steps", "2", "--repeats", "1", "--device", "cpu"];

    let output = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .args(["bench", "--model", "tiny-random", "--skip-ceiling", "--json"])
        .arg(&json)
        .args(shape)
        .args(["--stages", "vae-encoder,transformer", "--words", "50"])
        .output()
        .unwrap();

    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{stderr}");
    let told: Vec<_> =
        stderr.lines().map(|line| line.split_once(" s: ").map(|(_, what)| what)).collect();
    let expected = [
        "making weights",
        "picture 1 of 1: vae encoder",
        "picture 1 of 1: modulation",
        "picture 1 of 1: steps, step 1 of 2",
    ];
    assert_eq!(told, expected.map(Some), "{stderr}");
    assert!(!stdout.contains("picture 1 of 1") && stdout.contains("| steps |"), "{stdout}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let stages = report["runs"][0]["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["plan", "vae encoder", "modulation", "steps"]);
}
