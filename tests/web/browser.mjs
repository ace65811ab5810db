// A server of our own, and Chromium on its page.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { createServer as createHttpServer, request } from "node:http";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

/** How long anything may take, in milliseconds: a debug build on a busy machine is slow. */
export const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 240_000);

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const freePort = () =>
  new Promise((resolve) => {
    const listener = createServer().listen(0, "127.0.0.1", () => {
      const { port } = listener.address();
      listener.close(() => resolve(port));
    });
  });

/** Starts a server; `stop` ends it. */
export async function startServer({ models = ["demo"], variables = {} } = {}) {
  const port = await freePort();
  const flags = models.flatMap((model) => ["--model", model]);
  const child = spawn(process.env.BINARY, [...flags, "--port", String(port)], {
    cwd: mkdtempSync(join(tmpdir(), "playground-")),
    env: { ...process.env, ...variables },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let log = "";
  child.stderr.on("data", (text) => {
    log = (log + text).slice(-4000);
  });
  const url = `http://127.0.0.1:${port}`;
  const until = Date.now() + PATIENCE_MS;
  for (;;) {
    const ready = await fetch(`${url}/ready`).catch(() => null);
    if (ready?.ok) break;
    if (Date.now() > until || child.exitCode !== null) throw new Error(`the server does not start: ${log}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return { url, stop: () => child.kill("SIGKILL") };
}

/** A proxy that has the server behind a path. */
export async function startProxy(server, path) {
  const port = await freePort();
  const proxy = createHttpServer((incoming, outgoing) => {
    if (!incoming.url.startsWith(`${path}/`)) return outgoing.writeHead(404).end();
    const { method, headers } = incoming;
    const asked = request(server.url + incoming.url.slice(path.length), { method, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    incoming.pipe(asked);
  });
  await new Promise((resolve) => proxy.listen(port, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${port}${path}/`, stop: () => proxy.close() };
}

export const launch = () => chromium.launch({ executablePath: CHROMIUM, args: FLAGS });

/** A window of its own, with nothing stored; faults of the page fail the test that closes it. */
export async function openWindow(browser, options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1360, height: 860 },
    locale: "en-US",
    colorScheme: "light",
    ...options,
  });
  context.setDefaultTimeout(PATIENCE_MS);
  await context.addInitScript(countPreviews);
  const faults = [];
  const requests = [];
  context.on("page", (page) => {
    page.on("pageerror", (error) => faults.push(error.stack ?? error.message));
    page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
    page.on("request", (request) => requests.push(request.url()));
  });
  return { context, faults, requests };
}

/** In the page: counts the unfinished pictures that are shown. */
function countPreviews() {
  window.previews = [];
  const note = () => {
    const source = document.querySelector(".preview")?.src;
    if (source && window.previews.at(-1) !== source) window.previews.push(source);
  };
  new MutationObserver(note).observe(document, {
    subtree: true,
    childList: true,
    attributes: true,
    attributeFilter: ["src"],
  });
}

/** Opens the page, and waits until the server has told what it is. */
export async function openPage(context, url) {
  const page = await context.newPage();
  await page.goto(url);
  await page.waitForSelector("body[data-ready]");
  return page;
}

/** Drops a file onto the page, as from the desktop. */
export async function drop(page, path, name = "picture.png") {
  const base64 = readFileSync(path).toString("base64");
  await dropBytes(page, base64, name);
}

export async function dropBytes(page, base64, name) {
  const transfer = await page.evaluateHandle(
    ([text, fileName]) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], fileName, { type: "image/png" }));
      return data;
    },
    [base64, name],
  );
  for (const event of ["dragenter", "dragover", "drop"]) {
    await page.dispatchEvent("main", event, { dataTransfer: transfer });
  }
}

/** The pixels of an image or a canvas of the page: { width, height, data }. */
export const pixelsOf = (page, selector) =>
  page.locator(selector).evaluate((element) => {
    const width = element.naturalWidth ?? element.width;
    const height = element.naturalHeight ?? element.height;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(element, 0, 0);
    return { width, height, data: [...context.getImageData(0, 0, width, height).data] };
  });

/** Presses *Go*, and waits for the result. */
export async function make(page) {
  await page.click("#go");
  await page.waitForSelector(".stage[data-view=running]");
  await page.waitForSelector(".stage[data-view=result] .after-image");
}
