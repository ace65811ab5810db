// The page as people use it: each test is something that somebody does.
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import {
  drop,
  dropBytes,
  launch,
  make,
  openPage,
  openWindow,
  PATIENCE_MS,
  pixelsOf,
  startProxy,
  startServer,
} from "./browser.mjs";

const { ROOT, PICTURES } = process.env;
const PHOTO = join(ROOT, "tests/data/fixtures/golden/inputs/edit_cfg.image0.png");
const SHOTS = join(ROOT, "target/web/screenshots");
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const LANGUAGES = ["en", "de", "es", "zh"];

let browser;
let server;

before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  [browser, server] = await Promise.all([launch(), startServer()]);
});

after(async () => {
  await browser?.close();
  server?.stop();
});

/** A test in a window of its own, in which the page must not fail. */
function inWindow(name, options, body) {
  test(name, { timeout: 2 * PATIENCE_MS }, async () => {
    const window = await openWindow(browser, options);
    try {
      await body(window);
      assert.deepEqual(window.faults, []);
    } finally {
      await window.context.close();
    }
  });
}

const shot = (page, name) => page.screenshot({ path: join(SHOTS, `${name}.png`), animations: "disabled" });

/** What axe-core finds wrong. */
async function violations(page) {
  // The page's policy lets no text become a script; a test may put one in by itself.
  const session = await page.context().newCDPSession(page);
  await session.send("Runtime.evaluate", { expression: AXE });
  const { result } = await session.send("Runtime.evaluate", {
    expression:
      "axe.run(document, { resultTypes: ['violations'] }).then((found) => JSON.stringify(found.violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => [html.slice(0, 160), failureSummary])])))",
    awaitPromise: true,
    returnByValue: true,
  });
  return JSON.parse(result.value);
}

const sample = (page, name) => page.click(`.sample >> nth=${["landscape", "shapes"].indexOf(name)}`);

inWindow(
  "the first paint is soon, the page small, and nothing is asked of anybody else",
  {},
  async ({ context, requests }) => {
    const page = await context.newPage();
    let bytes = 0;
    page.on("response", async (response) => {
      const { responseBodySize } = await response
        .request()
        .sizes()
        .catch(() => ({ responseBodySize: 0 }));
      if (!/openapi|\/v1\//.test(response.url())) bytes += responseBodySize;
    });
    await page.goto(server.url);
    await page.waitForSelector("body[data-ready]");
    const paint = await page.evaluate(
      () => performance.getEntriesByName("first-contentful-paint")[0].startTime,
    );
    const shift = await page.evaluate(
      () =>
        new Promise((resolve) => {
          new PerformanceObserver((list) =>
            resolve(list.getEntries().reduce((sum, { value }) => sum + value, 0)),
          ).observe({
            type: "layout-shift",
            buffered: true,
          });
          setTimeout(() => resolve(0), 500);
        }),
    );

    const others = requests.filter((url) => !url.startsWith(server.url) && !url.startsWith("blob:"));
    assert.deepEqual(others, []);
    assert.ok(bytes < 150_000, `${bytes} bytes`);
    assert.ok(shift < 0.001, `layout shift ${shift}`);
    console.log(
      `first paint ${Math.round(paint)} ms, ${requests.length} requests, ${bytes} bytes, layout shift ${shift}`,
    );
    requests.length = 0;
    await page.reload();
    await page.waitForSelector("body[data-ready]");
  },
);

inWindow(
  "a sample is edited with two clicks, and the picture sharpens meanwhile",
  {},
  async ({ context }) => {
    const page = await openPage(context, server.url);
    await shot(page, "empty-light");
    await sample(page, "landscape");
    await page.click("#go");
    await page.waitForFunction(() => window.previews.length >= 2);
    await shot(page, "running-light");
    assert.match(await page.textContent(".progress"), /Step \d of \d|Finishing/);
    await page.waitForSelector(".stage[data-view=result] .after-image");
    await page.waitForTimeout(300);
    await shot(page, "compare-light");

    assert.ok((await page.evaluate(() => window.previews.length)) >= 2);
    const boxes = await Promise.all(
      [".before-image", ".after-image"].map((image) => page.locator(image).boundingBox()),
    );
    assert.deepEqual(boxes[0], boxes[1], "both lie over each other");
    const [one, two] = [await pixelsOf(page, ".before-image"), await pixelsOf(page, ".after-image")];
    assert.deepEqual([one.width, one.height], [two.width, two.height]);
    assert.notDeepEqual(one.data, two.data);
  },
);

inWindow(
  "a dropped picture is edited, kept in the history, and made again from its file",
  {},
  async ({ context }) => {
    let page = await openPage(context, server.url);
    await drop(page, PHOTO, "photo.png");
    await page.waitForSelector(".stage[data-view=input]");
    await page.click("text=make it sepia");
    assert.equal(await page.inputValue("#prompt"), "make it sepia");
    await make(page);
    const made = await pixelsOf(page, ".after-image");
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.click("[aria-label=Download]"),
    ]);
    assert.match(download.suggestedFilename(), /^make-it-sepia-\d+\.png$/);
    const file = readFileSync(await download.path()).toString("base64");
    const slider = page.locator(".split");
    await slider.focus();
    await page.keyboard.press("Home");
    assert.equal(await slider.inputValue(), "0");

    await page.reload();
    await page.waitForSelector("body[data-ready]");
    assert.equal(await page.locator(".history-list li").count(), 1);
    await page.click(".thumbnail");
    await page.waitForSelector(".after-image");
    assert.deepEqual((await pixelsOf(page, ".after-image")).data, made.data);
    await page.close();

    page = await openPage(context, server.url);
    await dropBytes(page, file, "mine.png");
    await page.waitForSelector("dialog[open]");
    await shot(page, "replay-light");
    assert.deepEqual(await violations(page), []);
    await page.click("text=Take its recipe");
    await page.waitForSelector(".picture img");
    assert.equal(await page.inputValue("#prompt"), "make it sepia");
    await make(page);
    assert.deepEqual((await pixelsOf(page, ".after-image")).data, made.data, "the same pixels");

    await page.click("text=Delete all");
    await page.click("dialog >> text=Delete all");
    await page.waitForSelector(".history-empty:not([hidden])");
  },
);

