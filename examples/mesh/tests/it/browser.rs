//! Headless Chromium, driven over WebDriver. `BUTTRESS_TEST_CHROMEDRIVER` has the path of the
//! driver; without it these tests, whose names begin with `in_chromium`, are left out.
//!
//! The six commands that the tests need are implemented here. The crates that implement all of
//! WebDriver enable serde_json's `preserve_order` for the whole workspace, so the tested mesh would
//! differ from the released one.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, header};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Customer, offered, until};

const VARIABLE: &str = "BUTTRESS_TEST_CHROMEDRIVER";

/// The key that identifies an element (W3C WebDriver, section "Elements").
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// No sandbox, because CI runs as root, and no background traffic.
const ARGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1500",
];

/// An open page.
pub(crate) struct Page {
    driver: Customer,
    session: String,
}

/// Opens `url` in a new browser and runs `look` on it. The browser is closed even if `look` panics.
pub(crate) async fn visit(url: &str, look: impl AsyncFnOnce(&Page)) {
    let Some(program) = offered(VARIABLE) else { return };
    let profile = tempfile::tempdir().unwrap();
    let (_process, driver) = start(&program).await;
    let args: Vec<_> =
        ARGS.into_iter().map(str::to_owned).chain([format!("--user-data-dir={}", profile.path().display())]).collect();
    let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
    let session = command(&driver, Method::POST, "/session", &wanted).await.unwrap();
    let page = Page { driver, session: session["sessionId"].as_str().unwrap().to_owned() };
    page.command("url", json!({ "url": url })).await.unwrap();
    let outcome = AssertUnwindSafe(look(&page)).catch_unwind().await;
    command(&page.driver, Method::DELETE, &format!("/session/{}", page.session), &Value::Null).await.unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Starts the driver on a free port.
async fn start(program: &str) -> (Child, Customer) {
    let mut driver =
        Command::new(program).arg("--port=0").stdout(Stdio::piped()).kill_on_drop(true).spawn().expect(VARIABLE);
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let port: u16 = port.trim_end_matches('.').parse().unwrap();
            // Keeps reading the driver's output; otherwise it would block when the pipe is full.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (driver, Customer::new(format!("http://127.0.0.1:{port}")));
        }
    }
    panic!("{program} has ended without a port");
}

/// Returns the command's value, or the driver's error value.
async fn command(driver: &Customer, method: Method, path: &str, body: &Value) -> Result<Value, Value> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let mut reply = driver.send(request.body(body.into()).unwrap()).await;
    let value = reply.body["value"].take();
    if reply.status.is_success() { Ok(value) } else { Err(value) }
}

impl Page {
    async fn command(&self, name: &str, body: Value) -> Result<Value, Value> {
        command(&self.driver, Method::POST, &format!("/session/{}/{name}", self.session), &body).await
    }

    /// Runs a script in the page, with `args` as its `arguments`.
    pub(crate) async fn script(&self, script: &str, args: Value) -> Value {
        self.command("execute/sync", json!({ "script": script, "args": args })).await.unwrap()
    }

    /// Waits until an element matches.
    pub(crate) async fn sees(&self, css: &str) {
        until(css, async || self.count(css).await > 0).await;
    }

    pub(crate) async fn count(&self, css: &str) -> u64 {
        self.script("return document.querySelectorAll(arguments[0]).length", json!([css])).await.as_u64().unwrap()
    }

    /// The visible text of the first match.
    pub(crate) async fn text(&self, css: &str) -> String {
        let text = self.script("return document.querySelector(arguments[0])?.innerText ?? ''", json!([css])).await;
        text.as_str().unwrap().to_owned()
    }

    /// Clicks an element. Retries if the page is redrawn between finding and clicking it.
    pub(crate) async fn click(&self, css: &str) {
        until(css, async || {
            let found = self.command("element", json!({ "using": "css selector", "value": css })).await;
            let Ok(Some(id)) = found.as_ref().map(|element| element[ELEMENT].as_str()) else { return false };
            self.command(&format!("element/{id}/click"), json!({})).await.is_ok()
        })
        .await;
    }

    /// Gives the page this size, whatever the smallest window of the browser is.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": true });
        let body = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": params });
        self.command("goog/cdp/execute", body).await.unwrap();
    }

    /// Saves a screenshot as PNG.
    pub(crate) async fn screenshot(&self, path: &Path) {
        let path_of = format!("/session/{}/screenshot", self.session);
        let shot = command(&self.driver, Method::GET, &path_of, &Value::Null).await.unwrap();
        std::fs::write(path, BASE64_STANDARD.decode(shot.as_str().unwrap()).unwrap()).unwrap();
    }
}
