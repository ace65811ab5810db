//! What requests hold in memory: a share of one budget, taken before it is used.

use std::time::Duration;

use reqwest::multipart::Form;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::files::{png, white};
use crate::support::server::{Setup, TestServer, edit_form, error_of, file_part, json_of};

const MIB: usize = 1 << 20;

/// A file of more than 8 MiB whose picture is small.
fn padded() -> Vec<u8> {
    let file = png(64, 48);
    let length = 7 * MIB;
    let head = [&u32::try_from(length).unwrap().to_be_bytes()[..], b"teSt"].concat();
    // Nobody looks at the checksum of a chunk that may be skipped.
    [&file[..33], &head, &vec![0; length], &[0; 4], &file[33..]].concat()
}

fn padded_form() -> Form {
    Form::new().text("prompt", "darker").part("image", file_part(padded()))
}

/// A client that has told of 18 MB, and sends nothing of it.
async fn slow_upload(server: &TestServer) -> TcpStream {
    let mut stream = server.connect().await;
    let head = "POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Length: 18000000\r\n\
                Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn who_gets_no_memory_in_time_is_told_to_come_back() {
    let setup = Setup {
        adjust: |config| {
            config.request_memory_bytes = 24 * MIB;
            config.memory_timeout = Duration::from_millis(300);
        },
        ..Setup::default()
    };
    let server = setup.start().await;
    let _holding = slow_upload(&server).await;
    // Small ones still fit beside it; the server has read the other's head by then.
    json_of(server.edit(edit_form()).await).await;

    let response = server.edit(padded_form()).await;

    assert_eq!(response.headers()["retry-after"], "5");
    let error = error_of(response, 503, None).await;
    assert_eq!((&error["code"], &error["type"]), (&json!("out_of_memory"), &json!("server_error")));
}

#[tokio::test]
async fn who_waits_gets_the_memory_that_comes_free() {
    let setup = Setup {
        adjust: |config| {
            config.request_memory_bytes = 24 * MIB;
            config.memory_timeout = Duration::from_secs(60);
        },
        ..Setup::default()
    };
    let server = setup.start().await;
    let holding = slow_upload(&server).await;
    json_of(server.edit(edit_form()).await).await;

    let waiting = server.edit_in_background(padded_form());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    drop(holding);

    assert_eq!(waiting.await.unwrap().status(), 200);
    // All of it comes back, again and again.
    for _ in 0..3 {
        assert_eq!(server.edit(padded_form()).await.status(), 200);
    }
}

#[tokio::test]
async fn what_never_fits_is_refused_at_once_and_names_the_limit() {
    let setup =
        Setup { adjust: |config| config.request_memory_bytes = 6 * MIB, ..Setup::default() };
    let server = setup.start().await;
    let large = Form::new().text("prompt", "x").part("image", file_part(white(1900, 1900)));
    for form in [padded_form(), large] {
        let error = error_of(server.edit(form).await, 413, None).await;

        assert_eq!(error["code"], "request_too_large");
        assert!(error["message"].as_str().unwrap().contains("request_memory_bytes"), "{error}");
    }
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn json_that_grows_in_memory_is_refused_while_it_is_read() {
    let server = TestServer::start().await;
    let send = async |body: String| {
        let request = server.post("/v1/images/edits").header("content-type", "application/json");
        request.body(body).send().await.unwrap()
    };
    let items = vec!["{}"; 500_000].join(",");
    let response = send(format!("{{\"prompt\":\"x\",\"images\":[{items}]}}")).await;
    let error = error_of(response, 400, Some("images")).await;
    assert_eq!(error["code"], "invalid_type");
    let keys: Vec<String> = (0..200_000).map(|key| format!("\"k{key}\":1")).collect();
    let error = error_of(send(format!("{{{}}}", keys.join(","))).await, 400, None).await;
    assert!(error["message"].as_str().unwrap().contains("256 fields"), "{error}");
}

/// The program itself, of which the system says how much memory it took.
#[cfg(target_os = "linux")]
mod of_the_program {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::support::server::until_ready;

    struct Program {
        child: Child,
        address: String,
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    impl Program {
        async fn start() -> Self {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
                .env_clear()
                .env("DIFFUSER_MODEL_ID", "tiny-random")
                .env("DIFFUSER_PORT", port.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let program = Self { child, address: format!("http://127.0.0.1:{port}") };
            until_ready(&program.address).await;
            program
        }

        /// The most memory that it has held so far, in MiB.
        fn peak(&self) -> usize {
            self.status("VmHWM:")
        }

        /// The memory that it holds, in MiB.
        fn resident(&self) -> usize {
            self.status("VmRSS:")
        }

        fn status(&self, key: &str) -> usize {
            let path = format!("/proc/{}/status", self.child.id());
            let status = std::fs::read_to_string(path).unwrap();
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
        }

        async fn edit(&self, file: Vec<u8>) -> u16 {
            let fields = [("prompt", "darker"), ("num_inference_steps", "1"), ("size", "64x64")];
            let form =
                fields.into_iter().fold(Form::new(), |form, (name, text)| form.text(name, text));
            let form = form.part("image", file_part(file));
            let url = format!("{}/v1/images/edits", self.address);
            let sent = reqwest::Client::new().post(url).multipart(form).send().await;
            sent.unwrap().status().as_u16()
        }
    }

    /// A file of 16-bit pixels, half transparent.
    fn wide_png(side: u32) -> Vec<u8> {
        use std::io::Write;
        let mut file = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut file, side, side);
        encoder.set_color(::png::ColorType::Rgba);
        encoder.set_depth(::png::BitDepth::Sixteen);
        let mut writer = encoder.write_header().unwrap();
        let mut rows = writer.stream_writer().unwrap();
        let row = vec![0x80; side as usize * 8];
        (0..side).for_each(|_| rows.write_all(&row).unwrap());
        rows.finish().unwrap();
        drop(writer);
        file
    }

    #[tokio::test]
    async fn a_picture_of_16_bits_is_never_held_as_such() {
        let program = Program::start().await;
        let before = program.peak();

        assert_eq!(program.edit(wide_png(4096)).await, 200);

        // 64 MiB of colours and transparency; the file's pixels are 128 MiB.
        let grown = program.peak() - before;
        assert!(grown < 128, "{grown} MiB");
    }
    #[tokio::test]
    async fn what_requests_held_goes_back_to_the_system() {
        let program = Program::start().await;
        assert_eq!(program.edit(png(64, 48)).await, 200);
        let before = program.resident();
        let large = wide_png(4096);
        let edits = (0..4).map(|_| program.edit(large.clone()));
        assert_eq!(futures::future::join_all(edits).await, [200; 4]);
        assert!(program.peak() > before + 100, "nothing was held");

        // The pages go back a moment later.
        let mut grown = usize::MAX;
        for _ in 0..200 {
            grown = program.resident().saturating_sub(before);
            if grown < 60 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{grown} MiB stay");
    }
}