inWindow("a painted mask is where the picture changes", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  await sample(page, "shapes");
  await page.fill("#prompt", "invert the colors");
  await page.click("text=Paint a mask");
  const box = await page.locator(".frame").boundingBox();
  const to = (x, y, options) => page.mouse.move(box.x + box.width * x, box.y + box.height * y, options);
  await to(0.2, 0.3);
  await page.mouse.down();
  await to(0.4, 0.35, { steps: 6 });
  await to(0.25, 0.45, { steps: 6 });
  await page.mouse.up();
  await to(0.7, 0.2);
  await page.mouse.down();
  await page.mouse.up();
  await page.keyboard.press("Control+z");
  await to(0.55, 0.3);
  await shot(page, "mask-light");
  assert.deepEqual(await violations(page), []);
  const mask = await pixelsOf(page, "canvas.mask");
  const painted = (index) => mask.data[index * 4 + 3] >= 128;
  const count = Array.from({ length: 128 * 128 }, (_, index) => painted(index)).filter(Boolean).length;
  assert.ok(count > 300 && count < 6000, `${count} pixels are painted`);
  await page.keyboard.press("Enter");
  await make(page);

  const [earlier, later] = [await pixelsOf(page, ".before-image"), await pixelsOf(page, ".after-image")];
  const differs = (index) =>
    [0, 1, 2].some((channel) => earlier.data[index * 4 + channel] !== later.data[index * 4 + channel]);
  let inside = 0;
  for (let index = 0; index < 128 * 128; index += 1) {
    if (painted(index)) inside += differs(index) ? 1 : 0;
    else assert.ok(!differs(index), `pixel ${index} lies outside and changed`);
  }
  assert.ok(inside > count / 2, `${inside} of ${count} changed`);
  await page.click("text=Difference");
  await page.waitForSelector(".difference-note");
  await shot(page, "difference-light");
  await page.click("[aria-label='The call that makes this picture']");
  assert.match(await page.textContent("dialog pre"), /-F 'mask=@mask\.png'/);
  await page.click("dialog >> text=Python");
  assert.match(await page.textContent("dialog pre"), /mask=open\("mask\.png", "rb"\)/);
  await shot(page, "code-light");
  assert.deepEqual(await violations(page), []);
});

