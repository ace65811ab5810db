//! What clients send as pictures and masks, and what they are told of how it was read.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use diffuser_api::domain::{GreyImage, Picture, RgbImage, Task, TaskKind};
use diffuser_api::imaging::codec::{OutputFormat, encode};
use diffuser_api::model::ModelCard;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files::{decode_picture, png, white};
use crate::support::scripted_model;
use crate::support::server::{
    Setup, TestServer, error_of, file_part, image_bytes, json_of, prompt_form,
};

const WIDTH: usize = 64;
const HEIGHT: usize = 48;

async fn server(adjust: impl FnOnce(&mut ModelCard)) -> TestServer {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::Inpainting);
    adjust(&mut card);
    Setup { card, ..Setup::default() }.start().await
}

/// Transparent but for its middle, and `hidden` in colour there.
fn glassy(hidden: [u8; 3]) -> Vec<u8> {
    let is_seen = |at: usize| (16..48).contains(&(at % WIDTH)) && (12..36).contains(&(at / WIDTH));
    let colour = |at: usize| if is_seen(at) { [10, 120, 200] } else { hidden };
    let alpha = |at: usize| if is_seen(at) { 255 } else { 0 };
    let area = WIDTH * HEIGHT;
    let colours = RgbImage::new(WIDTH, HEIGHT, (0..area).flat_map(colour).collect()).unwrap();
    let alpha = GreyImage::new(WIDTH, HEIGHT, (0..area).map(alpha).collect()).unwrap();
    encode(&Picture::with_alpha(colours, alpha).unwrap(), OutputFormat::Png).unwrap()
}

/// White in its left half, black in the other.
fn left_half() -> Vec<u8> {
    let tone = |at: usize| if at % WIDTH < WIDTH / 2 { [255; 3] } else { [0; 3] };
    let tones = (0..WIDTH * HEIGHT).flat_map(tone).collect();
    let mask = RgbImage::new(WIDTH, HEIGHT, tones).unwrap();
    encode(&mask.into(), OutputFormat::Png).unwrap()
}

fn edit_of(picture: Vec<u8>) -> Form {
    prompt_form().part("image", file_part(picture))
}

fn warnings_of(reply: &Value) -> Vec<&str> {
    let warnings = reply["warnings"].as_array().into_iter().flatten();
    warnings.map(|warning| warning.as_str().unwrap()).collect()
}

#[tokio::test]
async fn pictures_that_look_alike_are_alike_to_a_model_without_transparency() {
    let mut server = server(|_| {}).await;
    let mut shown = Vec::new();
    for hidden in [[0; 3], [255, 0, 0], [255; 3]] {
        let form = edit_of(glassy(hidden)).part("image[]", file_part(glassy(hidden)));
        let reply = json_of(server.edit(form).await).await;

        assert_eq!(reply["background"], "opaque");
        let about = warnings_of(&reply).into_iter().filter(|text| text.contains("transparent"));
        assert_eq!(about.count(), 1, "{reply}");
        let Task::Edit { images } = server.next_request().await.task else { panic!("an edit") };
        assert!(images.iter().all(|image| image.alpha().is_none()));
        assert_eq!(images[0].colour().pixels()[..3], [255; 3]);
        shown.push(images);
    }
    assert!(shown[0] == shown[1] && shown[1] == shown[2]);

    let opaque = json_of(server.edit(edit_of(png(WIDTH, HEIGHT))).await).await;
    assert!(warnings_of(&opaque).is_empty(), "{opaque}");
}

#[tokio::test]
async fn outside_a_mask_transparency_comes_back_and_inside_it_is_painted_over() {
    let server = server(|_| {}).await;
    let input = glassy([255, 0, 0]);
    let form = edit_of(input.clone()).part("mask", file_part(left_half()));

    let reply = json_of(server.edit(form).await).await;

    assert_eq!(
        (&reply["background"], &reply["mask_convention"]),
        (&json!("transparent"), &json!("white"))
    );
    assert_eq!(warnings_of(&reply).len(), 1, "{reply}");
    let (input, picture) = (decode_picture(&input), decode_picture(&image_bytes(&reply, 0)));
    let alpha = |picture: &Picture, at: usize| picture.alpha().unwrap().pixels()[at];
    for at in (0..WIDTH * HEIGHT).filter(|at| at % WIDTH >= WIDTH / 2) {
        let colour = |picture: &Picture| picture.colour().pixels()[3 * at..3 * at + 3].to_vec();
        assert_eq!(colour(&picture), colour(&input));
        assert_eq!(alpha(&picture, at), alpha(&input, at));
    }
    assert_eq!((alpha(&input, 0), alpha(&picture, 0)), (0, 255));
}

