//! The page to play with: who gets it, what it may do, and that all of it is there.

use std::collections::BTreeSet;

use reqwest::Response;

use crate::support::server::{Setup, TestServer, error_of, json_of};

const BROWSERS: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn page(server: &TestServer, path: &str) -> Response {
    server.get(path).header("accept", BROWSERS).send().await.unwrap()
}

/// What stands between quotes behind `before`.
fn quoted_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = text.split(before);
    rest.next();
    rest.filter_map(|rest| rest.split('"').next())
}

/// The files that the page names.
fn files_of(page: &str) -> BTreeSet<String> {
    let named = quoted_after(page, "href=\"").chain(quoted_after(page, "src=\""));
    named.map(str::to_owned).collect()
}

#[tokio::test]
async fn browsers_get_a_page_and_programs_the_facts() {
    let server = TestServer::start().await;

    let html = page(&server, "/").await;
    let (headers, html) = (html.headers().clone(), html.text().await.unwrap());
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(html.contains("<title>Playground</title>"), "{html}");
    assert_eq!(page(&server, "/playground").await.text().await.unwrap(), html);
    assert!(page(&server, "/playground/").await.url().path().ends_with("/playground"));
    for accept in ["*/*", "application/json", "text/html;q=0.1, application/json"] {
        let facts = server.get("/").header("accept", accept).send().await.unwrap();
        assert!(facts.headers().get_all("vary").iter().any(|vary| vary == "accept"));
        assert_eq!(json_of(facts).await["playground"], "/playground", "{accept}");
    }
    let anyway = server.get("/playground").send().await.unwrap();
    assert_eq!(anyway.text().await.unwrap(), html);
}

#[tokio::test]
async fn the_page_may_load_its_own_files_alone_and_is_known_again() {
    let server = TestServer::start().await;

    let first = page(&server, "/").await;

    let policy = first.headers()["content-security-policy"].to_str().unwrap();
    for part in ["default-src 'none'", "script-src 'self';", "style-src 'self';"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(first.headers().get_all("content-security-policy").iter().count(), 1);
    assert_eq!(first.headers()["cache-control"], "no-cache");
    assert_eq!(first.headers()["x-content-type-options"], "nosniff");
    let tag = &first.headers()["etag"];
    let again = server.get("/").header("accept", BROWSERS).header("if-none-match", tag);
    assert_eq!(again.send().await.unwrap().status(), 304);
    let docs = page(&server, "/docs/").await;
    assert!(docs.headers()["content-security-policy"].to_str().unwrap().contains("unsafe-inline"));
}

#[tokio::test]
async fn every_file_that_the_page_names_is_there_and_every_import_leads_to_one() {
    let server = TestServer::start().await;
    let html = page(&server, "/").await.text().await.unwrap();
    let mut waiting: Vec<String> = files_of(&html).into_iter().collect();
    let base = reqwest::Url::parse("http://server/").unwrap();
    let mut seen = BTreeSet::new();

    while let Some(address) = waiting.pop() {
        if !seen.insert(address.clone()) {
            continue;
        }
        let file = server.get(&format!("/{address}")).send().await.unwrap();
        assert_eq!(file.status(), 200, "{address}");
        let headers = file.headers().clone();
        assert_eq!(headers["cache-control"], "public, max-age=31536000, immutable");
        assert!(headers.get("content-security-policy").is_none(), "it is for pages");
        let text = file.text().await.unwrap();
        if !address.ends_with(".js") {
            continue;
        }
        assert!(headers["content-type"].to_str().unwrap().starts_with("text/javascript"));
        let imports = ["from \"", "import(\"", "new URL(\""].into_iter();
        let imports = imports.flat_map(|before| quoted_after(&text, before));
        let here = base.join(&address).unwrap();
        for import in imports.filter(|import| import.contains('.') && !import.ends_with("../")) {
            assert!(import.starts_with('.'), "{address} imports {import}");
            waiting.push(here.join(import).unwrap().path().trim_start_matches('/').to_owned());
        }
    }

    for name in ["js/app.js", "languages/de.js", "languages/zh.js", "style/stage.css", "icon.svg"] {
        assert!(seen.iter().any(|address| address.ends_with(name)), "{name}: {seen:?}");
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_was_there_before_is_no_file() {
    let server = TestServer::start().await;
    let html = page(&server, "/").await.text().await.unwrap();
    let app = quoted_after(&html, "src=\"").find(|src| src.ends_with("app.js")).unwrap();
    let folder = app.trim_end_matches("js/app.js");

    for name in ["js/no.js", "index.html", "README.md", "../Cargo.toml", "js/%2e%2e/app.js"] {
        let file = server.get(&format!("/{folder}{name}")).send().await.unwrap();
        error_of(file, 404, None).await;
    }
    let old = server.get("/playground/0123456789abcdef/js/app.js").send().await.unwrap();
    error_of(old, 404, None).await;
}

#[tokio::test]
async fn files_are_sent_compressed_to_those_who_take_that_and_all_of_them_are_small() {
    let server = TestServer::start().await;
    let html = page(&server, "/").await.text().await.unwrap();
    let mut bytes = 0;

    for address in files_of(&html) {
        let request = server.get(&format!("/{address}")).header("accept-encoding", "gzip");
        let file = request.send().await.unwrap();
        assert_eq!(file.headers()["content-encoding"], "gzip", "{address}");
        bytes += file.bytes().await.unwrap().len();
    }

    assert!((1..150_000).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn a_server_may_have_no_page() {
    let setup = Setup { adjust: |config| config.playground = false, ..Setup::default() };
    let server = setup.start().await;

    assert!(json_of(page(&server, "/").await).await["playground"].is_null());
    error_of(page(&server, "/playground").await, 404, None).await;
}