inWindow("a mask is painted with the keyboard alone", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  await sample(page, "shapes");
  await page.focus("button:has-text('Paint a mask')");
  await page.keyboard.press("Enter");
  for (const key of ["ArrowLeft", "ArrowUp", " ", "]", " "]) await page.keyboard.press(key);
  const count = async () =>
    (await pixelsOf(page, "canvas.mask")).data.filter((value, at) => at % 4 === 3 && value >= 128).length;
  const dab = await count();
  assert.ok(dab > 10, `${dab}`);
  await page.keyboard.press("i");
  assert.equal(await count(), 128 * 128 - dab);
  await page.keyboard.press("Control+z");
  for (const key of ["[", "[", "[", "[", "e"]) await page.keyboard.press(key);
  await page.keyboard.press(" ");
  assert.ok((await count()) < dab);
  await page.keyboard.press("Escape");
  await page.waitForSelector("text=Change the mask");
});

inWindow("cancelling frees the line", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  await sample(page, "shapes");
  // Long enough that it is not done by itself within what is waited for below.
  await page.click("summary");
  await page.fill("[data-field=num_inference_steps] input", "150");
  await page.click("#go");
  await page.waitForSelector(".progress-words:has-text('Step')");
  await page.click("text=Cancel");
  await page.waitForSelector(".stage[data-view=input]");
  await page.waitForSelector("#go:not([hidden])");
  const until = Date.now() + 30_000;
  for (;;) {
    const { busy, waiting } = await (await fetch(`${server.url}/health`)).json();
    if (!busy && waiting === 0) break;
    assert.ok(Date.now() < until, "the server still works on it");
  }
  assert.equal(await page.locator(".history-list li").count(), 0);
});

test("what is wrong is said beside its field", { timeout: PATIENCE_MS }, async () => {
  const { context } = await openWindow(browser);
  const page = await openPage(context, server.url);
  await page.click("#go");
  assert.match(await page.textContent("[data-field~=image] .fault"), /Choose a picture first/);
  await sample(page, "shapes");
  await page.click("summary");
  await page.fill("[data-field=num_inference_steps] input", "999");
  await page.click("#go");
  const fault = page.locator("[data-field=num_inference_steps] .fault");
  await fault.waitFor();
  assert.match(await fault.textContent(), /expected a value <= 150, got 999/);
  assert.equal(await page.getAttribute("[data-field=num_inference_steps] input", "aria-invalid"), "true");
  assert.equal(
    await page.evaluate(() => document.activeElement.closest("[data-field]").dataset.field),
    "num_inference_steps",
  );
  await shot(page, "fault-light");
  assert.deepEqual(await violations(page), []);
  await page.fill("[data-field=num_inference_steps] input", "");
  await page.fill("#prompt", "");
  await page.click("#go");
  await page.locator("[data-field=prompt] .fault").waitFor();
  await context.close();
});

inWindow("a tab that was closed finds its picture again", {}, async ({ context }) => {
  const first = await openPage(context, server.url);
  await sample(first, "shapes");
  const sent = first.waitForResponse((response) => response.status() === 202);
  await first.click("#go");
  await sent;
  await first.waitForSelector(".progress-words:has-text('Step')");
  await first.close();

  const second = await openPage(context, server.url);

  await second.waitForSelector(".stage[data-view=result] .after-image");
  assert.equal(await second.inputValue("#prompt"), "change the background to green");
  assert.equal(await second.locator(".history-list li").count(), 1);
});

