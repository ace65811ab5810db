//! What each class of checkpoint answers: 200, 400 or 501, with the tiny
//! checkpoints of every class behind the whole server.

use diffuser_api::config::{Config, Environment, Sources};
use reqwest::multipart::Form;
use serde_json::json;

use crate::support::files::{png, white};
use crate::support::server::{Setup, TestServer, error_of, file_part, json_of, pooled};

/// A request that a class either serves or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Generation,
    Edit,
    EditOfTwo,
    Mask,
    Strength,
    Layers,
    Transparent,
    TrueCfgScale,
    GuidanceScale,
    Variation,
}

use Ask::{
    Edit, EditOfTwo, Generation, GuidanceScale, Layers, Mask, Strength, Transparent, TrueCfgScale,
    Variation,
};

/// The answers of one class, by its checkpoint: status and `param`.
pub(crate) struct Matrix {
    pub(crate) checkpoint: &'static str,
    answers: &'static [(Ask, u16, Option<&'static str>)],
}

pub(crate) const MATRICES: &[Matrix] = &[
    Matrix {
        checkpoint: "fixtures/ckpt/qwen-image-edit",
        answers: &[
            (Edit, 200, None),
            (EditOfTwo, 200, None),
            (Mask, 200, None),
            (TrueCfgScale, 200, None),
            (Strength, 400, Some("strength")),
            (Layers, 400, Some("layers")),
            (Transparent, 400, Some("background")),
            (GuidanceScale, 400, Some("guidance_scale")),
            (Generation, 501, None),
            (Variation, 501, None),
        ],
    },
    Matrix {
        checkpoint: "fixtures/ckpt/qwen-image-edit-2511",
        answers: &[
            (Edit, 200, None),
            (EditOfTwo, 200, None),
            (TrueCfgScale, 200, None),
            (Mask, 501, Some("mask")),
            (Strength, 400, Some("strength")),
            (Layers, 400, Some("layers")),
            (GuidanceScale, 400, Some("guidance_scale")),
            (Generation, 501, None),
            (Variation, 501, None),
        ],
    },
    Matrix {
        checkpoint: "fixtures/ckpt/qwen-image",
        answers: &[
            (Generation, 200, None),
            (Edit, 200, None),
            (Strength, 200, None),
            (Mask, 200, None),
            (Variation, 200, None),
            (TrueCfgScale, 200, None),
            (EditOfTwo, 400, Some("image")),
            (Layers, 400, Some("layers")),
            (GuidanceScale, 400, Some("guidance_scale")),
        ],
    },
    Matrix {
        checkpoint: "fixtures/ckpt/qwen-image-layered",
        answers: &[
            (Edit, 200, None),
            (Layers, 200, None),
            (Transparent, 200, None),
            (EditOfTwo, 400, Some("image")),
            (Strength, 400, Some("strength")),
            (Mask, 501, Some("mask")),
            (Generation, 501, None),
            (Variation, 501, None),
        ],
    },
    Matrix {
        checkpoint: "stable_diffusion/sd",
        answers: &[
            (Generation, 200, None),
            (Edit, 200, None),
            (Strength, 200, None),
            (Variation, 200, None),
            (GuidanceScale, 200, None),
            (TrueCfgScale, 400, Some("true_cfg_scale")),
            (EditOfTwo, 400, Some("image")),
            (Layers, 400, Some("layers")),
            (Mask, 501, Some("mask")),
        ],
    },
];

/// A server of a tiny checkpoint, at a small area.
pub(crate) async fn server_of(checkpoint: &str) -> TestServer {
    let folder = format!("{}/tests/data/{checkpoint}", env!("CARGO_MANIFEST_DIR"));
    let variables = [
        ("DIFFUSER_MODEL_ID", folder.as_str()),
        ("DIFFUSER_DEVICE", "cpu"),
        ("DIFFUSER_IMAGE_AREA", "4096"),
        ("DIFFUSER_CONDITION_AREA", "4096"),
        ("DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", "2"),
    ];
    let environment = Environment::from_iter(variables);
    let config = Config::load(&Sources { environment, ..Sources::default() }).unwrap();
    Setup::default().start_with(vec![pooled(&config.models[0].config)]).await
}

async fn answer(server: &TestServer, ask: Ask) -> reqwest::Response {
    let picture = || file_part(png(64, 64));
    let form = Form::new().part("image", picture()).text("prompt", "a red boat");
    let request = match ask {
        Generation => {
            let object = json!({"prompt": "a red boat", "size": "64x64"});
            return server.post("/v1/images/generations").json(&object).send().await.unwrap();
        }
        Variation => {
            let form = Form::new().part("image", picture());
            let request = server.post("/v1/images/variations").multipart(form);
            return request.send().await.unwrap();
        }
        Edit => form,
        EditOfTwo => form.part("image[]", picture()),
        Mask => form.part("mask", file_part(white(64, 64))).text("strength", "1"),
        Strength => form.text("strength", "0.6"),
        Layers => form.text("layers", "2"),
        Transparent => form.text("background", "transparent"),
        TrueCfgScale => form.text("true_cfg_scale", "2"),
        GuidanceScale => form.text("guidance_scale", "2"),
    };
    server.edit(request).await
}

#[tokio::test]
async fn every_class_serves_what_it_can_and_refuses_the_rest_by_name() {
    for Matrix { checkpoint, answers } in MATRICES {
        let server = server_of(checkpoint).await;
        for (ask, status, param) in *answers {
            let response = answer(&server, *ask).await;
            println!("{checkpoint} {ask:?}: {}", response.status());
            if *status == 200 {
                json_of(response).await;
            } else {
                error_of(response, *status, *param).await;
            }
        }
    }
}
