//! Requests over a WebSocket: several at once on one connection, each told of as it goes.
//!
//! A request is admitted, prepared, lined up and answered as one of HTTP is; only what it comes
//! in and what it is told by are messages. `socket` bounds what comes, `session` is the
//! connection, `asked` one request, `messages` what both sides say.

mod asked;
mod messages;
mod session;
mod socket;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::access::Permit;
use super::cors;
use super::deadline::Deadline;
use super::error::ApiError;
use super::origin::Origin;
use super::peer::Connection;
use super::state::AppState;
use super::wire::ErrorEnvelope;
use crate::service::ServiceError;
use asked::Asker;
use socket::{Meter, Metered, READ_BYTES};

/// The protocol that is spoken, by OpenAI's name: browsers want one of theirs back.
const PROTOCOL: &str = "realtime";

/// Several requests at once over a WebSocket
///
/// The client sends JSON in text frames:
///
/// - `{"type": "image.create", "id": "a1", "endpoint": "edits", "body": {…}}`: `endpoint` is
///   `edits` or `generations`, `body` what it takes as JSON (`EditJson`, `GenerationJson`), `id`
///   the client's name for the request, which no other open one may have. With `background`
///   in the body it is a job, and may have an `idempotency_key` beside it.
/// - `{"type": "image.cancel", "id": "a1"}`
/// - `{"type": "job.follow", "id": "f1", "job": "job_…", "last_event": 0}`: tells of a job from
///   the event after `last_event` on
/// - `{"type": "job.unfollow", "id": "f1"}`
///
/// The server answers each with the `id`:
///
/// - `session.created` at first: `max_message_bytes`, `max_open` (requests and followed jobs at
///   a time)
/// - `image.queued`: `position`, how many wait that came before
/// - `image.progress`: `stage` (not where a worker makes them), `picture` of `pictures`, `step` of
///   `total`, `eta_ms`
/// - `image.partial_image`: an `ImageEvent`, with `partial_images` in the body
/// - one end: `image.completed` with `response`, what the endpoint would have answered
///   (`ImagesResponse`); `image.accepted` with `job` (`ImageJob`); `image.failed` with `error`
///   (as in `ErrorEnvelope`), `status` and perhaps `retry_after_ms`; or `image.cancelled`
/// - `job.queued`, `job.progress`, then `job.completed`, `job.failed` or `job.cancelled`: `event`,
///   a number for `last_event`, and `job` (`ImageJob`); `job.partial_image` in between, an
///   `ImageEvent`; or `job.unfollowed`
/// - `error`, of a message that was not understood
///
/// Closing the socket calls off what is not in the background. `x-request-timeout-ms` of the
/// opening holds for each request. Pages send their key among the
/// protocols: `["realtime", "openai-insecure-api-key.KEY"]`.
#[utoipa::path(
    get,
    operation_id = "realtime",
    path = "/realtime/images",
    tag = "images",
    responses(
        (status = 101, description = "The WebSocket is open"),
        (status = 400, description = "A header is wrong", body = ErrorEnvelope),
        (status = 403, description = "A page of another origin", body = ErrorEnvelope),
        (status = 426, description = "The request opens no WebSocket", body = ErrorEnvelope),
        (status = 503, description = "The server is shutting down", body = ErrorEnvelope),
    )
)]
pub(super) async fn images(
    State(state): State<AppState>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    if !cors::may_call(request.headers(), &state.config) {
        return Err(ApiError::ForeignOrigin);
    }
    let accept = accept_key(request.headers()).ok_or(ApiError::NotWebSocket)?;
    let by = request.extensions().get::<Connection>().cloned().ok_or(ApiError::NotWebSocket)?;
    if !state.service().status().accepting {
        return Err(ServiceError::ShuttingDown.into());
    }
    let route = request.extensions().get::<MatchedPath>();
    let asker = Asker {
        permit,
        origin: Origin::of(request.headers(), &state.config),
        patience: Deadline::asked(request.headers())?,
        route: route.map_or("(none)", MatchedPath::as_str).to_owned(),
        state,
    };
    let protocol = offers_protocol(request.headers());
    let upgraded = hyper::upgrade::on(&mut request);
    let activity = by.activity.clone();
    by.hand_over(Box::pin(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let meter = Meter::new(&asker.state.requests.memory);
        let stream = Metered::new(TokioIo::new(upgraded), meter.clone());
        let limits = limits(asker.state.config.max_upload_bytes);
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await;
        session::run(socket, meter, asker, activity).await;
    }));
    Ok(opened(&accept, protocol))
}

/// What the client is told that shows that its question was understood; `None` if it asks for
/// no WebSocket.
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, word: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case(word))
    };
    let is_asked_for = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_asked_for)?;
    derive_accept_key(key.as_bytes()).parse().ok()
}

fn offers_protocol(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|protocol| protocol.trim() == PROTOCOL)
}

fn opened(accept: &HeaderValue, has_protocol: bool) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
    if has_protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    response
}

/// No message is larger than the body of a request may be.
fn limits(max_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(max_bytes))
        .max_frame_size(Some(max_bytes))
}