inWindow("a result is the next input, and another seed makes another picture", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  await sample(page, "shapes");
  await page.fill("#prompt", "make the circle red");
  await make(page);
  const seed = await page.inputValue("[data-field=seed] input");
  await page.click("text=Use as input");
  await page.waitForSelector(".stage[data-view=input]");
  assert.match(await page.textContent(".stage-foot"), /make-the-circle-red/);
  await page.click(".segmented >> text=Result");
  await page.click("text=Another seed");
  await page.waitForSelector(".stage[data-view=running]");
  await page.waitForSelector(".stage[data-view=result] .after-image");
  assert.notEqual(await page.inputValue("[data-field=seed] input"), seed);
  assert.equal(await page.locator(".history-list li").count(), 2);
});

inWindow("several pictures keep the order that they are given", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  await drop(page, PHOTO, "one.png");
  await page.waitForSelector(".picture");
  await drop(page, PHOTO, "two.png");
  await page.waitForFunction(() => document.querySelectorAll(".picture").length === 2);
  const names = () => page.locator(".picture").evaluateAll((pictures) => pictures.map(({ title }) => title));
  assert.deepEqual(await names(), ["one.png", "two.png"]);
  await page.click(".movers >> nth=1 >> [aria-label='Move this picture forward']");
  assert.deepEqual(await names(), ["two.png", "one.png"]);
  await page.click("[aria-label='Remove this picture'] >> nth=0", { force: true });
  assert.deepEqual(await names(), ["one.png"]);
});

test("where a key is wanted it is asked for, and kept for the tab", { timeout: PATIENCE_MS }, async () => {
  const guarded = await startServer({ variables: { DIFFUSER_API_KEYS: "the-right-key" } });
  const { context } = await openWindow(browser);
  try {
    const page = await context.newPage();
    await page.goto(guarded.url);
    await page.fill("#key", "a wrong one");
    await shot(page, "key-light");
    assert.deepEqual(await violations(page), []);
    await page.click("text=Use it");
    await page.waitForSelector("dialog .fault");
    await page.fill("#key", "the-right-key");
    await page.keyboard.press("Enter");
    await page.waitForSelector("body[data-ready]");
    await page.reload();
    await page.waitForSelector("body[data-ready]");
    assert.equal(await page.locator("dialog").count(), 0);
    await sample(page, "shapes");
    await make(page);
    const other = await context.newPage();
    await other.goto(guarded.url);
    await other.waitForSelector("#key");
  } finally {
    await context.close();
    guarded.stop();
  }
});

inWindow("it works behind a path of a proxy", {}, async ({ context }) => {
  const proxy = await startProxy(server, "/images/here");
  try {
    const page = await openPage(context, proxy.url);
    await sample(page, "shapes");
    await make(page);
    await page.goto(`${proxy.url}playground`);
    await page.waitForSelector("body[data-ready]");
  } finally {
    proxy.stop();
  }
});

inWindow(
  "it works on a phone",
  { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
  async ({ context }) => {
    const page = await openPage(context, server.url);
    await shot(page, "phone-empty");
    await page.tap(".sample >> nth=0");
    await page.tap("#go");
    await page.waitForSelector(".stage[data-view=running]");
    await page.waitForSelector(".stage[data-view=result] .after-image");
    await page.waitForTimeout(300);
    await shot(page, "phone-compare");
    await page.screenshot({ path: join(SHOTS, "phone-whole.png"), fullPage: true, animations: "disabled" });
    const { wide, shown } = await page.evaluate(() => ({
      wide: document.documentElement.scrollWidth,
      shown: innerWidth,
    }));
    assert.ok(wide <= shown, `${wide} wide on ${shown}`);
    const go = await page.locator("#go").boundingBox();
    assert.ok(go.y + go.height <= 844 && go.height >= 44, JSON.stringify(go));
    assert.deepEqual(await violations(page), []);
  },
);

inWindow(
  "it is dark where that is wished for, and the choice is kept",
  { colorScheme: "dark" },
  async ({ context }) => {
    const page = await openPage(context, server.url);
    await shot(page, "empty-dark");
    assert.deepEqual(await violations(page), []);
    await sample(page, "landscape");
    await page.fill("#prompt", "add a blue tint");
    await page.click("#go");
    await page.waitForFunction(() => window.previews.length >= 2);
    await shot(page, "running-dark");
    assert.deepEqual(await violations(page), []);
    await page.waitForSelector(".stage[data-view=result] .after-image");
    await page.waitForTimeout(300);
    await shot(page, "compare-dark");
    assert.deepEqual(await violations(page), []);
    await page.click("summary");
    await shot(page, "parameters-dark");
    assert.deepEqual(await violations(page), []);
    await page.click("[aria-label^='Colours']");
    await page.reload();
    await page.waitForSelector("body[data-ready]");
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light");
    assert.deepEqual(await violations(page), []);
  },
);

inWindow("the keyboard alone leads from the start to a picture", {}, async ({ context }) => {
  const page = await openPage(context, server.url);
  const focused = () => page.evaluate(() => document.activeElement.className);
  for (let presses = 0; presses < 60 && (await focused()) !== "sample"; presses += 1)
    await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "go");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".stage[data-view=result] .after-image");
});

