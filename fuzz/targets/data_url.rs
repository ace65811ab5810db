//! Data URLs as `requests/data_url.rs` reads them: any text gives bytes, no more than its own,
//! or an error; and any bytes come back from the URLs that are made of them.
#![no_main]

/// The program's modules, without the rest of it.
#[path = "../../src/requests"]
mod requests {
    mod data_url;

    pub(crate) fn decode(url: &str) -> Option<Vec<u8>> {
        let decoded = data_url::decode(url);
        data_url::is_data_url(url).then(|| decoded.ok()).flatten()
    }
}

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(text) = str::from_utf8(input) {
        let bytes = requests::decode(text).unwrap_or_default();
        assert!(bytes.len() <= text.len());
    }
    let percent = input.iter().fold("data:,".to_owned(), |mut url, byte| {
        let _ = write!(url, "%{byte:02x}");
        url
    });
    let standard = format!("data:image/png;base64,{}", STANDARD.encode(input));
    let for_urls = format!("DATA:;base64,{}", URL_SAFE_NO_PAD.encode(input));
    for url in [percent, standard, for_urls] {
        assert_eq!(requests::decode(&url).as_deref(), Some(input));
    }
});
