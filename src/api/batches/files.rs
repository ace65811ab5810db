//! Files: in, listed, out, and gone.

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::wire::{DeletedFile, File, FileListing, UploadForm};
use super::{BatchDesk, invalid, limit_of, upload as form};
use crate::api::access::Permit;
use crate::api::error::{ApiError, BatchError};
use crate::api::state::AppState;
use crate::api::wire::{ErrorEnvelope, json_response};
use crate::jobs::batches::{FileId, FileOrder, FilePage, FilePurpose, FileRecord, Removed};

impl BatchDesk {
    /// The file that is called `id`, which must be of whoever asks.
    pub(super) async fn own_file(&self, permit: &Permit, id: &str) -> Result<FileRecord, ApiError> {
        let id: FileId = id.parse().map_err(|_| BatchError::UnknownFile)?;
        let found = self.store()?.file(id).await?;
        let record = found.filter(|record| record.owner == *permit.owner());
        record.ok_or_else(|| BatchError::UnknownFile.into())
    }
}

/// Send a file of requests
///
/// JSON Lines, each an object with `custom_id`, `method` (`POST`), `url` and `body`. A batch
/// makes what they ask for.
#[utoipa::path(
    post,
    operation_id = "upload_file",
    path = "/files",
    tag = "batches",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file", body = File),
        (status = 400, description = "A field is missing or wrong; `param` names it", body = ErrorEnvelope),
        (status = 413, description = "The file is larger than `batches.max_file_bytes`", body = ErrorEnvelope),
        (status = 503, description = "There is no room for it now", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn upload(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let record = form::store(&state, permit.owner(), request).await?;
    Ok(json_response(StatusCode::OK, &File::of(record)))
}

/// Files of a page, and at most.
const PAGE: usize = 10_000;

/// Which files to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct FilesQuery {
    /// Those of this purpose: `batch` or `batch_output`.
    purpose: Option<String>,
    /// How many, up to 10000; as many if absent.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    limit: Option<String>,
    /// Those behind this one: the `last_id` of the page before.
    #[param(pattern = "^file-[0-9a-f]{32}$")]
    after: Option<String>,
    /// `desc`, the latest first, or `asc`.
    order: Option<String>,
}

impl FilesQuery {
    /// `None` if no file is for that.
    fn page(&self) -> Result<Option<FilePage>, ApiError> {
        let limit = limit_of(self.limit.as_deref(), PAGE, PAGE)?;
        let after = self.after.as_deref();
        let after =
            after.map(|text| text.parse().map_err(|_| invalid("after", "the id of a file")));
        let order = match self.order.as_deref() {
            None | Some("desc") => FileOrder::Latest,
            Some("asc") => FileOrder::First,
            Some(_) => return Err(invalid("order", "'asc' or 'desc'")),
        };
        let known = |name: &str| FilePurpose::ALL.into_iter().find(|known| known.name() == name);
        let purpose = self.purpose.as_deref().map(known);
        let page = FilePage { limit, after: after.transpose()?, order, purpose: purpose.flatten() };
        Ok((purpose != Some(None)).then_some(page))
    }
}

/// The files of whoever asks
#[utoipa::path(
    get,
    operation_id = "list_files",
    path = "/files",
    tag = "batches",
    params(FilesQuery),
    responses(
        (status = 200, description = "A page of them", body = FileListing),
        (status = 400, description = "A parameter is wrong", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn list(
    State(state): State<AppState>,
    Query(query): Query<FilesQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let listing = match query.page()? {
        None => FileListing::of(Vec::new(), false),
        Some(page) => {
            let list = state.batches.store()?.files(permit.owner(), page).await?;
            FileListing::of(list.files.into_iter().map(File::of).collect(), list.has_more)
        }
    };
    Ok(json_response(StatusCode::OK, &listing))
}

/// What is known of a file
#[utoipa::path(
    get,
    operation_id = "retrieve_file",
    path = "/files/{id}",
    tag = "batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "The file", body = File),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn file(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let record = state.batches.own_file(&*Permit::of(&request)?, &id).await?;
    Ok(json_response(StatusCode::OK, &File::of(record)))
}

/// What is in a file
#[utoipa::path(
    get,
    operation_id = "file_content",
    path = "/files/{id}/content",
    tag = "batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "Its lines", content_type = "application/octet-stream"),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn content(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let record = state.batches.own_file(&*Permit::of(&request)?, &id).await?;
    let content = state.batches.store()?.content(record.id).await?;
    let mut response = Response::new(Body::from_stream(content.ok_or(BatchError::UnknownFile)?));
    let headers = response.headers_mut();
    let media_type = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(record.bytes));
    Ok(response)
}

/// Forget a file
#[utoipa::path(
    delete,
    operation_id = "delete_file",
    path = "/files/{id}",
    tag = "batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "It is `deleted`", body = DeletedFile),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
        (status = 409, description = "A batch that has not ended needs it", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn delete(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let record = state.batches.own_file(&*Permit::of(&request)?, &id).await?;
    match state.batches.store()?.remove_file(record.id).await? {
        Removed::Gone => Ok(json_response(StatusCode::OK, &DeletedFile::of(record.id))),
        Removed::InUse => Err(BatchError::FileInUse.into()),
    }
}