inWindow("every language has every word, and fits", {}, async ({ context }) => {
  const words = await Promise.all(
    LANGUAGES.map(async (code) => (await import(join(ROOT, `web/languages/${code}.js`))).default),
  );
  const forms = /\.(one|other)$/;
  const keysOf = (language) =>
    [...new Set(Object.keys(language).map((key) => key.replace(forms, "")))].sort();
  for (const language of words) assert.deepEqual(keysOf(language), keysOf(words[0]));
  const page = await openPage(context, server.url);
  await page.click("summary");
  for (const code of LANGUAGES) {
    await page.selectOption(".language", code);
    await page.waitForFunction((lang) => document.documentElement.lang.startsWith(lang), code);
    const texts = await page.evaluate(() => document.body.textContent);
    assert.doesNotMatch(texts, /\b(parameter|prompt|quality|size|seed|empty|history|stage)\.[a-z]+/i);
    assert.deepEqual(await violations(page), []);
    await shot(page, `language-${code}`);
  }
  await page.reload();
  await page.waitForSelector("body[data-ready]");
  assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-Hans");
});

test("pictures come from words, vary, and come apart into layers, where models can do that", {
  timeout: 2 * PATIENCE_MS,
}, async () => {
  const checkpoints = ["qwen-image", "qwen-image-layered"].map((name) =>
    join(ROOT, "tests/data/fixtures/ckpt", name),
  );
  const able = await startServer({ models: checkpoints });
  const { context, faults } = await openWindow(browser);
  try {
    const page = await openPage(context, able.url);
    await page.click("text=Generate");
    await page.waitForSelector(".words-only:not([hidden])");
    await page.fill("#prompt", "a red boat");
    await page.click("[aria-label='One more']");
    await page.selectOption("[data-field=size] select", "custom");
    await page.fill("[aria-label='Own size…']", "64x64");
    await make(page);
    assert.equal(await page.locator(".outputs button").count(), 2);
    await page.click("[aria-label='The call that makes this picture']");
    assert.match(await page.textContent("dialog pre"), /images\/generations.*"prompt":"a red boat"/s);
    await page.keyboard.press("Escape");
    await page.click(".modes >> text=Variations");
    await drop(page, PHOTO);
    await make(page);
    await page.click(".modes >> text=Edit");
    await page.selectOption(".model-select", { index: 1 });
    await page.click("[aria-label='One fewer']");
    await page.click("summary");
    await page.fill("[data-field=layers] input", "3");
    await page.click("#go");
    await page.waitForSelector(".stage[data-view=running]");
    await page.waitForSelector(".frame.stack img");
    assert.equal(await page.locator(".frame.stack .layer").count(), 3);
    await page.click(".outputs button >> nth=1");
    assert.equal(await page.locator(".frame.stack .layer").count(), 2);
    await shot(page, "layers-light");
    assert.deepEqual(await violations(page), []);
    assert.deepEqual(faults, []);
  } finally {
    await context.close();
    able.stop();
  }
});

test("the README's pictures are there", { skip: !PICTURES }, () => {
  copyFileSync(join(SHOTS, "compare-light.png"), join(ROOT, "docs/playground.png"));
  copyFileSync(join(SHOTS, "running-dark.png"), join(ROOT, "docs/playground-dark.png"));
});
