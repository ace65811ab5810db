//! What answers tell browsers not to do with them.

use axum::http::{HeaderValue, header};
use axum::response::Response;

/// What a page may load, if it does not say so itself, and who may show it. Scripts are files of this server; of the
/// page's styles some stand in its elements. Pictures are shown from data URLs and from the
/// addresses in replies, which may be another host's.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src * data: blob:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// Adds them: to all answers that they are what they say, to pages what these may do.
pub(super) async fn add(mut response: Response) -> Response {
    let media_type = response.headers().get(header::CONTENT_TYPE);
    let is_page =
        media_type.is_some_and(|media_type| media_type.as_bytes().starts_with(b"text/html"));
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_page {
        headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(PAGE_POLICY);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        // For browsers that do not know frame-ancestors.
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    response
}
