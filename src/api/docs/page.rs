//! The page on which the OpenAPI document can be tried out: Swagger UI, with a start of
//! our own.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config;

use super::UI_PATH;

/// The script that starts the page, in place of Swagger UI's own.
const START: &str = "swagger-initializer.js";

/// Routes of the page.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let index = format!("{UI_PATH}/");
    Router::new()
        .route(UI_PATH, get(move || async move { Redirect::to(&index) }))
        .route(&format!("{UI_PATH}/"), get(|| async { file("index.html") }))
        .route(
            &format!("{UI_PATH}/{{*file}}"),
            get(|Path(path): Path<String>| async move { file(&path) }),
        )
}

fn file(path: &str) -> Response {
    if path == START {
        return send("text/javascript", include_str!("page.js"));
    }
    match utoipa_swagger_ui::serve(path, Arc::new(Config::default())) {
        Ok(Some(file)) => send(&file.content_type, file.bytes.into_owned()),
        Ok(None) | Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

fn send(media_type: &str, bytes: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, media_type)], bytes.into()).into_response()
}
