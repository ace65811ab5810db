//! What clients and the log get of an error.

use super::*;
use crate::model::ModelError;

#[tokio::test]
async fn numbers_that_are_not_finite_are_a_500_that_names_the_stage() {
    let cause = ModelError::NotFinite { stage: "VAE decoder".to_owned(), dtype: "float16" };

    let response = ApiError::from(ServiceError::from(cause)).into_response();

    assert_eq!(response.status(), 500);
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("VAE decoder") && message.contains("float16"), "{message}");
    assert_eq!(body["error"]["type"], "server_error");
}

#[test]
fn causes_reach_the_log_and_not_the_client() {
    let cause = ModelError::BadOutput("NaN at /secret/path".to_owned());

    let response = ApiError::from(ServiceError::from(cause)).into_response();

    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let Cause(logged) = response.extensions().get::<Cause>().unwrap();
    assert_eq!(logged, "the model failed: model produced NaN at /secret/path");
}

#[test]
fn a_panic_of_a_handler_is_a_500_with_its_words_in_the_log_only() {
    let response = panicked(Box::new("index out of bounds"));

    assert_eq!(response.status(), 500);
    let Cause(logged) = response.extensions().get::<Cause>().unwrap();
    assert_eq!(logged, "a handler panicked: index out of bounds");
}

#[tokio::test]
async fn plain_text_errors_keep_their_status_and_headers_in_the_envelope() {
    let foreign = (StatusCode::RANGE_NOT_SATISFIABLE, [("x-own", "kept")], "no such range");

    let wrapped = wrap_foreign(foreign.into_response()).await;

    assert_eq!(wrapped.status(), 416);
    assert_eq!(wrapped.headers()["x-own"], "kept");
    assert_eq!(wrapped.headers()["content-type"], "application/json");
    assert!(!wrapped.headers().contains_key("content-length"));
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let response =
        ApiError::from(ServiceError::Busy { waiting: 3, retry_after_s: 17 }).into_response();

    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "17");
}