#[tokio::test]
async fn a_model_that_takes_transparency_gets_it_as_it_is() {
    let mut server = server(|card| {
        card.takes_transparency = true;
        // Works at the picture's own size.
        card.image_area = WIDTH * HEIGHT;
    })
    .await;

    let reply = json_of(server.edit(edit_of(glassy([255, 0, 0]))).await).await;

    assert!(warnings_of(&reply).is_empty(), "{reply}");
    let Task::Edit { images } = server.next_request().await.task else { panic!("an edit") };
    assert_eq!(images[0], decode_picture(&glassy([255, 0, 0])));
}

#[tokio::test]
async fn a_reply_says_how_the_mask_was_understood_and_a_mask_of_nothing_is_refused() {
    let server = server(|_| {}).await;
    let masked = |mask: Vec<u8>| edit_of(png(WIDTH, HEIGHT)).part("mask", file_part(mask));

    let reply = json_of(server.edit(masked(glassy([0; 3]))).await).await;
    assert_eq!(
        (&reply["mask_convention"], &reply["warnings"]),
        (&json!("transparent"), &Value::Null)
    );
    let doubtful = json_of(server.edit(masked(white(WIDTH, HEIGHT))).await).await;
    assert_eq!(doubtful["mask_convention"], "white");
    assert!(warnings_of(&doubtful)[0].starts_with("'mask' is white"), "{doubtful}");
    let without = json_of(server.edit(edit_of(png(WIDTH, HEIGHT))).await).await;
    assert_eq!(without["mask_convention"], Value::Null);

    let stream = masked(left_half()).text("stream", "true");
    let events = server.edit(stream).await.text().await.unwrap();
    let completed = events.lines().rfind(|line| line.starts_with("data:")).unwrap();
    assert!(completed.contains("\"mask_convention\":\"white\""), "no convention");

    // A photograph is no mask.
    let error = error_of(server.edit(masked(png(WIDTH, HEIGHT))).await, 400, Some("mask")).await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("transparent") && message.contains("white"), "{message}");
}

#[tokio::test]
async fn base64_is_read_in_all_the_ways_that_clients_write_it() {
    let server = server(|_| {}).await;
    let (image, mask) = (png(WIDTH, HEIGHT), left_half());
    let lines = |file: &[u8]| {
        let text = STANDARD.encode(file);
        let lines: Vec<&str> =
            text.as_bytes().chunks(76).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("data:image/png;base64,{}\r\n", lines.join("\r\n"))
    };
    let for_urls = |file: &[u8]| format!("data:;base64,{}", URL_SAFE_NO_PAD.encode(file));
    let with_parameters =
        |file: &[u8]| format!("data:image/png;charset=utf-8;base64,{}", STANDARD.encode(file));
    for url in [&lines as &dyn Fn(&[u8]) -> String, &for_urls, &with_parameters] {
        let object = json!({
            "prompt": "x", "images": [{"image_url": url(&image)}], "mask": {"image_url": url(&mask)},
        });
        json_of(server.edit_json(&object).await).await;
        json_of(server.edit(prompt_form().text("url", url(&image)).text("mask", url(&mask))).await)
            .await;
    }
}

#[tokio::test]
async fn what_is_no_picture_is_named() {
    let server = server(|_| {}).await;
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice();
    for (file, name) in [(heic, "HEIC"), (b"<!doctype html><html>", "HTML"), (b"{}", "JSON")] {
        let error = error_of(server.edit(edit_of(file.to_vec())).await, 400, Some("image")).await;
        assert!(error["message"].as_str().unwrap().contains(name), "{error}");
        assert_eq!(error["code"], "invalid_image_file");
    }
}

#[tokio::test]
async fn a_colour_profile_that_was_dropped_is_named() {
    let server = server(|_| {}).await;
    let file = png(WIDTH, HEIGHT);
    // Name, method, and a compressed profile that is none. The checksum of a chunk that
    // may be skipped does not count.
    let content = [b"Wide\0\0".as_slice(), b"broken"].concat();
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let file = [&file[..33], &length, b"iCCP", &content, &[0; 4], &file[33..]].concat();

    let reply = json_of(server.edit(edit_of(file)).await).await;

    let warnings = warnings_of(&reply);
    assert!(warnings[0].contains("'image'") && warnings[0].contains("\"Wide\""), "{warnings:?}");
}
