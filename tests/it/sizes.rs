//! Sizes that clients ask for by habit, of a model that does not work at them: the
//! embedded one.

use diffuser_api::config::{Config, Sources};
use diffuser_api::domain::RgbImage;
use diffuser_api::imaging::codec::{self, OutputFormat};
use reqwest::multipart::Form;
use serde_json::Value;

use crate::support::files::decode;
use crate::support::server::{Setup, TestServer, file_part, image_bytes, json_of, pooled};

async fn demo() -> TestServer {
    let config = Config::load(&Sources::default()).unwrap();
    Setup::default().start_with(vec![pooled(&config.models[0].config)]).await
}

/// Colours that change slowly from left to right and from top to bottom.
fn gradient(width: usize, height: usize) -> RgbImage {
    let pixel = |index: usize| {
        let (x, y) = (index % width * 200 / width, index / width * 200 / height);
        [20 + x, 20 + y, 120].map(|value| u8::try_from(value).unwrap())
    };
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
}

/// The mean difference in levels, and the greatest mean of a row.
fn differences(a: &RgbImage, b: &RgbImage) -> (f64, f64) {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let levels = |(a, b): (&[u8], &[u8])| {
        let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        sum / a.len() as f64
    };
    let rows = a.pixels().chunks_exact(a.width() * 3).zip(b.pixels().chunks_exact(a.width() * 3));
    (levels((a.pixels(), b.pixels())), rows.map(levels).fold(0.0, f64::max))
}

async fn left_alone(server: &TestServer, input: &RgbImage, size: &str) -> Value {
    let file = codec::encode(&input.clone().into(), OutputFormat::Png).unwrap();
    let form = Form::new()
        .text("prompt", "leave it as it is")
        .text("size", size.to_owned())
        .text("seed", "1")
        .part("image", file_part(file));
    json_of(server.edit_in_background(form).await.unwrap()).await
}

#[tokio::test]
async fn the_demo_model_makes_no_noise_at_sizes_and_shapes_that_are_not_its_own() {
    let server = demo().await;
    // The middle 80 of 120 columns.
    let input = gradient(120, 80);
    let middle = |side: usize| {
        let pixel = |index: usize| {
            let (x, y) = ((index % side) as f64 + 0.5, (index / side) as f64 + 0.5);
            let (x, y) = ((20.0 + x * 80.0 / side as f64) / 120.0, y / side as f64);
            [20.0 + x * 200.0 - 0.8, 20.0 + y * 200.0 - 1.2, 120.0].map(|value| value as u8)
        };
        RgbImage::new(side, side, (0..side * side).flat_map(pixel).collect()).unwrap()
    };

    // The first lies in the range of its areas, and only the shape is another one.
    for (side, warnings) in [(96, 1), (256, 2)] {
        let reply = left_alone(&server, &input, &format!("{side}x{side}")).await;

        let made = decode(&image_bytes(&reply, 0));
        let (mean, worst_row) = differences(&made, &middle(side));
        // Noise is 60 levels off and more; the autoencoder's round trip about 1.
        assert!(mean < 4.0 && worst_row < 12.0, "{side}: {mean:.1}, {worst_row:.1}");
        let said = reply["warnings"].as_array().unwrap();
        assert_eq!(said.len(), warnings, "{said:?}");
        assert!(said.iter().all(|text| text.as_str().unwrap().contains("'size'")), "{said:?}");
    }
}

#[tokio::test]
async fn the_models_page_tells_at_which_areas_it_works() {
    let server = demo().await;

    let model = json_of(server.get("/v1/models/demo").send().await.unwrap()).await;

    assert_eq!(model["details"]["image_area_range"], serde_json::json!([8192, 28672]));
    assert_eq!(model["details"]["fills_beyond_input"], false);
}
